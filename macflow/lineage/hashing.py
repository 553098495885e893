"""Digests of files and folders as DVC and our manifests write them, as fast as disk and cores allow."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from macflow.types import DataError

# Reads this long let hashlib work without the interpreter's lock, and stay in the processor's cache.
CHUNK = 1 << 20
# A file larger than this is hashed by two threads at once, one for each digest.
SPLIT = 4 << 20


@dataclass(frozen=True)
class Digest:
    """What identifies a file: MD5 is what DVC records, SHA-256 what nobody can forge."""

    md5: str
    # Empty where only the MD5 was asked for.
    sha256: str
    size: int


@dataclass(frozen=True)
class Hashed:
    """A file or a folder with the digests of all its files, by path relative to it; `""` is a file itself."""

    files: Mapping[str, Digest]
    is_folder: bool

    @property
    def md5(self) -> str:
        """Return DVC's hash: of a folder, the hash of its list of files with the suffix `.dir`."""
        if not self.is_folder:
            return self.files[""].md5
        return hashlib.md5(self.manifest(), usedforsecurity=False).hexdigest() + ".dir"

    def manifest(self) -> bytes:
        """Return the folder's list of files byte for byte as DVC keeps it."""
        listed = [{"md5": d.md5, "relpath": name} for name, d in sorted(self.files.items())]
        return json.dumps(listed, sort_keys=True).encode()

    @property
    def sha256(self) -> str:
        """Return what `macflow.files.digest` does."""
        return self.files[""].sha256 if not self.is_folder else folder_sha256(self.files)

    @property
    def size(self) -> int:
        return sum(d.size for d in self.files.values())


def folder_sha256(files: Mapping[str, Digest]) -> str:
    """Return the digest of a folder of these files as `macflow.files.digest` computes it."""
    whole = hashlib.sha256()
    for name in sorted(files, key=lambda name: Path(name).parts):
        whole.update(f"{name}\0{files[name].sha256}\n".encode())
    return whole.hexdigest()


def hash_paths(paths: Iterable[Path], only_md5: Iterable[Path] = ()) -> dict[Path, Hashed | None]:
    """Hash files and folders, several at once; None for what does not exist.

    A file that is there under several names (a hard link from DVC's cache) is read once.

    Args:
        only_md5: further paths, of which nobody will ask the SHA-256.

    Raises:
        DataError: a file that cannot be read.
    """
    whole = dict.fromkeys(paths)
    members = {path: _members(path) for path in [*whole, *(p for p in only_md5 if p not in whole)]}
    first: dict[tuple[int, int], Path] = {}
    identity: dict[Path, tuple[int, int]] = {}
    sizes: dict[tuple[int, int], int] = {}
    with_sha256: set[tuple[int, int]] = set()
    for path, files in members.items():
        for file in (files or {}).values():
            if file not in identity:
                stat = _stat(file)
                identity[file] = (stat.st_dev, stat.st_ino)
                first.setdefault(identity[file], file)
                sizes[identity[file]] = stat.st_size
            if path in whole:
                with_sha256.add(identity[file])
    with ThreadPoolExecutor(max_workers=max(2, os.cpu_count() or 1)) as pool:
        # The longest first: at the end no core waits for another.
        order = sorted(first, key=lambda inode: -sizes[inode])
        pending: dict[tuple[int, int], list[Future[tuple[list[str], int]]]] = {}
        for inode in order:
            groups = [["md5"], ["sha256"]] if sizes[inode] > SPLIT else [["md5", "sha256"]]
            if inode not in with_sha256:
                groups = [["md5"]]
            pending[inode] = [pool.submit(_hash, first[inode], group) for group in groups]
        done: dict[tuple[int, int], Digest] = {}
        for inode, futures in pending.items():
            results = [future.result() for future in futures]
            md5, *others = [hexed for hexes, _ in results for hexed in hexes]
            done[inode] = Digest(md5, "".join(others), results[0][1])
    return {
        path: None
        if files is None
        else Hashed({name: done[identity[file]] for name, file in files.items()}, "" not in files)
        for path, files in members.items()
    }


def hash_path(path: Path) -> Hashed | None:
    """Hash one file or folder; None where there is nothing."""
    return hash_paths([path])[path]


def hash_bytes(content: bytes) -> Digest:
    """Return the digests of bytes that are in memory."""
    return Digest(
        hashlib.md5(content, usedforsecurity=False).hexdigest(),
        hashlib.sha256(content).hexdigest(),
        len(content),
    )


def _members(path: Path) -> dict[str, Path] | None:
    if path.is_dir():
        return {p.relative_to(path).as_posix(): p for p in path.rglob("*") if p.is_file()}
    return {"": path} if path.exists() else None


def _stat(path: Path) -> os.stat_result:
    try:
        return path.stat()
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from None


def _hash(path: Path, algorithms: list[str]) -> tuple[list[str], int]:
    hashes = [hashlib.new(name, usedforsecurity=False) for name in algorithms]
    buffer = memoryview(bytearray(CHUNK))
    size = 0
    try:
        with path.open("rb", buffering=0) as file:
            while count := file.readinto(buffer):
                size += count
                for one in hashes:
                    one.update(buffer[:count])
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from None
    return [one.hexdigest() for one in hashes], size
