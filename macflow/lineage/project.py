"""A project as the auditor finds it: its lock, its history, its caches, and where a subject stands there."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from macflow.lineage.git import LockVersion, Repository
from macflow.lineage.hashing import Hashed, hash_bytes, hash_path
from macflow.lineage.lock import LOCK_FILE, Entry, Lock, blocks, parse_lock
from macflow.lineage.run_cards import RunCards
from macflow.lineage.store import Bucket, Store, find_stores
from macflow.types import DataError

_HEX = re.compile(r"[0-9a-f]{7,64}(\.dir)?")
# The manifests that say what an artifact was made from, by the name of their file.
MANIFESTS = ("policy.json", "flow.json", "critic.json", "teacher.json", "dataset.json")


class UnknownBytesError(DataError):
    """No record of the project has the bytes that are asked about."""


@dataclass(frozen=True)
class Deviation:
    """A file of a bundle that is not what the record says."""

    file: str
    expected: str
    found: str

    def __str__(self) -> str:
        return f"{self.file}: {self.found}, recorded {self.expected}"


@dataclass(frozen=True)
class Subject:
    """What is asked about, and the version of the lock that tells of it."""

    # Its place in the pipeline.
    path: str
    md5: str
    lock: Lock
    lock_text: str
    # The commit that brought this version of the lock; None for the working tree's own.
    version: LockVersion | None
    # The files that were hashed to identify it, and where; None where a digest or the lock named it.
    hashed: Hashed | None
    place: Path | None
    # Of a bundle whose bytes no record has: how it differs from the closest recorded one.
    deviations: tuple[Deviation, ...] = ()


class Project:
    """Everything that can be known of a project without running it."""

    def __init__(self, root: Path) -> None:
        """Take the folder that holds `dvc.yaml`."""
        self.root = root
        self.git = Repository(root)

    @cached_property
    def stores(self) -> list[Store]:
        return find_stores(self.root)[0]

    @cached_property
    def buckets(self) -> list[Bucket]:
        return find_stores(self.root)[1]

    @cached_property
    def cards(self) -> RunCards:
        return RunCards(self.root, self.git)

    @cached_property
    def lock_text(self) -> str | None:
        """Return the working tree's lock, None where there is none."""
        try:
            return (self.root / LOCK_FILE).read_bytes().decode(errors="replace")
        except OSError:
            return None

    @cached_property
    def present_lock(self) -> tuple[Lock, str] | None:
        """Return the working tree's lock; where it is missing or no YAML any more, that of HEAD."""
        for text in (self.lock_text, self.head_lock_text):
            try:
                if text is not None:
                    return parse_lock(text, LOCK_FILE), text
            except DataError:
                continue
        return None

    @cached_property
    def head_lock_text(self) -> str | None:
        head = self.git.head
        content = self.git.read(head, LOCK_FILE) if head else None
        return None if content is None else content.decode(errors="replace")

    def content(self, md5: str) -> bytes | None:
        """Return a content by DVC's hash from a folder that keeps it, unless its bytes are others."""
        for store in self.stores:
            content = store.read(md5)
            if content is not None and hash_bytes(content).md5 == md5.removesuffix(".dir"):
                return content
        return None

    def members(self, md5: str) -> dict[str, str] | None:
        """Return the files of a recorded folder with their hashes, where its list is kept anywhere here."""
        return next((found for store in self.stores if (found := store.members(md5)) is not None), None)

    def manifest(self, path: str, md5: str, hashed: Hashed | None = None) -> tuple[str, bytes] | None:
        """Return name and content of the manifest of the artifact with this hash.

        It comes from the cache, or else from the working tree where the file there has the recorded hash.
        """
        members = self.members(md5)
        if members is None and hashed is not None and hashed.md5 == md5:
            members = {name: digest.md5 for name, digest in hashed.files.items()}
        for name in MANIFESTS:
            if members is None or name not in members:
                continue
            if (content := self.content(members[name])) is not None:
                return name, content
            try:
                content = (self.root / path / name).read_bytes()
            except OSError:
                continue
            if hash_bytes(content).md5 == members[name]:
                return name, content
        return None

    def first_version(self, stage: str, block: str) -> LockVersion | None:
        """Return the oldest commit whose lock has exactly these lines for a stage."""
        return next((v for v in self.git.lock_versions if _blocks(v).get(stage) == block), None)


