"""Predator and prey of the `mpe2` package: simple_tag and simple_world_comm, the predators' side.

The predators (mpe2's "adversaries") are the agents; the prey belong to the world and follow a script.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import numpy as np

from macflow.envs.base import AgentAction
from macflow.envs.particle import FORCE, ParticleEnv, five_way
from macflow.envs.prey import Prey, World
from macflow.types import FloatArray

# After `particle`, which keeps pygame quiet.
from mpe2.simple_tag import simple_tag  # isort: skip
from mpe2.simple_world_comm import simple_world_comm  # isort: skip

# Keeps the prey's random numbers apart from those that mpe2 and the behaviours draw from the same seed.
_STREAM = 0x7072_6579


class Pursuit(ParticleEnv):
    """A world of mpe2's in which predators hunt scripted prey.

    The state is mpe2's own: the observations of all predators, then of all prey. Who can speak says
    nothing, so that all agents have the same actions.
    """

    def __init__(self, raw: Any, prey: Callable[[World], Prey]) -> None:
        agents = raw.world.agents
        predators = [agent.name for agent in agents if agent.adversary]
        super().__init__(raw, predators, FORCE)
        self._prey_names = [agent.name for agent in agents if not agent.adversary]
        self._prey = prey(_world_of(raw))
        self._rng = np.random.default_rng()
        self._silence = [np.zeros(0 if a.silent else raw.world.dim_c, np.float32) for a in agents]

    def reset(
        self, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, FloatArray], dict[str, dict[str, Any]]]:
        # As mpe2 does with its own: without a seed the numbers go on where they were.
        if seed is not None:
            self._rng = np.random.default_rng([_STREAM, seed])
        self._prey.reset(self._rng)
        return super().reset(seed, options)

    def _commands(self, actions: Sequence[AgentAction]) -> list[Any]:
        flight = self._prey.forces(np.stack([self._observations[name] for name in self._prey_names]))
        pushes = five_way(np.concatenate([np.stack(actions), flight]))
        return [np.concatenate(parts) for parts in zip(pushes, self._silence, strict=True)]


class Tag(Pursuit):
    """mpe2's simple_tag_v3: predators, the faster prey, obstacles."""

    metadata: ClassVar[dict[str, Any]] = {**ParticleEnv.metadata, "name": "macflow_tag"}

    def __init__(
        self,
        n_predators: int,
        n_prey: int,
        n_obstacles: int,
        max_cycles: int,
        prey: Callable[[World], Prey],
    ) -> None:
        raw = simple_tag.raw_env(
            num_good=n_prey,
            num_adversaries=n_predators,
            num_obstacles=n_obstacles,
            max_cycles=max_cycles,
            continuous_actions=True,
            render_mode="rgb_array",
        )
        super().__init__(raw, prey)


class WorldComm(Pursuit):
    """mpe2's simple_world_comm_v3: the same with food for the prey, forests to hide in, and a leader."""

    metadata: ClassVar[dict[str, Any]] = {**ParticleEnv.metadata, "name": "macflow_world"}

    def __init__(
        self,
        n_predators: int,
        n_prey: int,
        n_obstacles: int,
        n_food: int,
        n_forests: int,
        max_cycles: int,
        prey: Callable[[World], Prey],
    ) -> None:
        raw = simple_world_comm.raw_env(
            num_good=n_prey,
            num_adversaries=n_predators,
            num_obstacles=n_obstacles,
            num_food=n_food,
            num_forests=n_forests,
            max_cycles=max_cycles,
            continuous_actions=True,
            render_mode="rgb_array",
        )
        super().__init__(raw, prey)


def _world_of(raw: Any) -> World:
    """Read off a world of mpe2's what its prey know."""
    world = raw.world
    body = world.agents[-1]
    obstacles = [landmark for landmark in world.landmarks if landmark.collide]
    return World(
        n_predators=sum(agent.adversary for agent in world.agents),
        n_obstacles=len(obstacles),
        n_food=len(getattr(world, "food", ())),
        n_landmarks=len(world.landmarks),
        obstacle_reach=body.size + max((landmark.size for landmark in obstacles), default=0.0),
        predator_reach=body.size + world.agents[0].size,
        predator_speed=world.agents[0].max_speed,
        push=body.accel / body.mass * world.dt,
        max_speed=body.max_speed,
        dt=world.dt,
        damping=world.damping,
    )
