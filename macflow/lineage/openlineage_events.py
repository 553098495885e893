"""A lineage as OpenLineage events: one that completes the run of each stage, with its inputs and outputs."""

from __future__ import annotations

import json
import os
import uuid
from datetime import UTC, datetime, timedelta
from typing import Any

from openlineage.client.event_v2 import InputDataset, Job, OutputDataset, Run, RunEvent, RunState
from openlineage.client.facet_v2 import (
    dataset_version_dataset,
    execution_parameters_run,
    job_type_job,
    output_statistics_output_dataset,
    processing_engine_run,
    source_code_location_job,
)
from openlineage.client.serde import Serde

from macflow.lineage.tree import Made, Node, Tree

PRODUCER = "urn:macflow:lineage"
# As the clients of OpenLineage have it.
NAMESPACE_VARIABLE = "OPENLINEAGE_NAMESPACE"
NAMESPACE = "macflow"


def as_events(tree: Tree) -> list[dict[str, Any]]:
    """Return one COMPLETE event for each stage, in the order in which they ran."""
    namespace = os.environ.get(NAMESPACE_VARIABLE, NAMESPACE)
    stages: dict[str, list[Node]] = {}
    for node in tree.nodes:
        if node.made is not None:
            stages.setdefault(node.made.stage, []).append(node)
    return [_event(tree, nodes, namespace) for nodes in stages.values()]


def _event(tree: Tree, outputs: list[Node], namespace: str) -> dict[str, Any]:
    made = outputs[0].made
    assert made is not None  # only such nodes are grouped
    identity = "/".join([namespace, made.stage, *sorted(node.md5 or "" for node in outputs)])
    event = RunEvent(
        eventType=RunState.COMPLETE,
        eventTime=_ended(made).isoformat(),
        # The same outputs of the same stage are the same run, whoever asks.
        run=Run(str(uuid.uuid5(uuid.NAMESPACE_URL, identity)), _run_facets(made)),
        job=Job(namespace, made.stage, _job_facets(made)),
        inputs=[_input(tree.node(path), namespace) for path in outputs[0].inputs],
        outputs=[_output(node, namespace) for node in outputs],
        producer=PRODUCER,
    )
    content: dict[str, Any] = json.loads(Serde.to_json(event))
    return content


def _ended(made: Made) -> datetime:
    """Return when the run ended, or else when a commit recorded it, or else now."""
    card = made.card or {}
    try:
        start = datetime.strptime(card["started_utc"], "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC)
        return start + timedelta(seconds=float(card["wall_seconds"]))
    except (KeyError, TypeError, ValueError):
        return datetime.fromisoformat(made.commit.time) if made.commit else datetime.now(UTC)


def _run_facets(made: Made) -> dict[str, Any]:
    parameters = [
        execution_parameters_run.ExecutionParameter(key=name, value=json.dumps(value))
        for name, value in made.params.items()
    ]
    packages = dict((made.card or {}).get("packages") or {})
    facets: dict[str, Any] = {
        "executionParameters": execution_parameters_run.ExecutionParametersRunFacet(parameters=parameters)
    }
    if packages.get("macflow"):
        facets["processing_engine"] = processing_engine_run.ProcessingEngineRunFacet(
            version=packages["macflow"], name="macflow"
        )
    return facets


def _job_facets(made: Made) -> dict[str, Any]:
    facets: dict[str, Any] = {
        "jobType": job_type_job.JobTypeJobFacet(processingType="BATCH", integration="DVC", jobType="STAGE")
    }
    if made.commit is not None:
        facets["sourceCodeLocation"] = source_code_location_job.SourceCodeLocationJobFacet(
            type="git", url=f"urn:git:commit:{made.commit.commit}", version=made.commit.commit
        )
    return facets


def _input(node: Node, namespace: str) -> InputDataset:
    return InputDataset(namespace, node.path, facets=_version(node))


def _output(node: Node, namespace: str) -> OutputDataset:
    statistics = output_statistics_output_dataset.OutputStatisticsOutputDatasetFacet(
        size=node.size, fileCount=node.nfiles or 1
    )
    return OutputDataset(
        namespace, node.path, facets=_version(node), outputFacets={"outputStatistics": statistics}
    )


def _version(node: Node) -> dict[str, Any]:
    version = node.md5 or str(
        node.source.get("sha256") or node.source.get("environment_version") or "unknown"
    )
    return {"version": dataset_version_dataset.DatasetVersionDatasetFacet(datasetVersion=version)}