def find_project(start: Path) -> Project:
    """Return the project that a path lies in.

    Raises:
        DataError: there is none.
    """
    absolute = start.absolute()
    for folder in (absolute, *absolute.parents):
        if (folder / ".dvc").is_dir() and (folder / "dvc.yaml").is_file():
            return Project(folder)
    raise DataError(f"{start}: lies in no DVC project (no folder above it has both `.dvc` and `dvc.yaml`)")


def find_subject(project: Project, wanted: str) -> Subject:
    """Return what `wanted` names: a path, `REVISION:PATH`, or a digest, MD5 or SHA-256, perhaps shortened.

    Raises:
        DataError: nothing here or in the history is that.
    """
    path = Path(wanted)
    if not path.exists() and (project.root / path).exists():
        path = project.root / path
    if path.exists():
        return _by_bytes(project, path)
    if _HEX.fullmatch(wanted):
        return _by_digest(project, wanted)
    revision, colon, inside = wanted.partition(":")
    if colon:
        return _by_revision(project, revision, inside)
    if project.present_lock is not None:
        lock, text = project.present_lock
        recorded = wanted if wanted in lock.outs else _inside(project, path)
        if recorded in lock.outs:
            return Subject(recorded, lock.outs[recorded].md5, lock, text, None, None, None)
    raise DataError(f"{wanted}: no such file or folder, and no digest (7 to 64 hexadecimal digits) either")


def versions_with(project: Project, digest: str) -> Iterator[tuple[LockVersion | None, str]]:
    """Yield each lock that has `digest`: the working tree's first, then commits', the oldest first."""
    if project.present_lock is not None and digest in project.present_lock[1]:
        yield None, project.present_lock[1]
    for version in project.git.lock_versions:
        if digest in version.text:
            yield version, version.text


def _by_bytes(project: Project, path: Path) -> Subject:
    hashed = hash_path(path)
    if hashed is None or not hashed.files:
        raise DataError(f"{path}: holds no file")
    place = _inside(project, path)
    if found := _recorded_as(project, hashed.md5, place):
        entry, lock, text, version = found
        outs = project.present_lock[0].outs if project.present_lock else {}
        of = "" if version is None else f" of commit {version.commit[:12]}"
        swapped = (
            (Deviation(place, f"md5 {outs[place].md5}", f"the bytes of {entry.path}{of}"),)
            if place in outs and (place != entry.path or version is not None)
            else ()
        )
        return Subject(entry.path, entry.md5, lock, text, version, hashed, path, swapped)
    if place is not None and project.present_lock is not None:
        lock, text = project.present_lock
        # A file inside an output stands for that output.
        for out in (place, *(parent.as_posix() for parent in Path(place).parents)):
            if out in lock.outs:
                whole = hashed if out == place else hash_path(project.root / out)
                entry = lock.outs[out]
                return Subject(
                    out,
                    entry.md5,
                    lock,
                    text,
                    None,
                    whole,
                    project.root / out,
                    _against(project, entry, whole),
                )
    if closest := _closest(project, hashed):
        entry, lock, text, version = closest
        return Subject(
            entry.path, entry.md5, lock, text, version, hashed, path, _against(project, entry, hashed)
        )
    raise UnknownBytesError(
        f"{path}: no version of {LOCK_FILE} in {project.root} records these bytes (DVC md5 {hashed.md5}, "
        f"SHA-256 {hashed.sha256})"
    )


Found = tuple[Entry, Lock, str, LockVersion | None]


def _recorded_as(project: Project, md5: str, preferred: str | None = None) -> Found | None:
    """Return where a lock records `md5` as an output: in the working tree, else where it first was."""
    for version, text in versions_with(project, md5):
        try:
            lock = parse_lock(text, LOCK_FILE)
        except DataError:
            continue
        entries = [out for out in lock.outs.values() if out.md5.startswith(md5)]
        if entries:
            entry = next((out for out in entries if out.path == preferred), entries[0])
            return entry, lock, text, version
    return None


