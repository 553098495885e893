"""Multi-agent episodes in Minari's HDF5 format: readable by `minari.load_dataset`, fast to read here.

Minari knows one agent. Several are stacked into one observation and one action, padded to the largest
agent, and what else they need travels in `infos` (all L + 1 rows: row 0 belongs to the reset):

    observations    (L + 1, N, O)              float
    actions         (L, N, A) float, or (L, N) integer where discrete
    rewards         (L,)                       the agents' mean reward
    terminations    (L,) bool                  truncations  (L,) bool
    infos/agent_rewards  (L + 1, N) float      row t + 1 is the reward of action t; row 0 is ignored
    infos/state          (L + 1, S) float
    infos/legals         (L + 1, N, A) int8    discrete only
    infos/step           (L + 1,) integer      optional: checked to count 0, 1, ..., L

Whose agents these are stands in the dataset's `metadata.json` under "macflow": `spec`, `env`,
`behaviour`. A dataset without that key is read too, with what its spaces tell: agents `agent_0`, ...;
without `agent_rewards` each agent gets the team reward; without `state` it is all observations in a
row; without `legals` all actions are legal.
"""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from h5py import h5a, h5d, h5g, h5p, h5s, h5t
from numpy.typing import NDArray

from macflow.data.episode import Episode
from macflow.data.hdf5_reader import StructureError, read_rows
from macflow.data.minari_metadata import MAIN_FILE, METADATA_FILE, find_dataset, read_metadata
from macflow.data.rows import EpisodeRows, check_episode
from macflow.files import read_json
from macflow.types import DataError, MultiAgentSpec

__all__ = ["StructureError", "read_minari", "read_minari_rows", "write_minari"]


def write_minari(
    root: Path,
    dataset_id: str,
    episodes: Sequence[Episode],
    spec: MultiAgentSpec,
    env: Mapping[str, Any] | None,
    behaviour: Mapping[str, Any],
) -> None:
    """Write `episodes` as the one Minari dataset of the folder `root`, which must be empty or absent.

    `env` is {"id", "kwargs", "version"} of the environment, or None if it is not a registered one;
    `behaviour` is any JSON that tells where the data come from. Equal arguments give equal bytes.
    """
    if root.exists() and (not root.is_dir() or any(root.iterdir())):
        raise DataError(f"{root}: a dataset is written into an empty or new folder, this one has content")
    for index, episode in enumerate(episodes):
        check_episode(episode, spec, f"episode {index}")
    root.mkdir(parents=True, exist_ok=True)
    data = _create_empty(root, dataset_id, spec, str(behaviour.get("name", "unknown")))
    try:
        with h5py.File(data / MAIN_FILE, "r+") as file:
            _write_episodes(file, episodes, spec)
    except OSError as error:
        raise DataError(f"{data / MAIN_FILE}: cannot be written: {error}") from None
    _update_metadata(
        data,
        {
            "total_episodes": len(episodes),
            "total_steps": sum(episode.length for episode in episodes),
            "dataset_size": round((data / MAIN_FILE).stat().st_size / 1e6, 1),
            "macflow": {
                "spec": spec.to_dict(),
                "env": None if env is None else dict(env),
                "behaviour": dict(behaviour),
            },
        },
    )


def _create_empty(root: Path, dataset_id: str, spec: MultiAgentSpec, algorithm: str) -> Path:
    """Let Minari create a dataset without episodes; return its data folder."""
    import minari
    from gymnasium import spaces

    observation_space = spaces.Box(-np.inf, np.inf, (spec.n_agents, spec.obs_size), np.float32)
    action_space: spaces.Space[Any] = (
        spaces.MultiDiscrete([spec.action_size] * spec.n_agents)
        if spec.discrete
        else spaces.Box(
            np.tile(np.array(spec.action_low, np.float32), (spec.n_agents, 1)),
            np.tile(np.array(spec.action_high, np.float32), (spec.n_agents, 1)),
            dtype=np.float32,
        )
    )
    try:
        with _minari_root(root), warnings.catch_warnings():
            # Minari asks for a Gymnasium environment, author and links, none of which exist here.
            warnings.filterwarnings("ignore", category=UserWarning, module=r"minari\..*")
            minari.create_dataset_from_buffers(
                dataset_id,
                buffer=[],
                observation_space=observation_space,
                action_space=action_space,
                algorithm_name=algorithm,
                data_format="hdf5",
                jpeg_encoding=False,
            )
    except (ValueError, TypeError) as error:
        raise DataError(f"dataset id {dataset_id!r} is not accepted by Minari: {error}") from None
    return root / dataset_id / "data"


