"""The flow `tune`: a study of `macflow tune`, with its log, its trials as an artifact, and cancelling."""

from __future__ import annotations

import csv
from typing import Any
from urllib.parse import parse_qs, urlsplit

from prefect import flow, get_run_logger
from prefect.artifacts import create_table_artifact
from prefect.client.schemas.objects import State
from prefect.states import Completed, Failed

from flows.dvc_process import begin_run, run_module
from flows.pipeline import ROOT, ending_children


@flow(name="tune", description="Look for parameters by an Optuna study over the pipeline.")
def tune(
    name: str = "alpha",
    params: list[str] | None = None,
    trials: int = 20,
    jobs: int = 1,
    seeds: int = 1,
    objectives: list[str] | None = None,
    storage: str | None = None,
    write: bool = False,
) -> State[Any]:
    """Run `macflow tune NAME` with these options; cancelled or killed, the next run of that name goes on."""
    if storage is not None and _has_password(storage):
        return Failed(
            message="storage: must hold no password, everyone can see a run's parameters; give the worker "
            "MACFLOW_STORAGE or PGPASSWORD in its environment (what was received is not shown)"
        )
    with ending_children():
        log = get_run_logger()
        for repair in begin_run(ROOT):
            log.warning(repair)
        options = [f"--trials={trials}", f"--jobs={jobs}", f"--seeds={seeds}"]
        options += [f"--param={param}" for param in params or []]
        options += [f"--objective={objective}" for objective in objectives or []]
        options += [] if storage is None else [f"--storage={storage}"]
        options += ["--write"] if write else []
        status, tail = run_module(ROOT, "macflow.cli", "tune", name, *options, on_line=log.info)
        if status:
            return Failed(message=tail[-1] if tail else f"macflow tune ended with code {status}")
        create_table_artifact(key="trials", table=_trials(name), description=f"Trials of the study {name}.")
        return Completed(message=next(line for line in tail if " trials; best: " in line))


def _has_password(url: str) -> bool:
    parts = urlsplit(url)
    return parts.password is not None or "password" in parse_qs(parts.query)


def _trials(name: str) -> list[dict[str, Any]]:
    with (ROOT / "tuning" / name / "trials.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))
