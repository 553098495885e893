"""Write a prepared dataset in a format that other programs read, exactly or not at all.

What is written, imported again and prepared gives the same arrays. What a format has no place for
is refused where the arrays would differ, and told where they would not.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from macflow.data.importers.imported import make_dataset_id
from macflow.data.importers.transitions import refuse_padding
from macflow.data.minari_store import write_minari
from macflow.data.prepared import load_rows
from macflow.data.rows import UNKNOWN_SEED, EpisodeRows
from macflow.files import replace_directory
from macflow.types import DataError, MultiAgentSpec

ExportFormat = Literal["npz", "omar", "minari"]
NPZ_FILE = "data.npz"
OMAR_FOLDER = "seed_0_data"


@dataclass(frozen=True)
class Exported:
    """Tell what was written."""

    episodes: int
    transitions: int
    # What the format has no place for, for the user.
    notes: tuple[str, ...]


def export_prepared(source: Path, target: Path, form: ExportFormat) -> Exported:
    """Write the prepared dataset of the folder `source` to the new folder `target`.

    Raises:
        DataError: where the format cannot hold the data, naming what; nothing is written then.
    """
    rows, spec, meta = load_rows(source)
    refuse_padding(source, rows, spec)
    writers: Mapping[str, Callable[[Path, EpisodeRows, MultiAgentSpec, Mapping[str, Any]], list[str]]] = {
        "npz": _write_npz,
        "omar": _write_omar,
        "minari": _write_minari,
    }
    with replace_directory(target) as folder:
        notes = writers[form](folder, rows, spec, meta)
    return Exported(rows.n_episodes, len(rows.train_rows), tuple(notes))


def _write_minari(
    folder: Path, rows: EpisodeRows, spec: MultiAgentSpec, meta: Mapping[str, Any]
) -> list[str]:
    source = meta["source"]
    behaviour = source.get("behaviour") or {}
    dataset_id = source.get("dataset_id") or make_dataset_id("export", (meta["env"] or {}).get("id", ""))
    write_minari(folder, dataset_id, rows.episodes(), spec, meta["env"], behaviour)
    return []


def _write_npz(folder: Path, rows: EpisodeRows, spec: MultiAgentSpec, meta: Mapping[str, Any]) -> list[str]:
    steps, finals = rows.train_rows, rows.final_rows
    arrays: dict[str, NDArray[Any]] = {
        "observations": rows.obs[steps],
        "final_observations": rows.obs[finals],
        "state": rows.state[steps],
        "final_state": rows.state[finals],
        "actions": rows.actions[steps],
        "rewards": rows.rewards[steps],
        "terminations": rows.terminated[steps],
        "truncations": rows.truncated[steps],
        "seeds": rows.seeds,
        "obs_dims": np.array(spec.obs_dims),
        "agent_ids": np.array(spec.agent_ids),
    }
    if rows.legal_actions is not None:
        arrays["legal_actions"] = rows.legal_actions[steps]
        arrays["final_legal_actions"] = rows.legal_actions[finals]
        arrays["n_actions"] = np.array(spec.action_size)
    else:
        arrays["action_low"] = np.array(spec.action_low, np.float64)
        arrays["action_high"] = np.array(spec.action_high, np.float64)
    np.savez(folder / NPZ_FILE, allow_pickle=False, **arrays)
    return _env_note(meta)


def _write_omar(folder: Path, rows: EpisodeRows, spec: MultiAgentSpec, meta: Mapping[str, Any]) -> list[str]:
    if spec.discrete:
        raise DataError(
            f"omar: holds continuous actions only (received {spec.action_size} discrete ones with masks); "
            "export to npz or minari"
        )
    steps, ends = rows.train_rows, rows.final_rows - 1
    following = steps + 1
    has_state = not _state_is_observations(rows, spec)
    _check_ends_show(rows, has_state)
    target = folder / OMAR_FOLDER
    target.mkdir()

    def save(name: str, agent: int, array: NDArray[Any]) -> None:
        np.save(target / f"{name}_{agent}.npy", np.ascontiguousarray(array), allow_pickle=False)

    dones = rows.terminated[steps].astype(np.float32)
    for agent, size in enumerate(spec.obs_dims):
        save("obs", agent, rows.obs[steps, agent, :size])
        save("next_obs", agent, rows.obs[following, agent, :size])
        save("acs", agent, rows.actions[steps, agent])
        save("rews", agent, rows.rewards[steps, agent])
        save("dones", agent, dones)
        if has_state:
            save("states", agent, rows.state[steps])
            save("next_states", agent, rows.state[following])
    notes = _env_note(meta)
    if (bounds := set(zip(spec.action_low, spec.action_high, strict=True))) != {(-1.0, 1.0)}:
        note = "omar has no place for the bounds of actions"
        low, high = bounds.pop()
        notes.append(note if bounds else f"{note}; import with --action-bounds {low} {high}, or with --env")
    if spec.agent_ids != tuple(f"agent_{i}" for i in range(spec.n_agents)):
        notes.append(f"omar has no place for the agents' names, {', '.join(spec.agent_ids)}")
    if (rows.seeds != UNKNOWN_SEED).any():
        notes.append("omar has no place for the episodes' seeds")
    if both := int((rows.terminated & rows.truncated)[ends].sum()):
        notes.append(f"{both} episodes end by termination and time limit at once; omar keeps the termination")
    return notes


def _state_is_observations(rows: EpisodeRows, spec: MultiAgentSpec) -> bool:
    """Tell whether the state is what an importer makes of observations where there is no state."""
    if spec.state_size != sum(spec.obs_dims):
        return False
    bounds = np.cumsum([0, *spec.obs_dims])
    # As bits, in which -0.0 is not 0.0.
    state, obs = rows.state.view(np.uint32), rows.obs.view(np.uint32)
    return all(
        np.array_equal(state[:, bounds[i] : bounds[i + 1]], obs[:, i, : spec.obs_dims[i]])
        for i in range(spec.n_agents)
    )


def _check_ends_show(rows: EpisodeRows, has_state: bool) -> None:
    """Refuse an episode that was cut and is followed by one that begins as it ended: they would join."""
    cut = ~rows.terminated[rows.final_rows - 1][:-1]
    finals, firsts = rows.final_rows[:-1][cut], rows.first_rows[1:][cut]
    same = (rows.obs[finals] == rows.obs[firsts]).all(axis=(1, 2))
    if has_state:
        same &= (rows.state[finals] == rows.state[firsts]).all(axis=1)
    if same.any():
        episode = int(np.flatnonzero(cut)[same.argmax()])
        raise DataError(
            "omar: the end of an episode that a time limit cut shows in its observations only; episode "
            f"{episode} ends with those that the next one begins with (received {int(same.sum())} such "
            "episodes); export to npz or minari"
        )


def _env_note(meta: Mapping[str, Any]) -> list[str]:
    env = meta["env"]
    if env is None:
        return []
    kwargs = "".join(f" --env-kwarg {name}={value}" for name, value in env["kwargs"].items())
    return [f"the environment is not part of the format; import with --env {env['id']}{kwargs}"]
