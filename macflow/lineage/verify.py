"""Rehash everything that led to an artifact, and hold every record of it against every other."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from macflow.lineage.bundle_checks import check_cards, check_manifest, is_manifest
from macflow.lineage.byte_checks import (
    check_buckets,
    check_committed,
    check_kept,
    check_metrics_of_commit,
    check_present,
    kept_contents,
    members_of,
)
from macflow.lineage.findings import Findings, What
from macflow.lineage.hashing import Digest, Hashed, folder_sha256, hash_paths
from macflow.lineage.lock import (
    LOCK_FILE,
    PARAMS_FILE,
    PIPELINE_FILE,
    Entry,
    Lock,
    LockedStage,
    blocks,
    parse_lock,
)
from macflow.lineage.project import Deviation, Project, Subject
from macflow.lineage.record_checks import check_chain, check_stages, choose_lock
from macflow.lineage.run_cards import KEPT_CARDS
from macflow.types import DataError


def verify(project: Project, subject: Subject | None, network: bool = False) -> Findings:
    """Check a subject and all that led to it, or the whole project.

    Args:
        subject: None for everything that `dvc.lock` records.
        network: fetch from remotes that are no folders too, and hash what they keep.

    Raises:
        DataError: there is no record to verify, or a file or remote cannot be read.
    """
    findings = Findings()
    if subject is not None and not _lies_there(project, subject):
        _tell_deviations(project, subject, findings)
    if subject is not None and subject.version is not None:
        _verify_past(project, subject, network, findings)
    else:
        _verify_present(project, subject, network, findings)
    return findings


def _lies_there(project: Project, subject: Subject) -> bool:
    """Whether the subject is the working tree's own output, whose bytes are compared like all others'."""
    if subject.place is None or subject.version is not None:
        return False
    return subject.place.resolve().is_relative_to((project.root / subject.path).resolve())


def _tell_deviations(project: Project, subject: Subject, findings: Findings) -> None:
    """Say what a bundle found elsewhere has that the record has not, down to the field of a manifest."""
    record = f"{LOCK_FILE}, {_origin(subject)}"
    stage = subject.lock.producers.get(subject.path)
    for one in subject.deviations:
        findings.differ(subject.path, _kind(one), one.file, one.expected, one.found, record)
        file = (subject.place or project.root) / one.file
        if stage is not None and is_manifest(one.file) and file.is_file():
            sha256_of = _sha256_of(project, {})
            check_manifest(stage, subject.path, one.file, file.read_bytes(), sha256_of, findings)


def _kind(deviation: Deviation) -> What:
    if deviation.found.startswith("the bytes of"):
        return "swapped"
    return "missing" if deviation.found == "missing" else "changed"


def _verify_present(project: Project, subject: Subject | None, network: bool, findings: Findings) -> None:
    locks = [lock for text in (project.lock_text, project.head_lock_text) if (lock := _readable(text))]
    paths = {
        e.path for lock in locks for stage in _reached(lock, subject) for e in (*stage.deps, *stage.outs)
    }
    cards = [f"{KEPT_CARDS}/{p.name}" for p in (project.root / KEPT_CARDS).glob("*.json")]
    inventory = {path: project.root / path for path in sorted({*paths, *cards, PARAMS_FILE, PIPELINE_FILE})}
    outs = [out for lock in locks for stage in _reached(lock, subject) for out in stage.outs]
    # Stored contents are hashed in the same go, so that no core waits.
    kept = kept_contents(project, dict.fromkeys(outs), {})
    digests = hash_paths(inventory.values(), only_md5=(one.path for one in kept))
    present = {path: digests[place] for path, place in inventory.items()}
    chosen = choose_lock(project, present, findings)
    stages = _reached(chosen.lock, subject)
    late = [
        one
        for one in kept_contents(project, [o for s in stages for o in s.outs], present)
        if one.path not in digests
    ]
    digests |= hash_paths((), only_md5=(one.path for one in late))
    kept = [one for one in [*kept, *late] if chosen.lock.outs.get(one.out.path) == one.out]
    _count(digests, findings)

    sources = [e for s in stages for e in s.inputs if e.path not in chosen.lock.producers]
    own = [out for stage in stages for out in stage.outs]
    check_present(project, chosen.lock, [*own, *sources], present, findings)
    check_kept(kept, digests, findings)
    check_stages(project, stages, chosen.lines, findings)
    check_chain(chosen.lock, stages, project, findings)
    tracked = _tracked(project, stages)
    check_committed(project, [*tracked, *cards, PARAMS_FILE, PIPELINE_FILE], present, findings)
    sha256_of = _sha256_of(project, present)
    recorded = {out.md5: out.path for out in chosen.lock.outs.values()}
    for stage in stages:
        for out in stage.outs:
            found = present.get(out.path)
            # What is another artifact's tells of that one, and was reported as swapped.
            own_bytes = found if found is not None and recorded.get(found.md5, out.path) == out.path else None
            _check_manifests(project, stage, out, own_bytes, project.root / out.path, sha256_of, findings)
    check_cards(stages, project.cards, sha256_of, findings)
    there = check_buckets(project, own, present, findings) if network else set()
    stored = {one.md5 for one in kept} | there
    for out in [*own, *sources]:
        if present.get(out.path) is None:
            _tell_absent(project, out, stored, out.path in tracked, findings)
    _note_stale(stages, present, findings)


def _verify_past(project: Project, subject: Subject, network: bool, findings: Findings) -> None:
    assert subject.version is not None  # the caller's case
    stages = _reached(subject.lock, subject)
    outs = [out for stage in stages for out in stage.outs]
    known: dict[str, Hashed | None] = {}
    if subject.hashed is not None and not subject.deviations:
        known[subject.path] = subject.hashed
    kept = kept_contents(project, outs, known)
    digests = hash_paths((), only_md5=(one.path for one in kept))
    _count(digests, findings)
    check_kept(kept, digests, findings)
    check_stages(project, stages, blocks(subject.lock_text), findings)
    check_chain(subject.lock, stages, project, findings)
    check_metrics_of_commit(project, subject.version.commit, outs, findings)
    sha256_of = _sha256_of(project, known)
    for stage in stages:
        for out in stage.outs:
            _check_manifests(project, stage, out, known.get(out.path), subject.place, sha256_of, findings)
    check_cards(stages, project.cards, sha256_of, findings)
    there = check_buckets(project, outs, known, findings) if network else set()
    stored = {one.md5 for one in kept} | there
    in_git = project.git.read_many((subject.version.commit, out.path) for out in outs)
    for out in outs:
        if out.path not in known and in_git[subject.version.commit, out.path] is None:
            _tell_absent(project, out, stored, None, findings)


def _reached(lock: Lock, subject: Subject | None) -> list[LockedStage]:
    return list(lock.stages.values()) if subject is None else lock.ancestors(subject.path)


def _readable(text: str | None) -> Lock | None:
    try:
        return None if text is None else parse_lock(text, LOCK_FILE)
    except DataError:
        return None


def _count(digests: Mapping[Path, Hashed | None], findings: Findings) -> None:
    for hashed in digests.values():
        if hashed is not None:
            findings.files += len(hashed.files)
            findings.size += hashed.size


def _tracked(project: Project, stages: Sequence[LockedStage]) -> list[str]:
    """Return the code and the outputs that git keeps."""
    head = project.git.head
    outs = [out.path for stage in stages for out in stage.outs if not out.md5.endswith(".dir")]
    contents = project.git.read_many((head, path) for path in outs) if head else {}
    kept = [path for (_, path), content in contents.items() if content is not None]
    return list(dict.fromkeys([*(dep.path for stage in stages for dep in stage.code), *kept]))


def _sha256_of(project: Project, present: Mapping[str, Hashed | None]) -> Callable[[str, str], str | None]:
    """Return a function that tells an artifact's SHA-256, by the working tree or else by what is stored."""
    known: dict[tuple[str, str], str | None] = {}

    def sha256_of(path: str, md5: str) -> str | None:
        hashed = present.get(path)
        if hashed is not None and hashed.md5 == md5:
            return hashed.sha256
        if (path, md5) not in known:
            known[path, md5] = _stored_sha256(project, Entry(path, md5, None, None))
        return known[path, md5]

    return sha256_of


