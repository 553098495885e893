"""Downloads from a real server on this machine, which cuts off, lies and changes its mind."""

from __future__ import annotations

import hashlib
import io
import json
import os
import threading
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from macflow.data.importers import download
from macflow.data.importers.download import fetch_file
from macflow.types import ConfigError, DataError

HTML = b"<!DOCTYPE html><html><body>Please log in</body></html>"


def zip_of(text: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        file.writestr(zipfile.ZipInfo("data.bin"), text)
    return buffer.getvalue()


OLD, NEW = zip_of(bytes(range(256)) * 400), zip_of(bytes(reversed(range(256))) * 400)


@dataclass
class Site:
    """What the server does, and what was asked of it."""

    content: bytes = OLD
    etag: str | None = '"one"'
    last_modified: str | None = None
    content_type: str = "application/zip"
    encoding: str | None = None
    ranges: bool = True
    checks_if_range: bool = True
    sends_length: bool = True
    # Bytes after the asked ones at which the next partial answer begins.
    shift: int = 0
    # Where in the file each of the next answers breaks off.
    cuts: list[int] = field(default_factory=list)
    # Status of the next answers, instead of content.
    statuses: list[int] = field(default_factory=list)
    # What the server has from the second request on.
    later: dict[str, Any] = field(default_factory=dict)
    requests: list[dict[str, str]] = field(default_factory=list)
    url: str = ""

    @property
    def ranges_asked(self) -> list[str | None]:
        return [request.get("range") for request in self.requests]


@pytest.fixture
def site() -> Iterator[Site]:
    state = Site()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: Any) -> None:
            pass

        def do_GET(self) -> None:
            state.requests.append({name.lower(): value for name, value in self.headers.items()})
            if len(state.requests) == 2:
                for name, value in state.later.items():
                    setattr(state, name, value)
            if self.path == "/moved/file.zip":
                self.send_response(302)
                self.send_header("Location", "/file.zip")
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            if state.statuses:
                self.send_response(state.statuses.pop(0))
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            start, total = 0, len(state.content)
            asked, condition = self.headers.get("Range"), self.headers.get("If-Range")
            same = not state.checks_if_range or condition in (state.etag, state.last_modified)
            if asked and state.ranges and same:
                start = int(asked.removeprefix("bytes=").removesuffix("-")) + state.shift
                state.shift = 0
                self.send_response(206 if start < total else 416)
                self.send_header("Content-Range", f"bytes {start}-{total - 1}/{total}")
            else:
                self.send_response(200)
            for name, value in (
                ("ETag", state.etag),
                ("Last-Modified", state.last_modified),
                ("Content-Type", state.content_type),
                ("Content-Encoding", state.encoding),
            ):
                if value is not None:
                    self.send_header(name, value)
            if state.sends_length:
                self.send_header("Content-Length", str(max(total - start, 0)))
            else:
                self.close_connection = True
            self.end_headers()
            end = state.cuts.pop(0) if state.cuts else total
            self.wfile.write(state.content[start:end])
            if end < total:
                self.close_connection = True

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    state.url = f"http://127.0.0.1:{server.server_port}/file.zip"
    try:
        yield state
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def fetch(site: Site, target: Path, retries: int = 2, **kwargs: Any) -> download.Download:
    return fetch_file(site.url, target, retries=retries, backoff_seconds=0.001, **kwargs)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def record(target: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(target.with_name(f"{target.name}.json").read_text())
    return found


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "cache/file.zip"


def test_good_download_is_recorded_and_not_repeated(site: Site, target: Path) -> None:
    found = fetch(site, target)
    assert found == download.Download(target, sha256(OLD), len(OLD))
    assert target.read_bytes() == OLD
    assert names(target.parent) == ["file.zip", "file.zip.json"]
    written = record(target)
    assert written.pop("recorded")
    assert written == {
        "url": site.url,
        "sha256": sha256(OLD),
        "bytes": len(OLD),
        "headers": {"etag": '"one"', "content-type": "application/zip"},
    }
    assert fetch(site, target, sha256=sha256(OLD).upper()) == found
    assert len(site.requests) == 1
    assert site.requests[0]["accept-encoding"] == "identity"


def test_redirect_is_followed(site: Site, target: Path) -> None:
    site.url = site.url.replace("/file.zip", "/moved/file.zip")
    assert fetch(site, target).sha256 == sha256(OLD)


def test_cut_off_download_is_continued_at_once(site: Site, target: Path) -> None:
    site.cuts = [10_000, 50_000]
    assert fetch(site, target, sha256=sha256(OLD)).size == len(OLD)
    assert site.ranges_asked == [None, "bytes=10000-", "bytes=50000-"]
    assert site.requests[1]["if-range"] == '"one"'
    assert names(target.parent) == ["file.zip", "file.zip.json"]


def test_repeated_cuts_do_not_matter_while_bytes_arrive(site: Site, target: Path) -> None:
    site.cuts = list(range(5_000, 100_000, 5_000))
    assert fetch(site, target, retries=1).sha256 == sha256(OLD)
    assert len(site.requests) == 20


def test_given_up_download_is_continued_by_the_next_call(site: Site, target: Path) -> None:
    site.cuts = [10_000] * 4
    with pytest.raises(
        DataError, match=r"given up after 3 failed attempts in a row with 10000 bytes received"
    ):
        fetch(site, target)
    assert names(target.parent) == ["file.zip.part", "file.zip.part.json"]
    assert target.with_name("file.zip.part").read_bytes() == OLD[:10_000]
    site.cuts.clear()
    assert fetch(site, target).sha256 == sha256(OLD)
    assert site.ranges_asked[-1] == "bytes=10000-"
    assert names(target.parent) == ["file.zip", "file.zip.json"]


def test_last_modified_validates_where_the_tag_is_weak(site: Site, target: Path) -> None:
    site.etag, site.last_modified = 'W/"one"', "Wed, 01 Jan 2025 00:00:00 GMT"
    site.cuts = [10_000]
    assert fetch(site, target).sha256 == sha256(OLD)
    assert site.requests[1]["if-range"] == site.last_modified


def test_without_a_validator_a_download_starts_anew(site: Site, target: Path) -> None:
    site.etag, site.cuts = None, [10_000]
    assert fetch(site, target).sha256 == sha256(OLD)
    assert site.ranges_asked == [None, None]


def test_server_that_ignores_ranges_restarts_cleanly(site: Site, target: Path) -> None:
    site.ranges, site.cuts = False, [10_000, 20_000]
    assert fetch(site, target).sha256 == sha256(OLD)
    assert site.ranges_asked == [None, "bytes=10000-", "bytes=20000-"]


def test_server_that_ignores_ranges_and_always_cuts_is_given_up(site: Site, target: Path) -> None:
    site.ranges, site.cuts = False, [10_000] * 50
    with pytest.raises(DataError, match="given up after 3 failed attempts"):
        fetch(site, target)
    assert len(site.requests) == 4 - 1
    assert not target.exists()


def test_file_that_changes_between_two_parts_is_fetched_anew(site: Site, target: Path) -> None:
    site.cuts, site.later = [10_000], {"content": NEW, "etag": '"two"'}
    assert fetch(site, target).sha256 == sha256(NEW)
    assert target.read_bytes() == NEW


@pytest.mark.parametrize(
    "later", [{"content": NEW, "etag": '"two"'}, {"content": zip_of(b"x" * 60_000)}], ids=["tag", "length"]
)
def test_change_is_noticed_though_the_server_ignores_if_range(
    site: Site, target: Path, later: dict[str, Any]
) -> None:
    site.cuts, site.later, site.checks_if_range = [10_000], later, False
    assert fetch(site, target).sha256 == sha256(later["content"])


def test_part_that_begins_elsewhere_is_not_joined(site: Site, target: Path) -> None:
    site.cuts, site.shift = [10_000], 7
    assert fetch(site, target).sha256 == sha256(OLD)
    assert site.ranges_asked == [None, "bytes=10000-", None]


def test_range_that_is_not_there_any_more(site: Site, target: Path) -> None:
    shorter = zip_of(b"short")
    site.cuts, site.later, site.checks_if_range = [10_000], {"content": shorter}, False
    assert fetch(site, target).sha256 == sha256(shorter)
    assert site.ranges_asked == [None, "bytes=10000-", None]


def test_part_of_another_address_is_not_continued(site: Site, target: Path) -> None:
    site.cuts = [10_000] * 3
    with pytest.raises(DataError, match="given up"):
        fetch(site, target)
    site.cuts.clear()
    site.url += "?version=2"
    assert fetch(site, target).sha256 == sha256(OLD)
    assert site.ranges_asked[-1] is None


def test_part_without_its_note_is_not_continued(site: Site, target: Path) -> None:
    target.parent.mkdir()
    target.with_name("file.zip.part").write_bytes(NEW[:500])
    assert fetch(site, target).sha256 == sha256(OLD)


@pytest.mark.parametrize("status", [404, 403, 401, 410])
def test_status_of_a_refusal_is_named_at_once(site: Site, target: Path, status: int) -> None:
    site.statuses = [status]
    with pytest.raises(DataError, match=rf"file.zip: HTTP status {status} \w+"):
        fetch(site, target)
    assert len(site.requests) == 1
    assert names(target.parent) == []


def test_passing_trouble_is_retried(site: Site, target: Path) -> None:
    site.statuses = [503, 429]
    assert fetch(site, target).sha256 == sha256(OLD)
    site.statuses = [500] * 3
    with pytest.raises(DataError, match=r"given up after 3 .* HTTP status 500 Internal Server Error"):
        fetch(site, target.with_name("other.zip"))


def test_html_page_in_place_of_an_archive_is_refused_by_name(site: Site, target: Path) -> None:
    site.content, site.content_type = HTML, "text/html"
    with pytest.raises(
        DataError, match=r"zip archive is expected, received an HTML page .*sent as text/html"
    ):
        fetch(site, target)
    assert names(target.parent) == []
    site.content = OLD
    assert fetch(site, target).sha256 == sha256(OLD)


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"", "received nothing"),
        (b"version https://git-lfs.github.com/spec/v1\n", "a Git LFS pointer"),
        (OLD[:5000], "the beginning of a zip archive without its end"),
        (b"\x89HDF\r\n", "other content, beginning with b'.x89HDF"),
    ],
)
def test_other_content_is_refused_by_name(site: Site, target: Path, content: bytes, what: str) -> None:
    site.content = content
    with pytest.raises(DataError, match=what):
        fetch(site, target)
    assert names(target.parent) == []


