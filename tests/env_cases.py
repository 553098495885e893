"""Which environments tests run over: all that can be made here, the costly ones only when asked for."""

from __future__ import annotations

from typing import Any

import pytest

from macflow.envs.registry import ENVIRONMENTS

# Each scenario takes JAX some ten seconds to compile; one of them stands for the others.
SLOW = {env_id for env_id in ENVIRONMENTS if env_id.startswith("smax/")} - {"smax/3m"}
# Short episodes where the customary ones are long.
SHORT: dict[str, dict[str, Any]] = {
    env_id: {"max_cycles": 60} for env_id in ENVIRONMENTS if env_id.startswith("mamujoco/")
}


def _first_of_family(env_id: str) -> bool:
    family = env_id.split("/")[0]
    return env_id == next(other for other in ENVIRONMENTS if other.split("/")[0] == family)


# What cannot be made here is skipped with its reason, once per family.
CANDIDATES = [
    env_id for env_id, entry in ENVIRONMENTS.items() if entry.missing() is None or _first_of_family(env_id)
]


def marks_of(env_id: str) -> list[pytest.MarkDecorator]:
    """Return the marks by which an environment's tests are skipped or left for the slow run."""
    missing = ENVIRONMENTS[env_id].missing()
    if missing is not None:
        return [pytest.mark.skip(reason=f"{env_id}: {missing}")]
    return [pytest.mark.slow] if env_id in SLOW else []


def environments() -> list[Any]:
    """Return one parameter per environment: its id."""
    return [pytest.param(env_id, marks=marks_of(env_id)) for env_id in CANDIDATES]