def _closest(project: Project, hashed: Hashed) -> Found | None:
    """Return the recorded folder that shares most files with `hashed`, by the lists that the cache keeps."""
    own = {(name, digest.md5) for name, digest in hashed.files.items()}
    best: tuple[int, Found] | None = None
    seen: set[str] = set()
    present = [project.present_lock[1]] if project.present_lock is not None else []
    texts = [*present, *(version.text for version in project.git.lock_versions)]
    for text in texts:
        fresh = set(re.findall(r"[0-9a-f]{32}\.dir", text)) - seen
        seen |= fresh
        shared = {md5: len(own & set(members.items())) for md5 in fresh if (members := project.members(md5))}
        for md5, count in shared.items():
            if count > (best[0] if best else 0) and (found := _recorded_as(project, md5)):
                best = count, found
    return None if best is None else best[1]


def _against(project: Project, entry: Entry, hashed: Hashed | None) -> tuple[Deviation, ...]:
    """Say which files of a folder are not those of the recorded one."""
    if hashed is None:
        return (Deviation(entry.path, f"md5 {entry.md5}", "missing"),)
    recorded = project.members(entry.md5)
    if recorded is None or not hashed.is_folder:
        return (Deviation(entry.path, f"md5 {entry.md5}", f"md5 {hashed.md5}"),)
    return deviations(recorded, hashed)


def deviations(recorded: Mapping[str, str], hashed: Hashed) -> tuple[Deviation, ...]:
    """Compare a folder's files with the recorded list of name -> MD5."""
    names = sorted(recorded.keys() | hashed.files.keys())
    found = {name: hashed.files[name].md5 if name in hashed.files else None for name in names}
    return tuple(
        Deviation(
            name,
            f"md5 {recorded[name]}" if name in recorded else "no such file",
            "missing" if found[name] is None else f"md5 {found[name]}",
        )
        for name in names
        if found[name] != recorded.get(name)
    )


def _by_digest(project: Project, digest: str) -> Subject:
    if found := _recorded_as(project, digest):
        entry, lock, text, version = found
        return Subject(entry.path, entry.md5, lock, text, version, None, None)
    for card in project.cards.with_sha256(digest):
        if found := _recorded_as(project, str(card["output"]["md5"]), str(card["output"]["path"])):
            entry, lock, text, version = found
            return Subject(entry.path, entry.md5, lock, text, version, None, None)
    raise DataError(
        f"{digest}: no version of {LOCK_FILE} in {project.root}, and no run card, has this digest"
    )


def _by_revision(project: Project, revision: str, path: str) -> Subject:
    commit = project.git.resolve(revision)
    text = None if commit is None else project.git.read(commit, LOCK_FILE)
    if commit is None or text is None:
        raise DataError(f"{revision}: no commit of {project.root} that has a {LOCK_FILE}")
    lock = parse_lock(text.decode(errors="replace"), f"{revision}:{LOCK_FILE}")
    if path not in lock.outs:
        raise DataError(
            f"{revision}:{path}: not an output; {LOCK_FILE} there has {', '.join(sorted(lock.outs))}"
        )
    decoded = text.decode(errors="replace")
    # The commit that brought this lock, which may be an older one.
    version = next((v for v in project.git.lock_versions if v.text == decoded), None)
    return Subject(path, lock.outs[path].md5, lock, decoded, version, None, None)


def _inside(project: Project, path: Path) -> str | None:
    absolute, root = path.absolute().resolve(), project.root.resolve()
    return absolute.relative_to(root).as_posix() if absolute.is_relative_to(root) else None


_split: dict[str, dict[str, str]] = {}


def _blocks(version: LockVersion) -> dict[str, str]:
    if version.commit not in _split:
        _split[version.commit] = blocks(version.text)
    return _split[version.commit]


def json_object(content: bytes) -> dict[str, Any]:
    """Read a manifest; an empty one where it is not a JSON object."""
    try:
        raw = json.loads(content)
    except ValueError:
        return {}
    return raw if isinstance(raw, dict) else {}
