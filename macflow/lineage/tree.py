"""The lineage of one artifact: each step back to the source, with all that is recorded of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from macflow.lineage.git import LockVersion
from macflow.lineage.lock import Lock, LockedStage, blocks
from macflow.lineage.project import Project, Subject, json_object
from macflow.lineage.run_cards import Card

Kind = Literal["policy", "model", "data", "validation", "metrics", "plots", "report", "source"]
KINDS: dict[str, Kind] = {
    "models/policy": "policy",
    "models/finetuned": "policy",
    "models/": "model",
    "data/": "data",
    "reports/validation": "validation",
    "reports/": "report",
    "metrics/": "metrics",
    "plots/": "plots",
}
# Of a stage's other outputs, those that belong to the history of what was made from them.
TOLD_BESIDES: tuple[Kind, ...] = ("validation", "metrics")


@dataclass(frozen=True)
class Made:
    """How an artifact was made."""

    stage: str
    cmd: str
    # Full dotted names.
    params: Mapping[str, Any]
    # Code file or folder -> DVC's hash.
    code: Mapping[str, str]
    # The commit that first records this run; None while no commit does.
    commit: LockVersion | None
    card: Card | None


@dataclass(frozen=True)
class Node:
    """An artifact, or the source that data come from."""

    path: str
    kind: Kind
    # DVC's hash; None for a source.
    md5: str | None
    # Known where a run card or a manifest says it.
    sha256: str | None
    size: int | None
    nfiles: int | None
    # None where the pipeline did not make it.
    made: Made | None
    # Paths of the nodes that it was made from.
    inputs: tuple[str, ...]
    # Of a source: address, digest, behaviour, environment, its version.
    source: Mapping[str, Any]


@dataclass(frozen=True)
class Tree:
    """A subject and all that led to it; each node after those that it was made from."""

    subject: Subject
    nodes: tuple[Node, ...]
    # What was measured of the subject: metrics file -> content, at the commit that recorded it.
    results: Mapping[str, Any]
    warnings: tuple[str, ...]

    def node(self, path: str) -> Node:
        return next(node for node in self.nodes if node.path == path)

    @property
    def root(self) -> Node:
        return self.node(self.subject.path)


def read_tree(project: Project, subject: Subject) -> Tree:
    """Follow a subject back to its source, by the lock that records it and whatever else is kept here."""
    lock = subject.lock
    lines = blocks(subject.lock_text)
    stages = lock.ancestors(subject.path)
    warnings = [f"not the recorded bytes: {text}" for text in subject.deviations]
    manifests = {
        out.path: json_object(found[1])
        for stage in stages
        for out in stage.outs
        if out.md5.endswith(".dir")
        and (
            found := project.manifest(out.path, out.md5, subject.hashed if out.path == subject.path else None)
        )
    }
    if subject.path not in manifests and subject.place is not None and not subject.deviations:
        # A copy found elsewhere tells of itself, where no cache does.
        if (subject.place / "policy.json").is_file():
            manifests[subject.path] = json_object((subject.place / "policy.json").read_bytes())
    digests = _digests(manifests)
    read = {dep.path for stage in stages for dep in stage.inputs} | {subject.path}
    nodes: dict[str, Node] = {}
    warnings += [
        f"{stage.name} read another {dep.path} ({dep.md5}) than {lock.producers[dep.path].name} last made "
        f"({lock.outs[dep.path].md5})"
        for stage in stages
        for dep in stage.inputs
        if dep.path in lock.outs and lock.outs[dep.path].md5 != dep.md5
    ]
    for stage in stages:
        made = _made(project, stage, lines.get(stage.name, ""))
        source = _source(stage, manifests)
        for dep in stage.inputs:
            if dep.path not in lock.producers and dep.path not in nodes:
                nodes[dep.path] = Node(
                    dep.path,
                    kind_of(dep.path),
                    dep.md5,
                    digests.get(dep.path),
                    dep.size,
                    dep.nfiles,
                    None,
                    (),
                    source,
                )
        inputs = tuple(dep.path for dep in stage.inputs)
        if not inputs:
            # Nothing of the pipeline went in: the data come from an environment or an address.
            name = f"source: {source.get('name') or made.params.get('dataset', 'unknown')}"
            nodes[name] = Node(name, "source", None, source.get("sha256"), None, None, None, (), source)
            inputs = (name,)
        for out in stage.outs:
            if out.path in read or kind_of(out.path) in TOLD_BESIDES:
                sha256 = digests.get(out.path) or _of_card(made.card, out.path)
                nodes[out.path] = Node(
                    out.path, kind_of(out.path), out.md5, sha256, out.size, out.nfiles, made, inputs, {}
                )
        if made.commit is None:
            warnings.append(f"{stage.name}: no commit records this run yet")
    return Tree(subject, tuple(nodes.values()), _results(project, subject), tuple(warnings))


def kind_of(path: str) -> Kind:
    """Return what kind of artifact lies at a path of the pipeline."""
    return next((kind for prefix, kind in KINDS.items() if path.startswith(prefix)), "data")


def metrics_at(project: Project, commit: str | None, names: list[str]) -> dict[str, Any]:
    """Return the JSON metrics that are there at a commit, or in the working tree where it is None."""
    contents: dict[str, bytes | None]
    if commit is None:
        contents = {name: _read(project, name) for name in names}
    else:
        contents = {
            name: content for (_, name), content in project.git.read_many((commit, n) for n in names).items()
        }
    return {name: json_object(content) for name, content in contents.items() if content is not None}


def _read(project: Project, name: str) -> bytes | None:
    try:
        return (project.root / name).read_bytes()
    except OSError:
        return None


def _made(project: Project, stage: LockedStage, block: str) -> Made:
    return Made(
        stage=stage.name,
        cmd=stage.cmd,
        params=stage.settings,
        code={dep.path: dep.md5 for dep in stage.code},
        commit=project.first_version(stage.name, block),
        card=project.cards.of(stage),
    )


def _digests(manifests: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """Return the SHA-256 of inputs, as what was made from them says."""
    return {
        path: digest
        for manifest in manifests.values()
        for path, digest in (manifest.get("made_from") or {}).items()
        if isinstance(digest, str)
    }


def _of_card(card: Card | None, path: str) -> str | None:
    output = card["output"] if card is not None else {}
    return str(output["sha256"]) if output.get("path") == path and "sha256" in output else None


def _source(stage: LockedStage, manifests: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Return what is known of the outside that data came from."""
    told = next((m for m in manifests.values() if isinstance(m.get("source"), Mapping)), {})
    source, env = told.get("source") or {}, told.get("env") or {}
    behaviour = source.get("behaviour") or {}
    weights = {dep.path: dep.md5 for dep in stage.code if "/weights" in dep.path}
    found = {
        "name": source.get("dataset_id"),
        "url": behaviour.get("url"),
        "sha256": behaviour.get("sha256"),
        "behaviour": behaviour or None,
        "behaviour_weights": weights or None,
        "environment": env.get("id"),
        "environment_version": env.get("version"),
        "environment_kwargs": env.get("kwargs"),
        "minari_version": source.get("minari_version"),
    }
    return {name: value for name, value in found.items() if value is not None}


def _results(project: Project, subject: Subject) -> dict[str, Any]:
    """Return what its own stage and later ones measured, as it was when the subject was recorded."""
    commit = subject.version.commit if subject.version else None
    return metrics_at(project, commit, measured_of(subject.lock, subject.path, subject.md5))


def measured_of(lock: Lock, path: str, md5: str) -> list[str]:
    """Return the metrics files of the stage that made an artifact and of those that read it."""
    stages = [*lock.ancestors(path)[-1:], *(stage for stage, _ in lock.descendants({path: md5}).values())]
    return [out.path for stage in stages for out in stage.outs if kind_of(out.path) == "metrics"]
