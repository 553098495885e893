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

import itertools
import json
import multiprocessing
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from h5py import h5a, h5d, h5f, h5g, h5p, h5s, h5t
from numpy.typing import NDArray

from macflow.data.episode import Episode
from macflow.data.rows import UNKNOWN_SEED, EpisodeRows, check_episode
from macflow.files import read_json
from macflow.types import DataError, MultiAgentSpec

MAIN_FILE = "main_data.hdf5"
METADATA_FILE = "metadata.json"
# Problems of structure that are collected before reading gives up.
MAX_PROBLEMS = 20
# One process reads an episode's objects in about 0.35 ms; two more processes cost about 0.5 s to start.
EPISODES_WORTH_A_PROCESS = 4000
# Rows that a reader collects before handing them on: bounds its memory.
CHUNK_ROWS = 1 << 15
METADATA_CACHE_BYTES = 1 << 20
H5_ERRORS = (OSError, KeyError, RuntimeError, ValueError, TypeError)


class StructureError(DataError):
    """Episodes do not have the documented arrays; `problems` lists (episode, message) pairs."""

    def __init__(self, path: Path, problems: Sequence[tuple[int, str]]) -> None:
        self.problems = list(problems)
        shown = "; ".join(f"episode {episode}: {message}" for episode, message in self.problems[:5])
        more = f" (and {len(self.problems) - 5} more)" if len(self.problems) > 5 else ""
        super().__init__(f"{path}: {shown}{more}")


# --- writing -----------------------------------------------------------------------------------------


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

    def put(group: h5g.GroupID, name: bytes, array: NDArray[Any]) -> None:
        array = np.ascontiguousarray(array)
        kind = h5t.py_create(array.dtype, logical=True)
        dataset = h5d.create(group, name, kind, h5s.create_simple(array.shape), layout)
        if array.size:
            dataset.write(h5s.ALL, h5s.ALL, array)

    scalar = h5s.create(h5s.SCALAR)
    for index, episode in enumerate(episodes):
        group = h5g.create(file.id, b"episode_%d" % index)
        for name, value in (
            (b"id", index),
            (b"seed", episode.seed),
            (b"total_steps", episode.length),
        ):
            h5a.create(group, name, h5t.NATIVE_INT64, scalar).write(np.array(value, np.int64))
        put(group, b"observations", episode.obs)
        put(group, b"actions", episode.actions)
        put(group, b"rewards", episode.rewards.mean(axis=1, dtype=np.float64))
        put(group, b"terminations", episode.terminated)
        put(group, b"truncations", episode.truncated)
        infos = h5g.create(group, b"infos")
        agent_rewards = np.zeros((episode.length + 1, spec.n_agents), np.float32)
        agent_rewards[1:] = episode.rewards
        put(infos, b"agent_rewards", agent_rewards)
        put(infos, b"state", episode.state)
        if episode.legal_actions is not None:
            put(infos, b"legals", episode.legal_actions.astype(np.int8))


def _update_metadata(data: Path, entries: Mapping[str, Any]) -> None:
    path = data / METADATA_FILE
    path.write_text(json.dumps(read_json(path) | entries, sort_keys=True, allow_nan=False), encoding="utf-8")


# --- reading -----------------------------------------------------------------------------------------


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
    spec, meta = read_minari_metadata(data)
    path = data / MAIN_FILE
    total = meta["total_episodes"]
    layout = _layout_of(path, spec, total)
    chunks = (
        _read_in_processes(path, total, layout)
        if total >= 2 * EPISODES_WORTH_A_PROCESS and (os.cpu_count() or 1) > 1
        else list(_read_chunks(path, 0, total, layout))
    )
    problems = [problem for chunk in chunks for problem in chunk.problems]
    if problems:
        raise StructureError(path, problems[:MAX_PROBLEMS])
    rows = _assemble(chunks, spec, layout)
    steps = int(rows.lengths.sum())
    if steps != meta["total_steps"]:
        raise DataError(
            f"{data / METADATA_FILE}: `total_steps` is {meta['total_steps']}, the episodes have {steps}"
        )
    return rows, spec, meta


