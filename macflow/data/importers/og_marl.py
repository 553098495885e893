"""Import a dataset of OG-MARL: from the catalogue, an address, an archive or a folder."""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import re
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

import polars as pl

from macflow.data.duplicates import row_hashes, transition_copies, transition_hashes
from macflow.data.importers.download import fetch_file
from macflow.data.importers.imported import Imported, make_dataset_id
from macflow.data.importers.og_marl_rows import VaultOptions, convert
from macflow.data.importers.og_marl_sources import PREFIX, SOURCES, VaultSource, source_named
from macflow.data.importers.og_marl_vault import DATABASE_FILE, METADATA_FILE, VaultArrays, list_uids
from macflow.data.importers.unpack import archive_members, unpack
from macflow.data.rows import EpisodeRows
from macflow.files import digest
from macflow.types import ConfigError, DataError, MultiAgentSpec

__all__ = ["VaultOptions", "list_uids", "read_og_marl"]

DOWNLOADS = Path("data/downloads")
NO_OPTIONS = VaultOptions()


@dataclass(frozen=True)
class _Found:
    """One dataset on this machine, and where it comes from."""

    folder: Path  # of the UID
    uid: str
    name: str  # of the catalogue, the archive or the vault
    origin: dict[str, str]  # url, sha256 of what was read
    source: VaultSource | None


def read_og_marl(
    source: str | Path,
    uid: str | None,
    target: Path,
    options: VaultOptions = NO_OPTIONS,
    *,
    env_spec: MultiAgentSpec | None = None,
    downloads: Path = DOWNLOADS,
    sha256: str | None = None,
) -> Imported:
    """Read the dataset `uid` of a vault; it may be None where there is only one.

    `source` is a name of the catalogue, the address of a zip (http, https, file), a local zip, the folder
    of a vault or that of a UID. Downloads are kept in the folder `downloads`. What has to be unpacked is
    for the time of the call beside the folder `target`, where the dataset is to be written and so has room.
    `env_spec` gives, where neither options nor catalogue do, the bounds of actions and the true sizes of
    observations. `sha256` is the archive's.

    Raises:
        ConfigError: for a name that is not in the catalogue, or options that do not fit the source.
        DataError: naming the file or array that is at fault.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{target.name}.", dir=target.parent) as work:
        return _read(_find(source, uid, Path(work), downloads, sha256), options, env_spec)


def _read(found: _Found, options: VaultOptions, env_spec: MultiAgentSpec | None) -> Imported:
    known = found.source
    if known is not None:
        options = dataclasses.replace(
            options,
            action_kind=options.action_kind or known.action_kind,
            obs_dims=options.obs_dims or known.obs_dims,
        )
    if env_spec is not None:
        options = _filled(options, env_spec)
    rows, spec, notes = convert(VaultArrays(found.folder), options, f"{found.name}, {found.uid}")
    treated = {
        key: value
        for key, value in (("time_limit", options.time_limit), ("infos", options.infos))
        if value not in (None, "check")
    }
    no_env = () if known is None or known.env_id else (f"no environment to evaluate in: {known.no_env}",)
    return Imported(
        rows=rows,
        spec=spec,
        dataset_id=make_dataset_id(PREFIX, *_plain_name(found.name), found.uid),
        behaviour={"kind": PREFIX, "name": found.name, "uid": found.uid, **found.origin, **treated},
        named=False,
        env=None if known is None else known.env,
        notes=(*notes, *_copies(rows), *no_env),
    )


def _filled(options: VaultOptions, env_spec: MultiAgentSpec) -> VaultOptions:
    """Add what the environment tells to the options that are not given."""
    bounds, obs_dims = options.action_bounds, options.obs_dims
    of_env = set(zip(env_spec.action_low, env_spec.action_high, strict=True))
    if bounds is None and not env_spec.discrete and len(of_env) == 1:
        bounds = of_env.pop()
    if obs_dims is None and len(set(env_spec.obs_dims)) > 1:
        obs_dims = env_spec.obs_dims
    return dataclasses.replace(options, action_bounds=bounds, obs_dims=obs_dims)


def _copies(rows: EpisodeRows) -> tuple[str, ...]:
    """Tell how much is stored several times: 9 of 10 transitions in some of CFCQL's vaults."""
    seen = pl.Series(row_hashes(rows.obs)[rows.train_rows])
    # No transition is a copy unless its observations are, which is half of the work to find out.
    if seen.n_unique() == len(seen):
        return ()
    copies = transition_copies(rows, transition_hashes(rows))
    return (f"{copies.mean():.1%} of the transitions are copies of earlier ones",) if copies.any() else ()


