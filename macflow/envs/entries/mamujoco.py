"""Multi-agent MuJoCo: robots of Gymnasium, their joints shared out to agents."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Annotated

from pydantic import Field

from macflow.envs.base import JointEnv
from macflow.envs.behaviours import Behaviour, Uniform
from macflow.envs.controllers import Controller, Level, replay_levels
from macflow.envs.entry import EnvEntry, Kwargs, Reference, StepLimit, measured, needs, versions

# Robot of Gymnasium, and how the package names its partition.
ROBOTS = {
    "halfcheetah-6x1": ("HalfCheetah", "6x1", "6 agents, a joint each, make a cheetah run"),
    "halfcheetah-2x3": ("HalfCheetah", "2x3", "2 agents, a leg each, make a cheetah run"),
    "hopper-3x1": ("Hopper", "3x1", "3 agents, a joint each, make one leg hop"),
    "ant-2x4": ("Ant", "2x4", "2 agents, two legs each, make an ant walk"),
    "ant-4x2": ("Ant", "4x2", "4 agents, a leg each, make an ant walk"),
    "walker2d-2x3": ("Walker2d", "2x3", "2 agents, a leg each, make a biped walk"),
}


class RobotKwargs(Kwargs):
    max_cycles: StepLimit = 1000
    # How many joints away an agent sees beyond its own; null: the whole robot.
    agent_obsk: Annotated[int, Field(ge=0)] | None = 1


def _robot(scenario: str, partition: str) -> Callable[[RobotKwargs], JointEnv]:
    def make(kwargs: RobotKwargs) -> JointEnv:
        from macflow.envs.mamujoco import MultiAgentMujoco

        return MultiAgentMujoco(scenario, partition, **kwargs.model_dump())

    return make


# Robots for which controllers were trained. A robot's state, and the order of its joints over all
# agents, are the same however it is partitioned.
CONTROLLED = {"HalfCheetah": "halfcheetah", "Hopper": "hopper"}
# Exploration: the better the controller, the less; an unfinished training's replay is full of it.
EXPERT_NOISE, MEDIUM_NOISE, REPLAY_NOISE = 0.05, 0.1, 0.3

# Mean returns of `random` and `expert`.
RETURNS: Mapping[str, tuple[float, float]] = MappingProxyType(
    {
        "halfcheetah-6x1": (-295.439, 7888.897),
        "halfcheetah-2x3": (-295.439, 7888.897),
        "hopper-3x1": (17.707, 3070.956),
    }
)


def _behaviours(scenario: str) -> Mapping[str, Behaviour]:
    """Return the customary qualities of a robot with trained controllers, else random play alone."""
    if scenario not in CONTROLLED:
        return MappingProxyType({"random": Uniform})
    robot = CONTROLLED[scenario]
    expert, medium = Level("expert", EXPERT_NOISE), Level("medium", MEDIUM_NOISE)
    replay = [Level(name, REPLAY_NOISE) for name in (*replay_levels(robot), "medium")]

    def play(*levels: Level) -> Behaviour:
        return lambda spec: Controller(spec, robot, levels)

    return MappingProxyType(
        {
            "expert": play(expert),
            "medium": play(medium),
            "medium-replay": play(*replay),
            "medium-expert": play(medium, expert),
            "random": Uniform,
        }
    )


def _reference(name: str) -> Mapping[str, Reference]:
    if name not in RETURNS:
        return {}
    random, expert = RETURNS[name]
    return measured(f"mamujoco/{name}", {}, random, expert, episodes=200, **RobotKwargs().model_dump())


ENTRIES: Mapping[str, EnvEntry] = MappingProxyType(
    {
        f"mamujoco/{name}": EnvEntry(
            description=f"{description} (gymnasium-robotics)",
            kwargs=RobotKwargs,
            make=_robot(scenario, partition),
            action_kind="continuous",
            version=versions("gymnasium-robotics", "mujoco"),
            missing=needs("mujoco", "gymnasium_robotics", "mujoco"),
            behaviours=_behaviours(scenario),
            references=_reference(name),
        )
        for name, (scenario, partition, description) in ROBOTS.items()
    }
)
