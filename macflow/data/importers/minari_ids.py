"""Read a Minari dataset from a folder, or by the id under which Minari has installed it here."""

from __future__ import annotations

import difflib
import os
import re
from dataclasses import replace
from pathlib import Path

from macflow.data.importers.imported import Imported, same_agents
from macflow.data.importers.transitions import refuse_padding
from macflow.data.minari_metadata import METADATA_FILE
from macflow.data.minari_store import read_minari_rows
from macflow.files import digest
from macflow.types import DataError, MultiAgentSpec

_ID = re.compile(r"[\w-]+(/[\w-]+)*-v\d+")


def read_minari_source(source: str, env_spec: MultiAgentSpec | None = None) -> Imported:
    """Read the dataset of the folder `source`, or the installed dataset with the id `source`.

    `env_spec` gives the agents' true observation sizes where the dataset has only Minari's own metadata.

    Raises:
        DataError: naming what is missing, malformed or not in the layout of `minari_store`.
    """
    folder = find_minari(source)
    rows, spec, meta = read_minari_rows(folder)
    if meta["inferred"] and (known := same_agents(env_spec, spec.n_agents)) is not None:
        obs_dims = known.obs_dims if known.obs_size == spec.obs_size else spec.obs_dims
        spec = replace(spec, obs_dims=obs_dims)
        refuse_padding(folder, rows, spec)
    return Imported(
        rows=rows,
        spec=spec,
        dataset_id=meta["dataset_id"],
        behaviour=meta["behaviour"] or {"imported_from": "minari", "sha256": digest(folder)},
        named=not meta["inferred"],
        env=meta["env"],
    )


def find_minari(source: str) -> Path:
    """Return the folder named `source`, or the one in which Minari keeps the dataset of that id."""
    folder = Path(source)
    if folder.exists() or not _ID.fullmatch(source):
        return folder
    root = _installed_root()
    installed = root / source
    if (installed / "data" / METADATA_FILE).is_file():
        return installed
    known = [str(path.parent.parent.relative_to(root)) for path in root.rglob(f"data/{METADATA_FILE}")]
    near = difflib.get_close_matches(source, known, 1)
    raise DataError(
        f"{source}: folder not found, nor a dataset of that id in {root}; `minari download {source}` gets a "
        "published one" + (f"; is {near[0]!r} meant?" if near else "")
    )


def _installed_root() -> Path:
    # Minari's own function creates the folder, which looking must not.
    chosen = os.environ.get("MINARI_DATASETS_PATH")
    return Path(chosen) if chosen else Path.home() / ".minari" / "datasets"
