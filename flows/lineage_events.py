"""Tell an OpenLineage receiver, where one is set, what runs and what it reads and writes.

A receiver is set as everywhere: `OPENLINEAGE_URL` (with `OPENLINEAGE_API_KEY`), or any other setting of the
client. Events leave in a thread of their own: a receiver that is slow or down is never in a run's way, and
after the first event that it does not take the run tries no other.
"""

from __future__ import annotations

import os
import queue
import threading
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml
from openlineage.client import OpenLineageClient
from openlineage.client.event_v2 import InputDataset, Job, OutputDataset, Run, RunEvent, RunState
from openlineage.client.facet_v2 import (
    dataset_version_dataset,
    error_message_run,
    execution_parameters_run,
    job_type_job,
    output_statistics_output_dataset,
    parent_run,
)

PRODUCER = "urn:macflow:flow"
NAMESPACE = "macflow"
FLOW = "macflow"
CODE = "macflow/"
# What the end of a run waits for events that are still on their way.
FAREWELL_SECONDS = 10.0
# A receiver that does not answer is asked once more, not for the client's nine seconds.
RETRIES = 1
LOCK_READS = 5
LOCK_PAUSE = 0.2


class _Sender:
    """One thread that posts events in order, until the receiver fails or the run ends."""

    def __init__(self) -> None:
        self._events: queue.SimpleQueue[RunEvent | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()
        self._problem: str | None = None

    def send(self, event: RunEvent) -> None:
        with self._lock:
            if self._thread is None:
                self._problem = None
                self._thread = threading.Thread(target=self._work, name="openlineage", daemon=True)
                self._thread.start()
        self._events.put(event)

    def finish(self) -> str | None:
        """Wait for what is under way; return why events were not delivered, if so."""
        with self._lock:
            thread, self._thread = self._thread, None
        if thread is None:
            return None
        self._events.put(None)
        thread.join(FAREWELL_SECONDS)
        return "the receiver is too slow" if thread.is_alive() else self._problem

    def _work(self) -> None:
        try:
            client = OpenLineageClient()
            config = getattr(client.transport, "config", None)
            if config is not None and isinstance(getattr(config, "retry", None), dict):
                config.retry = {**config.retry, "total": RETRIES, "connect": RETRIES, "read": RETRIES}
        except Exception as error:  # a setting of the client that it refuses
            self._problem, client = str(error), None
        while (event := self._events.get()) is not None:
            if client is None or self._problem is not None:
                continue
            try:
                client.emit(event)
            except Exception as error:  # each transport has errors of its own
                self._problem = str(error)


_sender = _Sender()


def is_set() -> bool:
    """Whether anybody is to be told."""
    named = any(
        key in ("OPENLINEAGE_URL", "OPENLINEAGE_CONFIG") for key, value in os.environ.items() if value
    )
    transport = any(key.startswith("OPENLINEAGE__TRANSPORT") for key in os.environ)
    return (named or transport) and os.environ.get("OPENLINEAGE_DISABLED", "").lower() != "true"


def tell_flow(state: RunState, flow_run: str, message: str | None = None) -> None:
    """Tell that the whole run began or ended."""
    if is_set():
        _sender.send(_event(state, FLOW, "FLOW", flow_run, _error(message)))


def tell_stage(
    root: Path, stage: str, state: RunState, task_run: str, flow_run: str, message: str | None = None
) -> None:
    """Tell that a stage began or ended; with its end go data and parameters as `dvc.lock` has them."""
    if not is_set():
        return
    namespace = _namespace()
    parent = parent_run.ParentRunFacet(parent_run.Run(flow_run), parent_run.Job(namespace, FLOW))
    event = _event(state, stage, "STAGE", task_run, {"parent": parent} | _error(message))
    if state is RunState.COMPLETE:
        locked = _locked(root, stage)
        event.inputs = [
            InputDataset(namespace, dep["path"], facets=_version(dep))
            for dep in locked.get("deps", [])
            if not dep["path"].startswith(CODE)
        ]
        event.outputs = [
            OutputDataset(namespace, out["path"], facets=_version(out), outputFacets=_statistics(out))
            for out in locked.get("outs", [])
        ]
        event.run.facets = {**(event.run.facets or {}), **_parameters(locked)}
    _sender.send(event)


def finish() -> str | None:
    """Wait, not long, for the last events; return in one sentence what went wrong."""
    problem = _sender.finish()
    return None if problem is None else f"OpenLineage events were not delivered: {problem}"


def _event(state: RunState, job: str, kind: str, run: str, facets: dict[str, Any]) -> RunEvent:
    job_type = job_type_job.JobTypeJobFacet(processingType="BATCH", integration="DVC", jobType=kind)
    return RunEvent(
        eventType=state,
        eventTime=datetime.now(UTC).isoformat(),
        run=Run(run, facets),
        job=Job(_namespace(), job, {"jobType": job_type}),
        producer=PRODUCER,
    )


def _namespace() -> str:
    return os.environ.get("OPENLINEAGE_NAMESPACE", NAMESPACE)


def _locked(root: Path, stage: str) -> Mapping[str, Any]:
    """Return a stage's entry; an empty one where the lock cannot be read.

    DVC writes the lock in place: while another stage ends, half of it may be there for a moment.
    """
    for _ in range(LOCK_READS):
        try:
            lock = yaml.safe_load((root / "dvc.lock").read_text(encoding="utf-8"))
            entry: Mapping[str, Any] = lock["stages"][stage]
            return entry
        except (OSError, UnicodeDecodeError, yaml.YAMLError, KeyError, TypeError):
            time.sleep(LOCK_PAUSE)
    return {}


def _version(entry: Mapping[str, Any]) -> dict[str, Any]:
    version = dataset_version_dataset.DatasetVersionDatasetFacet(datasetVersion=str(entry.get("md5", "")))
    return {"version": version}


def _statistics(entry: Mapping[str, Any]) -> dict[str, Any]:
    statistics = output_statistics_output_dataset.OutputStatisticsOutputDatasetFacet(
        size=entry.get("size"), fileCount=entry.get("nfiles", 1)
    )
    return {"outputStatistics": statistics}


def _parameters(locked: Mapping[str, Any]) -> dict[str, Any]:
    named = {name: value for values in locked.get("params", {}).values() for name, value in values.items()}
    parameters = [
        execution_parameters_run.ExecutionParameter(key=name, value=str(value))
        for name, value in named.items()
    ]
    return {
        "executionParameters": execution_parameters_run.ExecutionParametersRunFacet(parameters=parameters)
    }


def _error(message: str | None) -> dict[str, Any]:
    if message is None:
        return {}
    return {
        "errorMessage": error_message_run.ErrorMessageRunFacet(message=message, programmingLanguage="Python")
    }
