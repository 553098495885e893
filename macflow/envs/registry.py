"""Every environment that macflow knows: how to make it, who can play it, what its returns mean."""

from __future__ import annotations

import importlib.metadata
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Annotated, Any, TypedDict

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from macflow.envs.base import BatchedEnv, JointEnv, spec_of
from macflow.envs.batched import LocalBatch, WorkerBatch
from macflow.envs.behaviours import (
    Agreement,
    Behaviour,
    Control,
    Cover,
    JointChoice,
    Quality,
    Skill,
    Uniform,
    always,
    half_and_half,
    replay_of,
)
from macflow.types import ActionKind, Actor, ConfigError, FloatArray, MultiAgentSpec

Fraction = Annotated[float, Field(ge=0, le=1)]


class Reference(TypedDict):
    """Mean team returns that mark 0 and 100 of the normalised scale, and where they come from."""

    random: float
    expert: float
    how: str


class Kwargs(BaseModel):
    """Constructor arguments of an environment: names, rules and defaults."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class SpreadKwargs(Kwargs):
    n_agents: Annotated[int, Field(ge=1)] = 3
    max_cycles: Annotated[int, Field(ge=1)] = 25
    # Share of the collision penalty in the reward, against the distance to the landmarks.
    local_ratio: Fraction = 0.5


class LandmarkKwargs(Kwargs):
    n_agents: Annotated[int, Field(ge=3, le=40)] = 3
    max_cycles: Annotated[int, Field(ge=1)] = 5


class TableKwargs(Kwargs):
    pass


class PayoffKwargs(Kwargs):
    n_agents: Annotated[int, Field(ge=2)] = 2
    # Interaction intensity: 0 scores each agent alone, 1 their agreement alone.
    zeta: Fraction = 1.0


@dataclass(frozen=True)
class EnvEntry:
    """One registered environment."""

    description: str
    kwargs: type[Kwargs]
    # Takes an instance of `kwargs`.
    make: Callable[[Any], JointEnv]
    action_kind: ActionKind
    version: str
    behaviours: Mapping[str, Behaviour]
    # By `kwargs_key`: measured.
    references: Mapping[str, Reference] = field(default_factory=dict)
    # For any kwargs, where the returns are known in closed form.
    derive_reference: Callable[[Any], Reference] | None = None


def make_parallel(env_id: str, kwargs: Mapping[str, Any]) -> JointEnv:
    """Make one PettingZoo parallel environment.

    Raises:
        ConfigError: on an unknown id or keyword, or a value that breaks its rule.
    """
    entry = _entry(env_id)
    return entry.make(_validated(env_id, entry, kwargs))


def make_env(env_id: str, kwargs: Mapping[str, Any], n_envs: int, workers: int = 1) -> BatchedEnv:
    """Make `n_envs` environments stepped together, split over `workers` processes where more than 1.

    The results depend on neither number.

    Raises:
        ConfigError: on an unknown id or keyword, or a value that breaks its rule.
    """
    checked = _validated(env_id, _entry(env_id), kwargs).model_dump()
    if workers == 1:
        return LocalBatch(lambda: make_parallel(env_id, checked), n_envs)
    return WorkerBatch(env_id, checked, n_envs, workers)


def make_behaviour(env_id: str, kwargs: Mapping[str, Any], name: str) -> Actor:
    """Make the behaviour `name` of an environment.

    Raises:
        ConfigError: on an unknown id, keyword or behaviour.
    """
    behaviours = _entry(env_id).behaviours
    if name not in behaviours:
        raise ConfigError(
            f"`record.behaviour`: one of {', '.join(behaviours)} for {env_id} (received {name!r})"
        )
    env = make_parallel(env_id, kwargs)
    try:
        return behaviours[name](spec_of(env))
    finally:
        env.close()


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
    return 100.0 * (value - reference["random"]) / (reference["expert"] - reference["random"])


def kwargs_key(full: Mapping[str, Any]) -> str:
    """Return the text by which references are found: all keywords as JSON, sorted."""
    return json.dumps(dict(full), sort_keys=True)


def _entry(env_id: str) -> EnvEntry:
    if env_id not in ENVIRONMENTS:
        raise ConfigError(f"`env.id`: one of {', '.join(ENVIRONMENTS)} (received {env_id!r})")
    return ENVIRONMENTS[env_id]


def _validated(env_id: str, entry: EnvEntry, kwargs: Mapping[str, Any]) -> Kwargs:
    unknown = sorted(set(kwargs) - set(entry.kwargs.model_fields))
    if unknown:
        allowed = ", ".join(entry.kwargs.model_fields) or "no keyword"
        raise ConfigError(f"`env.kwargs`: {env_id} takes {allowed} (received {', '.join(unknown)})")
    try:
        return entry.kwargs.model_validate(dict(kwargs))
    except ValidationError as error:
        problems = "; ".join(
            f"`env.kwargs.{'.'.join(map(str, e['loc']))}`: {e['msg']} (received {e['input']!r})"
            for e in error.errors()
        )
        raise ConfigError(f"{env_id}: {problems}") from None


# --- mpe/spread -----------------------------------------------------------------------------------

# mpe2's world (core.py, simple_env.py): positions advance by DT times the velocity; of the
# velocity a share DAMPING is lost per step, and a unit force adds PUSH.
_DT, _DAMPING, _PUSH = 0.1, 0.25, 0.5


def _towards(gain: float) -> Control:
    """Steer so that the position after the next is `gain` of the way to the target, and then stop."""

    def control(targets: FloatArray, velocity: FloatArray) -> FloatArray:
        next_velocity = gain * (targets / _DT - velocity)
        return np.clip((next_velocity - (1 - _DAMPING) * velocity) / _PUSH, -1.0, 1.0)

    return control


_SPREAD_EXPERT = Skill(vigour=1.0, noise=0.05)
_SPREAD_MEDIUM = Skill(vigour=0.16, noise=0.4)


def _covering(
    skills: Callable[[MultiAgentSpec], tuple[Skill, Skill]],
    control: Control,
    has_velocity: bool,
    dead_zone: float = 0.0,
) -> Mapping[str, Behaviour]:
    """Return the customary qualities of an environment with landmarks; `skills`: (medium, expert)."""

    def cover(quality: Callable[[Skill, Skill], Quality]) -> Behaviour:
        return lambda spec: Cover(spec, control, quality(*skills(spec)), has_velocity, dead_zone)

    return MappingProxyType(
        {
            "expert": cover(lambda medium, expert: always(expert)),
            "medium": cover(lambda medium, expert: always(medium)),
            "medium-replay": cover(lambda medium, expert: replay_of(medium)),
            "medium-expert": cover(half_and_half),
            "random": Uniform,
        }
    )


def _spread(continuous: bool) -> Callable[[SpreadKwargs], JointEnv]:
    def make(kwargs: SpreadKwargs) -> JointEnv:
        # Imported late: pygame, which mpe2 brings, is not needed to play the games.
        from macflow.envs.spread import Spread

        return Spread(**kwargs.model_dump(), continuous=continuous)

    return make


def _measured(
    env_id: str, returns: Mapping[int, tuple[float, float]], **others: Any
) -> Mapping[str, Reference]:
    """Return references from {n_agents: (random, expert)}, as the command of `how` prints them."""
    return MappingProxyType(
        {
            kwargs_key({"n_agents": n, **others}): {
                "random": random,
                "expert": expert,
                "how": f"python -m macflow.envs.references {env_id} --episodes 1000 "
                f"--behaviours random expert --kwargs '{json.dumps({'n_agents': n})}'",
            }
            for n, (random, expert) in returns.items()
        }
    )


_MPE2 = f"mpe2 {importlib.metadata.version('mpe2')} simple_spread_v3"


# --- games ----------------------------------------------------------------------------------------

GAMES_VERSION = "macflow games 1"
XOR = ((0.0, 1.0), (1.0, 0.0))
RARE_OPTIMUM = ((0.0, 1.0), (1.0, 2.0))


def _landmark(kwargs: LandmarkKwargs) -> JointEnv:
    from macflow.envs.games import LandmarkGame

    return LandmarkGame(**kwargs.model_dump())


def _landmark_skills(spec: MultiAgentSpec) -> tuple[Skill, Skill]:
    # Noise in proportion to the landmarks' radius, which shrinks with the number of agents.
    return Skill(vigour=0.6, noise=0.17 / spec.n_agents**0.5), Skill(
        vigour=1.0, noise=0.017 / spec.n_agents**0.5
    )


def _leap(targets: FloatArray, velocity: FloatArray) -> FloatArray:
    """Reach the target in one step."""
    from macflow.envs.games import LandmarkGame

    return targets / LandmarkGame.STRIDE


def _table(table: tuple[tuple[float, ...], ...]) -> Callable[[TableKwargs], JointEnv]:
    def make(kwargs: TableKwargs) -> JointEnv:
        from macflow.envs.games import table_game

        return table_game(table)

    return make


def _payoff(kwargs: PayoffKwargs) -> JointEnv:
    from macflow.envs.games import payoff_game

    return payoff_game(**kwargs.model_dump())


def _table_reference(table: tuple[tuple[float, ...], ...]) -> Callable[[TableKwargs], Reference]:
    values = [value for row in table for value in row]
    return lambda kwargs: {
        "random": sum(values) / len(values),
        "expert": max(values),
        "how": "known: mean and maximum of the payoff table",
    }


def _payoff_reference(kwargs: PayoffKwargs) -> Reference:
    return {
        "random": (1 - kwargs.zeta) / 3,
        "expert": 1.0,
        "how": "known: E[a^2] = 1/3 and E[a_i a_j] = 0 for uniform actions; the optimum is 1",
    }


ENVIRONMENTS: Mapping[str, EnvEntry] = MappingProxyType(
    {
        "mpe/spread": EnvEntry(
            description="N agents push themselves (2-D force) to cover N landmarks without colliding (mpe2)",
            kwargs=SpreadKwargs,
            make=_spread(continuous=True),
            action_kind="continuous",
            version=_MPE2,
            behaviours=_covering(
                lambda spec: (_SPREAD_MEDIUM, _SPREAD_EXPERT), _towards(0.7), has_velocity=True
            ),
            references=_measured(
                "mpe/spread", {3: (-26.345, -8.298), 5: (-34.632, -13.98)}, max_cycles=25, local_ratio=0.5
            ),
        ),
        "mpe/spread-discrete": EnvEntry(
            description="the same with five actions: none, left, right, down, up (mpe2)",
            kwargs=SpreadKwargs,
            make=_spread(continuous=False),
            action_kind="discrete",
            version=_MPE2,
            behaviours=_covering(
                lambda spec: (_SPREAD_MEDIUM, _SPREAD_EXPERT), _towards(0.4), has_velocity=True, dead_zone=0.3
            ),
            references=_measured(
                "mpe/spread-discrete",
                {3: (-26.691, -11.629), 5: (-35.061, -18.787)},
                max_cycles=25,
                local_ratio=0.5,
            ),
        ),
        "game/landmark": EnvEntry(
            description="3 to 40 agents leap to cover as many landmarks; optimum 1 per step",
            kwargs=LandmarkKwargs,
            make=_landmark,
            action_kind="continuous",
            version=GAMES_VERSION,
            behaviours=_covering(_landmark_skills, _leap, has_velocity=False),
            references=_measured(
                "game/landmark",
                {
                    3: (0.581, 4.787),
                    5: (0.588, 4.787),
                    10: (0.583, 4.788),
                    20: (0.552, 4.788),
                    40: (0.546, 4.787),
                },
                max_cycles=5,
            ),
        ),
        "game/xor": EnvEntry(
            description="two agents, one step: reward 1 where they choose differently",
            kwargs=TableKwargs,
            make=_table(XOR),
            action_kind="discrete",
            version=GAMES_VERSION,
            behaviours=MappingProxyType(
                {"mixed": lambda spec: JointChoice(spec, {(0, 1): 0.5, (1, 0): 0.5}), "random": Uniform}
            ),
            derive_reference=_table_reference(XOR),
        ),
        "game/payoff": EnvEntry(
            description="agents choose a number in [-1, 1], one step: size counts, and with `zeta` agreement",
            kwargs=PayoffKwargs,
            make=_payoff,
            action_kind="continuous",
            version=GAMES_VERSION,
            behaviours=MappingProxyType(
                {"mixed": lambda spec: Agreement(spec, mean=0.6, deviation=0.15), "random": Uniform}
            ),
            derive_reference=_payoff_reference,
        ),
        "game/rare-optimum": EnvEntry(
            description="two agents, one step: (0, 1) and (1, 0) pay 1, (1, 1) pays 2",
            kwargs=TableKwargs,
            make=_table(RARE_OPTIMUM),
            action_kind="discrete",
            version=GAMES_VERSION,
            behaviours=MappingProxyType(
                {
                    "mostly-suboptimal": lambda spec: JointChoice(
                        spec, {(0, 1): 0.485, (1, 0): 0.485, (1, 1): 0.03}
                    ),
                    "random": Uniform,
                }
            ),
            derive_reference=_table_reference(RARE_OPTIMUM),
        ),
    }
)
