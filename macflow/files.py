"""Write files and folders so that a reader sees the old one or the new one, never half of either."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from macflow.types import DataError


@contextmanager
def replace_directory(target: Path) -> Iterator[Path]:
    """Yield a temporary folder that becomes `target` when the block ends without an error.

    An error in the block leaves `target` as it was and removes the temporary folder.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    fresh = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".new", dir=target.parent))
    fresh.chmod(0o755)
    try:
        yield fresh
        for member in fresh.rglob("*"):
            # Some writers (safetensors) keep what they write from everybody else.
            member.chmod(0o755 if member.is_dir() else 0o644)
        if target.is_dir() and not target.is_symlink():
            old = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".old", dir=target.parent))
            target.rename(old / "was")
            fresh.rename(target)
            shutil.rmtree(old)
        else:
            target.unlink(missing_ok=True)
            fresh.rename(target)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


def write_text(path: Path, text: str) -> None:
    """Replace the file `path` by `text` in one step, creating parent folders."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name(f".{path.name}.{os.getpid()}.new")
    try:
        fresh.write_text(text, encoding="utf-8")
        fresh.replace(path)
    finally:
        fresh.unlink(missing_ok=True)


def write_json(path: Path, content: Any) -> None:
    """Replace the file `path` by `content` as JSON: sorted keys, no NaN, a final newline."""
    write_text(path, json.dumps(content, indent=2, sort_keys=True, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """Read JSON; a missing or malformed file raises `DataError` that names it."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(f"{path}: file not found") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: not valid JSON: {error}") from None


def digest(path: Path) -> str:
    """Return the SHA-256 of a file, or of a folder's relative names and contents in sorted order."""
    if not path.exists():
        raise DataError(f"{path}: not found, so it has no digest")
    if path.is_file():
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    whole = hashlib.sha256()
    for member in sorted(p for p in path.rglob("*") if p.is_file()):
        whole.update(f"{member.relative_to(path).as_posix()}\0{digest(member)}\n".encode())
    return whole.hexdigest()


def dvc_md5(path: Path) -> str:
    """Return the hash under which DVC knows a file, or a folder: that of its list of files, with `.dir`."""
    if path.is_file():
        with path.open("rb") as file:
            return hashlib.file_digest(file, "md5").hexdigest()
    members = [
        {"md5": dvc_md5(p), "relpath": p.relative_to(path).as_posix()} for p in path.rglob("*") if p.is_file()
    ]
    listed = json.dumps(sorted(members, key=lambda member: member["relpath"]), sort_keys=True)
    return hashlib.md5(listed.encode(), usedforsecurity=False).hexdigest() + ".dir"
