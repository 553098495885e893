"""Multi-agent MuJoCo: robots of Gymnasium, their joints shared out to agents."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Annotated

from pydantic import Field

from macflow.envs.base import JointEnv
from macflow.envs.behaviours import Uniform
from macflow.envs.entry import EnvEntry, Kwargs, StepLimit, needs, versions

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
    # How many joints away an agent sees beyond its own.
    agent_obsk: Annotated[int, Field(ge=0)] = 1


def _robot(scenario: str, partition: str) -> Callable[[RobotKwargs], JointEnv]:
    def make(kwargs: RobotKwargs) -> JointEnv:
        from macflow.envs.mamujoco import MultiAgentMujoco

        return MultiAgentMujoco(scenario, partition, **kwargs.model_dump())

    return make


ENTRIES: Mapping[str, EnvEntry] = MappingProxyType(
    {
        f"mamujoco/{name}": EnvEntry(
            description=f"{description} (gymnasium-robotics)",
            kwargs=RobotKwargs,
            make=_robot(scenario, partition),
            action_kind="continuous",
            version=versions("gymnasium-robotics", "mujoco"),
            missing=needs("mujoco", "gymnasium_robotics", "mujoco"),
            behaviours={"random": Uniform},
        )
        for name, (scenario, partition, description) in ROBOTS.items()
    }
)
