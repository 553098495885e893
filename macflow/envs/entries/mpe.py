"""Particle worlds of the `mpe2` package."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Annotated

import numpy as np
from pydantic import Field

from macflow.envs.base import JointEnv
from macflow.envs.behaviours import Behaviour, Control, Skill, covering, customary
from macflow.envs.entry import (
    AgentCount,
    EnvEntry,
    Fraction,
    Kwargs,
    Reference,
    StepLimit,
    measured,
    versions,
)
from macflow.envs.hunting import Hunt
from macflow.envs.prey import PREY, PreyName
from macflow.types import FloatArray


class SpreadKwargs(Kwargs):
    n_agents: AgentCount = 3
    max_cycles: StepLimit = 25
    # Share of the collision penalty in the reward, against the distance to the landmarks.
    local_ratio: Fraction = 0.5
    # Factor on the agents' force: below 1 they are sluggish, below 0 they go the other way.
    thrust: Annotated[float, Field(ge=-4, le=4)] = 1.0


Count = Annotated[int, Field(ge=0)]


class TagKwargs(Kwargs):
    n_predators: AgentCount = 3
    n_prey: AgentCount = 1
    n_obstacles: Count = 2
    max_cycles: StepLimit = 25
    prey: PreyName = "flee"


class WorldKwargs(Kwargs):
    # The first is mpe2's leader, whom no forest blinds.
    n_predators: AgentCount = 4
    n_prey: AgentCount = 2
    n_obstacles: Count = 1
    # mpe2 measures how far prey are from the nearest.
    n_food: AgentCount = 2
    n_forests: Count = 2
    max_cycles: StepLimit = 25
    prey: PreyName = "flee"


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
_TAG_EXPERT = Skill(vigour=1.0, noise=0.05)
_TAG_MEDIUM = Skill(vigour=0.75, noise=0.45)
_WORLD_EXPERT = Skill(vigour=1.0, noise=0.05)
_WORLD_MEDIUM = Skill(vigour=0.65, noise=0.4)


def _spread(continuous: bool) -> Callable[[SpreadKwargs], JointEnv]:
    def make(kwargs: SpreadKwargs) -> JointEnv:
        # Imported late: pygame, which mpe2 brings, is not needed to play the games.
        from macflow.envs.spread import Spread

        return Spread(**kwargs.model_dump(), continuous=continuous)

    return make


def _tag(kwargs: TagKwargs) -> JointEnv:
    from macflow.envs.pursuit import Tag

    return Tag(**kwargs.model_dump(exclude={"prey"}), prey=PREY[kwargs.prey])


def _world(kwargs: WorldKwargs) -> JointEnv:
    from macflow.envs.pursuit import WorldComm

    return WorldComm(**kwargs.model_dump(exclude={"prey"}), prey=PREY[kwargs.prey])


def _pursuit_version() -> str:
    # The prey's scripts are macflow's: counted up where they change what is learned or scored.
    return f"{versions('mpe2')()}, macflow prey 1"


def _hunting(medium: Skill, expert: Skill, observes_less: int) -> Mapping[str, Behaviour]:
    return customary(lambda spec, quality: Hunt(spec, quality, observes_less), lambda spec: (medium, expert))


def _by_agents(env_id: str, returns: Mapping[int, tuple[float, float]]) -> Mapping[str, Reference]:
    defaults = SpreadKwargs().model_dump()
    found: dict[str, Reference] = {}
    for n_agents, (random, expert) in returns.items():
        found |= measured(env_id, {"n_agents": n_agents}, random, expert, **defaults)
    return found


def _by_prey(
    env_id: str, defaults: TagKwargs | WorldKwargs, returns: Mapping[PreyName, tuple[float, float]]
) -> Mapping[str, Reference]:
    found: dict[str, Reference] = {}
    for prey, (random, expert) in returns.items():
        given = {} if prey == defaults.prey else {"prey": prey}
        found |= measured(env_id, given, random, expert, **defaults.model_dump())
    return found


ENTRIES: Mapping[str, EnvEntry] = MappingProxyType(
    {
        "mpe/spread": EnvEntry(
            description="N agents push themselves (2-D force) to cover N landmarks without colliding (mpe2)",
            kwargs=SpreadKwargs,
            make=_spread(continuous=True),
            action_kind="continuous",
            version=versions("mpe2"),
            behaviours=covering(
                lambda spec: (_SPREAD_MEDIUM, _SPREAD_EXPERT), _towards(0.7), has_velocity=True
            ),
            references=_by_agents("mpe/spread", {3: (-26.345, -8.298), 5: (-34.632, -13.98)}),
        ),
        "mpe/spread-discrete": EnvEntry(
            description="the same with five actions: none, left, right, down, up (mpe2)",
            kwargs=SpreadKwargs,
            make=_spread(continuous=False),
            action_kind="discrete",
            version=versions("mpe2"),
            behaviours=covering(
                lambda spec: (_SPREAD_MEDIUM, _SPREAD_EXPERT), _towards(0.4), has_velocity=True, dead_zone=0.3
            ),
            references=_by_agents("mpe/spread-discrete", {3: (-26.691, -11.629), 5: (-35.061, -18.787)}),
        ),
        "mpe/tag": EnvEntry(
            description="N predators push themselves (2-D force) to touch scripted, faster prey (mpe2)",
            kwargs=TagKwargs,
            make=_tag,
            action_kind="continuous",
            version=_pursuit_version,
            behaviours=_hunting(_TAG_MEDIUM, _TAG_EXPERT, observes_less=2),
            references=_by_prey("mpe/tag", TagKwargs(), {"flee": (1.34, 28.82), "random": (4.25, 62.1)}),
        ),
        "mpe/world": EnvEntry(
            description="the same with food for the prey, forests to hide in, and a leader (mpe2)",
            kwargs=WorldKwargs,
            make=_world,
            action_kind="continuous",
            version=_pursuit_version,
            behaviours=_hunting(_WORLD_MEDIUM, _WORLD_EXPERT, observes_less=6),
            references=_by_prey(
                "mpe/world", WorldKwargs(), {"flee": (0.101, 25.906), "random": (3.254, 50.512)}
            ),
        ),
    }
)
