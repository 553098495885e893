"""`make serve`: a local Prefect server and a worker, the deployment registered, until Ctrl-C.

Everything comes from prefect.toml (address, state folder) and prefect.yaml (deployment). Server and
worker are tied to this process: none of them outlives it, however it ends.
"""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import IO
from urllib.parse import urlsplit

import yaml
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterState, FlowRunFilterStateType
from prefect.client.schemas.objects import FlowRun, State, StateType, WorkerStatus
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
# A worker that ends by itself sooner than this after its start would only do so again.
WORKER_SECONDS = 10.0
# What a run needs to notice the end of its worker, to end its stages and to report.
LAST_WORDS_SECONDS = 20.0
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
        asyncio.run(_create_pool(pool))
        # The server has only just started, so nothing can be running.
        _close_lost_runs()
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
        children.append(_start_worker(pool, children, worker_log))
        print(
            f"ready: {url.scheme}://{url.netloc}\n\n"
            "In another terminal, in this folder:\n\n"
            "    .venv/bin/prefect deployment run macflow/full-pipeline --watch\n\n"
            "Ctrl-C stops server and worker.",
            flush=True,
        )
        started = time.monotonic()
        while server.poll() is None:
            if children[-1].poll() is not None:
                killed = children[-1].returncode == -signal.SIGKILL
                if not killed and time.monotonic() - started < WORKER_SECONDS:
                    raise ServeError(f"the worker ended by itself; see {worker_log.name}")
                print("the worker ended; starting another", flush=True)
                children.pop()
                # Its runs end with it, and report that themselves if they can.
                _patiently(lambda: not asyncio.run(_unfinished()), LAST_WORDS_SECONDS)
                _close_lost_runs()
                children.append(_start_worker(pool, children, worker_log))
                started = time.monotonic()
            time.sleep(0.5)
        raise ServeError(f"the server ended by itself; see {server_log.name}")


def _start_worker(pool: str, alive: list[subprocess.Popen[bytes]], log: IO[bytes]) -> subprocess.Popen[bytes]:
    """Start a worker and wait until the server has heard from it."""
    name = f"serve-{uuid.uuid4().hex[:8]}"
    # One run at a time: they would share one DVC repository.
    worker = _start(
        ["worker", "start", "--pool", pool, "--type", "process", "--limit", "1", "--name", name], log
    )
    try:
        _await(
            lambda: asyncio.run(_worker_online(pool, name)),
            [*alive, worker],
            f"the worker is not online; see {log.name}",
        )
    except BaseException:
        _stop(worker)
        raise
    return worker


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
    ended = _patiently(lambda: ready() or any(child.poll() is not None for child in alive), START_SECONDS)
    if not ended or any(child.poll() is not None for child in alive):
        raise ServeError(otherwise)


def _patiently(condition: Callable[[], bool], seconds: float) -> bool:
    """Return whether the condition came true in time."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.3)
    return True


def _close_lost_runs() -> None:
    """Close runs whose worker is gone; left open, one holds the deployment's only slot for minutes."""
    for name in asyncio.run(_crash_unfinished()):
        print(f"run {name} had lost its worker: marked as crashed", flush=True)


async def _answers() -> bool:
    async with get_client() as client:
        return await client.api_healthcheck() is None


async def _create_pool(pool: str) -> None:
    async with get_client() as client:
        template = ProcessWorker.get_default_base_job_template()
        try:
            await client.create_work_pool(
                WorkPoolCreate(name=pool, type="process", base_job_template=template)
            )
        except ObjectAlreadyExists:
            pass


async def _unfinished() -> list[FlowRun]:
    unfinished = FlowRunFilter(state=FlowRunFilterState(type=FlowRunFilterStateType(any_=UNFINISHED)))
    async with get_client() as client:
        return await client.read_flow_runs(flow_run_filter=unfinished)


async def _crash_unfinished() -> list[str]:
    runs = await _unfinished()
    async with get_client() as client:
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
