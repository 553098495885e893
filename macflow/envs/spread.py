"""Simple spread of the `mpe2` package: N agents cover N landmarks and should not collide.

Lowe et al., *Multi-Agent Actor-Critic for Mixed Cooperative-Competitive Environments*, 2017.
Physics, observations and rewards are mpe2's own; only the action differs: a force (fx, fy) in
[-1, 1]^2 in place of mpe2's five-way [none, left, right, down, up] in [0, 1]^5.
"""

from __future__ import annotations

import os
from typing import Any, ClassVar

import numpy as np
from gymnasium import spaces

# Read by pygame, which mpe2 imports and which greets on the terminal otherwise.
os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")

import pygame
from mpe2.simple_spread.simple_spread import raw_env

from macflow.envs.base import AgentAction, Frame, JointEnv, Transition
from macflow.types import FloatArray


class Spread(JointEnv):
    """mpe2's simple_spread_v3 as a parallel environment.

    Drives mpe2's own world without its turn-based wrappers: those observe every agent several
    times per step. A contract test holds both to the same trajectories.
    """

    metadata: ClassVar[dict[str, Any]] = {
        "name": "macflow_spread",
        "render_modes": ["rgb_array"],
        "render_fps": 10,
    }

    def __init__(self, n_agents: int, max_cycles: int, local_ratio: float, continuous: bool) -> None:
        self._raw = raw_env(
            N=n_agents,
            max_cycles=max_cycles,
            local_ratio=local_ratio,
            continuous_actions=continuous,
            render_mode="rgb_array",
        )
        # Two megabytes per environment that most never draw on; `render` makes one when asked.
        self._raw.screen = None
        self.max_cycles = max_cycles
        self.render_mode = "rgb_array"
        self.possible_agents = list(self._raw.possible_agents)
        self.agents: list[str] = []
        self.state_space = self._raw.state_space
        self._continuous = continuous
        self._action_spaces: dict[str, spaces.Space[Any]] = {
            agent: spaces.Box(-1.0, 1.0, (2,), np.float32) if continuous else spaces.Discrete(5)
            for agent in self.possible_agents
        }
        self._state = np.zeros(self.state_space.shape, np.float32)

    def observation_space(self, agent: str) -> spaces.Space[Any]:
        space: spaces.Space[Any] = self._raw.observation_space(agent)
        return space

    def action_space(self, agent: str) -> spaces.Space[Any]:
        return self._action_spaces[agent]

    def reset(
        self, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, FloatArray], dict[str, dict[str, Any]]]:
        self._raw.reset(seed=seed, options=options)
        self.agents = list(self.possible_agents)
        return self._observe(), {agent: {} for agent in self.agents}

    def step(self, actions: dict[str, AgentAction]) -> Transition:
        joint = [actions[agent] for agent in self.agents]
        self._raw.current_actions = list(five_way(np.stack(joint))) if self._continuous else joint
        self._raw._execute_world_step()
        self._raw.steps += 1
        ended = self._raw.steps >= self.max_cycles
        observations = self._observe()
        rewards = dict(self._raw.rewards)
        terminations = dict.fromkeys(self.agents, False)
        truncations = dict.fromkeys(self.agents, ended)
        infos: dict[str, dict[str, Any]] = {agent: {} for agent in self.agents}
        if ended:
            self.agents = []
        return observations, rewards, terminations, truncations, infos

    def state(self) -> FloatArray:
        return self._state

    def render(self) -> Frame:
        if self._raw.screen is None:
            # Off-screen: no window, no display and no video driver is ever opened.
            self._raw.screen = pygame.Surface((self._raw.width, self._raw.height))
        frame: Frame = self._raw.render()
        return frame

    def close(self) -> None:
        # mpe2's own close would end pygame for every other environment of the process.
        self._raw.screen = None

    def _observe(self) -> dict[str, FloatArray]:
        observations: dict[str, FloatArray] = {a: self._raw.observe(a) for a in self.possible_agents}
        # mpe2 defines its state so; calling it would compute each observation again.
        self._state = np.concatenate(list(observations.values()))
        return observations


def five_way(forces: FloatArray) -> FloatArray:
    """Map forces (N, 2), clipped to [-1, 1], to mpe2's (N, 5): [none, left, right, down, up]."""
    forces = np.clip(forces, -1.0, 1.0)
    push = np.zeros((len(forces), 5), np.float32)
    push[:, 1:5:2] = np.maximum(-forces, 0.0)
    push[:, 2:5:2] = np.maximum(forces, 0.0)
    return push