def find_dataset(root: Path) -> Path:
    """Return the data folder of the only Minari dataset at or below `root`."""
    if not root.is_dir():
        raise DataError(f"{root}: folder not found; it must hold a Minari dataset")
    found = sorted(path.parent for path in root.rglob(METADATA_FILE))
    if not found:
        raise DataError(f"{root}: holds no Minari dataset (no {METADATA_FILE} in any folder)")
    if len(found) > 1:
        names = ", ".join(str(path.relative_to(root)) for path in found)
        raise DataError(f"{root}: holds {len(found)} Minari datasets ({names}); name the folder of one")
    if not (found[0] / MAIN_FILE).is_file():
        raise DataError(f"{found[0]}: {MAIN_FILE} is missing; the dataset must be in Minari's hdf5 format")
    return found[0]


def read_minari_metadata(data: Path) -> tuple[MultiAgentSpec, dict[str, Any]]:
    """Read a data folder's `metadata.json`; see `read_minari`, plus "total_episodes", "total_steps"."""
    path = data / METADATA_FILE
    raw = read_json(path)
    if not isinstance(raw, dict):
        raise DataError(f"{path}: must hold a JSON object, received {type(raw).__name__}")
    if raw.get("data_format") != "hdf5":
        raise DataError(f"{path}: `data_format` must be 'hdf5', received {raw.get('data_format')!r}")
    totals = {}
    for name in ("total_episodes", "total_steps"):
        value = raw.get(name)
        if not isinstance(value, int) or isinstance(value, bool) or value < 0:
            raise DataError(f"{path}: `{name}` must be an integer >= 0, received {value!r}")
        totals[name] = value
    ours = raw.get("macflow")
    if ours is None:
        spec, ours = _spec_from_spaces(path, raw), {}
    elif isinstance(ours, dict) and isinstance(ours.get("spec"), dict):
        spec = _checked_spec(path, ours["spec"])
    else:
        raise DataError(f"{path}: `macflow` must be an object with a `spec`, received {ours!r}")
    env = ours.get("env")
    if env is not None and not (
        isinstance(env, dict) and isinstance(env.get("id"), str) and isinstance(env.get("kwargs"), dict)
    ):
        raise DataError(f"{path}: `macflow.env` must be null or hold `id` and `kwargs`, received {env!r}")
    return spec, {
        "dataset_id": str(raw.get("dataset_id", "")),
        "minari_version": raw.get("minari_version"),
        "data_folder": data,
        "env": env,
        "behaviour": ours.get("behaviour"),
        "inferred": not ours,
        **totals,
    }


def _checked_spec(path: Path, raw: dict[str, Any]) -> MultiAgentSpec:
    spec = MultiAgentSpec.from_dict(raw)

    def integers(values: tuple[Any, ...], least: int) -> bool:
        return all(isinstance(v, int) and not isinstance(v, bool) and v >= least for v in values)

    def numbers(values: Any) -> bool:
        return isinstance(values, tuple) and all(
            isinstance(v, int | float) and np.isfinite(v) for v in values
        )

    rules = {
        "agent_ids": isinstance(spec.agent_ids, tuple)
        and len(spec.agent_ids) > 0
        and all(isinstance(name, str) for name in spec.agent_ids)
        and len(set(spec.agent_ids)) == len(spec.agent_ids),
        "obs_dims": isinstance(spec.obs_dims, tuple)
        and len(spec.obs_dims) == len(spec.agent_ids)
        and integers(spec.obs_dims, 1),
        "state_size": integers((spec.state_size,), 1),
        "action_kind": spec.action_kind in ("continuous", "discrete"),
        "action_size": integers((spec.action_size,), 1),
        "action_low": numbers(spec.action_low) and len(spec.action_low) == spec.action_size,
        "action_high": numbers(spec.action_high)
        and len(spec.action_high) == spec.action_size
        and all(low < high for low, high in zip(spec.action_low, spec.action_high, strict=False)),
    }
    broken = [name for name, holds in rules.items() if not holds]
    if broken:
        values = ", ".join(f"`{name}` = {raw.get(name)!r}" for name in broken)
        raise DataError(f"{path}: agent specification is not consistent: {values}")
    return spec