def test_other_kinds_of_files_may_be_anything(site: Site, tmp_path: Path) -> None:
    site.content = HTML
    assert fetch(site, tmp_path / "page.html").sha256 == sha256(HTML)


def test_server_that_says_no_length(site: Site, target: Path) -> None:
    site.sends_length = False
    assert fetch(site, target).sha256 == sha256(OLD)
    site.cuts = [10_000]
    with pytest.raises(DataError, match="without its end"):
        fetch(site, target.with_name("other.zip"))


def test_encoded_content_is_refused(site: Site, target: Path) -> None:
    site.encoding = "gzip"
    with pytest.raises(DataError, match="sent with content encoding gzip, unasked"):
        fetch(site, target)
    assert names(target.parent) == []


def test_wrong_checksum_is_refused(site: Site, target: Path) -> None:
    with pytest.raises(DataError, match=f"content is {sha256(OLD)}, not {'0' * 64} as given"):
        fetch(site, target, sha256="0" * 64)
    assert names(target.parent) == []


def test_wrong_checksum_keeps_the_earlier_file(site: Site, target: Path) -> None:
    fetch(site, target)
    before = record(target)
    site.content = NEW
    with pytest.raises(DataError, match=r"as given; .* the earlier .*file.zip is kept"):
        fetch(site, target, sha256="1" * 64)
    assert target.read_bytes() == OLD
    assert record(target) == before
    assert fetch(site, target, sha256=sha256(NEW)).sha256 == sha256(NEW)
    assert record(target)["sha256"] == sha256(NEW)


