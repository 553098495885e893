"""Read people's own arrays from `.npz` files: all steps of all episodes on one time axis.

T steps, E episodes, N agents; `docs/bring-your-data.md` explains each to a newcomer.

    observations   (T, N, O)                     what each agent saw before its action, padded with zeros
    actions        (T, N, A) floating point, or (T, N) integers where discrete
    rewards        (T,) the team's, or (T, N)
    terminations   (T,)  1 where the episode ended for good    } at least one of the two;
    truncations    (T,)  1 where a time limit cut it           } the last step must have one set
    state          (T, S)         optional; without it, all observations in a row
    legal_actions  (T, N, A)      optional, discrete only; without it every action is legal

What was seen after an episode's last action, for all three kinds of what is seen or for none:

    final_observations (E, N, O), final_state (E, S), final_legal_actions (E, N, A), or
    next_observations  (T, N, O), next_state  (T, S), next_legal_actions  (T, N, A)

Without them the last step of a truncated episode only serves as what followed the step before.

    obs_dims (N,), agent_ids (N,), seeds (E,), action_low and action_high () or (A,), n_actions ()
"""

from __future__ import annotations

import difflib
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from macflow.data.importers.imported import Imported, make_dataset_id, numbered_agents, same_agents
from macflow.data.importers.transitions import RowMap, breaks, refuse_padding
from macflow.data.rows import UNKNOWN_SEED, EpisodeRows
from macflow.files import digest
from macflow.types import ActionArray, BoolArray, DataError, FloatArray, MultiAgentSpec

SEEN = ("observations", "state", "legal_actions")
STEPS = (*SEEN, "actions", "rewards", "terminations", "truncations")
ABOUT = ("obs_dims", "agent_ids", "action_low", "action_high", "n_actions")
NAMES = (*STEPS, *(f"{when}_{name}" for name in SEEN for when in ("final", "next")), "seeds", *ABOUT)

Arrays = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class _File:
    """One file's episodes, in the types of `EpisodeRows`."""

    path: Path
    rows: EpisodeRows
    spec: MultiAgentSpec
    has_state: bool
    named: bool
    # Steps given up, and episodes of which nothing was left, for want of a last observation.
    lost_steps: int
    lost_episodes: int


def read_npz(source: Path, env_spec: MultiAgentSpec | None = None) -> Imported:
    """Read one `.npz` file, or all of a folder in order of their names.

    `env_spec` gives what the files leave out: true observation sizes, bounds or number of actions.

    Raises:
        DataError: naming the file, the array, the rule it breaks and what was received.
    """
    paths = _paths(source)
    files: list[_File] = []
    for path in paths:
        arrays = _load(path)
        files.append(_read(path, arrays, _spec(path, arrays, env_spec)))
        _check_alike(files[0], files[-1])
    notes = []
    if not files[0].has_state:
        notes.append("no `state`: the state is all observations in a row")
    if lost := sum(file.lost_steps for file in files):
        text = f"no last observations: {lost} truncated episodes are one step shorter"
        empty = sum(file.lost_episodes for file in files)
        notes.append(text + (f", of {empty} nothing was left" if empty else ""))
    return Imported(
        rows=_joined([file.rows for file in files]),
        spec=files[0].spec,
        dataset_id=make_dataset_id("npz", source.resolve().stem),
        behaviour={
            "name": source.resolve().stem,
            "imported_from": "npz",
            "files": [path.name for path in paths],
            "sha256": digest(source),
        },
        named=files[0].named,
        notes=tuple(notes),
    )


def _paths(source: Path) -> list[Path]:
    if source.is_file():
        return [source]
    if not source.is_dir():
        raise DataError(f"{source}: not found; it must be an .npz file or a folder of them")
    paths = sorted(path for path in source.iterdir() if path.suffix == ".npz" and path.is_file())
    if not paths:
        raise DataError(f"{source}: holds no .npz file")
    return paths