def _spec_from_spaces(path: Path, raw: dict[str, Any]) -> MultiAgentSpec:
    def space(name: str) -> dict[str, Any]:
        try:
            parsed = json.loads(raw[name])
        except (KeyError, TypeError, json.JSONDecodeError):
            raise DataError(f"{path}: `{name}` is missing or not Minari's JSON of a space") from None
        if not isinstance(parsed, dict):
            raise DataError(f"{path}: `{name}` must be a space, received {parsed!r}")
        return parsed

    observation, action = space("observation_space"), space("action_space")
    shape = observation.get("shape")
    if observation.get("type") != "Box" or not isinstance(shape, list) or len(shape) != 2:
        raise DataError(
            f"{path}: `observation_space` must be a Box of shape (agents, size) with all agents stacked, "
            f"received {observation.get('type')} of shape {shape}"
        )
    n, obs_size = shape
    common = {
        "agent_ids": [f"agent_{i}" for i in range(n)],
        "obs_dims": [obs_size] * n,
        "state_size": n * obs_size,
    }
    if action.get("type") == "MultiDiscrete":
        nvec = action.get("nvec")
        if (
            not isinstance(nvec, list)
            or len(nvec) != n
            or len(set(nvec)) != 1
            or any(action.get("start", []))
        ):
            raise DataError(
                f"{path}: `action_space` must be a MultiDiscrete of {n} equal sizes that start at 0, "
                f"received sizes {nvec}"
            )
        size = nvec[0]
        kind: dict[str, Any] = {
            "action_kind": "discrete",
            "action_low": [-1.0] * size,
            "action_high": [1.0] * size,
        }
    else:
        low, high = action.get("low"), action.get("high")
        action_shape = action.get("shape")
        if (
            action.get("type") != "Box"
            or not isinstance(action_shape, list)
            or len(action_shape) != 2
            or action_shape[0] != n
            or not isinstance(low, list)
            or not isinstance(high, list)
            or any(row != low[0] for row in low)
            or any(row != high[0] for row in high)
        ):
            raise DataError(
                f"{path}: `action_space` must be a Box of shape ({n}, size) with the same bounds for all "
                f"agents, or a MultiDiscrete; received {action.get('type')} of shape {action_shape}"
            )
        size = action_shape[1]
        kind = {"action_kind": "continuous", "action_low": low[0], "action_high": high[0]}
    return _checked_spec(path, {**common, **kind, "action_size": size})


@dataclass(frozen=True)
class _Field:
    """One array of every episode: where it is, what it becomes, what shape and kind it must have."""

    source: bytes
    target: str
    extra_rows: int  # 1: has L + 1 rows
    shape: tuple[int, ...]  # of one row
    dtype: str
    kinds: frozenset[int]  # HDF5 type classes that convert to dtype without harm
    in_infos: bool = False


_FLOATS = frozenset({h5t.FLOAT, h5t.INTEGER})
_INTEGERS = frozenset({h5t.INTEGER})
# NumPy's bool is an enumeration in HDF5.
_BOOLS = frozenset({h5t.ENUM})
_KIND_NAMES = {_FLOATS: "a number", _INTEGERS: "an integer", _BOOLS: "a boolean"}


