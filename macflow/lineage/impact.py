"""What came of a dataset, in every version that any commit records: for when data must be withdrawn."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from macflow.lineage.git import LockVersion
from macflow.lineage.lock import LOCK_FILE, Entry, Lock, parse_lock
from macflow.lineage.project import Project, find_subject, json_object
from macflow.lineage.text import headline
from macflow.lineage.tree import Kind, kind_of, measured_of, metrics_at
from macflow.types import DataError

MODELS: tuple[Kind, ...] = ("policy", "model")


@dataclass(frozen=True)
class Affected:
    """A version of a model that was made from the data."""

    path: str
    kind: Kind
    md5: str
    # Where it is first recorded; None for the working tree alone.
    commit: LockVersion | None
    # Tags and branches that hold that commit.
    names: tuple[str, ...]
    # Whether the working tree's lock still records it.
    current: bool
    # The artifacts between the data and the model.
    through: tuple[str, ...]
    results: Mapping[str, Any]


def find_impact(project: Project, data: str) -> tuple[str, list[Affected]]:
    """Return what `data` is, and every version of a model that came from it, the oldest first.

    Args:
        data: a path, `REVISION:PATH` or digest of an artifact; or the SHA-256 or address of a download.

    Raises:
        DataError: nothing here or in the history is that.
    """
    try:
        digests = {find_subject(project, data).md5}
    except DataError:
        if not (digests := set(_from_download(project, data))):
            raise
    found: dict[tuple[str, str], Affected] = {}
    for version, lock in _locks(project):
        for entry, through in _made_from(lock, digests):
            kind = kind_of(entry.path)
            if kind not in MODELS:
                continue
            known = found.get((entry.path, entry.md5))
            if known is None:
                found[entry.path, entry.md5] = _affected(project, lock, entry, through, version)
            elif version is None:
                found[entry.path, entry.md5] = replace(known, current=True)
    return ", ".join(sorted(digests)), list(found.values())


def _locks(project: Project) -> Iterator[tuple[LockVersion | None, Lock]]:
    seen: dict[str, Lock] = {}
    for version in project.git.lock_versions:
        try:
            if version.text not in seen:
                seen[version.text] = parse_lock(version.text, LOCK_FILE)
        except DataError:
            continue
        yield version, seen[version.text]
    if project.present_lock is not None:
        yield None, project.present_lock[0]


def _made_from(lock: Lock, digests: set[str]) -> Iterator[tuple[Entry, tuple[str, ...]]]:
    """Yield the outputs of every stage that read the data, or what was made of them."""
    start = {e.path: e.md5 for s in lock.stages.values() for e in (*s.deps, *s.outs) if e.md5 in digests}
    if not start:
        return
    paths: dict[str, tuple[str, ...]] = {path: (path,) for path in start}
    for stage, by in lock.descendants(start).values():
        for out in stage.outs:
            paths.setdefault(out.path, (*paths[by], out.path))
            yield out, paths[by]


def _affected(
    project: Project, lock: Lock, entry: Entry, through: tuple[str, ...], version: LockVersion | None
) -> Affected:
    names = measured_of(lock, entry.path, entry.md5)
    return Affected(
        path=entry.path,
        kind=kind_of(entry.path),
        md5=entry.md5,
        commit=version,
        names=tuple(project.git.names_of(version.commit)) if version else (),
        current=version is None,
        through=through,
        results=dict(headline(metrics_at(project, version.commit if version else None, names))),
    )


def _from_download(project: Project, wanted: str) -> Iterator[str]:
    """Yield the hashes of raw data whose prepared form names this address or SHA-256."""
    for _, lock in _locks(project):
        for stage in lock.stages.values():
            for out in stage.outs:
                if kind_of(out.path) != "data" or not out.md5.endswith(".dir"):
                    continue
                kept = project.manifest(out.path, out.md5)
                source = (json_object(kept[1]).get("source") or {}) if kept else {}
                behaviour = source.get("behaviour") or {}
                if wanted in (behaviour.get("url"), behaviour.get("sha256"), source.get("sha256")):
                    yield out.md5
                    yield from (dep.md5 for dep in stage.inputs if dep.path == source.get("path"))


def as_text(data: str, affected: list[Affected]) -> str:
    """List the models, those in use first named as such."""
    lines = [f"made from md5 {data}: {len(affected)} version{'' if len(affected) == 1 else 's'} of models"]
    for one in affected:
        where = "no commit" if one.commit is None else f"commit {one.commit.commit[:12]} ({one.commit.time})"
        names = f", in {', '.join(one.names)}" if one.names else ""
        lines.append(f"{one.path}  md5 {one.md5[:12]}  {'in use here' if one.current else 'past'}")
        lines.append(f"    {where}{names}")
        lines.append(f"    through {' > '.join(one.through)}")
        if one.results:
            shown = (
                f"{name} {value:.4g}" for name, value in one.results.items() if isinstance(value, int | float)
            )
            lines.append(f"    {', '.join(shown)}")
    return "\n".join(lines)
