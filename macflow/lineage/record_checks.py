"""Does the lock agree with git and with itself: commands, parameters, code, the chain from stage to stage."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

from macflow.lineage.findings import Findings
from macflow.lineage.hashing import Digest, Hashed, hash_bytes
from macflow.lineage.lock import (
    LOCK_FILE,
    PARAMS_FILE,
    PIPELINE_FILE,
    Defined,
    Entry,
    Lock,
    LockedStage,
    blocks,
    flatten,
    lookup,
    parse_lock,
    parse_params,
    parse_pipeline,
)
from macflow.lineage.project import Project
from macflow.types import DataError


@dataclass(frozen=True)
class Sources:
    """Definitions and parameters as they stand at a commit, or in the working tree."""

    where: str
    pipeline: Mapping[str, Defined]
    params: Mapping[str, Any]


@dataclass(frozen=True)
class ChosenLock:
    """The record to hold everything against: the committed one, and true entries that no commit holds yet."""

    lock: Lock
    lines: Mapping[str, str]


def choose_lock(project: Project, present: Mapping[str, Hashed | None], findings: Findings) -> ChosenLock:
    """Compare the working tree's lock with HEAD's, stage by stage, and return the record to trust.

    An entry that no commit holds is believed where everything that it says is true here; otherwise it is a
    difference, and the committed entry counts.

    Args:
        present: what lies in the working tree now, by path.

    Raises:
        DataError: there is no lock to read, neither here nor in HEAD.
    """
    own, committed = project.lock_text, project.head_lock_text
    head = f"commit {project.git.head[:12]}" if project.git.head else "git"
    lock = _parsed(own)
    if committed is None:
        if lock is None or own is None:
            raise DataError(f"{project.root / LOCK_FILE}: missing or unreadable, and no commit has one")
        findings.differ(LOCK_FILE, "uncommitted", "", "a commit that holds it", "none", head)
        return ChosenLock(lock, blocks(own))
    trusted = parse_lock(committed, f"HEAD:{LOCK_FILE}")
    lines = blocks(committed)
    if own is None:
        findings.differ(LOCK_FILE, "missing", "", "the file", "none", head)
        return ChosenLock(trusted, lines)
    stages = dict(trusted.stages)
    own_lines = blocks(own)
    for name in dict.fromkeys([*lines, *own_lines]):
        if own_lines.get(name) == lines.get(name):
            continue
        node = f"{LOCK_FILE}: {name}" if name else LOCK_FILE
        stage = lock.stages.get(name) if lock is not None else None
        if stage is not None and _true_here(project, stage, present):
            stages[name] = stage
            lines[name] = own_lines[name]
            findings.differ(node, "uncommitted", "", "a commit that holds this run", "none", head)
            continue
        expected, found = _first_difference(lines.get(name, ""), own_lines.get(name, ""))
        findings.differ(node, "edited", "", expected, found, head)
    if own != committed and not findings.differences:
        findings.differ(LOCK_FILE, "edited", "line ends", "those committed", "others", head)
    return ChosenLock(Lock(stages), lines)


def check_stages(
    project: Project, stages: Sequence[LockedStage], lines: Mapping[str, str], findings: Findings
) -> None:
    """Hold each stage's entry against definition, parameters and code at the commit that brought it."""
    versions = {stage.name: project.first_version(stage.name, lines.get(stage.name, "")) for stage in stages}
    commits = {name: None if version is None else version.commit for name, version in versions.items()}
    sources = {commit: _sources(project, commit) for commit in dict.fromkeys(commits.values())}
    blobs = _code_at(project, {(commits[s.name], dep) for s in stages for dep in s.code})
    for stage in stages:
        commit = commits[stage.name]
        _check_definition(stage, sources[commit], findings)
        for dep in stage.code:
            _check_code(project, stage, dep, commit, blobs.get((commit, dep.path)), findings)


