"""Where DVC keeps contents by their hash: its cache, and remotes that are folders or buckets."""

from __future__ import annotations

import configparser
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from macflow.types import DataError

# A remote's options in DVC's words and in fsspec's.
_S3_OPTIONS = {
    "access_key_id": "key",
    "secret_access_key": "secret",
    "session_token": "token",
    "profile": "profile",
}


@dataclass(frozen=True)
class Store:
    """Contents by hash: `files/md5/ab/cdef...` below a folder."""

    # "cache", or "remote NAME".
    name: str
    folder: Path

    def path(self, md5: str) -> Path:
        """Return where the content with this hash is, or would be."""
        return self.folder / "files" / "md5" / md5[:2] / md5[2:]

    def members(self, md5: str) -> dict[str, str] | None:
        """Return relative path -> hash of a folder's files; None where no readable list is here."""
        try:
            listed = json.loads(self.path(md5).read_bytes())
            return {str(item["relpath"]): str(item["md5"]) for item in listed}
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def read(self, md5: str) -> bytes | None:
        """Return a content, or None."""
        try:
            return self.path(md5).read_bytes()
        except OSError:
            return None


@dataclass(frozen=True)
class Bucket:
    """A remote that is not a folder, such as one on S3."""

    name: str
    url: str
    options: Mapping[str, Any]

    @cached_property
    def _filesystem(self) -> Any:
        try:
            import fsspec  # type: ignore[import-untyped]

            return fsspec.filesystem(urlsplit(self.url).scheme, **self.options)
        except (ImportError, ValueError) as error:
            raise DataError(f"{self.name}: {self.url} cannot be read: {error}") from None

    def read(self, md5: str) -> bytes | None:
        """Return a content, or None where the remote does not have it.

        Raises:
            DataError: the remote does not answer.
        """
        try:
            content: bytes = self._filesystem.cat_file(
                f"{self.url.rstrip('/')}/files/md5/{md5[:2]}/{md5[2:]}"
            )
        except FileNotFoundError:
            return None
        except Exception as error:  # each kind of remote has errors of its own
            raise DataError(f"{self.name}: {self.url} does not answer: {error}") from None
        return content


def find_stores(root: Path) -> tuple[list[Store], list[Bucket]]:
    """Return the project's cache and the remotes that are folders here, then those that are elsewhere."""
    config, origins = _read_config(root)
    cache = config.get("cache", {}).get("dir")
    base = origins.get("cache", root / ".dvc")
    stores = [Store("cache", (base / cache).resolve() if cache else root / ".dvc" / "cache")]
    buckets: list[Bucket] = []
    for section, options in config.items():
        if not section.startswith("remote "):
            continue
        name = section.removeprefix("remote ").strip("\"'")
        url = options.get("url", "")
        parts = urlsplit(url)
        if parts.scheme in ("", "file", "local"):
            folder = Path(parts.path if parts.scheme else url)
            stores.append(Store(f"remote {name}", (origins[section] / folder).resolve()))
        else:
            buckets.append(Bucket(f"remote {name}", url, _options(parts.scheme, options)))
    return [store for store in stores if store.folder.is_dir()], buckets


def _read_config(root: Path) -> tuple[dict[str, dict[str, str]], dict[str, Path]]:
    """Return DVC's sections, the local file's words over the shared one's, and where paths in them start."""
    config: dict[str, dict[str, str]] = {}
    origins: dict[str, Path] = {}
    for file in (root / ".dvc" / "config", root / ".dvc" / "config.local"):
        parser = configparser.ConfigParser(interpolation=None)
        try:
            parser.read(file, encoding="utf-8")
        except (configparser.Error, UnicodeDecodeError) as error:
            raise DataError(f"{file}: not a DVC configuration: {error}") from None
        for section in parser.sections():
            name = section.strip("'\"")
            config.setdefault(name, {}).update(parser[section])
            origins.setdefault(name, file.parent)
    return config, origins


def _options(scheme: str, options: Mapping[str, str]) -> dict[str, Any]:
    if scheme != "s3":
        return {}
    chosen: dict[str, Any] = {ours: options[name] for name, ours in _S3_OPTIONS.items() if name in options}
    client = {
        name: options[key]
        for name, key in (("region_name", "region"), ("endpoint_url", "endpointurl"))
        if key in options
    }
    return chosen | ({"client_kwargs": client} if client else {})
