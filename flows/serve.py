"""`make serve`: a local Prefect server and a worker, the deployment registered, until Ctrl-C.

Everything comes from prefect.toml (address, state folder) and prefect.yaml (deployment). Server and
worker are tied to this process: none of them outlives it, however it ends.
"""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import IO
from urllib.parse import urlsplit

import yaml
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterState, FlowRunFilterStateType
from prefect.client.schemas.objects import State, StateType, WorkerStatus
from prefect.exceptions import ObjectAlreadyExists
from prefect.settings import get_current_settings
from prefect.states import Crashed
from prefect.workers.process import ProcessWorker

from flows import tied
from flows.dvc_process import environment

ROOT = Path(__file__).resolve().parent.parent
# A new database takes about 20 s on two slow cores.
START_SECONDS = 120.0
STOP_SECONDS = 30.0
UNFINISHED = [StateType.RUNNING, StateType.PENDING, StateType.CANCELLING]


class ServeError(Exception):
    """Server or worker did not come up; told as one message."""


def main() -> None:
    """Serve until SIGINT or SIGTERM; exit with 1 and a message if something does not come up."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _leave)
    children: list[subprocess.Popen[bytes]] = []
    try:
        _serve(children)
    except ServeError as error:
        print(f"serve: {error}", file=sys.stderr, flush=True)
        sys.exit(1)
    finally:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)  # a second Ctrl-C must not leave children behind
        # The worker first: it still has a server to report to.
        for child in reversed(children):
            _stop(child)


def _serve(children: list[subprocess.Popen[bytes]]) -> None:
    address = get_current_settings().api.url
    if address is None:
        raise ServeError("no API address: start this in the project root, where prefect.toml lies")
    url = urlsplit(address)
    host, port = url.hostname or "127.0.0.1", url.port or 4200
    home = get_current_settings().home
    home.mkdir(parents=True, exist_ok=True)
    pool = _work_pool()
    with (home / "server.log").open("ab") as server_log, (home / "worker.log").open("ab") as worker_log:
        if asyncio.run(_answers()):
            raise ServeError(f"{address} is already being served; stop that server first")
        print(f"starting the Prefect server at {address} (log: {server_log.name})", flush=True)
        server = _start(["server", "start", "--host", host, "--port", str(port)], server_log)
        children.append(server)
        _await(lambda: asyncio.run(_answers()), [server], f"the server is not healthy; see {server_log.name}")
        ended = asyncio.run(_prepare(pool))
        for name in ended:
            print(f"run {name} had lost its worker: marked as crashed", flush=True)
        deployed = subprocess.run(
            [sys.executable, "-m", "prefect", "--no-prompt", "deploy", "--all"],
            cwd=ROOT,
            env=_environment(),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
        )
        if deployed.returncode:
            raise ServeError(f"the deployment was not registered:\n{deployed.stdout}{deployed.stderr}")
        worker_name = f"serve-{os.getpid()}"
        # One run at a time: they would share one DVC repository.
        options = ["--pool", pool, "--type", "process", "--limit", "1", "--name", worker_name]
        worker = _start(["worker", "start", *options], worker_log)
        children.append(worker)
        _await(
            lambda: asyncio.run(_worker_online(pool, worker_name)),
            [server, worker],
            f"the worker is not online; see {worker_log.name}",
        )
    print(
        f"ready: {url.scheme}://{url.netloc}\n\n"
        "In another terminal, in this folder:\n\n"
        "    .venv/bin/prefect deployment run macflow/full-pipeline --watch\n\n"
        "Ctrl-C stops server and worker.",
        flush=True,
    )
    while all(child.poll() is None for child in children):
        time.sleep(0.5)
    raise ServeError(f"server or worker ended by itself; see the logs in {home}")


def _leave(number: int, frame: FrameType | None) -> None:
    sys.exit(0)


def _work_pool() -> str:
    content = yaml.safe_load((ROOT / "prefect.yaml").read_text(encoding="utf-8"))
    return str(content["deployments"][0]["work_pool"]["name"])


def _environment() -> dict[str, str]:
    # prefect.yaml takes the folder of the checkout from PWD, which chdir does not change.
    return {**environment(ROOT), "PWD": str(ROOT)}


def _start(arguments: list[str], log: IO[bytes]) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        tied.command("-m", "prefect", "--no-prompt", *arguments),
        cwd=ROOT,
        env=_environment(),
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=subprocess.STDOUT,
        # A session of its own: Ctrl-C reaches only this process, which then stops them in order.
        start_new_session=True,
    )


def _stop(child: subprocess.Popen[bytes]) -> None:
    child.terminate()
    try:
        child.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()


def _await(ready: Callable[[], bool], alive: list[subprocess.Popen[bytes]], otherwise: str) -> None:
    deadline = time.monotonic() + START_SECONDS
    while not ready():
        if time.monotonic() > deadline or any(child.poll() is not None for child in alive):
            raise ServeError(otherwise)
        time.sleep(0.3)


async def _answers() -> bool:
    async with get_client() as client:
        return await client.api_healthcheck() is None


async def _prepare(pool: str) -> list[str]:
    """Create the work pool and close runs whose worker is gone; return the names of those runs.

    The server has only just started, so nothing can be running; a run left unfinished would hold the
    deployment's only slot until its lease ends.
    """
    async with get_client() as client:
        try:
            await client.create_work_pool(
                WorkPoolCreate(
                    name=pool, type="process", base_job_template=ProcessWorker.get_default_base_job_template()
                )
            )
        except ObjectAlreadyExists:
            pass
        unfinished = FlowRunFilter(state=FlowRunFilterState(type=FlowRunFilterStateType(any_=UNFINISHED)))
        runs = await client.read_flow_runs(flow_run_filter=unfinished)
        for run in runs:
            lost: State[None] = Crashed(message="its worker ended while it ran")
            await client.set_flow_run_state(run.id, lost, force=True)
        return [run.name for run in runs]


async def _worker_online(pool: str, name: str) -> bool:
    async with get_client() as client:
        workers = await client.read_workers_for_work_pool(pool)
    return any(worker.name == name and worker.status == WorkerStatus.ONLINE for worker in workers)


if __name__ == "__main__":
    main()