def _stored_sha256(project: Project, out: Entry) -> str | None:
    names = members_of(project, out, None) if out.md5.endswith(".dir") else {"": out.md5}
    places = {
        name: next((s.path(md5) for s in project.stores if s.path(md5).exists()), None)
        for name, md5 in names.items()
    }
    if not places or None in places.values():
        return None
    digests = hash_paths(place for place in places.values() if place is not None)
    files: dict[str, Digest] = {}
    for name, place in places.items():
        hashed = digests[place] if place is not None else None
        if hashed is None or hashed.md5 != names[name]:
            return None
        files[name] = hashed.files[""]
    return files[""].sha256 if "" in files else folder_sha256(files)


def _check_manifests(
    project: Project,
    stage: LockedStage,
    out: Entry,
    hashed: Hashed | None,
    place: Path | None,
    sha256_of: Callable[[str, str], str | None],
    findings: Findings,
) -> None:
    if not out.md5.endswith(".dir"):
        return
    for name in hashed.files if hashed is not None else {}:
        if place is not None and is_manifest(name) and (place / name).is_file():
            check_manifest(stage, out.path, name, (place / name).read_bytes(), sha256_of, findings)
    if hashed is None or hashed.md5 != out.md5:
        for name, md5 in members_of(project, out, None).items():
            if is_manifest(name) and (content := project.content(md5)) is not None:
                check_manifest(stage, out.path, f"{name} as stored", content, sha256_of, findings)


def _tell_absent(
    project: Project, out: Entry, stored: set[str], tracked: bool | None, findings: Findings
) -> None:
    """Say whether anything keeps what is not in the working tree; there it is not looked for where None."""
    names = members_of(project, out, None) if out.md5.endswith(".dir") else {"": out.md5}
    if tracked:
        return  # git keeps it, and was asked
    if out.md5 in stored and names and set(names.values()) <= stored:
        if tracked is None:
            return
        findings.note([f"{out.path} is not in the working tree; what is stored of it was checked"])
    else:
        findings.unchecked.append(f"{out.path} (md5 {out.md5})")


def _note_stale(
    stages: Sequence[LockedStage], present: Mapping[str, Hashed | None], findings: Findings
) -> None:
    for stage in stages:
        newer = [d.path for d in stage.code if (h := present.get(d.path)) is not None and h.md5 != d.md5]
        if newer:
            shown = ", ".join(newer[:3]) + (f" and {len(newer) - 3} more" if len(newer) > 3 else "")
            findings.note([f"{stage.name} ran with an older {shown}; `dvc repro` would run it again"])


def _origin(subject: Subject) -> str:
    return (
        "the working tree's" if subject.version is None else f"that of commit {subject.version.commit[:12]}"
    )
