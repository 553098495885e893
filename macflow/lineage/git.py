"""What git keeps: contents of files at commits, and the history of `dvc.lock`, by few processes."""

from __future__ import annotations

import subprocess
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from macflow.lineage.lock import LOCK_FILE
from macflow.types import DataError


@dataclass(frozen=True)
class LockVersion:
    """A version of `dvc.lock` that a commit brought."""

    commit: str
    time: str
    subject: str
    text: str


class Repository:
    """Read-only access to the git repository that a project lies in."""

    def __init__(self, root: Path) -> None:
        """Take the project's root, which may be a folder inside the repository."""
        self.root = root

    @cached_property
    def present(self) -> bool:
        """Whether there is a repository with at least one commit."""
        return self.head is not None

    @cached_property
    def head(self) -> str | None:
        return self.resolve("HEAD")

    def resolve(self, revision: str) -> str | None:
        """Return the full hash of a commit, or None."""
        found = self._run("rev-parse", "--verify", "--quiet", f"{revision}^{{commit}}")
        return found.decode().strip() if found else None

    def read(self, commit: str, path: str) -> bytes | None:
        """Return a file's content at a commit, or None where it is not there."""
        return self.read_many([(commit, path)])[commit, path]

    def read_many(self, wanted: Iterable[tuple[str, str]]) -> dict[tuple[str, str], bytes | None]:
        """Return the contents of (commit, path), by one process; None for what is not there."""
        names = list(dict.fromkeys(wanted))
        contents = self._cat([f"{commit}:./{path}" for commit, path in names])
        return dict(zip(names, contents, strict=True))

    def files_under(self, commit: str, folder: str) -> list[str]:
        """Return the paths of all files below a folder at a commit."""
        listed = self._run("ls-tree", "-r", "-z", "--name-only", commit, "--", f"{folder.rstrip('/')}/")
        return [name for name in (listed or b"").decode().split("\0") if name]

    @cached_property
    def lock_versions(self) -> list[LockVersion]:
        """Return every version of `dvc.lock` in any branch, tag or DVC experiment, the oldest first."""
        if not self.present:
            return []
        listed = self._run(
            "log", "--all", "--full-history", "--topo-order", "--reverse", "--format=%H%x00%cI%x00%s", "HEAD",
            "--", LOCK_FILE,
        )  # fmt: skip
        rows = [line.split("\0", 2) for line in (listed or b"").decode(errors="replace").splitlines()]
        texts = self.read_many((commit, LOCK_FILE) for commit, _, _ in rows)
        return [
            LockVersion(commit, time, subject, text.decode(errors="replace"))
            for commit, time, subject in rows
            if (text := texts[commit, LOCK_FILE]) is not None
        ]

    def versions_of(self, path: str) -> list[bytes]:
        """Return every content that a file, or any file below a folder, has had in any commit."""
        listed = self._run("rev-list", "--all", "HEAD", "--objects", "--no-object-names", "--", path)
        objects = (listed or b"").decode().split()
        return [content for content in self._cat(objects, "blob") if content is not None]

    def commits_of(self, path: str) -> list[str]:
        """Return the commits that changed a file, or anything below a folder."""
        listed = self._run("log", "--all", "--full-history", "--format=%H", "HEAD", "--", path)
        return (listed or b"").decode().split()

    def names_of(self, commit: str) -> list[str]:
        """Return the tags and branches that hold a commit."""
        listed = self._run(
            "for-each-ref", "--contains", commit, "--format=%(refname:short)", "refs/tags", "refs/heads"
        )
        return (listed or b"").decode().split()

    def _cat(self, names: list[str], kind: str | None = None) -> list[bytes | None]:
        if not names:
            return []
        if any("\n" in name for name in names):
            raise DataError("git cannot be asked for a path with a line break")
        output = self._run("cat-file", "--batch", stdin="\n".join([*names, ""]).encode())
        if output is None:
            return [None] * len(names)
        contents: list[bytes | None] = []
        place = 0
        for _ in names:
            end = output.index(b"\n", place)
            words = output[place:end].split()
            place = end + 1
            if len(words) < 3 or words[-1] == b"missing" or not words[-1].isdigit():
                contents.append(None)
                continue
            size = int(words[-1])
            wanted = words[-2] == b"blob" if kind is None else words[-2] == kind.encode()
            contents.append(output[place : place + size] if wanted else None)
            place += size + 1
        return contents

    def _run(self, *arguments: str, stdin: bytes | None = None) -> bytes | None:
        try:
            done = subprocess.run(
                ["git", *arguments],
                cwd=self.root,
                input=b"" if stdin is None else stdin,
                capture_output=True,
                timeout=60,
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise DataError(f"{self.root}: git does not answer: {error}") from None
        return done.stdout if done.returncode == 0 else None
