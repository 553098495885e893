"""Are the bytes those recorded: in the working tree, in git, in DVC's cache and in its remotes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from macflow.lineage.findings import Findings, What
from macflow.lineage.hashing import Hashed, hash_bytes
from macflow.lineage.lock import LOCK_FILE, Entry, Lock
from macflow.lineage.project import Project, deviations, json_object
from macflow.lineage.store import Store

# Contents fetched from a remote at the same time.
FETCHES = 8


@dataclass(frozen=True)
class Kept:
    """A content that a store has, and the output that it belongs to."""

    store: Store
    out: Entry
    # The file of the output, or "list of files".
    name: str
    md5: str

    @property
    def path(self) -> Path:
        return self.store.path(self.md5)


def kept_contents(project: Project, outs: Iterable[Entry], hashed: Mapping[str, Hashed | None]) -> list[Kept]:
    """Return every content of `outs` that the cache, or a remote that is a folder, has."""
    found: list[Kept] = []
    for out in outs:
        if not out.md5:
            continue
        names = {"": out.md5}
        if out.md5.endswith(".dir"):
            names = {"list of files": out.md5} | members_of(project, out, hashed.get(out.path))
        for store in project.stores:
            kept = [Kept(store, out, name, md5) for name, md5 in names.items()]
            found += [one for one in kept if one.path.exists()]
    return found


def members_of(project: Project, out: Entry, hashed: Hashed | None) -> dict[str, str]:
    """Return the files of a recorded folder; empty where no list of them is to be believed."""
    if hashed is not None and hashed.md5 == out.md5:
        return {name: digest.md5 for name, digest in hashed.files.items()}
    content = project.content(out.md5)
    return {} if content is None else project.members(out.md5) or {}


def check_kept(kept: Sequence[Kept], hashed: Mapping[Path, Hashed | None], findings: Findings) -> None:
    """Compare each stored content with its name."""
    for one in kept:
        found = hashed[one.path]
        if found is not None and found.md5 != one.md5.removesuffix(".dir"):
            findings.differ(
                one.out.path,
                "changed",
                f"{one.name} in the {one.store.name}".strip(),
                f"md5 {one.md5}",
                f"md5 {found.md5}",
                f"the name of {one.path.relative_to(one.store.folder)}",
            )


def check_present(
    project: Project,
    lock: Lock,
    outs: Iterable[Entry],
    hashed: Mapping[str, Hashed | None],
    findings: Findings,
) -> None:
    """Compare the working tree's artifacts with the record."""
    for out in outs:
        found = hashed.get(out.path)
        if found is None:
            continue
        record = f"{LOCK_FILE}: {lock.producers[out.path].name if out.path in lock.producers else 'input'}"
        if found.md5 != out.md5:
            _tell(project, lock, out, found, record, findings)
        elif out.size is not None and out.size != found.size:
            findings.differ(
                out.path, "contradicts", "size", f"{out.size} bytes", f"{found.size} bytes", record
            )
        elif out.nfiles is not None and found.is_folder and out.nfiles != len(found.files):
            findings.differ(out.path, "contradicts", "nfiles", out.nfiles, len(found.files), record)


def check_committed(
    project: Project, paths: Iterable[str], hashed: Mapping[str, Hashed | None], findings: Findings
) -> None:
    """Compare files that git keeps with HEAD's."""
    head = project.git.head
    if head is None:
        return
    names: dict[str, list[str]] = {}
    for path in dict.fromkeys(paths):
        found = hashed.get(path)
        is_folder = found is not None and found.is_folder
        names[path] = project.git.files_under(head, path) if is_folder else [path]
    contents = project.git.read_many((head, name) for listed in names.values() for name in listed)
    for path, listed in names.items():
        found = hashed.get(path)
        own = (
            {}
            if found is None
            else {f"{path}/{name}" if name else path: d.md5 for name, d in found.files.items()}
        )
        for name in dict.fromkeys([*listed, *own]):
            content = contents.get((head, name))
            expected = None if content is None else hash_bytes(content).md5
            if own.get(name) != expected:
                findings.differ(
                    name,
                    "missing" if name not in own else "changed" if expected else "uncommitted",
                    "",
                    f"md5 {expected}" if expected else "a commit that holds it",
                    f"md5 {own[name]}" if name in own else "no such file",
                    f"commit {head[:12]}",
                )


def check_metrics_of_commit(project: Project, commit: str, outs: Iterable[Entry], findings: Findings) -> None:
    """Compare outputs that git keeps, such as metrics, with the lock of the same commit."""
    contents = project.git.read_many((commit, out.path) for out in outs if not out.md5.endswith(".dir"))
    entries = {out.path: out for out in outs}
    for (_, path), content in contents.items():
        if content is not None and (md5 := hash_bytes(content).md5) != entries[path].md5:
            findings.differ(
                path, "contradicts", "", f"md5 {entries[path].md5}", f"md5 {md5} in git",
                f"{LOCK_FILE} of commit {commit[:12]}",
            )  # fmt: skip


def check_buckets(
    project: Project, outs: Iterable[Entry], hashed: Mapping[str, Hashed | None], findings: Findings
) -> set[str]:
    """Fetch what remotes that are no folders keep of `outs`, and hash it; return the hashes that were there.

    Raises:
        DataError: a remote that does not answer.
    """
    there: set[str] = set()
    for bucket in project.buckets:
        wanted: dict[str, tuple[str, str]] = {}
        for out in outs:
            wanted[out.md5] = (out.path, "list of files" if out.md5.endswith(".dir") else "")
            members = members_of(project, out, hashed.get(out.path))
            if out.md5.endswith(".dir") and not members and (content := bucket.read(out.md5)) is not None:
                members = {item["relpath"]: item["md5"] for item in json_list(content)}
            wanted |= {md5: (out.path, name) for name, md5 in members.items()}
        with ThreadPoolExecutor(max_workers=FETCHES) as pool:
            for md5, content in zip(wanted, pool.map(bucket.read, wanted), strict=True):
                if content is None:
                    continue
                there.add(md5)
                findings.files += 1
                findings.size += len(content)
                path, name = wanted[md5]
                if (found := hash_bytes(content).md5) != md5.removesuffix(".dir"):
                    findings.differ(
                        path, "changed", f"{name} in the {bucket.name}".strip(), f"md5 {md5}", f"md5 {found}",
                        "its name there",
                    )  # fmt: skip
    return there


def json_list(content: bytes) -> list[dict[str, str]]:
    """Read a list of files; empty where it is none."""
    wrapped = json_object(b'{"list": ' + content + b"}")
    listed = wrapped.get("list")
    return (
        [x for x in listed if isinstance(x, dict) and {"relpath", "md5"} <= x.keys()]
        if isinstance(listed, list)
        else []
    )


def _tell(project: Project, lock: Lock, out: Entry, found: Hashed, record: str, findings: Findings) -> None:
    other = next((o.path for o in lock.outs.values() if o.md5 == found.md5 and o.path != out.path), None)
    if other is not None:
        findings.differ(
            out.path, "swapped", "", f"md5 {out.md5}", f"md5 {found.md5}, the bytes of {other}", record
        )
        return
    recorded = members_of(project, out, None) if found.is_folder else {}
    if not recorded:
        findings.differ(out.path, "changed", "", f"md5 {out.md5}", f"md5 {found.md5}", record)
        return
    for one in deviations(recorded, found):
        what: What = "missing" if one.found == "missing" else "changed"
        findings.differ(out.path, what, one.file, one.expected, one.found, record)