def test_damaged_file_is_fetched_again_and_must_be_as_recorded(site: Site, target: Path) -> None:
    fetch(site, target)
    target.write_bytes(OLD[:-10])
    assert fetch(site, target).sha256 == sha256(OLD)
    assert target.read_bytes() == OLD
    target.unlink()
    site.content = NEW
    with pytest.raises(DataError, match="as recorded by an earlier download"):
        fetch(site, target)
    assert names(target.parent) == ["file.zip.json"]


def test_file_put_there_by_hand_is_taken(site: Site, target: Path) -> None:
    target.parent.mkdir()
    target.write_bytes(OLD)
    assert fetch(site, target).sha256 == sha256(OLD)
    assert record(target)["sha256"] == sha256(OLD)
    assert site.requests == []
    other = target.with_name("other.zip")
    other.write_bytes(HTML)
    with pytest.raises(DataError, match="a zip archive is expected, received an HTML page"):
        fetch(site, other)


def test_one_file_stands_for_one_address(site: Site, target: Path) -> None:
    fetch(site, target)
    site.url += "?other"
    with pytest.raises(DataError, match=r"stands for .*file.zip, not for .*other"):
        fetch(site, target)


def test_record_without_a_checksum_is_refused(site: Site, target: Path) -> None:
    target.parent.mkdir()
    target.with_name("file.zip.json").write_text("{}")
    with pytest.raises(DataError, match=r"must hold the `sha256` of file.zip"):
        fetch(site, target)


