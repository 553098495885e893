"""Read OMAR's folders of `.npy` files: per agent i of M rows,

    obs_i, next_obs_i        (M, O_i)     sizes may differ between agents
    acs_i                    (M, A)       continuous; discrete actions are not stored in this layout
    rews_i, dones_i          (M,) or (M, 1)
    states_i, next_states_i  (M, S)       optional; one where all agents have the same, else all in a row

Rows follow one another without a mark of where an episode ends: OMAR's particle environments never
set `dones`. An episode ends where `dones` is set, where the next observation (or state) is not the
one of the next row, and at the last row. What `dones` does not mark was cut by a time limit. The
observation after an episode's last action is stored, so no transition is lost.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from macflow.data.importers.imported import Imported, make_dataset_id, numbered_agents, same_agents
from macflow.data.importers.transitions import RowMap, breaks
from macflow.data.rows import UNKNOWN_SEED, EpisodeRows, IntArray
from macflow.files import digest
from macflow.types import BoolArray, DataError, MultiAgentSpec

REQUIRED = ("obs", "acs", "rews", "next_obs", "dones")
OPTIONAL = ("states", "next_states")
DEFAULT_BOUNDS = (-1.0, 1.0)
_FILE = re.compile(rf"({'|'.join(REQUIRED + OPTIONAL)})_(\d+)\.npy")
_SEED_FOLDER = re.compile(r"seed_(\d+)_data")


@dataclass(frozen=True)
class _Seed:
    """The mapped arrays of one folder, by agent; shapes agree."""

    folder: Path
    arrays: dict[str, list[NDArray[Any]]]

    @property
    def n_rows(self) -> int:
        return len(self.arrays["obs"][0])

    @property
    def n_agents(self) -> int:
        return len(self.arrays["obs"])

    @property
    def has_state(self) -> bool:
        return "states" in self.arrays

    def sizes(self, name: str) -> tuple[int, ...]:
        return tuple(array.shape[1] for array in self.arrays[name])


def read_omar(
    source: Path,
    *,
    episode_length: int | None = None,
    time_limit: int | None = None,
    action_bounds: tuple[float, float] | None = None,
    env_spec: MultiAgentSpec | None = None,
) -> Imported:
    """Read a folder with `obs_0.npy`, or all `seed_S_data` folders in it, in order of their number.

    `episode_length`: every episode has so many steps (the last of a folder may be cut short); data that
    contradict it are refused. `time_limit`: `dones` set at exactly that step means time limit, not
    termination. `env_spec` gives, without `action_bounds`, the bounds of actions, which the files do not
    tell; else they are -1 and 1.

    Raises:
        DataError: naming the file, the rule it breaks and what was received.
    """
    folders = _seed_folders(source)
    seeds = [_open(folder) for folder in folders]
    _check_alike(seeds)
    found = [_find_episodes(seed, episode_length, time_limit) for seed in seeds]
    shared = _state_is_shared(seeds)
    spec = _spec(seeds[0], shared, action_bounds, env_spec)
    # A number too large for single precision becomes infinite, which the validation reports.
    with np.errstate(over="ignore"):
        rows = _rows(seeds, found, spec, shared)
    names = [name for name in source.resolve().parts[-3:] if name != "/"]
    if not _SEED_FOLDER.fullmatch(names[-1]):
        names = names[-2:]
    quality = [name for name in names if not _SEED_FOLDER.fullmatch(name)][-1:]
    return Imported(
        rows=rows,
        spec=spec,
        dataset_id=make_dataset_id("omar", *names),
        behaviour={
            "name": "".join(quality) or "unknown",
            "imported_from": "omar",
            "folders": [folder.name for folder in folders],
            "episode_length": episode_length,
            "time_limit": time_limit,
            "sha256": digest(source),
        },
        named=False,
        notes=_notes(seeds, found, rows),
    )


def _seed_folders(source: Path) -> list[Path]:
    if not source.is_dir():
        raise DataError(f"{source}: folder not found; it must hold OMAR's .npy files or seed_S_data folders")
    if any(_FILE.fullmatch(path.name) for path in source.iterdir()):
        return [source]
    numbered = sorted(
        (int(match[1]), path)
        for path in source.iterdir()
        if path.is_dir() and (match := _SEED_FOLDER.fullmatch(path.name))
    )
    if not numbered:
        inside = ", ".join(sorted(path.name for path in source.iterdir())[:8]) or "nothing"
        raise DataError(f"{source}: must hold obs_0.npy or folders seed_0_data, ... (received {inside})")
    return [path for _, path in numbered]


def _open(folder: Path) -> _Seed:
    """Map the files of one folder and check that they fit together."""
    present = {
        (match[1], int(match[2])) for path in folder.iterdir() if (match := _FILE.fullmatch(path.name))
    }
    n_agents = max((agent for _, agent in present), default=-1) + 1
    if n_agents == 0:
        raise DataError(f"{folder}: must hold obs_0.npy, acs_0.npy, ... (received none of them)")
    names = REQUIRED + (OPTIONAL if any(name in OPTIONAL for name, _ in present) else ())
    arrays = {
        name: [_map(folder / f"{name}_{agent}.npy", n_agents) for agent in range(n_agents)] for name in names
    }
    seed = _Seed(folder, arrays)
    rows = seed.n_rows
    if rows == 0:
        raise DataError(f"{folder / 'obs_0.npy'}: must have at least one row (received none)")
    for name, of_agents in arrays.items():
        for agent, array in enumerate(of_agents):
            _check_array(folder / f"{name}_{agent}.npy", name, array, rows)
    for first, second in (("obs", "next_obs"), ("states", "next_states")):
        for agent in range(n_agents if first in arrays else 0):
            if arrays[first][agent].shape != arrays[second][agent].shape:
                raise DataError(
                    f"{folder / f'{second}_{agent}.npy'}: must have the shape of {first}_{agent}.npy, "
                    f"{arrays[first][agent].shape} (received {arrays[second][agent].shape})"
                )
    if len(set(seed.sizes("acs"))) != 1:
        raise DataError(
            f"{folder}: all agents must have actions of one size (received acs_i of sizes "
            f"{list(seed.sizes('acs'))})"
        )
    for name in ("rews", "dones"):
        arrays[name] = [array.reshape(rows) for array in arrays[name]]
    for agent, dones in enumerate(arrays["dones"]):
        _check_dones(folder, agent, dones, arrays["dones"][0])
    return seed


def _map(file: Path, n_agents: int) -> NDArray[Any]:
    try:
        array: NDArray[Any] = np.load(file, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError:
        raise DataError(f"{file}: file not found; files of {n_agents} agents are there") from None
    except (OSError, ValueError, EOFError) as error:
        raise DataError(f"{file}: not a readable .npy file of numbers: {error}") from None
    if not isinstance(array, np.ndarray):
        raise DataError(f"{file}: must hold one array (received an .npz archive)")
    return array


def _check_array(file: Path, name: str, array: NDArray[Any], rows: int) -> None:
    if name in ("rews", "dones"):
        fits, shape = array.shape in ((rows,), (rows, 1)), f"({rows},)"
    else:
        fits, shape = array.ndim == 2 and len(array) == rows and array.shape[1] > 0, f"({rows}, size)"
    if not fits:
        hint = "; discrete actions are imported from npz" if name == "acs" and array.ndim == 1 else ""
        raise DataError(f"{file}: must have shape {shape} (received {array.shape}{hint})")
    kinds = {"acs": "f", "dones": "bfiu"}.get(name, "fiu")
    if array.dtype.kind not in kinds:
        meant = {"acs": "floating point numbers", "dones": "booleans or 0 and 1"}.get(name, "real numbers")
        raise DataError(f"{file}: must hold {meant} (received {array.dtype})")


def _check_dones(folder: Path, agent: int, dones: NDArray[Any], first: NDArray[Any]) -> None:
    file = folder / f"dones_{agent}.npy"
    odd = (dones != 0) & (dones != 1)
    if odd.any():
        row = int(odd.argmax())
        raise DataError(f"{file}: must hold 0 and 1 (received {dones[row]} in row {row})")
    differs = (dones != 0) != (first != 0)
    if differs.any():
        raise DataError(
            f"{file}: all agents must be done at the same time (row {int(differs.argmax())} differs from "
            "dones_0.npy); agents that leave early have no place in a dataset"
        )


def _check_alike(seeds: Sequence[_Seed]) -> None:
    def facts(seed: _Seed) -> dict[str, Any]:
        return {
            "agents": seed.n_agents,
            "observation sizes": seed.sizes("obs"),
            "action size": seed.sizes("acs")[:1],
            "state sizes": seed.sizes("states") if seed.has_state else None,
        }

    first = facts(seeds[0])
    for seed in seeds[1:]:
        for what, value in facts(seed).items():
            if value != first[what]:
                raise DataError(
                    f"{seed.folder}: {what} must be those of {seeds[0].folder.name}, {first[what]} "
                    f"(received {value})"
                )


# --- where episodes end --------------------------------------------------------------------------


@dataclass(frozen=True)
class _Episodes:
    ends: IntArray  # (E,) last row of each episode
    terminated: BoolArray  # (E,)
    flagged: int  # ends that `dones` marks
    relabelled: int  # of these, read as time limits


def _find_episodes(seed: _Seed, episode_length: int | None, time_limit: int | None) -> _Episodes:
    done = np.asarray(seed.arrays["dones"][0]) != 0
    jumps = np.zeros(seed.n_rows, np.bool_)
    for now, following in (("obs", "next_obs"), ("states", "next_states")):
        for agent in range(seed.n_agents if now in seed.arrays else 0):
            jumps[:-1] |= breaks(seed.arrays[now][agent], seed.arrays[following][agent])
    is_end = done | jumps
    is_end[-1] = True
    if episode_length is not None:
        regular = np.zeros(seed.n_rows, np.bool_)
        regular[episode_length - 1 :: episode_length] = True
        regular[-1] = True
        contrary = is_end & ~regular
        if contrary.any():
            row = int(contrary.argmax())
            what = "dones is set" if done[row] else "the next observation is not the one of the next row"
            raise DataError(
                f"{seed.folder}: episodes of {episode_length} steps contradict the data: {what} in row "
                f"{row}, step {row % episode_length} of its episode"
            )
        is_end = regular
    ends = np.flatnonzero(is_end)
    lengths = np.diff(ends, prepend=-1)
    if time_limit is not None and (lengths > time_limit).any():
        first = int((lengths > time_limit).argmax())
        raise DataError(
            f"{seed.folder}: episode {first} has {lengths[first]} steps, more than the time limit of "
            f"{time_limit}; where episodes all have {time_limit} steps, give that as the episode length"
        )
    flagged = done[ends]
    limit = flagged & (lengths == time_limit) if time_limit is not None else np.zeros_like(flagged)
    return _Episodes(ends, flagged & ~limit, int(flagged.sum()), int(limit.sum()))


def _notes(seeds: Sequence[_Seed], found: Sequence[_Episodes], rows: EpisodeRows) -> tuple[str, ...]:
    flagged, relabelled = sum(f.flagged for f in found), sum(f.relabelled for f in found)
    notes = [
        f"{flagged} of {rows.n_episodes} episode ends are marked by dones, {rows.n_episodes - flagged} are "
        "time limits"
    ]
    if relabelled:
        notes.append(f"{relabelled} ends marked by dones were read as time limits")
    if rows.n_rows > 2 * len(seeds) and flagged == 0 and int(rows.lengths.max()) == 1:
        notes.append(
            "no row is continued by the next one, so every episode has one step: were the rows shuffled?"
        )
    if not seeds[0].has_state:
        notes.append("no states_i files: the state is all observations in a row")
    return tuple(notes)


# --- agents and rows ---------------------------------------------------------------------------------


def _state_is_shared(seeds: Sequence[_Seed]) -> bool:
    """Tell whether each agent's state files hold the same."""
    return all(
        seed.has_state
        and all(
            np.array_equal(seed.arrays[name][0], other, equal_nan=True)
            for name in OPTIONAL
            for other in seed.arrays[name][1:]
        )
        for seed in seeds
    )


