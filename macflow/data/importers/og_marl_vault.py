"""Read Flashbax vaults, the storage of OG-MARL, with tensorstore alone.

A vault `SCENARIO.vlt` has one folder per dataset, its UID, which holds `metadata.json` and an OCDBT
database of zarr arrays (B, time, ...). Their names are dotted and end with a dot. Their time axis is
declared 10^13 long: how much of it is written, `vault_index` says. The shapes in the metadata are those
of the writer's buffer, not of the data.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from macflow.files import read_json
from macflow.types import ConfigError, DataError

METADATA_FILE = "metadata.json"
DATABASE_FILE = "manifest.ocdbt"
INDEX = "vault_index"
# As tensorstore reports what is missing, damaged or not permitted.
STORE_ERRORS = (ValueError, OSError, RuntimeError, NotImplementedError)


def list_uids(vault: Path) -> tuple[str, ...]:
    """Return the names of the datasets in the folder `SCENARIO.vlt`, sorted."""
    if not vault.is_dir():
        raise DataError(f"{vault}: folder not found; it must be a vault, SCENARIO.vlt")
    return tuple(sorted(path.name for path in vault.iterdir() if (path / METADATA_FILE).is_file()))


class VaultArrays(Mapping[str, NDArray[Any]]):
    """The arrays of one dataset by name (`observations`, `infos.state`), each read when asked for.

    All have shape (B, rows, ...): B streams recorded side by side, each of the same number of rows.
    """

    def __init__(self, folder: Path) -> None:
        """Open the UID folder of a vault.

        Raises:
            ConfigError: where tensorstore, an optional dependency, is not installed.
            DataError: naming the file and what is missing, of another version or damaged.
        """
        self._folder = folder
        self._fields = _declared(folder / METADATA_FILE)
        if not (folder / DATABASE_FILE).is_file():
            raise DataError(f"{folder}: holds no {DATABASE_FILE}; the vault is not whole")
        index = self._open(INDEX)
        self.rows = int(np.asarray(index).reshape(-1)[0]) if index.size else 0
        if self.rows < 1:
            raise DataError(f"{folder}: `{INDEX}` says that {self.rows} rows were written")

    def __getitem__(self, name: str) -> NDArray[Any]:
        (batch, *row_shape), dtype = self._fields[name]
        array = self._open(f"{name}.", self.rows)
        expected = (batch, self.rows, *row_shape)
        if array.shape != expected or array.dtype != dtype:
            raise DataError(
                f"{self._folder}: `{name}` must have shape {expected} and type {dtype} as {METADATA_FILE} "
                f"says, received {array.shape} and {array.dtype}"
            )
        return array

    def __iter__(self) -> Iterator[str]:
        return iter(self._fields)

    def __len__(self) -> int:
        return len(self._fields)

    def _open(self, name: str, rows: int | None = None) -> NDArray[Any]:
        """Read an array, of those with a time axis the first `rows` only."""
        # Imported here: importers of other formats do without.
        try:
            import tensorstore
        except ImportError:
            raise ConfigError(
                "tensorstore is not installed; install it with: pip install 'macflow[vaults]'"
            ) from None
        spec = {
            "driver": "zarr",
            "kvstore": {
                "driver": "ocdbt",
                "base": {"driver": "file", "path": f"{self._folder.resolve()}/"},
                "path": f"{name}/",
            },
        }
        try:
            store = tensorstore.open(spec, open=True, read=True).result()
            if rows is not None:
                store = store[:, :rows]
            return np.asarray(store.read().result())
        except STORE_ERRORS as error:
            # The first sentence tells; what follows is the library's own context.
            reason = str(error).split(" [", 1)[0]
            raise DataError(f"{self._folder}: array `{name}` cannot be read: {reason}") from None


def _declared(path: Path) -> dict[str, tuple[tuple[int, ...], np.dtype[Any]]]:
    """Return shape without the time axis and type of each array that the metadata names."""
    meta = read_json(path)
    if not isinstance(meta, dict):
        raise DataError(f"{path}: must hold a JSON object, received {type(meta).__name__}")
    version = meta.get("version")
    if not str(version).startswith("1."):
        raise DataError(f"{path}: `version` must be 1.x, received {version!r}")
    shapes, types = (dict(_leaves(path, meta.get(key), "")) for key in ("structure_shape", "structure_dtype"))
    if set(shapes) != set(types):
        raise DataError(f"{path}: `structure_shape` and `structure_dtype` name other arrays")
    declared = {}
    for name, text in shapes.items():
        try:
            shape, dtype = ast.literal_eval(text), np.dtype(types[name])
        except (ValueError, SyntaxError, TypeError) as error:
            raise DataError(f"{path}: `{name}` is not described as a shape and a type: {error}") from None
        if not (
            isinstance(shape, tuple) and len(shape) >= 2 and all(isinstance(size, int) for size in shape)
        ):
            raise DataError(f"{path}: `{name}` must have a shape (batch, time, ...), received {text!r}")
        declared[name] = ((shape[0], *shape[2:]), dtype)
    return declared


def _leaves(path: Path, tree: Any, prefix: str) -> Iterator[tuple[str, str]]:
    if not isinstance(tree, dict):
        raise DataError(f"{path}: the structure must be an object of names, received {tree!r}")
    for name, value in tree.items():
        if isinstance(value, str):
            yield f"{prefix}{name}", value
        else:
            yield from _leaves(path, value, f"{prefix}{name}.")