def check_chain(lock: Lock, stages: Sequence[LockedStage], project: Project, findings: Findings) -> None:
    """Every input must have the hash that its own stage recorded as output."""
    for stage in stages:
        for dep in stage.inputs:
            made = lock.outs.get(dep.path)
            if made is None or made.md5 == dep.md5:
                continue
            others = sorted(out.path for out in lock.outs.values() if out.md5 == dep.md5)
            older = next((v for v in project.git.lock_versions if _made_then(v.text, dep)), None)
            what = (
                f"that of {', '.join(others)}"
                if others
                else f"one that commit {older.commit[:12]} recorded"
                if older
                else "one that no stage made"
            )
            findings.differ(
                dep.path,
                "swapped" if others else "contradicts",
                f"read by {stage.name}",
                f"md5 {made.md5}",
                f"md5 {dep.md5}, {what}",
                f"{LOCK_FILE}: {lock.producers[dep.path].name} made it",
            )
    seen: dict[str, str] = {}
    for out in lock.outs.values():
        if out.md5.endswith(".dir") and seen.setdefault(out.md5, out.path) != out.path:
            findings.note([f"{out.path} and {seen[out.md5]} are recorded with the same bytes"])


def _parsed(text: str | None) -> Lock | None:
    try:
        return None if text is None else parse_lock(text, LOCK_FILE)
    except DataError:
        return None


def _true_here(project: Project, stage: LockedStage, present: Mapping[str, Hashed | None]) -> bool:
    for entry in (*stage.deps, *stage.outs):
        hashed = present.get(entry.path)
        if hashed is None or hashed.md5 != entry.md5 or not _same_extent(entry, hashed):
            return False
    trial = Findings()
    _check_definition(stage, _sources(project, None), trial)
    return not trial.differences


def _same_extent(entry: Entry, hashed: Hashed) -> bool:
    return entry.size in (None, hashed.size) and entry.nfiles in (
        None,
        len(hashed.files) if hashed.is_folder else None,
    )


def _first_difference(expected: str, found: str) -> tuple[str, str]:
    wanted, have = expected.split("\n"), found.split("\n")
    if not found:
        return "the stage's entry", "none"
    if not expected:
        return "no such entry", have[0].strip()
    pairs = list(zip_longest(wanted, have, fillvalue=""))
    index = next(i for i, pair in enumerate(pairs) if pair[0] != pair[1])
    # A hash is told with the path that it is of.
    path = next((line.strip() for line in reversed(wanted[:index]) if "path: " in line), "")
    return f"{pairs[index][0].strip()!r}" + (
        f" after {path!r}" if path else ""
    ), f"{pairs[index][1].strip()!r}"


def _sources(project: Project, commit: str | None) -> Sources:
    where = "the working tree" if commit is None else f"commit {commit[:12]}"
    texts: dict[str, str] = {}
    for name in (PIPELINE_FILE, PARAMS_FILE):
        if commit is None:
            path = project.root / name
            content = path.read_bytes() if path.is_file() else None
        else:
            content = project.git.read(commit, name)
        texts[name] = (content or b"{}").decode(errors="replace")
    try:
        params = parse_params(texts[PARAMS_FILE], f"{PARAMS_FILE} in {where}")
        pipeline = parse_pipeline(texts[PIPELINE_FILE], params, f"{PIPELINE_FILE} in {where}")
    except DataError:
        # Byte for byte it is held against the commit elsewhere.
        return Sources(where, {}, {})
    return Sources(where, pipeline, params)


