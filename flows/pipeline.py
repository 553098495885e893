"""The flow `macflow`: every stage of dvc.yaml as a task, as parallel as DVC's graph allows.

Prefect owns when and where; DVC owns what is up to date. The flow holds no list of stages.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from openlineage.client.event_v2 import RunState
from prefect import flow, get_run_logger, runtime
from prefect.artifacts import create_table_artifact
from prefect.client.schemas.objects import State
from prefect.futures import PrefectFuture
from prefect.states import Completed, Failed

from flows.dvc_process import begin_run, stop_all
from flows.dvc_stage import repro, save_experiment
from flows.lineage_events import finish, tell_flow
from flows.plan import PlannedStage, read_plan, select
from flows.tied import TIED_PID

# Between a run's being told to stop and the end of its process, at most.
FAREWELL_SECONDS = 20.0
# Between two looks whether the worker is still there.
WATCH_SECONDS = 0.5
ROOT = Path(__file__).resolve().parent.parent


@flow(name="macflow", description="Bring the DVC pipeline up to date, one task per stage.")
def pipeline(force: bool = False, targets: list[str] | None = None, save: bool = False) -> State[Any]:
    """Run what is out of date.

    Args:
        force: run every selected stage, changed or not.
        targets: stages to bring up to date with all that they need; all stages if left out.
        save: keep the result as a DVC experiment named after this run.
    """
    with ending_children():
        return _run(force, targets, save)


def _run(force: bool, targets: list[str] | None, save: bool) -> State[Any]:
    log = get_run_logger()
    for repair in begin_run(ROOT):
        log.warning(repair)
    plan = read_plan(ROOT)
    try:
        stages = select(plan, targets or plan)
    except ValueError as error:
        return Failed(message=str(error))
    log.info("stages: %s", ", ".join(stage.name for stage in stages))
    run = str(runtime.flow_run.id)
    tell_flow(RunState.START, run)
    futures: dict[str, PrefectFuture[Any]] = {}
    for stage in stages:
        upstream = [futures[name] for name in stage.upstream]
        futures[stage.name] = repro.submit(ROOT, stage, force, return_state=False, wait_for=upstream)
    for future in futures.values():
        future.wait()
    state = _conclude(stages, futures, save)
    if state.is_completed():
        tell_flow(RunState.COMPLETE, run)
    else:
        tell_flow(RunState.FAIL, run, state.message)
    if problem := finish():
        log.warning(problem)
    return state


def _conclude(stages: list[PlannedStage], futures: dict[str, PrefectFuture[Any]], save: bool) -> State[Any]:
    """Publish one row per stage and return the run's state, with the words of the stages that failed."""
    rows: list[dict[str, object]] = []
    failures: list[str] = []
    for stage in stages:
        state = futures[stage.name].state
        if state.is_completed():
            result = futures[stage.name].result()
            rows.append({"stage": stage.name, "outcome": result.outcome, "seconds": result.seconds})
            continue
        # A stage whose predecessor failed is pending, "NotReady": it has nothing to say of its own.
        outcome = "not run" if state.is_pending() else state.name
        rows.append({"stage": stage.name, "outcome": outcome, "seconds": None})
        if not state.is_pending():
            failures.append(state.message or f"{stage.name}: {state.name}")
    create_table_artifact(key="stages", table=rows, description="What each stage did in this run.")
    if failures:
        return Failed(message="\n".join(failures))
    ran = sum(row["outcome"] == "ran" for row in rows)
    done = f"{ran} of {len(rows)} stages ran, {len(rows) - ran} were up to date"
    if save:
        saved = save_experiment(ROOT, runtime.flow_run.get_name(), return_state=True)
        if not saved.is_completed():
            return Failed(message=saved.message)
        done += f"; saved as experiment {runtime.flow_run.get_name()}"
    return Completed(message=done)


@contextmanager
def ending_children() -> Iterator[None]:
    """End with the worker that started this process, and let all children end with whatever ends this run."""
    try:
        end_with_worker()
        yield
    except Exception:
        raise
    except BaseException:  # cancelled, ended by SIGTERM or Ctrl-C: none of these is an `Exception`
        _bound_farewell()
        with _undisturbed():
            stop_all()
        raise


def end_with_worker() -> None:
    """End with the worker that started this process, however it ends, even if it already has.

    A run that outlives its worker is reported by nobody and holds the deployment's only slot. A thread and
    not PR_SET_PDEATHSIG: Linux sends that signal for each thread of a killed worker, and the second one
    would interrupt what the first one began.
    """
    if _started_by_worker():
        worker = int(os.environ.get(TIED_PID, os.getppid()))
        threading.Thread(target=_watch, args=(worker,), name="worker-watch", daemon=True).start()


def _watch(worker: int) -> None:
    while os.getppid() == worker:
        time.sleep(WATCH_SECONDS)
    _bound_farewell()
    os.kill(os.getpid(), signal.SIGTERM)


def _bound_farewell() -> None:
    """End this process soon: without a server Prefect would try to report the run's end for minutes."""
    if _started_by_worker():
        timer = threading.Timer(FAREWELL_SECONDS, os._exit, (1,))
        timer.daemon = True
        timer.start()


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Ignore SIGINT and SIGTERM meanwhile: a second one must not leave children behind."""
    # Other threads are not interrupted by signals, nor may they say what becomes of them.
    main = threading.current_thread() is threading.main_thread()
    handlers = {x: signal.signal(x, signal.SIG_IGN) for x in (signal.SIGINT, signal.SIGTERM) if main}
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def _started_by_worker() -> bool:
    return "PREFECT__FLOW_RUN_ID" in os.environ
