"""Time cells that have nothing to do through Prefect: what a sweep costs beside its runs; print JSON.

    python benchmarks/bench_sweep.py                  # 1,000 cells, two at a time, on threads
    python benchmarks/bench_sweep.py --engine dask    # the same on Dask; ray likewise

A cell is the program that every engine runs, which finds its outcome and ends; `alone` is it without
Prefect. The server is one of this run's own; its start is not counted, a cluster's is.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from prefect import flow

from flows.sweep import run_cells, runner_of
from macflow.files import write_json
from workspace import ROOT

ALONE = 20


def main() -> None:
    """Run, or start a server and run below it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cells", type=int, default=1000)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--engine", choices=("local", "dask", "ray"), default="local")
    given = parser.parse_args()
    if "PREFECT_API_URL" not in os.environ:
        from prefect.server.api.server import SubprocessASGIServer

        with tempfile.TemporaryDirectory() as home:
            os.environ["PREFECT_HOME"] = home
            server = SubprocessASGIServer()
            server.start()
            try:
                environment = {
                    **os.environ,
                    "PREFECT_API_URL": server.api_url,
                    "PREFECT_LOGGING_LEVEL": "ERROR",
                }
                subprocess.run([sys.executable, *sys.argv], env=environment, check=True)
            finally:
                server.stop()
        return
    with tempfile.TemporaryDirectory() as folder:
        store = Path(folder)
        left = [entry(number) for number in range(given.cells)]
        for one in left:
            write_json(store / "cells" / f"{one['key']}.json", {})
        started = time.perf_counter()
        for one in left[:ALONE]:
            content = json.dumps({name: value for name, value in one.items() if name != "label"})
            command = [sys.executable, "-m", "macflow.sweeps.cell", str(ROOT), folder]
            subprocess.run(command, input=content, text=True, check=True)
        alone = (time.perf_counter() - started) / ALONE

        @flow(name="bench-sweep")
        def bench() -> None:
            with runner_of(given.engine, given.jobs, None) as runner:
                lost = run_cells(runner, str(ROOT), folder, left)
            if lost:
                raise RuntimeError(f"{len(lost)} cells were lost: {next(iter(lost.items()))}")

        started = time.perf_counter()
        bench()
        seconds = time.perf_counter() - started
    print(
        json.dumps(
            {
                "engine": given.engine,
                "cells": given.cells,
                "jobs": given.jobs,
                "seconds": round(seconds, 1),
                "seconds_per_cell": round(seconds / given.cells, 3),
                "alone_seconds_per_cell": round(alone, 3),
                # Of each of `jobs` cells that run at the same time.
                "overhead_seconds_per_cell": round(seconds * given.jobs / given.cells - alone, 3),
            }
        )
    )


def entry(number: int) -> dict[str, object]:
    """Return a cell as `macflow sweep cells` writes it."""
    return {
        "label": f"cell {number}",
        "dataset": "d",
        "method": "m",
        "seed": number,
        "params": {},
        "baseline": None,
        "key": f"{number:016x}",
    }


if __name__ == "__main__":
    main()
