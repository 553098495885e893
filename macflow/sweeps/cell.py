"""One cell of a sweep, run wherever a worker is; a program, so that every engine does the same.

    python -m macflow.sweeps.cell PROJECT STORE < cell.json

Finished stages are found in STORE, the others run there. What came of it is left as STORE/cells/KEY.json, or
STORE/failed/KEY.json with the reason; the program ends with 0 in either case, and does nothing where the
former is there.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from filelock import FileLock

from macflow.files import digest, read_json, write_json
from macflow.parent import die_with_parent
from macflow.runs.pipeline import Pipeline
from macflow.runs.store import DONE, RunStore, link
from macflow.sweeps.plan import Cell
from macflow.types import MacflowError

FINISHED, FAILED = "cells", "failed"
MEASURES = ("return_mean", "return_ci95_low", "return_ci95_high", "normalized_return")


def main(arguments: Sequence[str]) -> int:
    """Run the cell that stands on stdin; return the exit status."""
    die_with_parent()
    project, store = (Path(argument) for argument in arguments)
    run_cell(Cell(**json.load(sys.stdin)), project, store)
    return 0


def run_cell(cell: Cell, project: Path, store: Path) -> None:
    """Do what is left to do of a cell and leave its outcome in `store`."""
    outcome, failure = outcome_file(store, cell), failure_file(store, cell)
    if outcome.exists():
        return
    failure.unlink(missing_ok=True)
    runs = RunStore(Pipeline(project), store)
    try:
        found = _macflow(runs, cell) if cell.baseline is None else _baseline(runs, cell, cell.baseline)
    except MacflowError as error:
        write_json(failure, {"error": str(error)})
        return
    write_json(outcome, found)


def outcome_file(store: Path, cell: Cell) -> Path:
    """Return where a finished cell's outcome lies."""
    return store / FINISHED / f"{cell.key}.json"


def failure_file(store: Path, cell: Cell) -> Path:
    """Return where the reason of a failure lies."""
    return store / FAILED / f"{cell.key}.json"


def _macflow(runs: RunStore, cell: Cell) -> dict[str, Any]:
    folder = runs.made("evaluate", cell.params)
    found = read_json(folder / "metrics/evaluate.json")
    return _outcome(found["policy"], found["dataset"]["return_mean"], folder, folder / "models/policy")


def _baseline(runs: RunStore, cell: Cell, how: Mapping[str, Any]) -> dict[str, Any]:
    prepared = runs.made("prepare", cell.params) / "data/prepared"
    folder = runs.root / f"baseline-{how['method']}-{cell.key}"
    trained = [f"--{key.replace('_', '-')}={value}" for key, value in how["training"].items()]
    trained += [f"--set={key}={value}" for key, value in how["settings"].items()]
    played = [f"--{key}={value}" for key, value in how["evaluation"].items()]
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / "lock"):
        if not (folder / DONE).exists():
            link(prepared, folder / "data/prepared")
            for what, arguments in (
                ("train", [how["method"], "--data=data/prepared", "--out=baseline", *trained]),
                ("evaluate", ["baseline", *played, "--json=evaluation.json"]),
            ):
                command = [sys.executable, "-m", "macflow.cli", "baseline", what, *arguments]
                runs.call(f"baseline {what}", command, folder)
            (folder / DONE).touch()
    data_return = read_json(prepared / "dataset.json")["returns"]["mean"]
    return _outcome(read_json(folder / "evaluation.json"), data_return, folder, folder / "baseline")


def _outcome(played: Mapping[str, Any], data_return: float, folder: Path, artifact: Path) -> dict[str, Any]:
    return {name: played.get(name) for name in MEASURES} | {
        "data_return": data_return,
        "run": folder.name,
        "artifact": digest(artifact),
    }


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
