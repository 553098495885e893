"""Put the settings of an example into params.yaml, and leave its comments as they are.

    python tools/use_example.py examples/smax.yaml

`git checkout params.yaml` takes them back.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from macflow.catalogue import dataset_named
from macflow.params_file import change_params, read_settings
from macflow.types import MacflowError


def main() -> int:
    """Merge, check, write; return the exit status."""
    parser = argparse.ArgumentParser(description="Put the settings of an example into params.yaml.")
    parser.add_argument("example", type=Path, help="a file of examples/")
    parser.add_argument("--params", type=Path, default=Path("params.yaml"), help="the file to change")
    arguments = parser.parse_args()
    try:
        changed = use_example(arguments.example, arguments.params)
    except MacflowError as error:
        print(f"use_example: {error}", file=sys.stderr)
        return 1
    print("\n".join(changed) or f"{arguments.params}: has these settings already")
    return 0


def use_example(example: Path, params: Path) -> list[str]:
    """Change `params` and return a line for each setting that is another one now.

    Raises:
        ConfigError: where a file is missing or no YAML, or a setting is unknown or breaks its rule;
            `params` is as it was then.
    """
    return change_params(
        params, read_settings(example), str(example), lambda all_of_it: dataset_named(all_of_it.dataset.root)
    )


if __name__ == "__main__":
    sys.exit(main())