def _spec(
    seed: _Seed,
    shared_state: bool,
    action_bounds: tuple[float, float] | None,
    env_spec: MultiAgentSpec | None,
) -> MultiAgentSpec:
    size = seed.sizes("acs")[0]
    state_sizes = seed.sizes("states" if seed.has_state else "obs")
    known = same_agents(env_spec, seed.n_agents)
    low, high = (((bound,) * size) for bound in action_bounds or DEFAULT_BOUNDS)
    if action_bounds is None and known is not None and not known.discrete and known.action_size == size:
        low, high = known.action_low, known.action_high
    return MultiAgentSpec(
        agent_ids=numbered_agents(seed.n_agents),
        obs_dims=seed.sizes("obs"),
        state_size=state_sizes[0] if shared_state else sum(state_sizes),
        action_kind="continuous",
        action_size=size,
        action_low=low,
        action_high=high,
    )


def _rows(
    seeds: Sequence[_Seed], found: Sequence[_Episodes], spec: MultiAgentSpec, shared_state: bool
) -> EpisodeRows:
    maps = [RowMap(episodes.ends) for episodes in found]
    total = sum(row_map.n_rows for row_map in maps)
    n = spec.n_agents
    rows = EpisodeRows(
        obs=np.zeros((total, n, spec.obs_size), np.float32),
        state=np.zeros((total, spec.state_size), np.float32),
        actions=np.zeros((total, n, spec.action_size), np.float32),
        rewards=np.zeros((total, n), np.float32),
        terminated=np.zeros(total, np.bool_),
        truncated=np.zeros(total, np.bool_),
        legal_actions=None,
        lengths=np.concatenate([row_map.lengths for row_map in maps]),
        seeds=np.full(sum(len(row_map.ends) for row_map in maps), UNKNOWN_SEED, np.int64),
    )
    start = 0
    for seed, episodes, row_map in zip(seeds, found, maps, strict=True):
        steps, finals = start + row_map.step_rows, start + row_map.final_rows
        parts = seed.arrays
        for agent in range(n):
            size = spec.obs_dims[agent]
            rows.obs[steps, agent, :size] = parts["obs"][agent]
            rows.obs[finals, agent, :size] = parts["next_obs"][agent][episodes.ends]
            rows.actions[steps, agent] = parts["acs"][agent]
            rows.rewards[steps, agent] = parts["rews"][agent]
        now, following = OPTIONAL if seed.has_state else ("obs", "next_obs")
        first = 0
        for agent in range(1 if shared_state else n):
            last = first + parts[now][agent].shape[1]
            rows.state[steps, first:last] = parts[now][agent]
            rows.state[finals, first:last] = parts[following][agent][episodes.ends]
            first = last
        rows.terminated[steps[episodes.ends]] = episodes.terminated
        rows.truncated[steps[episodes.ends]] = ~episodes.terminated
        start += row_map.n_rows
    return rows
