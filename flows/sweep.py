"""The flow `sweep`: what is left of a sweep of `macflow sweep`, a task per cell, on threads, Dask or Ray.

    python -m flows.sweep examples/sweeps/peers.yaml --engine dask --jobs 4

Called so, which `macflow sweep run --engine dask` does, it brings a Prefect server of its own for the time of
the run. A cell is a process wherever its task runs, `python -m macflow.sweeps.cell`, and leaves its outcome
in the folder of runs, which all workers must see: this checkout, on every machine at the same path.
"""

from __future__ import annotations

import argparse
import json
import os
import secrets
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, cast
from uuid import UUID

from prefect import flow, get_run_logger, task
from prefect.artifacts import create_markdown_artifact, create_progress_artifact, update_progress_artifact
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State
from prefect.futures import as_completed
from prefect.states import Completed, Failed
from prefect.task_runners import TaskRunner, ThreadPoolTaskRunner

from flows import tied
from flows.dvc_process import environment, run_module

ROOT = Path(__file__).resolve().parent.parent
Engine = Literal["local", "dask", "ray"]
LOOPBACK = "127.0.0.1"
RUNS = "runs"
# Times that a cell is begun whose worker ended under it.
ATTEMPTS = 3


@task(name="cell", cache_policy=NO_CACHE, persist_result=False, task_run_name="{label}")
def run_cell(root: str, store: str, label: str, content: Mapping[str, Any]) -> None:
    """Run one cell to its end, as a process that ends with this worker.

    Raises:
        RuntimeError: the process ended without an outcome.
    """
    done = subprocess.run(
        tied.command("-m", "macflow.sweeps.cell", root, store),
        input=json.dumps(content),
        cwd=root,
        env={**environment(Path(root)), "PYTHONPATH": root},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    if done.returncode:
        words = done.stderr.strip().splitlines()
        raise RuntimeError(f"ended with code {done.returncode}: {words[-1] if words else 'no word'}")


@flow(name="sweep", description="Every method on every dataset with every seed.")
def sweep(
    file: str = "examples/sweeps/peers.yaml",
    engine: Engine = "local",
    jobs: int = 2,
    address: str | None = None,
    out: str = "sweeps",
) -> State[Any]:
    """Run what is left of the sweep in `file`; cancelled or killed, the next run goes on.

    Args:
        engine: local: threads of this process. dask, ray: a cluster on this machine, or that at `address`.
        jobs: cells at the same time; at an `address` the cluster knows.
    """
    log = get_run_logger()
    with tempfile.TemporaryDirectory() as folder:
        wanted = Path(folder) / "cells.json"
        status, lines = run_module(
            ROOT, "macflow.cli", "sweep", "cells", file, f"--out={out}", f"--json={wanted}", on_line=log.info
        )
        if status:
            return Failed(message=lines[-1] if lines else f"macflow sweep cells ended with code {status}")
        found = json.loads(wanted.read_text(encoding="utf-8"))
    log.info("%d cells, %d to run", found["cells"], len(found["left"]))
    store = str((ROOT / out / RUNS).absolute())
    with runner_of(engine, jobs, address) as runner:
        lost = run_cells(runner, str(ROOT), store, found["left"])
    for label, reason in lost.items():
        log.error("%s: %s", label, reason)
    status, lines = run_module(ROOT, "macflow.cli", "sweep", "show", file, f"--out={out}", on_line=log.info)
    create_markdown_artifact("\n".join(lines), key="sweep", description=f"What {file} came to.")
    if status or lost:
        return Failed(message=f"{file}: cells failed; the artifact names them")
    return Completed(message=f"{found['cells']} cells, {len(found['left'])} of them run now")


def run_cells(
    runner: TaskRunner[Any], root: str, store: str, left: Sequence[Mapping[str, Any]]
) -> dict[str, str]:
    """Run cells as tasks of `runner`; return what was lost, by label, with the reason.

    A cell whose worker ended under it is begun again, a few times. To be called in a flow.
    """
    progress = cast(
        UUID, create_progress_artifact(0.0, key="sweep-progress", description="Cells that have ended.")
    )
    waiting = {entry["label"]: {k: v for k, v in entry.items() if k != "label"} for entry in left}
    lost: dict[str, str] = {}
    ended = 0
    for _ in range(ATTEMPTS):
        lost = {}
        futures = {
            runner.submit(run_cell, {"root": root, "store": store, "label": label, "content": content}): label
            for label, content in waiting.items()
        }
        for future in as_completed(list(futures)):
            label = futures[future]
            try:
                future.result()
            except Exception as error:  # whatever the cluster says of a task that was lost
                lost[label] = f"{type(error).__name__}: {error}"
                continue
            ended += 1
            update_progress_artifact(progress, 100.0 * ended / len(left))
        if not lost:
            break
        waiting = {label: waiting[label] for label in lost}
    for label, reason in lost.items():
        _record(Path(store), waiting[label]["key"], reason)
    return lost


@contextmanager
def runner_of(engine: Engine, jobs: int, address: str | None) -> Iterator[TaskRunner[Any]]:
    """Yield a started task runner: threads, a cluster on this machine's loopback, or the one at `address`."""
    if engine == "local":
        threads: TaskRunner[Any]
        with ThreadPoolTaskRunner(max_workers=jobs) as threads:
            yield threads
    elif engine == "dask":
        os.environ.setdefault("DASK_LOGGING__DISTRIBUTED", "warning")
        from prefect_dask.task_runners import DaskTaskRunner

        own = {"n_workers": jobs, "threads_per_worker": 1, "host": LOOPBACK, "dashboard_address": None}
        with DaskTaskRunner(address=address, cluster_kwargs=None if address else own) as dask:
            yield dask
    else:
        with _ray_runner(jobs, address) as ray:
            yield ray


@contextmanager
def _ray_runner(jobs: int, address: str | None) -> Iterator[TaskRunner[Any]]:
    os.environ |= {"RAY_AUTH_MODE": "token", "RAY_USAGE_STATS_ENABLED": "0"}
    if address is None:
        # What keeps Ray to loopback where it makes no clusters; a node's address alone does not.
        os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
    if address is None and not {"RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"} & set(os.environ):
        # Nobody else is to know it: made for this run, and handed down to the cluster's processes alone.
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
    from prefect_ray import RayTaskRunner

    with tempfile.TemporaryDirectory(prefix="macflow-ray-", ignore_cleanup_errors=True) as folder:
        own = {
            "num_cpus": jobs,
            "include_dashboard": False,
            "_temp_dir": folder,
            "log_to_driver": False,
        }
        with RayTaskRunner(address=address, init_kwargs=None if address else own) as runner:
            yield runner


def _record(store: Path, key: str, reason: str) -> None:
    """Leave the reason of a failure where `macflow sweep show` finds it."""
    folder = store / "failed"
    folder.mkdir(parents=True, exist_ok=True)
    fresh = folder / f".{key}.new"
    fresh.write_text(json.dumps({"error": f"its worker was lost: {reason}"}), encoding="utf-8")
    fresh.replace(folder / f"{key}.json")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the flow with a server of its own; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m flows.sweep", description=main.__doc__)
    parser.add_argument("file")
    parser.add_argument("--engine", choices=("local", "dask", "ray"), default="local")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--address")
    parser.add_argument("--out", default="sweeps")
    given = vars(parser.parse_args(arguments))
    if "PREFECT_API_URL" not in os.environ:
        # Settings are read at Prefect's import, and by every worker: so another process, with the address.
        from prefect.server.api.server import SubprocessASGIServer

        server = SubprocessASGIServer()
        server.start()
        try:
            return subprocess.run(
                [sys.executable, "-m", "flows.sweep", *(arguments or sys.argv[1:])],
                env={**os.environ, "PREFECT_API_URL": server.api_url},
            ).returncode
        finally:
            server.stop()
    state = sweep(**given, return_state=True)
    if not state.is_completed():
        print(f"sweep: {state.message}", file=sys.stderr)
    return 0 if state.is_completed() else 1


if __name__ == "__main__":
    sys.exit(main())
