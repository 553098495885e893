"""Archives that mean no good, or are damaged, unpack to nothing; others to what they hold."""

from __future__ import annotations

import stat
import zipfile
from pathlib import Path, PurePosixPath

import pytest

from macflow.data.importers.unpack import Limits, archive_members, unpack
from macflow.types import DataError

GENEROUS = Limits()


def make(path: Path, members: list[tuple[zipfile.ZipInfo | str, bytes]]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name, content in members:
            file.writestr(name, content)
    return path


def typed(name: str, mode: int) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name)
    info.create_system = 3
    info.external_attr = (mode | 0o777) << 16
    return info


def contents(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()
    }


def refused(archive: Path, tmp_path: Path, message: str, limits: Limits = GENEROUS) -> None:
    """Check that an archive is refused with a message, and that nothing at all is written."""
    folder = tmp_path / "inner/place"
    folder.mkdir(parents=True)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(DataError, match=message):
        unpack(archive, folder / "out", limits=limits)
    assert sorted(tmp_path.rglob("*")) == before


def test_good_archive_unpacks_whole_or_in_part(tmp_path: Path) -> None:
    archive = make(
        tmp_path / "a.zip",
        [
            ("x/", b""),
            ("x/a.txt", b"one"),
            ("x/d/b.bin", bytes(1000)),
            ("./y/c.txt", b"three"),
            ("empty/", b""),
        ],
    )
    assert archive_members(archive) == [PurePosixPath(p) for p in ("x/a.txt", "x/d/b.bin", "y/c.txt")]
    unpack(archive, tmp_path / "all")
    assert contents(tmp_path / "all") == {"x/a.txt": b"one", "x/d/b.bin": bytes(1000), "y/c.txt": b"three"}
    assert (tmp_path / "all/empty").is_dir()
    unpack(archive, tmp_path / "part", below="x")
    assert contents(tmp_path / "part") == {"a.txt": b"one", "d/b.bin": bytes(1000)}


def test_target_is_replaced_only_by_success(tmp_path: Path) -> None:
    unpack(make(tmp_path / "a.zip", [("a", b"1")]), tmp_path / "out")
    with pytest.raises(DataError, match="leads out"):
        unpack(make(tmp_path / "b.zip", [("b", b"2"), ("../c", b"3")]), tmp_path / "out")
    assert contents(tmp_path / "out") == {"a": b"1"}
    unpack(make(tmp_path / "c.zip", [("d", b"4")]), tmp_path / "out")
    assert contents(tmp_path / "out") == {"d": b"4"}


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("../out.txt", "'../out.txt' leads out of the folder"),
        ("a/../../out.txt", "leads out of the folder"),
        ("a/..", "leads out of the folder"),
        ("/etc/out.txt", "'/etc/out.txt' has an absolute path"),
        ("//host/out.txt", "has an absolute path"),
        ("C:/out.txt", "has an absolute path"),
        ("..\\out.txt", "zero byte or a backslash"),
        (".", "has no name"),
    ],
)
def test_names_that_lead_elsewhere_are_refused(name: str, message: str, tmp_path: Path) -> None:
    refused(make(tmp_path / "a.zip", [("good.txt", b"x"), (name, b"out")]), tmp_path, message)


def test_zero_byte_in_a_name_is_refused(tmp_path: Path) -> None:
    archive = make(tmp_path / "a.zip", [("good0evil.txt", b"x")])
    archive.write_bytes(archive.read_bytes().replace(b"good0evil", b"good\0evil"))
    refused(archive, tmp_path, "zero byte or a backslash")


def test_links_and_devices_are_refused(tmp_path: Path) -> None:
    link = make(tmp_path / "a.zip", [(typed("link", stat.S_IFLNK), b"/etc"), ("link/passwd", b"x")])
    refused(link, tmp_path / "1", "'link' is a symbolic link")
    pipe = make(tmp_path / "b.zip", [(typed("pipe", stat.S_IFIFO), b"")])
    refused(pipe, tmp_path / "2", "'pipe' is neither a file nor a folder")
    plain = make(tmp_path / "c.zip", [(typed("file", stat.S_IFREG), b"x")])
    unpack(plain, tmp_path / "out")
    assert not (tmp_path / "out/file").stat().st_mode & stat.S_IXUSR


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_duplicates_are_refused(tmp_path: Path) -> None:
    refused(
        make(tmp_path / "a.zip", [("a.txt", b"1"), ("a.txt", b"2")]), tmp_path / "1", "'a.txt' occurs twice"
    )
    refused(
        make(tmp_path / "b.zip", [("a/b", b"1"), ("a/./b", b"2")]), tmp_path / "2", "'a/./b' occurs twice"
    )
    refused(
        make(tmp_path / "c.zip", [("a", b"1"), ("a/b", b"2")]),
        tmp_path / "3",
        "'a/b' lies in 'a', which is a file",
    )


def test_bombs_are_refused(tmp_path: Path) -> None:
    archive = make(tmp_path / "a.zip", [("small", b"x"), ("zeros", bytes(10_000_000))])
    refused(archive, tmp_path / "1", r"unpacks to \d+ times its size, more than the limit of 200; .*'zeros'")
    limits = Limits(max_bytes=9_999_999, max_ratio=2000)
    refused(archive, tmp_path / "2", "unpacks to 10000001 bytes, more than the limit of 9999999", limits)
    unpack(archive, tmp_path / "out", limits=Limits(max_ratio=2000))
    assert (tmp_path / "out/zeros").stat().st_size == 10_000_000


def test_declared_sizes_bound_what_is_written(tmp_path: Path) -> None:
    archive = make(tmp_path / "a.zip", [("zeros", bytes(1_000_000))])
    # The sizes of the file header and of the directory, made smaller than what the data unpack to.
    archive.write_bytes(
        archive.read_bytes().replace((1_000_000).to_bytes(4, "little"), (10).to_bytes(4, "little"))
    )
    refused(archive, tmp_path, "'zeros' cannot be unpacked: Bad CRC-32")


def test_encrypted_members_are_refused(tmp_path: Path) -> None:
    archive = make(tmp_path / "a.zip", [("secret", b"x")])
    content = bytearray(archive.read_bytes())
    content[6] |= 1
    content[content.index(b"PK\x01\x02") + 8] |= 1
    archive.write_bytes(content)
    refused(archive, tmp_path, "'secret' is encrypted")


def test_damaged_content_is_named(tmp_path: Path) -> None:
    archive = make(tmp_path / "a.zip", [("fine", b"x"), (zipfile.ZipInfo("stored"), b"0123456789")])
    archive.write_bytes(archive.read_bytes().replace(b"0123456789", b"0123456780"))
    refused(archive, tmp_path, "'stored' cannot be unpacked: Bad CRC-32")


@pytest.mark.parametrize("content", [b"", b"no archive", b"PK\x03\x04" + bytes(100)])
def test_files_that_are_no_archives_are_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.zip").write_bytes(content)
    refused(tmp_path / "a.zip", tmp_path, "a.zip: not a readable zip archive")


def test_missing_archive_is_named(tmp_path: Path) -> None:
    refused(tmp_path / "absent.zip", tmp_path, "absent.zip: file not found")
