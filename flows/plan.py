"""What is to be done, read from dvc.yaml by DVC itself: stages, their order, their metrics files."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import networkx
from dvc.repo import Repo
from dvc.stage import PipelineStage


@dataclass(frozen=True)
class PlannedStage:
    """One stage of dvc.yaml, as `dvc repro -s NAME` knows it."""

    name: str
    # Stages whose outputs this one reads.
    upstream: tuple[str, ...]
    # JSON metrics that it writes, relative to the project root.
    metrics: tuple[Path, ...]


def read_plan(root: Path) -> dict[str, PlannedStage]:
    """Return the stages by name, each after those that it depends on.

    DVC resolves templates, matrices and outputs inside directories, so nothing here repeats its rules.
    """
    with Repo(str(root)) as repo:
        # DVC's edges lead from a stage to what it needs; `.dvc` files are data, not work.
        graph = repo.index.graph.reverse(copy=True)
        graph.remove_nodes_from([s for s in repo.index.stages if not isinstance(s, PipelineStage)])
        ordered = networkx.lexicographical_topological_sort(graph, key=lambda s: s.addressing)
        return {
            stage.addressing: PlannedStage(
                name=stage.addressing,
                upstream=tuple(sorted(needed.addressing for needed in graph.predecessors(stage))),
                metrics=tuple(
                    Path(out.fs_path).relative_to(repo.root_dir)
                    for out in stage.outs
                    if out.metric and out.fs_path.endswith(".json")
                ),
            )
            for stage in ordered
        }


def select(plan: Mapping[str, PlannedStage], targets: Iterable[str]) -> list[PlannedStage]:
    """Return `targets` and all that they need, in plan order, as `dvc repro TARGETS` would.

    Raises:
        ValueError: a target is no stage of the plan.
    """
    wanted: set[str] = set()
    pending = list(targets)
    if unknown := sorted(set(pending) - set(plan)):
        raise ValueError(f"no such stage: {', '.join(unknown)} (dvc.yaml has {', '.join(plan)})")
    while pending:
        if (name := pending.pop()) not in wanted:
            wanted.add(name)
            pending += plan[name].upstream
    return [stage for stage in plan.values() if stage.name in wanted]
