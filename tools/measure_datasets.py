"""Record datasets as the catalogue names them, and write what they have into macflow/dataset_facts.json.

    python tools/measure_datasets.py mpe-spread/medium game-xor/mixed
    python tools/measure_datasets.py 'mpe-*' 'game-*'

Default keywords, seed 0, and the catalogue's number of episodes; `macflow dataset list` shows the figures.
A dataset whose environment is not installed is an error.
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import sys
import tempfile
from pathlib import Path

from macflow.catalogue import FACTS, Facts, RecordedDataset, all_datasets, read_facts
from macflow.files import write_json
from macflow.stages.record import record_dataset
from macflow.types import ConfigError, MacflowError


def main() -> int:
    """Record, measure, write after each; return the exit status."""
    parser = argparse.ArgumentParser(description="Measure the recorded datasets of the catalogue.")
    parser.add_argument("names", nargs="+", help="names, or patterns with * and ?")
    names: list[str] = parser.parse_args().names
    try:
        for dataset in _chosen(names):
            found = _measure(dataset)
            print(json.dumps({"name": dataset.name, **found}), flush=True)
            write_json(FACTS, {**read_facts(), dataset.name: found})
    except MacflowError as error:
        print(f"measure_datasets: {error}", file=sys.stderr)
        return 1
    return 0


def _chosen(patterns: list[str]) -> list[RecordedDataset]:
    recorded = {name: entry for name, entry in all_datasets().items() if isinstance(entry, RecordedDataset)}
    for pattern in patterns:
        if not fnmatch.filter(recorded, pattern):
            raise ConfigError(f"no recorded dataset is called so (received {pattern!r})")
    return [entry for name, entry in recorded.items() if any(fnmatch.fnmatchcase(name, p) for p in patterns)]


def _measure(dataset: RecordedDataset) -> Facts:
    with tempfile.TemporaryDirectory(prefix="macflow-") as name:
        folder = Path(name) / "raw"
        episodes = record_dataset(folder, dataset, {}, None, 0)
        size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    return {
        "command": f"python tools/measure_datasets.py {dataset.name}",
        "episodes": len(episodes),
        "transitions": sum(episode.length for episode in episodes),
        "bytes": size,
        "return_mean": round(sum(episode.team_return for episode in episodes) / len(episodes), 4),
    }


if __name__ == "__main__":
    sys.exit(main())
