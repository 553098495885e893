"""Put the settings of an example into params.yaml, and leave its comments as they are.

    python tools/use_example.py examples/smax.yaml

`git checkout params.yaml` takes them back.
"""

from __future__ import annotations

import argparse
import io
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap, CommentedSeq
from ruamel.yaml.error import YAMLError

from macflow.catalogue import dataset_named
from macflow.config import check_params
from macflow.files import write_text
from macflow.types import ConfigError, MacflowError

# Values of these are replaced as a whole: keywords of one environment mean nothing to another.
WHOLE = ("kwargs",)


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
    yaml = YAML()
    yaml.width = 1000
    yaml.representer.add_representer(type(None), _null)
    present, wanted = _read(yaml, params), _read(yaml, example)
    changed = _merge(present, wanted, str(example))
    dataset_named(check_params(params, YAML(typ="safe").load(_text(yaml, present))).dataset.root)
    write_text(params, _text(yaml, present))
    return changed


def _read(yaml: YAML, path: Path) -> Any:
    try:
        raw = yaml.load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{path}: file not found") from None
    except (YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not valid YAML: {error}") from None
    if not isinstance(raw, Mapping):
        raise ConfigError(f"{path}: must map names to values (received {raw!r})")
    return raw


def _text(yaml: YAML, content: Any) -> str:
    stream = io.StringIO()
    yaml.dump(content, stream)
    return stream.getvalue()


def _merge(present: Any, wanted: Mapping[str, Any], where: str, *names: str) -> list[str]:
    changed = []
    for name, value in wanted.items():
        path = ".".join([*names, name])
        if name not in present:
            raise ConfigError(f"{where}: `{path}`: there is no such parameter (received {value!r})")
        if isinstance(value, Mapping) and isinstance(present[name], Mapping) and name not in WHOLE:
            changed += _merge(present[name], value, where, *names, name)
        elif present[name] != value:
            changed.append(f"{path}: {_plain(present[name])} -> {_plain(value)}")
            present[name] = _in_one_line(value)
    return changed


def _plain(value: Any) -> Any:
    """Return the value without the comments that belong to it in its file."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return value


def _in_one_line(value: Any) -> Any:
    plain = _plain(value)
    if isinstance(plain, dict):
        plain = CommentedMap(plain)
    elif isinstance(plain, list):
        plain = CommentedSeq(plain)
    else:
        return plain
    plain.fa.set_flow_style()
    return plain


def _null(representer: Any, value: None) -> Any:
    """Write what is empty as `null`, which a reader sees."""
    return representer.represent_scalar("tag:yaml.org,2002:null", "null")


if __name__ == "__main__":
    sys.exit(main())
