"""The canonical dataset: one folder that training reads, and nothing else.

arrays.safetensors   rows of all episodes: the tensors of `PreparedDataset`
episodes.parquet     episode, seed, first_row, length, team_return, terminated, truncated
transitions.parquet  episode, step, row, team_reward, terminated, truncated
dataset.json         schema version, source, environment, agents, normaliser, counts, returns
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from macflow.data.normalizer import Normalizer
from macflow.data.rows import EpisodeRows
from macflow.files import read_json, replace_directory, write_json
from macflow.types import DataError, MultiAgentSpec

if TYPE_CHECKING:
    import torch

SCHEMA_VERSION = 1
ARRAYS_FILE = "arrays.safetensors"
DATASET_FILE = "dataset.json"
EPISODES_FILE = "episodes.parquet"
TRANSITIONS_FILE = "transitions.parquet"


@dataclass(frozen=True)
class PreparedDataset:
    """Hold a prepared dataset in memory, in raw units; row t + 1 follows row t where t is a train row."""

    spec: MultiAgentSpec
    meta: dict[str, Any]  # all of dataset.json
    obs: torch.Tensor  # (R, N, O) float32
    state: torch.Tensor  # (R, S) float32
    actions: torch.Tensor  # (R, N, A) float32, or (R, N) int64 where discrete
    rewards: torch.Tensor  # (R, N) float32
    terminated: torch.Tensor  # (R,) bool
    truncated: torch.Tensor  # (R,) bool
    legal_actions: torch.Tensor | None  # (R, N, A) bool, discrete only
    train_rows: torch.Tensor  # (T,) int64, rows that begin a transition
    returns: NDArray[np.float64]  # (E,) undiscounted; team reward is the agents' mean

    @property
    def env(self) -> dict[str, Any] | None:
        """Return id, kwargs and version of the environment that the data come from, None if unknown."""
        recorded: dict[str, Any] | None = self.meta["env"]
        return recorded

    @property
    def normalizer(self) -> Normalizer:
        """Return the normaliser fitted on the train rows."""
        return Normalizer.from_dict(self.meta["normalizer"])


def write_prepared(
    path: Path,
    rows: EpisodeRows,
    spec: MultiAgentSpec,
    *,
    env: Mapping[str, Any] | None,
    source: Mapping[str, Any],
    made_from: Mapping[str, str],
    params: Mapping[str, Any],
) -> None:
    """Replace the folder `path` by the canonical form of `rows`; equal arguments give equal bytes.

    `env` is {"id", "kwargs", "version"}, or None where nobody knows. `source` tells where the rows come
    from, `made_from` maps input paths to their digests and `params` the sections that were used: all kept
    as they are.
    """
    normalizer = Normalizer.fit(rows.obs, rows.state, rows.rewards, rows.train_rows)
    returns = rows.team_returns
    arrays = {
        "obs": rows.obs,
        "state": rows.state,
        "actions": rows.actions,
        "rewards": rows.rewards,
        "terminated": rows.terminated,
        "truncated": rows.truncated,
        "train_rows": rows.train_rows,
    }
    if rows.legal_actions is not None:
        arrays["legal_actions"] = rows.legal_actions
    with replace_directory(path) as folder:
        save_file({name: np.ascontiguousarray(array) for name, array in arrays.items()}, folder / ARRAYS_FILE)
        _episode_table(rows, returns).write_parquet(folder / EPISODES_FILE)
        _transition_table(rows).write_parquet(folder / TRANSITIONS_FILE)
        write_json(
            folder / DATASET_FILE,
            {
                "schema_version": SCHEMA_VERSION,
                "source": dict(source),
                "env": None if env is None else dict(env),
                "spec": spec.to_dict(),
                "normalizer": normalizer.to_dict(),
                "counts": {
                    "episodes": rows.n_episodes,
                    "transitions": len(rows.train_rows),
                    "rows": rows.n_rows,
                },
                "returns": {
                    "mean": float(returns.mean()),
                    "std": float(returns.std()),
                    "min": float(returns.min()),
                    "max": float(returns.max()),
                },
                "made_from": dict(made_from),
                "params": dict(params),
            },
        )


def load_prepared(path: Path) -> PreparedDataset:
    """Read a prepared dataset into memory.

    Raises:
        DataError: naming the file and what is missing, of another schema or inconsistent.
    """
    import torch

    meta, spec = read_dataset_json(path)
    # Cloned out of the lazy map: gathering from mapped memory is up to a hundred times slower.
    tensors = {name: tensor.clone() for name, tensor in _read_arrays(path, "pt").items()}
    _check_arrays(path, tensors, spec, meta, {"bool": torch.bool, "int": torch.int64, "float": torch.float32})
    table = _read_episodes(path, meta, tensors["train_rows"].numpy())
    return PreparedDataset(
        spec=spec,
        meta=meta,
        obs=tensors["obs"],
        state=tensors["state"],
        actions=tensors["actions"],
        rewards=tensors["rewards"],
        terminated=tensors["terminated"],
        truncated=tensors["truncated"],
        legal_actions=tensors.get("legal_actions"),
        train_rows=tensors["train_rows"],
        returns=table["team_return"].to_numpy(),
    )


def load_rows(path: Path) -> tuple[EpisodeRows, MultiAgentSpec, dict[str, Any]]:
    """Read a prepared dataset as NumPy arrays, without torch; the third item is dataset.json."""
    meta, spec = read_dataset_json(path)
    arrays = _read_arrays(path, "np")
    kinds = {"bool": np.dtype(np.bool_), "int": np.dtype(np.int64), "float": np.dtype(np.float32)}
    _check_arrays(path, arrays, spec, meta, kinds)
    table = _read_episodes(path, meta, arrays.pop("train_rows"))
    rows = EpisodeRows(
        **{"legal_actions": None, **arrays},
        lengths=table["length"].to_numpy(),
        seeds=table["seed"].to_numpy(),
    )
    return rows, spec, meta


def read_dataset_json(path: Path) -> tuple[dict[str, Any], MultiAgentSpec]:
    """Read and check `dataset.json` of the prepared dataset at `path`."""
    file = path / DATASET_FILE
    if not path.is_dir():
        raise DataError(f"{path}: prepared dataset not found; the prepare stage makes it")
    meta = read_json(file)
    if not isinstance(meta, dict):
        raise DataError(f"{file}: must hold a JSON object, received {type(meta).__name__}")
    if meta.get("schema_version") != SCHEMA_VERSION:
        raise DataError(
            f"{file}: `schema_version` must be {SCHEMA_VERSION}, received {meta.get('schema_version')!r}; "
            "run the prepare stage again"
        )
    for name in ("source", "spec", "normalizer", "counts", "returns", "made_from", "params"):
        if not isinstance(meta.get(name), dict):
            raise DataError(f"{file}: `{name}` must be an object, received {meta.get(name)!r}")
    env = meta.get("env", {})
    if env is not None and not (
        isinstance(env, dict) and isinstance(env.get("id"), str) and isinstance(env.get("kwargs"), dict)
    ):
        raise DataError(f"{file}: `env` must be null or hold `id` and `kwargs`, received {env!r}")
    Normalizer.from_dict(meta["normalizer"])
    return meta, MultiAgentSpec.from_dict(meta["spec"])


def _read_arrays(path: Path, framework: str) -> dict[str, Any]:
    file = path / ARRAYS_FILE
    try:
        with safe_open(file, framework=framework) as arrays:
            return {name: arrays.get_tensor(name) for name in arrays.keys()}  # noqa: SIM118
    except FileNotFoundError:
        raise DataError(f"{file}: file not found") from None
    except (OSError, SafetensorError) as error:
        raise DataError(f"{file}: cannot be read (truncated or damaged?): {error}") from None


def _read_episodes(path: Path, meta: Mapping[str, Any], train_rows: NDArray[np.int64]) -> pl.DataFrame:
    """Read length, seed and team_return of the episodes; they must agree with the train rows."""
    file = path / EPISODES_FILE
    try:
        table = pl.read_parquet(file, columns=["length", "seed", "team_return"])
    except (OSError, pl.exceptions.PolarsError) as error:
        raise DataError(f"{file}: cannot be read: {error}") from None
    if table.height != meta["counts"].get("episodes"):
        raise DataError(f"{file}: has {table.height} episodes, {DATASET_FILE} says otherwise")
    lengths = table["length"].to_numpy()
    ends = np.cumsum(lengths + 1) - 1
    kept = np.ones(meta["counts"]["rows"], np.bool_)
    fits = bool((lengths >= 1).all()) and ends[-1:].tolist() == [len(kept) - 1]
    if fits:
        kept[ends] = False
    if not fits or not np.array_equal(np.flatnonzero(kept), train_rows):
        raise DataError(f"{path}: {EPISODES_FILE} and {ARRAYS_FILE} disagree on where episodes begin")
    return table


def _check_arrays(
    path: Path,
    arrays: Mapping[str, Any],
    spec: MultiAgentSpec,
    meta: Mapping[str, Any],
    kinds: Mapping[str, Any],
) -> None:
    """Compare names, shapes and types with the specification, and the train rows with the row count."""
    file = path / ARRAYS_FILE
    rows, transitions = meta["counts"].get("rows"), meta["counts"].get("transitions")
    n, size = spec.n_agents, spec.action_size
    expected: dict[str, tuple[tuple[Any, ...], str]] = {
        "obs": ((rows, n, spec.obs_size), "float"),
        "state": ((rows, spec.state_size), "float"),
        "actions": ((rows, n), "int") if spec.discrete else ((rows, n, size), "float"),
        "rewards": ((rows, n), "float"),
        "terminated": ((rows,), "bool"),
        "truncated": ((rows,), "bool"),
        "train_rows": ((transitions,), "int"),
    }
    if spec.discrete:
        expected["legal_actions"] = ((rows, n, size), "bool")
    if set(arrays) != set(expected):
        raise DataError(f"{file}: must hold the arrays {sorted(expected)}, received {sorted(arrays)}")
    for name, (shape, kind) in expected.items():
        array = arrays[name]
        if tuple(array.shape) != shape or array.dtype != kinds[kind]:
            raise DataError(
                f"{file}: `{name}` must have shape {shape} and type {kinds[kind]}, "
                f"received {tuple(array.shape)} and {array.dtype}"
            )
    train_rows = arrays["train_rows"]
    if transitions and not (
        int(train_rows[0]) >= 0
        and int(train_rows[-1]) < rows - 1
        and bool((train_rows[1:] > train_rows[:-1]).all())
    ):
        raise DataError(f"{file}: `train_rows` must rise and leave a next row after each")


def _episode_table(rows: EpisodeRows, returns: NDArray[np.float64]) -> pl.DataFrame:
    last = rows.final_rows - 1
    return pl.DataFrame(
        {
            "episode": np.arange(rows.n_episodes),
            "seed": rows.seeds,
            "first_row": rows.first_rows,
            "length": rows.lengths,
            "team_return": returns,
            "terminated": rows.terminated[last],
            "truncated": rows.truncated[last],
        }
    )


def _transition_table(rows: EpisodeRows) -> pl.DataFrame:
    picked = rows.train_rows
    return pl.DataFrame(
        {
            "episode": rows.episode_of_row[picked],
            "step": rows.step_of_row[picked],
            "row": picked,
            "team_reward": rows.team_rewards[picked],
            "terminated": rows.terminated[picked],
            "truncated": rows.truncated[picked],
        }
    )
