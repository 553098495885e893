"""One DVC stage as one Prefect task: live log, metrics as an artifact, the stage's own words on failure."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from openlineage.client.event_v2 import RunState
from prefect import get_run_logger, runtime, task
from prefect.artifacts import create_table_artifact
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State, TaskRun
from prefect.states import Failed
from prefect.tasks import Task

from flows.dvc_process import BusyError, StageError, StageResult, run_dvc, run_stage
from flows.lineage_events import tell_stage
from flows.plan import PlannedStage

BUSY = "Busy"


def may_retry(task: Task[..., Any], task_run: TaskRun, state: State[Any]) -> bool:
    """Allow a retry only where waiting can help: stages are deterministic, so errors of theirs recur."""
    return state.name == BUSY


# DVC decides what is up to date; a second cache in front of it could only be wrong.
@task(
    task_run_name="{stage.name}",
    cache_policy=NO_CACHE,
    retries=4,
    retry_delay_seconds=[2, 5, 15, 30],
    retry_condition_fn=may_retry,
)
def repro(root: Path, stage: PlannedStage, force: bool) -> StageResult | State[StageResult]:
    """Run `dvc repro --single-item STAGE` and publish the metrics that it leaves."""
    log = get_run_logger()
    runs = (str(runtime.task_run.id), str(runtime.flow_run.id))
    tell_stage(root, stage.name, RunState.START, *runs)
    try:
        result = run_stage(root, stage.name, force, on_line=log.info)
    except BusyError as error:
        return Failed(name=BUSY, message=str(error))
    except StageError as error:
        tell_stage(root, stage.name, RunState.FAIL, *runs, message=str(error))
        return Failed(message=str(error))
    tell_stage(root, stage.name, RunState.COMPLETE, *runs)
    log.info("%s: %s in %.1f s", stage.name, result.outcome, result.seconds)
    publish_metrics(root, stage)
    return result


@task(cache_policy=NO_CACHE)
def save_experiment(root: Path, name: str) -> str | State[str]:
    """Keep workspace and lock under a git ref: `dvc exp show` lists it, `dvc exp apply NAME` restores it."""
    log = get_run_logger()
    status, tail = run_dvc(root, "--wait-for-lock", "exp", "save", "--name", name, on_line=log.info)
    if status:
        return Failed(message=f"experiment {name} was not saved: {' '.join(tail[-3:])}")
    return name


def publish_metrics(root: Path, stage: PlannedStage) -> None:
    """Publish a stage's metrics as one table, keyed by the stage's name: its history is the metric's."""
    rows = [
        {"metric": key, "value": value}
        for path in stage.metrics
        for key, value in flatten(json.loads((root / path).read_text(encoding="utf-8")))
    ]
    if rows:
        create_table_artifact(
            key=slug(stage.name), table=rows, description=", ".join(path.as_posix() for path in stage.metrics)
        )


def flatten(content: Any, prefix: str = "") -> list[tuple[str, Any]]:
    """Return nested objects as (dotted key, value) pairs; lists become JSON text."""
    if isinstance(content, dict):
        return [
            pair
            for key, value in content.items()
            for pair in flatten(value, f"{prefix}.{key}" if prefix else str(key))
        ]
    return [(prefix, json.dumps(content) if isinstance(content, list) else content)]


def slug(name: str) -> str:
    """Return `name` as an artifact key: lower case letters, digits and dashes."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