@contextmanager
def _minari_root(root: Path) -> Iterator[None]:
    """Point Minari, which takes its folder from the environment only, at `root`."""
    before = os.environ.get("MINARI_DATASETS_PATH")
    os.environ["MINARI_DATASETS_PATH"] = str(root.resolve())
    try:
        yield
    finally:
        if before is None:
            del os.environ["MINARI_DATASETS_PATH"]
        else:
            os.environ["MINARI_DATASETS_PATH"] = before


def _write_episodes(file: h5py.File, episodes: Sequence[Episode], spec: MultiAgentSpec) -> None:
    """Add Minari's group of each episode.

    Minari's own writer makes every array resizable, hence chunked: three times the size on disk and
    ten times the time for episodes of 25 steps. Fixed-size arrays read the same through its API.
    """
    layout = h5p.create(h5p.DATASET_CREATE)
    layout.set_obj_track_times(False)
    scalar = h5s.create(h5s.SCALAR)
    number = np.zeros((), np.int64)

    # Making types and shapes anew for each array would take a third of the time.
    @cache
    def type_of(dtype: np.dtype[Any]) -> h5t.TypeID:
        return h5t.py_create(dtype, logical=True)

    @lru_cache(maxsize=1024)
    def space_of(shape: tuple[int, ...]) -> h5s.SpaceID:
        return h5s.create_simple(shape)

    def put(group: h5g.GroupID, name: bytes, array: NDArray[Any]) -> None:
        array = np.ascontiguousarray(array)
        kind = type_of(array.dtype)
        dataset = h5d.create(group, name, kind, space_of(array.shape), layout)
        if array.size:
            dataset.write(h5s.ALL, h5s.ALL, array, kind)

    for index, episode in enumerate(episodes):
        group = h5g.create(file.id, b"episode_%d" % index)
        for name, value in (
            (b"id", index),
            (b"seed", episode.seed),
            (b"total_steps", episode.length),
        ):
            number[()] = value
            h5a.create(group, name, h5t.NATIVE_INT64, scalar).write(number, h5t.NATIVE_INT64)
        put(group, b"observations", episode.obs)
        put(group, b"actions", episode.actions)
        put(group, b"rewards", np.add.reduce(episode.rewards, axis=1, dtype=np.float64) / spec.n_agents)
        put(group, b"terminations", episode.terminated)
        put(group, b"truncations", episode.truncated)
        infos = h5g.create(group, b"infos")
        agent_rewards = np.zeros((episode.length + 1, spec.n_agents), np.float32)
        agent_rewards[1:] = episode.rewards
        put(infos, b"agent_rewards", agent_rewards)
        put(infos, b"state", episode.state)
        if episode.legal_actions is not None:
            put(infos, b"legals", episode.legal_actions.view(np.int8))


def _update_metadata(data: Path, entries: Mapping[str, Any]) -> None:
    path = data / METADATA_FILE
    path.write_text(json.dumps(read_json(path) | entries, sort_keys=True, allow_nan=False), encoding="utf-8")


def read_minari(root: Path) -> tuple[list[Episode], MultiAgentSpec, dict[str, Any]]:
    """Read the one dataset of the folder `root`: episodes, specification, metadata.

    Metadata: {"dataset_id", "data_folder", "minari_version", "env" or None, "behaviour" or None,
    "inferred"}.

    Raises:
        DataError: naming the file and what is missing, malformed or not in the documented layout.
    """
    rows, spec, meta = read_minari_rows(root)
    return rows.episodes(), spec, meta


def read_minari_rows(root: Path) -> tuple[EpisodeRows, MultiAgentSpec, dict[str, Any]]:
    """Read like `read_minari`, all episodes stacked; wrong shapes raise `StructureError`."""
    data = find_dataset(root)
    spec, meta = read_metadata(data)
    rows = read_rows(data / MAIN_FILE, spec, meta["total_episodes"])
    steps = int(rows.lengths.sum())
    if steps != meta["total_steps"]:
        raise DataError(
            f"{data / METADATA_FILE}: `total_steps` is {meta['total_steps']}, the episodes have {steps}"
        )
    return rows, spec, meta