def _layout_of(path: Path, spec: MultiAgentSpec, total: int) -> list[_Field]:
    """List the arrays to read; which of the optional ones there are, the first episode tells."""
    infos: set[str] = set()
    with _open(path) as file:
        if len(file) < total:
            raise DataError(f"{path}: metadata promises {total} episodes, the file has {len(file)}")
        try:
            if total > 0 and "infos" in file["episode_0"]:
                infos = set(file["episode_0/infos"])
        except H5_ERRORS as error:
            raise DataError(f"{path}: episode_0 cannot be read: {_plain(error)}") from None
    n, size = spec.n_agents, spec.action_size
    fields = [
        _Field(b"terminations", "terminated", 0, (), "bool", _BOOLS),
        _Field(b"truncations", "truncated", 0, (), "bool", _BOOLS),
        _Field(b"observations", "obs", 1, (n, spec.obs_size), "float32", _FLOATS),
        _Field(b"actions", "actions", 0, (n,), "int64", _INTEGERS)
        if spec.discrete
        else _Field(b"actions", "actions", 0, (n, size), "float32", _FLOATS),
        _Field(b"agent_rewards", "rewards", 1, (n,), "float32", _FLOATS, in_infos=True)
        if "agent_rewards" in infos
        else _Field(b"rewards", "team_rewards", 0, (), "float32", _FLOATS),
    ]
    if "state" in infos:
        fields.append(_Field(b"state", "state", 1, (spec.state_size,), "float32", _FLOATS, in_infos=True))
    elif spec.state_size != n * spec.obs_size:
        raise DataError(f"{path}: `infos/state` is missing, but the specification says {spec.state_size}")
    if spec.discrete and "legals" in infos:
        fields.append(
            _Field(b"legals", "legal_actions", 1, (n, size), "int8", _BOOLS | _INTEGERS, in_infos=True)
        )
    if "step" in infos:
        fields.append(_Field(b"step", "step", 1, (), "int64", _INTEGERS, in_infos=True))
    return fields


@contextmanager
def _open(path: Path) -> Iterator[h5py.File]:
    access = h5p.create(h5p.FILE_ACCESS)
    access.set_fclose_degree(h5f.CLOSE_STRONG)
    # For very many small objects, each read once, HDF5's caches only take time and memory
    # (310 MB instead of 54 MB after 8000 episodes).
    cache = access.get_mdc_config()
    cache.set_initial_size = True
    cache.initial_size = cache.min_size = cache.max_size = METADATA_CACHE_BYTES
    access.set_mdc_config(cache)
    access.set_sieve_buf_size(0)
    try:
        file = h5py.File(h5f.open(os.fsencode(path), h5f.ACC_RDONLY, fapl=access))
    except OSError as error:
        raise DataError(
            f"{path}: not a readable HDF5 file (truncated or damaged?): {_plain(error)}"
        ) from None
    with file:
        yield file


def _plain(error: BaseException) -> str:
    return str(error.args[0]) if error.args else type(error).__name__


@dataclass
class _Chunk:
    """Consecutive episodes as read, in canonical rows; or what is wrong with them."""

    lengths: list[int] = field(default_factory=list)
    seeds: list[int] = field(default_factory=list)
    arrays: dict[str, NDArray[Any]] = field(default_factory=dict)
    problems: list[tuple[int, str]] = field(default_factory=list)


def _read_chunks(path: Path, first: int, last: int, layout: Sequence[_Field]) -> Iterator[_Chunk]:
    """Read episodes [first, last) through HDF5's low-level interface, some CHUNK_ROWS rows at a time."""
    chunk, pieces, rows = _Chunk(), [[] for _ in layout], 0  # type: tuple[_Chunk, list[list[NDArray[Any]]], int]
    with _open(path) as file:
        for index in range(first, last):
            try:
                arrays, length, seed = _read_episode(file.id, index, layout)
            except DataError as error:
                chunk.problems.append((index, str(error)))
            except H5_ERRORS as error:
                chunk.problems.append((index, f"cannot be read: {_plain(error)}"))
            else:
                for piece, array in zip(pieces, arrays, strict=True):
                    piece.append(array)
                chunk.lengths.append(length)
                chunk.seeds.append(seed)
                rows += length + 1
            if len(chunk.problems) >= MAX_PROBLEMS:
                break
            if rows >= CHUNK_ROWS:
                yield _joined(chunk, pieces, layout)
                chunk, pieces, rows = _Chunk(problems=chunk.problems), [[] for _ in layout], 0
    yield _joined(chunk, pieces, layout)


