"""`macflow sweep`: every method on every dataset with every seed, on this machine, Dask or Ray."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from macflow.types import ConfigError

if TYPE_CHECKING:
    from macflow.sweeps.plan import Cell

app = typer.Typer(no_args_is_help=True, help="Every method on every dataset with every seed.")

SweepPath = Annotated[Path, typer.Argument(help="The sweep: a YAML file such as examples/sweeps/peers.yaml.")]
Out = Annotated[Path, typer.Option(help="Folder of sweeps: results in OUT/NAME, runs of all in OUT/runs.")]
RUNS = "runs"


class EngineName(StrEnum):
    """What runs the cells."""

    local = "local"
    dask = "dask"
    ray = "ray"


@app.command()
def run(
    file: SweepPath,
    engine: Annotated[
        EngineName, typer.Option(help="This machine's processes, or a cluster.")
    ] = EngineName.local,
    jobs: Annotated[int, typer.Option(min=1, help="Cells at the same time.")] = 2,
    address: Annotated[
        str | None, typer.Option(help="Of a cluster that is there; one on this machine if not given.")
    ] = None,
    out: Out = Path("sweeps"),
) -> None:
    """Run what is left of a sweep, then say what it came to.

    A cell that fails is named and the others go on. Ctrl-C loses nothing that was finished: the same command
    goes on, and what was done with the same inputs, in this sweep or another, is not done again.
    """
    if engine is not EngineName.local:
        # Prefect joins the cells to the cluster, and macflow itself knows nothing of Prefect.
        options = [f"--engine={engine.value}", f"--jobs={jobs}", f"--out={out}"]
        options += [] if address is None else [f"--address={address}"]
        ended = subprocess.run([sys.executable, "-m", "flows.sweep", str(file), *options])
        if ended.returncode:
            raise typer.Exit(ended.returncode)
        return
    if address is not None:
        raise ConfigError(f"`--address`: is a cluster's; name its --engine (received {address!r})")
    from macflow.sweeps.local import LocalEngine, unfinished

    cells, store = _cells(file), out / RUNS
    left = unfinished(cells, store)
    print(f"{len(cells)} cells, {len(left)} to run", flush=True)
    ended_cells = 0

    def tell(cell: Cell) -> None:
        nonlocal ended_cells
        ended_cells += 1
        print(f"{ended_cells} of {len(left)}: {cell.label}: {_outcome(cell, store)}", flush=True)

    LocalEngine(Path("."), store, jobs).run(left, tell)
    _show(file, cells, out)


@app.command()
def show(file: SweepPath, out: Out = Path("sweeps")) -> None:
    """Say what a sweep has come to so far, and write its tables and pictures anew."""
    _show(file, _cells(file), out)


@app.command(hidden=True)
def cells(
    file: SweepPath,
    json_file: Annotated[Path, typer.Option("--json", metavar="FILE", help="File to write.")],
    out: Out = Path("sweeps"),
) -> None:
    """Write the cells that are left as JSON: what an engine runs by `python -m macflow.sweeps.cell`."""
    from macflow.files import write_json
    from macflow.sweeps.local import unfinished

    every = _cells(file)
    left = [{"label": cell.label} | cell.to_dict() for cell in unfinished(every, out / RUNS)]
    write_json(json_file, {"cells": len(every), "left": left})


def _cells(file: Path) -> list[Cell]:
    from macflow.params_file import read_plain
    from macflow.runs.pipeline import Pipeline
    from macflow.sweeps.plan import cells_of

    return cells_of(file, read_plain(Path("params.yaml")), Pipeline(Path(".")), _check)


def _check(dataset: str, params: Mapping[str, Any], baseline: Mapping[str, Any] | None) -> None:
    from macflow.algorithms.baselines.registry import settings_of
    from macflow.catalogue import dataset_named
    from macflow.config import check_params

    dataset_named(dataset)
    check_params(Path("params.yaml"), dict(params))
    if baseline is not None:
        settings_of(baseline["method"], baseline["settings"])


def _outcome(cell: Cell, store: Path) -> str:
    from macflow.files import read_json
    from macflow.sweeps.cell import failure_file, outcome_file

    if (done := outcome_file(store, cell)).exists():
        return f"return {read_json(done)['return_mean']:.2f}"
    return f"failed: {read_json(failure_file(store, cell))['error']}"


def _show(file: Path, cells: list[Cell], out: Path) -> None:
    from macflow.sweeps.results import table_of
    from macflow.sweeps.summary import write_summary

    table = table_of(cells, out / RUNS)
    folder = out / file.stem
    print(
        f"\n{write_summary(table, folder)}\n{folder}: {', '.join(sorted(p.name for p in folder.iterdir()))}"
    )
    if (table["status"] == "failed").any():
        raise typer.Exit(1)