def _plain_name(name: str) -> list[str]:
    """Return the parts of a catalogue name after the prefix, or of a file name without its ending."""
    return name.split("/")[1:] if name in SOURCES else [re.sub(r"\.(zip|vlt)$", "", name)]


# --- from what the user names to a folder -----------------------------------------------------------------


def _find(source: str | Path, uid: str | None, work: Path, downloads: Path, sha256: str | None) -> _Found:
    text = str(source)
    if text in SOURCES:
        known = SOURCES[text]
        if known.uids:
            uid = _chosen(known.uids, uid, f"the published {text}")
        path = downloads / f"{text}.zip"
        return _in_archive(path, uid, work, known.url, sha256, text, known)
    if "://" in text:
        return _in_archive(_cache_path(text, downloads), uid, work, text, sha256, _file_name(text), None)
    path = Path(source)
    if path.is_file():
        return _in_archive(path, uid, work, None, sha256, path.name, None)
    if not path.is_dir():
        try:
            source_named(text)
        except ConfigError as error:
            raise ConfigError(f"{text}: no such file or folder, and {error}") from None
    if sha256 is not None:
        raise ConfigError(f"`sha256`: is for archives (received one for the folder {path})")
    if (path / METADATA_FILE).is_file():
        if uid not in (None, path.resolve().name):
            raise ConfigError(f"`uid`: {path} is the dataset {path.resolve().name} (received {uid!r})")
        folder = path.resolve()
    else:
        folder = path.resolve() / _chosen(list_uids(path), uid, str(path))
    return _Found(folder, folder.name, folder.parent.name, {"sha256": digest(folder)}, None)


def _in_archive(
    path: Path,
    uid: str | None,
    work: Path,
    url: str | None,
    sha256: str | None,
    name: str,
    known: VaultSource | None,
) -> _Found:
    """Fetch the archive if it has an address, and unpack the one dataset."""
    if url is not None:
        found_sha256 = fetch_file(url, path, sha256=sha256).sha256
    else:
        found_sha256 = digest(path)
        if sha256 is not None and sha256.lower() != found_sha256:
            raise DataError(f"{path}: its SHA-256 is {found_sha256}, not {sha256} as given")
    members = set(archive_members(path))
    folders = [
        member.parent
        for member in members
        if member.name == METADATA_FILE and member.parent / DATABASE_FILE in members
    ]
    vaults = sorted({str(folder.parent) for folder in folders})
    if len(vaults) != 1:
        raise DataError(
            f"{path}: must hold one vault, SCENARIO.vlt/UID/{METADATA_FILE} and {DATABASE_FILE}; "
            f"it holds {len(vaults)}" + (f" ({', '.join(vaults)})" if vaults else "")
        )
    chosen = _chosen([folder.name for folder in folders], uid, str(path))
    unpack(path, work / chosen, below=next(str(folder) for folder in folders if folder.name == chosen))
    origin = {"sha256": found_sha256} | ({} if url is None else {"url": url})
    return _Found(work / chosen, chosen, name, origin, known)


def _chosen(uids: Iterable[str], uid: str | None, where: str) -> str:
    names = sorted(uids)
    if uid is None and len(names) == 1:
        return names[0]
    if uid in names:
        return uid
    if not names:
        raise DataError(f"{where}: holds no dataset of a vault (no UID folder with {METADATA_FILE})")
    listed = f"{where} has {', '.join(names)}"
    if uid is None:
        raise ConfigError(f"`uid`: must name one of several datasets; {listed}")
    near = difflib.get_close_matches(uid.title(), names, n=1)
    raise ConfigError(f"`uid`: there is no {uid!r}; {listed}" + (f"; meant: {near[0]}?" if near else ""))


def _file_name(url: str) -> str:
    return re.sub(r"[^\w.-]+", "-", Path(unquote(urlsplit(url).path)).name).strip("-.") or "vault"


def _cache_path(url: str, downloads: Path) -> Path:
    """Return where an archive from elsewhere is kept; equal file names do not meet."""
    name = re.sub(r"(\.zip)?$", ".zip", _file_name(url), count=1, flags=re.IGNORECASE)
    return downloads / "elsewhere" / hashlib.sha256(url.encode()).hexdigest()[:12] / name