def _load(path: Path) -> Arrays:
    """Read all arrays of a file whose names are right."""
    # Opened here, because NumPy leaves a damaged archive open.
    with path.open("rb") as stream:
        try:
            opened = np.load(stream, allow_pickle=False)
        except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
            # NumPy takes whatever it does not know for a pickle, which nobody should be told to allow.
            reason = "" if "pickle" in str(error) else f": {error}"
            raise DataError(f"{path}: not a readable .npz file{reason}") from None
        if isinstance(opened, np.ndarray):
            raise DataError(f"{path}: must be an .npz archive (received a single .npy array)")
        with opened as file:
            _check_names(path, file.files)
            return {name: _array(path, file, name) for name in file.files}


def _array(path: Path, file: Mapping[str, NDArray[Any]], name: str) -> NDArray[Any]:
    try:
        return file[name]
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        reason = "it holds Python objects, not numbers" if "pickle" in str(error) else str(error)
        raise DataError(f"{path}: `{name}` cannot be read: {reason}") from None


def _check_names(path: Path, names: Sequence[str]) -> None:
    for name in names:
        if name not in NAMES:
            near = difflib.get_close_matches(name, NAMES, 1)
            meant = f"; is `{near[0]}` meant?" if near else f"; known are {', '.join(NAMES)}"
            raise DataError(f"{path}: `{name}` is not an array of this layout{meant}")
    for name in ("observations", "actions", "rewards"):
        if name not in names:
            raise DataError(f"{path}: `{name}` is missing (received {', '.join(sorted(names)) or 'nothing'})")
    if "terminations" not in names and "truncations" not in names:
        raise DataError(
            f"{path}: `terminations` or `truncations` must tell where episodes end (received none)"
        )
    given = {when: [s for s in SEEN if f"{when}_{s}" in names] for when in ("final", "next")}
    if given["final"] and given["next"]:
        raise DataError(
            f"{path}: `final_{given['final'][0]}` and `next_{given['next'][0]}` exclude each other "
            "(received both)"
        )
    for when, told in given.items():
        for name in SEEN if told else ():
            if (name in names) != (name in told):
                missing = f"{when}_{name}" if name in names else name
                raise DataError(
                    f"{path}: `{missing}` is missing; whatever agents see needs its `{when}_` array, or none "
                    f"has one (received {', '.join(f'`{when}_{t}`' for t in told)})"
                )


# --- agents ------------------------------------------------------------------------------------------


def _spec(path: Path, arrays: Arrays, env_spec: MultiAgentSpec | None) -> MultiAgentSpec:
    obs = arrays["observations"]
    if obs.ndim != 3 or 0 in obs.shape:
        raise DataError(
            f"{path}: `observations` must have shape (steps, agents, size) (received {obs.shape})"
        )
    n, obs_size = obs.shape[1:]
    known = same_agents(env_spec, n)
    discrete = _is_discrete(path, arrays["actions"], n)
    size = _n_actions(path, arrays, known) if discrete else arrays["actions"].shape[2]
    low, high = ((-1.0,) * size, (1.0,) * size) if discrete else _bounds(path, arrays, size, known)
    obs_dims = (obs_size,) * n
    if "obs_dims" in arrays:
        obs_dims = _obs_dims(path, arrays["obs_dims"], n, obs_size)
    elif known is not None and known.obs_size == obs_size:
        obs_dims = known.obs_dims
    named = arrays.get("agent_ids")
    agent_ids = numbered_agents(n) if named is None else _agent_ids(path, named, n)
    state_size = sum(obs_dims)
    if "state" in arrays:
        state = arrays["state"]
        if state.ndim != 2 or state.shape[1] == 0:
            raise DataError(f"{path}: `state` must have shape (steps, size) (received {state.shape})")
        state_size = state.shape[1]
    return MultiAgentSpec(
        agent_ids, obs_dims, state_size, "discrete" if discrete else "continuous", size, low, high
    )


