"""Single-byte changes of a project, each with the node that an audit must name."""

from __future__ import annotations

import json
import os
import random
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from macflow.lineage.lock import Entry, blocks, parse_lock


@dataclass(frozen=True)
class Target:
    """A file whose every byte is held by some record."""

    path: Path
    # What the audit must name; None: the stage of `dvc.lock` whose lines the byte stands in.
    node: str | None
    group: str


def targets(root: Path, bundle: Path) -> list[Target]:
    """List a project's artifacts, stored contents, parameters, code, cards, lock, and a bundle elsewhere."""
    lock = parse_lock((root / "dvc.lock").read_text(), "dvc.lock")
    found = [Target(root / "dvc.lock", None, "lock")] * 40
    for name in ("params.yaml", "dvc.yaml"):
        found += [Target(root / name, name, "parameters")] * 20
    for out in lock.outs.values():
        found += [Target(path, out.path, "artifact") for path in files(root / out.path)]
        found += [Target(path, out.path, "cache") for path in stored(root, out)]
    code = {dep.path for stage in lock.stages.values() for dep in stage.code}
    found += [
        Target(path, path.relative_to(root).as_posix(), "code") for dep in code for path in files(root / dep)
    ]
    found += [
        Target(path, path.relative_to(root).as_posix(), "card") for path in files(root / "metrics/made")
    ]
    found += [Target(path, "models/policy", "bundle") for path in files(bundle)] * 10
    return [target for target in found if target.path.stat().st_size]


def files(path: Path) -> list[Path]:
    """Return a file, or all files below a folder."""
    return sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]


def stored(root: Path, out: Entry) -> Iterator[Path]:
    """Yield the cache's files of an output."""
    cache = root / ".dvc/cache/files/md5"
    listed = cache / out.md5[:2] / out.md5[2:]
    if listed.exists():
        yield listed
    if out.md5.endswith(".dir"):
        for item in json.loads(listed.read_text()):
            yield cache / item["md5"][:2] / item["md5"][2:]


def choose(everything: list[Target], count: int, seed: int) -> list[tuple[Target, int, int]]:
    """Draw changes as (file, place, mask), the groups by turns."""
    stream = random.Random(seed)
    groups = sorted({target.group for target in everything})
    drawn = []
    for index in range(count):
        target = stream.choice([t for t in everything if t.group == groups[index % len(groups)]])
        place = stream.randrange(target.path.stat().st_size)
        drawn.append((target, place, stream.randrange(1, 256)))
    return drawn


@contextmanager
def changed(path: Path, place: int, mask: int) -> Iterator[None]:
    """Change one byte meanwhile; the file keeps its size and time, so that nothing else betrays it."""
    before, times = path.read_bytes(), path.stat()
    mode = times.st_mode
    path.chmod(0o644)
    altered = bytearray(before)
    altered[place] ^= mask
    try:
        path.write_bytes(altered)
        _keep_times(path, times.st_mtime_ns)
        yield
    finally:
        path.write_bytes(before)
        _keep_times(path, times.st_mtime_ns)
        path.chmod(mode)


def stage_at(root: Path, place: int) -> str:
    """Return the node for a byte of `dvc.lock`."""
    before = (root / "dvc.lock").read_bytes()[: place + 1].decode(errors="replace")
    # The line that names a stage belongs to it from its first byte on.
    text = (root / "dvc.lock").read_text()
    line = text[len(before) :].partition("\n")[0] if not before.endswith("\n") else ""
    name = list(blocks(before + line))[-1]
    return f"dvc.lock: {name}" if name else "dvc.lock"


def commit_all(root: Path, message: str) -> str:
    """Commit everything; return the commit."""
    identity = ["-c", "user.name=test", "-c", "user.email=test@example.org"]
    subprocess.run(["git", "add", "--all"], cwd=root, check=True)
    subprocess.run(
        ["git", *identity, "commit", "--quiet", "--allow-empty", f"--message={message}"], cwd=root, check=True
    )
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=root, check=True, capture_output=True, text=True)
    return head.stdout.strip()


def _keep_times(path: Path, mtime_ns: int) -> None:
    os.utime(path, ns=(mtime_ns, mtime_ns))
