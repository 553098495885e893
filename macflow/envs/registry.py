"""Every environment that macflow knows, by its id."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from pydantic import ValidationError

from macflow.envs.base import BatchedEnv, JointEnv, spec_of
from macflow.envs.batched import LocalBatch, WorkerBatch
from macflow.envs.entries import games, mamujoco, mpe, smac, smax
from macflow.envs.entry import EnvEntry, Kwargs, Reference, kwargs_key
from macflow.envs.parallel import ParallelView
from macflow.types import Actor, ConfigError, MultiAgentSpec

ENVIRONMENTS: Mapping[str, EnvEntry] = MappingProxyType(
    {**mpe.ENTRIES, **games.ENTRIES, **mamujoco.ENTRIES, **smax.ENTRIES, **smac.ENTRIES}
)


def make_parallel(env_id: str, kwargs: Mapping[str, Any]) -> JointEnv:
    """Make one PettingZoo parallel environment.

    Raises:
        ConfigError: on an unknown id or keyword, a value that breaks its rule, or what is not installed.
    """
    entry, checked = _ready(env_id, kwargs)
    if entry.make is not None:
        return entry.make(checked)
    return ParallelView(make_env(env_id, kwargs, 1))


def make_env(env_id: str, kwargs: Mapping[str, Any], n_envs: int, workers: int = 1) -> BatchedEnv:
    """Make `n_envs` environments stepped together, split over `workers` processes where more than 1.

    The results depend on neither number. What its package steps as one batch is not split.

    Raises:
        ConfigError: on an unknown id or keyword, a value that breaks its rule, or what is not installed.
    """
    entry, checked = _ready(env_id, kwargs)
    if entry.make_batch is not None:
        return entry.make_batch(checked, n_envs)
    full = checked.model_dump()
    if workers == 1:
        return LocalBatch(lambda: make_parallel(env_id, full), n_envs)
    return WorkerBatch(env_id, full, n_envs, workers)


def copies(env_id: str, wanted: int) -> int:
    """Return how many copies to step together: as wanted, or as many as one machine can hold."""
    return min(wanted, _entry(env_id).max_copies)


def env_spec(env_id: str, kwargs: Mapping[str, Any]) -> MultiAgentSpec:
    """Return the agents' spaces of an environment; raises as `make_env` does."""
    entry, checked = _ready(env_id, kwargs)
    if entry.make_batch is not None:
        batch = entry.make_batch(checked, 1)
        batch.close()
        return batch.spec
    env = make_parallel(env_id, kwargs)
    try:
        return spec_of(env)
    finally:
        env.close()


def make_behaviour(env_id: str, kwargs: Mapping[str, Any], name: str) -> Actor:
    """Make the behaviour `name` of an environment.

    Raises:
        ConfigError: on an unknown id, keyword or behaviour.
    """
    behaviours = _entry(env_id).behaviours
    _validated(env_id, _entry(env_id), kwargs)
    if name not in behaviours:
        raise ConfigError(f"`behaviour`: one of {', '.join(behaviours)} for {env_id} (received {name!r})")
    return behaviours[name](env_spec(env_id, kwargs))


def full_kwargs(env_id: str, kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Return the keywords with the defaults of those not given."""
    return _validated(env_id, _entry(env_id), kwargs).model_dump()


def reference_returns(env_id: str, kwargs: Mapping[str, Any]) -> Reference | None:
    """Return the random and expert mean returns of an environment, or None where none are recorded."""
    entry = _entry(env_id)
    checked = _validated(env_id, entry, kwargs)
    if entry.derive_reference is not None:
        return entry.derive_reference(checked)
    return entry.references.get(kwargs_key(checked.model_dump()))


def normalized_return(value: float, reference: Reference) -> float:
    """Place a mean return on the scale where random is 0 and expert 100."""
    return 100.0 * ((value - reference["random"]) / (reference["expert"] - reference["random"]))


def _ready(env_id: str, kwargs: Mapping[str, Any]) -> tuple[EnvEntry, Kwargs]:
    entry = _entry(env_id)
    checked = _validated(env_id, entry, kwargs)
    absent = entry.missing()
    if absent is not None:
        raise ConfigError(f"{env_id}: {absent}")
    return entry, checked


def _entry(env_id: str) -> EnvEntry:
    if env_id not in ENVIRONMENTS:
        raise ConfigError(f"`env`: one of {', '.join(ENVIRONMENTS)} (received {env_id!r})")
    return ENVIRONMENTS[env_id]


def _validated(env_id: str, entry: EnvEntry, kwargs: Mapping[str, Any]) -> Kwargs:
    unknown = sorted(set(kwargs) - set(entry.kwargs.model_fields))
    if unknown:
        allowed = ", ".join(entry.kwargs.model_fields) or "no keyword"
        raise ConfigError(f"`kwargs`: {env_id} takes {allowed} (received {', '.join(unknown)})")
    try:
        return entry.kwargs.model_validate(dict(kwargs))
    except ValidationError as error:
        problems = "; ".join(
            f"`kwargs.{'.'.join(map(str, e['loc']))}`: {e['msg']} (received {e['input']!r})"
            for e in error.errors()
        )
        raise ConfigError(f"{env_id}: {problems}") from None