def _is_discrete(path: Path, actions: NDArray[Any], n: int) -> bool:
    kind, shape = actions.dtype.kind, actions.shape
    if kind in "iu" and len(shape) == 2 and shape[1] == n:
        return True
    if kind == "f" and len(shape) == 3 and shape[1] == n and shape[2] > 0:
        return False
    raise DataError(
        f"{path}: `actions` must be floating point of shape (steps, {n}, dimensions), or where discrete "
        f"integers of shape (steps, {n}) (received {actions.dtype} of shape {shape})"
    )


def _n_actions(path: Path, arrays: Arrays, known: MultiAgentSpec | None) -> int:
    for name in ("action_low", "action_high"):
        if name in arrays:
            raise DataError(f"{path}: `{name}` belongs to continuous actions (received integer `actions`)")
    legal = arrays.get("legal_actions")
    masks = legal.shape[-1] if legal is not None and legal.ndim == 3 else None
    if "n_actions" in arrays:
        given = arrays["n_actions"]
        if given.shape != () or given.dtype.kind not in "iu" or given < 1:
            raise DataError(f"{path}: `n_actions` must be one whole number >= 1 (received {_short(given)})")
        if masks not in (None, int(given)):
            raise DataError(
                f"{path}: `n_actions` must be the last size of `legal_actions`, {masks} (received {given})"
            )
        return int(given)
    if masks is not None:
        return int(masks)
    if known is not None and known.discrete:
        return known.action_size
    raise DataError(
        f"{path}: `n_actions` is missing: an action that was never taken is not seen in `actions`; give it, "
        "or `legal_actions`, or name the environment"
    )


