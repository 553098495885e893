"""Unpack zip archives from elsewhere: nothing leaves the target folder, nothing fills the disk."""

from __future__ import annotations

import shutil
import stat
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from macflow.files import replace_directory
from macflow.types import DataError

# The largest published vaults unpack to some ten GB.
MAX_BYTES = 256 * 10**9
# Deflate cannot exceed 1032; arrays that are compressed already hardly exceed 1.
MAX_RATIO = 200.0
CHUNK_BYTES = 1 << 20
# Damaged content, a compression that is not known, and what the disk may answer.
UNPACK_ERRORS = (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, OSError)


@dataclass(frozen=True)
class Limits:
    """What an archive may unpack to."""

    max_bytes: int = MAX_BYTES
    max_ratio: float = MAX_RATIO  # bytes unpacked per byte of the archive


def archive_members(archive: Path, limits: Limits = Limits()) -> list[PurePosixPath]:
    """Return the files in a zip archive, all of whose members have been checked.

    Raises:
        DataError: naming the first member that is absolute, climbs out by `..`, is not a plain file or
            folder, occurs twice or is encrypted; or the limit that the archive exceeds.
    """
    with _opened(archive) as file:
        return [path for path, info in _checked(archive, file, limits).items() if not info.is_dir()]


def unpack(
    archive: Path,
    target: Path,
    *,
    below: str = "",
    limits: Limits = Limits(),
) -> None:
    """Unpack the members of a zip archive that lie below its folder `below` as the folder `target`.

    All members are checked, whether unpacked or not. An error leaves `target` as it was.

    Raises:
        DataError: as `archive_members`, and for a member whose content is damaged.
    """
    with _opened(archive) as file, replace_directory(target) as folder:
        for path, info in _checked(archive, file, limits).items():
            if not path.is_relative_to(below):
                continue
            try:
                _write_member(file, info, folder / path.relative_to(below))
            except UNPACK_ERRORS as error:
                raise DataError(f"{archive}: member {info.filename!r} cannot be unpacked: {error}") from None


def _write_member(file: zipfile.ZipFile, info: zipfile.ZipInfo, place: Path) -> None:
    if info.is_dir():
        place.mkdir(parents=True, exist_ok=True)
        return
    place.parent.mkdir(parents=True, exist_ok=True)
    with file.open(info) as source, place.open("xb") as copy:
        shutil.copyfileobj(source, copy, CHUNK_BYTES)


@contextmanager
def _opened(archive: Path) -> Iterator[zipfile.ZipFile]:
    try:
        file = zipfile.ZipFile(archive)
    except FileNotFoundError:
        raise DataError(f"{archive}: file not found") from None
    except (zipfile.BadZipFile, OSError, NotImplementedError) as error:
        raise DataError(f"{archive}: not a readable zip archive: {error}") from None
    with file:
        yield file


def _checked(archive: Path, file: zipfile.ZipFile, limits: Limits) -> dict[PurePosixPath, zipfile.ZipInfo]:
    """Return the members by their paths; raise `DataError` if one of them may not be unpacked."""
    members: dict[PurePosixPath, zipfile.ZipInfo] = {}
    for info in file.infolist():
        path = PurePosixPath(info.filename)
        reason = _fault(info, path)
        if reason is None and path in members:
            reason = "occurs twice"
        if reason is not None:
            raise DataError(f"{archive}: member {info.filename!r} {reason}; nothing was unpacked")
        members[path] = info
    for path, info in members.items():
        for parent in path.parents:
            if parent in members and not members[parent].is_dir():
                raise DataError(
                    f"{archive}: member {info.filename!r} lies in {str(parent)!r}, which is a file; "
                    "nothing was unpacked"
                )
    # An archive's reader stops at the declared sizes, so these bound what is written.
    total = sum(info.file_size for info in members.values())
    if total > limits.max_bytes:
        raise DataError(
            f"{archive}: unpacks to {total} bytes, more than the limit of {limits.max_bytes}; the largest "
            f"member is {_largest(members)!r}; nothing was unpacked"
        )
    size = archive.stat().st_size
    if total > limits.max_ratio * size:
        raise DataError(
            f"{archive}: unpacks to {total / size:.0f} times its size, more than the limit of "
            f"{limits.max_ratio:g}; the largest member is {_largest(members)!r}; nothing was unpacked"
        )
    return members


def _fault(info: zipfile.ZipInfo, path: PurePosixPath) -> str | None:
    """Say why a member by itself may not be unpacked; None if it may."""
    # `orig_filename` still has what follows a zero byte, and backslashes.
    name = info.orig_filename
    if "\0" in name or "\\" in name:
        return "has a zero byte or a backslash in its name"
    if path.is_absolute() or (len(name) > 1 and name[1] == ":"):
        return "has an absolute path"
    if ".." in path.parts:
        return "leads out of the folder by '..'"
    if not path.parts and not info.is_dir():
        return "has no name"
    if info.flag_bits & 0x1:
        return "is encrypted"
    # Archives made elsewhere than on Unix have no file type.
    kind = stat.S_IFMT(info.external_attr >> 16)
    if kind == stat.S_IFLNK:
        return "is a symbolic link"
    if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
        return "is neither a file nor a folder"
    return None


def _largest(members: dict[PurePosixPath, zipfile.ZipInfo]) -> str:
    return max(members.values(), key=lambda info: info.file_size).filename
