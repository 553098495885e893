"""Fetch one file over HTTP so that it is whole and the one that was meant, or not there at all.

Beside `name` lie `name.json`, the record of what was fetched, and while a download is unfinished
`name.part` with `name.part.json`, which says of what it is a part; the next call goes on from there.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import time
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO
from urllib.parse import SplitResult, unquote, urlsplit

from macflow.files import digest, read_json, write_json
from macflow.types import ConfigError, DataError

if TYPE_CHECKING:
    import httpx

SCHEMES = ("http", "https", "file")
# Tries without a further byte before a download is given up; the pause doubles after each.
RETRIES = 4
BACKOFF_SECONDS = 0.5
LONGEST_PAUSE_SECONDS = 30.0
TIMEOUT_SECONDS = 30.0
# A server says by these that the same request may succeed later.
TRANSIENT_STATUS = frozenset({408, 425, 429, 500, 502, 503, 504})
RECORDED_HEADERS = ("etag", "last-modified", "content-type")


@dataclass(frozen=True)
class Download:
    """A file that is there, whole and verified."""

    path: Path
    sha256: str
    size: int  # bytes


class _InterruptedError(Exception):
    """An attempt failed in a way that a further one may not."""


@dataclass(frozen=True)
class _Part:
    """What an unfinished file is a part of."""

    url: str
    etag: str | None
    last_modified: str | None
    total: int | None  # bytes

    @property
    def validator(self) -> str | None:
        """Return what proves that the server still has the same file; a weak tag does not (RFC 9110)."""
        if self.etag is not None and not self.etag.startswith("W/"):
            return self.etag
        return self.last_modified


def fetch_file(
    url: str,
    target: Path,
    *,
    sha256: str | None = None,
    retries: int = RETRIES,
    backoff_seconds: float = BACKOFF_SECONDS,
) -> Download:
    """Fetch `url` (http, https or file) as the file `target`, or return it if it is already there.

    The content must have the given SHA-256, else the one recorded when `target` was first fetched; and it
    must be a zip archive where `target` is named so. What does not fit is refused, and an earlier `target`
    stays. A download that is cut off is continued, if the server allows it, now and by the next call.

    Raises:
        ConfigError: for another scheme or a malformed checksum.
        DataError: naming the address and the HTTP status, or what about the content is wrong.
    """
    parts = _checked_url(url)
    wanted = _checked_sha256(sha256)
    record_path = target.with_name(f"{target.name}.json")
    recorded = _recorded_sha256(record_path, url, target)
    if target.is_file():
        present = digest(target)
        if present == (wanted or recorded or present):
            if recorded != present:
                # Put there by hand: from now on it is what this address stands for.
                _check_kind(target, target, str(target), {})
                _write_record(record_path, url, present, target.stat().st_size, {})
            return Download(target, present, target.stat().st_size)
    part_path = target.with_name(f"{target.name}.part")
    note_path = target.with_name(f"{target.name}.part.json")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with os.fdopen(os.open(part_path, os.O_RDWR | os.O_CREAT, 0o644), "r+b") as part:
            _lock(part, part_path)
            try:
                if parts.scheme == "file":
                    headers = _copy(parts, part)
                else:
                    headers = _download(url, part, note_path, retries, backoff_seconds)
                part.flush()
                os.fsync(part.fileno())
                try:
                    _check_kind(target, part_path, url, headers)
                    found = _check_sha256(target, part_path, url, wanted, recorded)
                except DataError:
                    # Whole and wrong: nothing that could be continued.
                    part.truncate(0)
                    raise
                size = part.seek(0, os.SEEK_END)
                part_path.replace(target)
            finally:
                if os.fstat(part.fileno()).st_size == 0 or not part_path.exists():
                    part_path.unlink(missing_ok=True)
                    note_path.unlink(missing_ok=True)
        _write_record(record_path, url, found, size, headers)
    except OSError as error:
        raise DataError(f"{target}: cannot be written: {error.strerror}") from None
    return Download(target, found, size)


# --- checks ------------------------------------------------------------------------------------------


def _checked_url(url: str) -> SplitResult:
    try:
        parts = urlsplit(url)
    except ValueError as error:
        raise ConfigError(f"{url!r} is not an address: {error}") from None
    if parts.scheme not in SCHEMES:
        raise ConfigError(f"{url!r}: the scheme must be one of {', '.join(SCHEMES)}")
    if parts.scheme == "file" and parts.netloc not in ("", "localhost"):
        raise ConfigError(f"{url!r}: a file address must name this machine, as in file:///folder/name.zip")
    if parts.scheme != "file" and not parts.hostname:
        raise ConfigError(f"{url!r}: names no host")
    return parts


def _checked_sha256(sha256: str | None) -> str | None:
    if sha256 is None:
        return None
    if not re.fullmatch(r"[0-9a-fA-F]{64}", sha256):
        raise ConfigError(f"`sha256`: must be 64 hexadecimal digits (received {sha256!r})")
    return sha256.lower()


def _check_kind(target: Path, path: Path, where: str, headers: Mapping[str, str]) -> None:
    """Raise `DataError` if `target` is to be a zip archive and `path` holds something else."""
    if target.suffix.lower() != ".zip" or zipfile.is_zipfile(path):
        return
    with path.open("rb") as file:
        start = file.read(1024)
    text = start.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if text.startswith((b"<!doctype html", b"<html")):
        what = "an HTML page (an error or login page?)"
    elif not start:
        what = "nothing"
    elif start.startswith(b"version https://git-lfs"):
        what = "a Git LFS pointer"
    elif start.startswith(b"PK"):
        what = "the beginning of a zip archive without its end"
    else:
        what = f"other content, beginning with {start[:16]!r}"
    kind = f", sent as {headers['content-type']}" if "content-type" in headers else ""
    raise DataError(f"{where}: a zip archive is expected, received {what}{kind}")


def _check_sha256(target: Path, path: Path, url: str, wanted: str | None, recorded: str | None) -> str:
    """Return the SHA-256 of `path`, which must be the given one, else the recorded one."""
    found, expected = digest(path), wanted or recorded
    if expected is not None and found != expected:
        origin = "given" if wanted else "recorded by an earlier download"
        kept = f"; the earlier {target} is kept" if target.is_file() else ""
        raise DataError(
            f"{url}: the SHA-256 of the content is {found}, not {expected} as {origin}; "
            f"it has changed, is another file or was damaged{kept}"
        )
    return found


# --- record ------------------------------------------------------------------------------------------


def _recorded_sha256(record_path: Path, url: str, target: Path) -> str | None:
    if not record_path.is_file():
        return None
    record = read_json(record_path)
    if not isinstance(record, dict) or not re.fullmatch(r"[0-9a-f]{64}", str(record.get("sha256"))):
        raise DataError(f"{record_path}: must hold the `sha256` of {target.name}; delete it to fetch anew")
    if record.get("url") != url:
        raise DataError(f"{target}: stands for {record.get('url')}, not for {url}; choose another name")
    return str(record["sha256"])


def _write_record(path: Path, url: str, sha256: str, size: int, headers: dict[str, str]) -> None:
    write_json(
        path,
        {
            "url": url,
            "sha256": sha256,
            "bytes": size,
            "headers": headers,
            "recorded": datetime.now(UTC).isoformat(timespec="seconds"),
        },
    )


def _read_note(path: Path, url: str) -> _Part | None:
    """Return what the unfinished file is a part of, None if that is unknown or another address."""
    try:
        note = _Part(**read_json(path))
    except (DataError, TypeError):
        return None
    return note if note.url == url else None


# --- transfer ----------------------------------------------------------------------------------------


def _lock(part: BinaryIO, path: Path) -> None:
    try:
        fcntl.flock(part.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        raise DataError(f"{path}: another process is downloading this file") from None


def _copy(parts: SplitResult, part: BinaryIO) -> dict[str, str]:
    part.truncate(0)
    try:
        with Path(unquote(parts.path)).open("rb") as source:
            shutil.copyfileobj(source, part)
    except OSError as error:
        raise DataError(f"{parts.geturl()}: cannot be read: {error.strerror}") from None
    return {}


def _download(
    url: str, part: BinaryIO, note_path: Path, retries: int, backoff_seconds: float
) -> dict[str, str]:
    """Fill `part` with all of the content, over several connections if need be; return headers."""
    import httpx

    farthest, failures = 0, 0
    with httpx.Client(follow_redirects=True, timeout=TIMEOUT_SECONDS) as client:
        while True:
            try:
                return _receive(client, url, part, note_path)
            except (httpx.InvalidURL, httpx.UnsupportedProtocol, httpx.TooManyRedirects) as error:
                raise DataError(f"{url}: cannot be fetched: {error}") from None
            except (httpx.TransportError, _InterruptedError) as error:
                reached = part.seek(0, os.SEEK_END)
                # A server that always starts anew makes no progress, however much it sends.
                failures = 1 if reached > farthest else failures + 1
                farthest = max(farthest, reached)
                if failures > retries:
                    raise DataError(
                        f"{url}: given up after {failures} failed attempts in a row with {farthest} bytes "
                        f"received: {str(error) or type(error).__name__}; a further call goes on from there"
                    ) from None
            time.sleep(min(backoff_seconds * 2 ** (failures - 1), LONGEST_PAUSE_SECONDS))


def _receive(client: httpx.Client, url: str, part: BinaryIO, note_path: Path) -> dict[str, str]:
    """Make one attempt to complete `part`; what has arrived stays in it whatever happens."""
    have = part.seek(0, os.SEEK_END)
    note = _read_note(note_path, url)
    headers = {"Accept-Encoding": "identity"}
    if have and note is not None and note.validator is not None and (note.total or have + 1) > have:
        headers |= {"Range": f"bytes={have}-", "If-Range": note.validator}
    else:
        part.truncate(0)
        have, note = 0, None
    with client.stream("GET", url, headers=headers) as response:
        if note is not None and response.status_code == 206:
            _check_continues(response, note, have, part)
        elif response.status_code == 200:
            # Also a server's answer to If-Range if the file has changed, or if it knows no ranges.
            part.truncate(0)
            note = _part_of(url, response)
            write_json(note_path, note.__dict__)
        elif response.status_code == 416 and note is not None:
            part.truncate(0)
            raise _InterruptedError("the server has no such range; starting anew")
        elif response.status_code in TRANSIENT_STATUS:
            raise _InterruptedError(f"HTTP status {response.status_code} {response.reason_phrase}")
        else:
            raise DataError(f"{url}: HTTP status {response.status_code} {response.reason_phrase}")
        if response.headers.get("content-encoding", "identity") != "identity":
            part.truncate(0)
            raise DataError(
                f"{url}: sent with content encoding {response.headers['content-encoding']}, unasked"
            )
        _append(response, part, note)
        return {name: response.headers[name] for name in RECORDED_HEADERS if name in response.headers}


def _part_of(url: str, response: httpx.Response) -> _Part:
    length = response.headers.get("content-length", "")
    return _Part(
        url,
        response.headers.get("etag"),
        response.headers.get("last-modified"),
        int(length) if length.isdecimal() else None,
    )


def _check_continues(response: httpx.Response, note: _Part, have: int, part: BinaryIO) -> None:
    """Start anew unless a partial answer goes on exactly where `part` ends, in the same file."""
    found = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", response.headers.get("content-range", ""))
    same = (
        found is not None
        and int(found[1]) == have
        and (note.total is None or found[2] == "*" or int(found[2]) == note.total)
        and response.headers.get("etag", note.etag) == note.etag
        and response.headers.get("last-modified", note.last_modified) == note.last_modified
    )
    if not same:
        part.truncate(0)
        raise _InterruptedError("the file changed between two parts; starting anew")


def _append(response: httpx.Response, part: BinaryIO, note: _Part) -> None:
    from tqdm import tqdm

    have = part.seek(0, os.SEEK_END)
    bar: tqdm[Any]
    # `disable=None` shows the bar on terminals only.
    with tqdm(
        desc=Path(note.url).name,
        total=note.total,
        initial=have,
        unit="B",
        unit_scale=True,
        disable=None,
        leave=False,
    ) as bar:
        # As they arrive: collected to larger chunks, the last ones would be lost where it breaks off.
        for chunk in response.iter_raw():
            part.write(chunk)
            bar.update(len(chunk))
    size = part.tell()
    if note.total is not None and size != note.total:
        if size > note.total:
            part.truncate(0)
        raise _InterruptedError(f"{note.total} bytes were announced, {size} arrived")