def _bounds(
    path: Path, arrays: Arrays, size: int, known: MultiAgentSpec | None
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    for name in ("n_actions", "legal_actions"):
        if name in arrays:
            raise DataError(
                f"{path}: `{name}` belongs to discrete actions (received floating point `actions`)"
            )
    default = (-1.0,) * size, (1.0,) * size
    if known is not None and not known.discrete and known.action_size == size:
        default = known.action_low, known.action_high
    bounds = []
    for name, otherwise in zip(("action_low", "action_high"), default, strict=True):
        given = arrays.get(name)
        if given is None:
            bounds.append(otherwise)
            continue
        if given.dtype.kind not in "fiu" or given.shape not in ((), (size,)) or not np.isfinite(given).all():
            raise DataError(
                f"{path}: `{name}` must be one finite number or {size}, one for each dimension "
                f"(received {_short(given)})"
            )
        bounds.append(tuple(map(float, np.broadcast_to(given, (size,)))))
    if any(low >= high for low, high in zip(*bounds, strict=True)):
        raise DataError(
            f"{path}: `action_low` must be below `action_high` (received {list(bounds[0])} and "
            f"{list(bounds[1])})"
        )
    return bounds[0], bounds[1]


def _obs_dims(path: Path, given: NDArray[Any], n: int, obs_size: int) -> tuple[int, ...]:
    if given.shape != (n,) or given.dtype.kind not in "iu" or given.min() < 1 or given.max() != obs_size:
        raise DataError(
            f"{path}: `obs_dims` must be {n} whole numbers >= 1, the largest {obs_size}, the last size of "
            f"`observations` (received {_short(given)})"
        )
    return tuple(map(int, given))


def _agent_ids(path: Path, given: NDArray[Any], n: int) -> tuple[str, ...]:
    if (
        given.shape != (n,)
        or given.dtype.kind != "U"
        or len(set(given.tolist())) != n
        or "" in given.tolist()
    ):
        raise DataError(f"{path}: `agent_ids` must be {n} different names (received {_short(given)})")
    return tuple(map(str, given))


def _short(array: NDArray[Any]) -> str:
    return f"{array.tolist()!r}" if array.size <= 16 else f"shape {array.shape}"


# --- steps -------------------------------------------------------------------------------------------


def _read(path: Path, arrays: Arrays, spec: MultiAgentSpec) -> _File:
    total, n, size = len(arrays["observations"]), spec.n_agents, spec.action_size
    rewards = arrays["rewards"]
    shapes: dict[str, tuple[int, ...]] = {
        "observations": (total, n, spec.obs_size),
        "state": (total, spec.state_size),
        "legal_actions": (total, n, size),
        "actions": (total, n) if spec.discrete else (total, n, size),
        "rewards": (total,) if rewards.ndim == 1 else (total, n),
        "terminations": (total,),
        "truncations": (total,),
    }
    for name, shape in shapes.items():
        _check(path, arrays, name, shape)
    none = np.zeros(total, np.bool_)
    terminated = _flags(path, "terminations", arrays["terminations"]) if "terminations" in arrays else none
    truncated = _flags(path, "truncations", arrays["truncations"]) if "truncations" in arrays else none
    is_end = terminated | truncated
    if total == 0 or not is_end.any():
        raise DataError(
            f"{path}: `terminations` or `truncations` must end at least one episode (received none)"
        )
    if not is_end[-1]:
        raise DataError(
            f"{path}: the last step must end its episode; set `truncations[{total - 1}]` where the recording "
            "was cut (received 0 in both)"
        )
    ends = np.flatnonzero(is_end)
    seen = {name: _typed(path, name, arrays[name]) for name in SEEN if name in arrays}
    for name, values in seen.items():
        _check(path, arrays, f"final_{name}", (len(ends), *values.shape[1:]))
        _check(path, arrays, f"next_{name}", values.shape)
    finals = {name: _finals(path, arrays, name, ends, is_end, seen[name]) for name in seen}
    seeds = _seeds(path, arrays, len(ends))

    keep, lost = np.ones(total, np.bool_), np.zeros(len(ends), np.bool_)
    if "final_observations" not in arrays and "next_observations" not in arrays:
        # Bootstrapping after a truncation needs what followed; what is seen at its last step will do,
        # if that step itself is given up. After a termination nothing counts, so it is repeated.
        cut = truncated[ends] & ~terminated[ends]
        keep[ends[cut]] = False
        lost = cut & (RowMap(ends).lengths == 1)
        truncated = truncated.copy()
        truncated[ends[cut & ~lost] - 1] = True
        if not keep.any():
            raise DataError(f"{path}: has only truncated episodes of one step and no `final_observations`")
    kept_ends = np.flatnonzero((terminated | truncated)[keep])
    row_map = RowMap(kept_ends)

    def spread(name: str) -> NDArray[Any]:
        return row_map.spread(seen[name][keep], finals[name][~lost])

    obs: FloatArray = spread("observations")
    team = _typed(path, "rewards", rewards)[keep]
    legal = None
    if spec.discrete:
        every = np.ones((row_map.n_rows, n, size), np.bool_)
        legal = spread("legal_actions") if "legal_actions" in seen else every
    rows = EpisodeRows(
        obs=obs,
        state=spread("state") if "state" in seen else _all_observations(obs, spec),
        actions=row_map.spread(_typed(path, "actions", arrays["actions"])[keep]),
        rewards=row_map.spread(np.repeat(team[:, None], n, axis=1) if team.ndim == 1 else team),
        terminated=row_map.spread(terminated[keep]),
        truncated=row_map.spread(truncated[keep]),
        legal_actions=legal,
        lengths=row_map.lengths,
        seeds=seeds[~lost],
    )
    refuse_padding(path, rows, spec)
    return _File(
        path, rows, spec, "state" in arrays, "agent_ids" in arrays, int((~keep).sum()), int(lost.sum())
    )


def _check(path: Path, arrays: Arrays, name: str, shape: tuple[int, ...]) -> None:
    if name in arrays and arrays[name].shape != shape:
        raise DataError(f"{path}: `{name}` must have shape {shape} (received {arrays[name].shape})")


def _flags(path: Path, name: str, values: NDArray[Any]) -> BoolArray:
    if values.dtype.kind not in "bfiu":
        raise DataError(f"{path}: `{name}` must be booleans or 0 and 1 (received {values.dtype})")
    odd = (values != 0) & (values != 1)
    if odd.any():
        where = tuple(int(i) for i in np.argwhere(odd)[0])
        raise DataError(f"{path}: `{name}` must be 0 or 1 (received {values[where]} at {list(where)})")
    flags: BoolArray = values != 0
    return flags


def _typed(path: Path, name: str, values: NDArray[Any]) -> ActionArray:
    """Return values in the type of `EpisodeRows`."""
    if name.endswith("legal_actions"):
        return _flags(path, name, values)
    if name == "actions" and values.dtype.kind in "iu":
        return values.astype(np.int64)
    if values.dtype.kind not in ("f" if name == "actions" else "fiu"):
        raise DataError(f"{path}: `{name}` must be real numbers (received {values.dtype})")
    # A number too large for single precision becomes infinite, which the validation reports.
    with np.errstate(over="ignore"):
        return values.astype(np.float32)


def _finals(
    path: Path,
    arrays: Arrays,
    name: str,
    ends: NDArray[np.int64],
    is_end: BoolArray,
    seen: NDArray[Any],
) -> NDArray[Any]:
    """Return what was seen after each episode's last action, (E, ...), or else before it."""
    if f"final_{name}" in arrays:
        return _typed(path, f"final_{name}", arrays[f"final_{name}"])
    if f"next_{name}" not in arrays:
        return seen[ends]
    following = _typed(path, f"next_{name}", arrays[f"next_{name}"])
    broken = breaks(seen, following) & ~is_end[:-1]
    if broken.any():
        raise DataError(
            f"{path}: `next_{name}[t]` must be `{name}[t + 1]` except at an episode's end "
            f"(received another in {int(broken.sum())} steps, the first t = {int(broken.argmax())})"
        )
    return following[ends]


def _seeds(path: Path, arrays: Arrays, episodes: int) -> NDArray[np.int64]:
    if "seeds" not in arrays:
        return np.full(episodes, UNKNOWN_SEED, np.int64)
    _check(path, arrays, "seeds", (episodes,))
    if arrays["seeds"].dtype.kind not in "iu":
        raise DataError(f"{path}: `seeds` must be whole numbers (received {arrays['seeds'].dtype})")
    return arrays["seeds"].astype(np.int64)


def _all_observations(obs: FloatArray, spec: MultiAgentSpec) -> FloatArray:
    """Return the agents' observations (R, N, O) in a row, without padding, (R, S)."""
    return np.concatenate([obs[:, i, :size] for i, size in enumerate(spec.obs_dims)], axis=1)


# --- several files -----------------------------------------------------------------------------------


def _check_alike(first: _File, other: _File) -> None:
    if first.has_state != other.has_state:
        raise DataError(f"{other.path}: `state` must be in all files of a folder or in none of them")
    one, two = first.spec.to_dict(), other.spec.to_dict()
    for name, value in two.items():
        if value != one[name]:
            raise DataError(
                f"{other.path}: all files must have the same agents; {name} is {one[name]} in "
                f"{first.path.name} (received {value})"
            )


def _joined(parts: Sequence[EpisodeRows]) -> EpisodeRows:
    if len(parts) == 1:
        return parts[0]

    def join(name: str) -> NDArray[Any]:
        return np.concatenate([getattr(part, name) for part in parts])

    return EpisodeRows(
        obs=join("obs"),
        state=join("state"),
        actions=join("actions"),
        rewards=join("rewards"),
        terminated=join("terminated"),
        truncated=join("truncated"),
        legal_actions=None if parts[0].legal_actions is None else join("legal_actions"),
        lengths=join("lengths"),
        seeds=join("seeds"),
    )