def _joined(chunk: _Chunk, pieces: Sequence[list[NDArray[Any]]], layout: Sequence[_Field]) -> _Chunk:
    chunk.arrays = {
        part.target: np.concatenate(piece) if piece else np.empty((0, *part.shape), part.dtype)
        for part, piece in zip(layout, pieces, strict=True)
    }
    return chunk


def _read_episode(
    file: h5py.h5f.FileID, index: int, layout: Sequence[_Field]
) -> tuple[list[NDArray[Any]], int, int]:
    """Return one array of L + 1 rows per field, the length L, and the seed."""
    try:
        group = h5g.open(file, b"episode_%d" % index)
    except KeyError:
        raise DataError("its group is missing") from None
    stored = _attribute(group, b"id")
    if stored is not None and stored != index:
        raise DataError(f"episodes are out of order: stored as number {index}, its `id` is {stored}")
    infos = None
    arrays: list[NDArray[Any]] = []
    length = -1
    for part in layout:
        if part.in_infos and infos is None:
            infos = h5g.open(group, b"infos")
        try:
            dataset = h5d.open(infos if part.in_infos else group, part.source)
        except KeyError:
            raise DataError(f"array {_where(part)} is missing") from None
        shape = dataset.shape
        if length < 0 and len(shape) == 1:  # the first field has one value per transition
            length = shape[0]
        if shape != (length + part.extra_rows, *part.shape):
            steps = "steps + 1" if part.extra_rows else "steps"
            raise DataError(
                f"array {_where(part)} must have shape ({steps}, ...) = "
                f"{(max(length, 0) + part.extra_rows, *part.shape)}, received {shape}"
            )
        if dataset.get_type().get_class() not in part.kinds:
            kind = _KIND_NAMES.get(part.kinds, "an integer")
            raise DataError(f"array {_where(part)} must hold {kind}, received {dataset.dtype}")
        array = np.empty((length + 1, *part.shape), part.dtype)
        if not part.extra_rows:
            array[length] = 0
        if shape[0]:
            dataset.read(h5s.ALL, h5s.ALL, array[: shape[0]])
        if part.target == "step" and (array != np.arange(length + 1)).any():
            wrong = int(np.flatnonzero(array != np.arange(length + 1))[0])
            raise DataError(
                f"time steps are out of order: row {wrong} of `infos/step` must be {wrong}, "
                f"received {array[wrong]}"
            )
        arrays.append(array)
    steps_told = _attribute(group, b"total_steps")
    if steps_told is not None and steps_told != length:
        raise DataError(f"its `total_steps` is {steps_told}, its arrays have {length}")
    seed = _attribute(group, b"seed")
    return arrays, length, UNKNOWN_SEED if seed is None else seed


def _where(part: _Field) -> str:
    return f"`{'infos/' if part.in_infos else ''}{part.source.decode()}`"


def _attribute(group: h5g.GroupID, name: bytes) -> int | None:
    if not h5a.exists(group, name):
        return None
    value = np.zeros((), np.int64)
    h5a.open(group, name).read(value)
    return int(value)