def test_server_that_is_not_there(target: Path) -> None:
    with pytest.raises(DataError, match="given up after 2 failed attempts in a row with 0 bytes"):
        fetch_file("http://127.0.0.1:9/file.zip", target, retries=1, backoff_seconds=0.001)
    assert names(target.parent) == []


def test_two_processes_do_not_write_one_file(site: Site, target: Path) -> None:
    import fcntl

    target.parent.mkdir()
    part = os.open(target.with_name("file.zip.part"), os.O_RDWR | os.O_CREAT)
    try:
        fcntl.flock(part, fcntl.LOCK_EX)
        with pytest.raises(DataError, match="another process is downloading"):
            fetch(site, target)
    finally:
        os.close(part)


def test_local_files_are_copied(tmp_path: Path, target: Path) -> None:
    source = tmp_path / "a source.zip"
    source.write_bytes(OLD)
    assert fetch_file(source.as_uri(), target).sha256 == sha256(OLD)
    assert names(target.parent) == ["file.zip", "file.zip.json"]
    with pytest.raises(DataError, match="cannot be read: No such file"):
        fetch_file((tmp_path / "absent.zip").as_uri(), target.with_name("b.zip"))
    assert names(target.parent) == ["file.zip", "file.zip.json"]


@pytest.mark.parametrize(
    "url",
    ["ftp://host/file.zip", "data:,x", "file.zip", "http:///file.zip", "file://host/x.zip", "http://[x"],
)
def test_addresses_that_cannot_be_fetched_are_refused(url: str, target: Path) -> None:
    reasons = ("the scheme must be", "names no host", "must name this machine", "is not an address")
    with pytest.raises(ConfigError, match="|".join(reasons)):
        fetch_file(url, target)
    assert not target.parent.exists()


@pytest.mark.parametrize("given", ["", "abc", "g" * 64])
def test_malformed_checksums_are_refused(given: str, target: Path) -> None:
    with pytest.raises(ConfigError, match="`sha256`: must be 64 hexadecimal digits"):
        fetch_file("http://127.0.0.1:9/x.zip", target, sha256=given)