def _check_definition(stage: LockedStage, sources: Sources, findings: Findings) -> None:
    node = f"{LOCK_FILE}: {stage.name}"
    if not sources.pipeline:
        return
    defined = sources.pipeline.get(stage.name)
    if defined is None:
        findings.differ(
            node, "contradicts", "", "a stage of that name", "none", f"{PIPELINE_FILE} in {sources.where}"
        )
        return
    record = f"{PIPELINE_FILE} in {sources.where}"
    if " ".join(defined.cmd.split()) != " ".join(stage.cmd.split()):
        findings.differ(node, "contradicts", "cmd", defined.cmd, stage.cmd, record)
    for kind, wanted, have in (
        ("deps", defined.deps, {dep.path for dep in stage.deps}),
        ("outs", defined.outs, {out.path for out in stage.outs}),
    ):
        for path in sorted(wanted - have):
            findings.differ(node, "contradicts", kind, path, "no entry", record)
        for path in sorted(have - wanted):
            findings.differ(node, "contradicts", kind, "no entry", path, record)
    for name, value in stage.settings.items():
        try:
            wanted_value = lookup(sources.params, name)
        except (KeyError, TypeError):
            wanted_value = "no such parameter"
        if wanted_value != value:
            findings.differ(node, "dirty", name, wanted_value, value, f"{PARAMS_FILE} in {sources.where}")
    for section in {name for values in stage.params.values() for name in values}:
        _check_section(stage, section, sources, findings)


def _check_section(stage: LockedStage, section: str, sources: Sources, findings: Findings) -> None:
    """A tracked section must have no parameter that the entry leaves out."""
    try:
        wanted = lookup(sources.params, section)
    except (KeyError, TypeError):
        return
    if isinstance(wanted, Mapping):
        for name, value in flatten(wanted, section):
            if name not in stage.settings:
                findings.differ(
                    f"{LOCK_FILE}: {stage.name}", "dirty", name, value, "no entry",
                    f"{PARAMS_FILE} in {sources.where}",
                )  # fmt: skip


def _code_at(project: Project, wanted: set[tuple[str | None, Entry]]) -> dict[tuple[str | None, str], str]:
    """Return DVC's hash of code files and folders at commits; what is not there is left out."""
    files: dict[tuple[str, str], list[str]] = {}
    for commit, dep in wanted:
        if commit is not None:
            is_folder = dep.md5.endswith(".dir")
            files[commit, dep.path] = project.git.files_under(commit, dep.path) if is_folder else [dep.path]
    contents = project.git.read_many((commit, name) for (commit, _), names in files.items() for name in names)
    found: dict[tuple[str | None, str], str] = {}
    for (commit, path), names in files.items():
        digests: dict[str, Digest] = {}
        for name in names:
            content = contents[commit, name]
            if content is not None:
                digests[name.removeprefix(path).lstrip("/")] = hash_bytes(content)
        if digests:
            found[commit, path] = Hashed(digests, "" not in digests).md5
    return found


def _check_code(
    project: Project,
    stage: LockedStage,
    dep: Entry,
    commit: str | None,
    committed: str | None,
    findings: Findings,
) -> None:
    if commit is None or committed == dep.md5:
        return
    node, record = dep.path, f"commit {commit[:12]}, which records the run"
    if _ever_committed(project, dep):
        findings.note(
            [f"{stage.name} ran with {dep.path} of another commit than the one that records the run"]
        )
        return
    findings.differ(
        node, "dirty", f"used by {stage.name}", f"md5 {committed or 'none'}",
        f"md5 {dep.md5}, which no commit holds", record,
    )  # fmt: skip


def _ever_committed(project: Project, dep: Entry) -> bool:
    """Whether any commit holds a code file, or folder, with this hash."""
    if not dep.md5.endswith(".dir"):
        return any(hash_bytes(content).md5 == dep.md5 for content in project.git.versions_of(dep.path))
    found = _code_at(project, {(commit, dep) for commit in project.git.commits_of(dep.path)})
    return dep.md5 in found.values()


def _made_then(text: str, dep: Entry) -> bool:
    if dep.md5 not in text:
        return False
    lock = _parsed(text)
    return lock is not None and dep.path in lock.outs and lock.outs[dep.path].md5 == dep.md5