def _assemble(chunks: list[_Chunk], spec: MultiAgentSpec, layout: Sequence[_Field]) -> EpisodeRows:
    lengths = np.array([length for chunk in chunks for length in chunk.lengths], dtype=np.int64)
    seeds = np.array([seed for chunk in chunks for seed in chunk.seeds], dtype=np.int64)
    # Popping gives each piece's memory back before the next field is joined.
    joined = {
        part.target: np.concatenate([chunk.arrays.pop(part.target) for chunk in chunks]) for part in layout
    }
    final_rows = np.cumsum(lengths + 1) - 1
    obs = joined["obs"]
    if "rewards" in joined:
        rewards = joined["rewards"]
        rewards[:-1] = rewards[1:]
        rewards[final_rows] = 0
    else:
        rewards = np.repeat(joined["team_rewards"][:, None], spec.n_agents, axis=1)
    legal = None
    if spec.discrete:
        legal = (
            joined["legal_actions"].astype(np.bool_)
            if "legal_actions" in joined
            else np.ones((len(obs), spec.n_agents, spec.action_size), np.bool_)
        )
    return EpisodeRows(
        obs=obs,
        state=joined["state"] if "state" in joined else obs.reshape(len(obs), spec.state_size),
        actions=joined["actions"],
        rewards=rewards,
        terminated=joined["terminated"],
        truncated=joined["truncated"],
        legal_actions=legal,
        lengths=lengths,
        seeds=seeds,
    )


# --- several processes: opening HDF5 objects is what takes the time, and h5py does it under one lock ----


def _read_in_processes(path: Path, total: int, layout: Sequence[_Field]) -> list[_Chunk]:
    """Read equal shares of the episodes in one process per core (at most 4), in order."""
    count = min(os.cpu_count() or 1, 4, max(1, total // EPISODES_WORTH_A_PROCESS))
    bounds = [total * i // count for i in range(count + 1)]
    context = multiprocessing.get_context("spawn")
    shares: dict[Connection[Any, Any], list[_Chunk]] = {}
    processes = []
    try:
        for first, last in itertools.pairwise(bounds):
            receiver, sender = context.Pipe(duplex=False)
            process = context.Process(
                target=_send_share, args=(sender, path, first, last, list(layout)), daemon=True
            )
            process.start()
            # With the parent's copy closed, a reader that dies is seen as the end of its pipe.
            sender.close()
            processes.append(process)
            shares[receiver] = []
        open_pipes = set(shares)
        while open_pipes:
            for ready in wait(list(open_pipes)):
                assert isinstance(ready, Connection)
                chunk = _receive(ready, layout, path)
                if chunk is None:
                    open_pipes.remove(ready)
                else:
                    shares[ready].append(chunk)
        for process in processes:
            process.join()
    finally:
        for process in processes:
            process.terminate()
        for receiver in shares:
            receiver.close()
    return [chunk for share in shares.values() for chunk in share]


def _send_share(
    sender: Connection[Any, Any], path: Path, first: int, last: int, layout: Sequence[_Field]
) -> None:
    """Send chunks as a JSON header and raw arrays; an empty header ends the share."""
    try:
        for chunk in _read_chunks(path, first, last, layout):
            header = {"lengths": chunk.lengths, "seeds": chunk.seeds, "problems": chunk.problems}
            sender.send_bytes(json.dumps(header).encode())
            for part in layout:
                sender.send_bytes(chunk.arrays[part.target].reshape(-1).view(np.uint8).data)
        sender.send_bytes(b"")
    except BrokenPipeError:
        # The parent is gone; nobody is left to tell.
        return


def _receive(receiver: Connection[Any, Any], layout: Sequence[_Field], path: Path) -> _Chunk | None:
    try:
        raw = receiver.recv_bytes()
        if not raw:
            return None
        header = json.loads(raw)
        rows = sum(header["lengths"]) + len(header["lengths"])
        arrays = {}
        for part in layout:
            array = np.empty((rows, *part.shape), part.dtype)
            receiver.recv_bytes_into(array.reshape(-1).view(np.uint8).data)
            arrays[part.target] = array
    except EOFError:
        raise DataError(f"{path}: a reading process ended before its work was done") from None
    problems = [(int(episode), str(message)) for episode, message in header["problems"]]
    return _Chunk(header["lengths"], header["seeds"], arrays, problems)
