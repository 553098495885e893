"""Simple spread of the `mpe2` package: N agents cover N landmarks and should not collide."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
from gymnasium import spaces

from macflow.envs.base import AgentAction
from macflow.envs.particle import FORCE, ParticleEnv, five_way

# After `particle`, which keeps pygame quiet.
from mpe2.simple_spread.simple_spread import raw_env  # isort: skip

# What mpe2 multiplies a unit force by.
ACCELERATION = 5.0


class Spread(ParticleEnv):
    """mpe2's simple_spread_v3 as a parallel environment."""

    metadata: ClassVar[dict[str, Any]] = {**ParticleEnv.metadata, "name": "macflow_spread"}

    def __init__(
        self, n_agents: int, max_cycles: int, local_ratio: float, thrust: float, continuous: bool
    ) -> None:
        raw = raw_env(
            N=n_agents,
            max_cycles=max_cycles,
            local_ratio=local_ratio,
            continuous_actions=continuous,
            render_mode="rgb_array",
        )
        for agent in raw.unwrapped.world.agents:
            agent.accel = ACCELERATION * thrust
        super().__init__(raw, raw.possible_agents, FORCE if continuous else spaces.Discrete(5))
        self._continuous = continuous

    def _commands(self, actions: Sequence[AgentAction]) -> list[Any]:
        return list(five_way(np.stack(actions))) if self._continuous else list(actions)
