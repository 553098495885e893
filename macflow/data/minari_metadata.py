"""What a Minari dataset's `metadata.json` says about its agents, checked."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from macflow.files import read_json
from macflow.types import DataError, MultiAgentSpec

MAIN_FILE = "main_data.hdf5"
METADATA_FILE = "metadata.json"


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


def read_metadata(data: Path) -> tuple[MultiAgentSpec, dict[str, Any]]:
    """Read a data folder's `metadata.json`: the agents' specification, and the entries we use."""
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
        spec = checked_spec(path, ours["spec"])
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


def checked_spec(path: Path, raw: dict[str, Any]) -> MultiAgentSpec:
    """Build a specification from JSON that `path` holds; an inconsistent one raises `DataError`."""
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
    return checked_spec(path, {**common, **kind, "action_size": size})
