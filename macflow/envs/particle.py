"""What the particle worlds of the `mpe2` package share: its worlds driven directly, a force for an action.

Lowe et al., *Multi-Agent Actor-Critic for Mixed Cooperative-Competitive Environments*, 2017.
Physics, observations and rewards are mpe2's own; only the continuous action differs: a force (fx, fy)
in [-1, 1]^2 in place of mpe2's five-way [none, left, right, down, up] in [0, 1]^5.
"""

from __future__ import annotations

import os
from abc import abstractmethod
from collections.abc import Sequence
from copy import deepcopy
from typing import Any, ClassVar

import numpy as np
from gymnasium import spaces

from macflow.envs.base import AgentAction, Frame, JointEnv, Transition
from macflow.types import FloatArray

# Read by pygame, which mpe2 imports and which greets on the terminal otherwise.
os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")

import pygame

FORCE = spaces.Box(-1.0, 1.0, (2,), np.float32)


class ParticleEnv(JointEnv):
    """One of mpe2's worlds as a parallel environment of those of its agents that learn.

    Drives mpe2's own world without its turn-based wrappers: those observe every agent several
    times per step. Tests hold both to the same trajectories.
    """

    metadata: ClassVar[dict[str, Any]] = {
        "name": "macflow_particles",
        "render_modes": ["rgb_array"],
        "render_fps": 10,
    }

    def __init__(self, raw: Any, learners: Sequence[str], action_space: spaces.Space[Any]) -> None:
        self._raw = raw
        # Two megabytes per environment that most never draw on; `render` makes one when asked.
        self._raw.screen = None
        self.max_cycles = int(raw.max_cycles)
        self.render_mode = "rgb_array"
        self.possible_agents = list(learners)
        self.agents: list[str] = []
        self.state_space = raw.state_space
        # One each: a space draws its samples from a generator of its own.
        self._action_spaces = {agent: deepcopy(action_space) for agent in learners}
        # Of mpe2's agents, in its order; learners or not.
        self._observations: dict[str, FloatArray] = {}
        self._state = np.zeros(raw.state_space.shape, np.float32)

    @abstractmethod
    def _commands(self, actions: Sequence[AgentAction]) -> list[Any]:
        """Return an action of mpe2's for each of its agents, from the learners' actions in their order."""

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
        self._raw.current_actions = self._commands([actions[agent] for agent in self.agents])
        self._raw._execute_world_step()
        self._raw.steps += 1
        ended = self._raw.steps >= self.max_cycles
        observations = self._observe()
        rewards = {agent: self._raw.rewards[agent] for agent in self.agents}
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
        self._observations = {agent: self._raw.observe(agent) for agent in self._raw.possible_agents}
        # mpe2 defines its state so; calling it would compute each observation again.
        self._state = np.concatenate(list(self._observations.values()))
        return {agent: self._observations[agent] for agent in self.possible_agents}


def five_way(forces: FloatArray) -> FloatArray:
    """Map forces (N, 2), clipped to [-1, 1], to mpe2's (N, 5): [none, left, right, down, up]."""
    forces = np.clip(forces, -1.0, 1.0)
    push = np.zeros((len(forces), 5), np.float32)
    push[:, 1:5:2] = np.maximum(-forces, 0.0)
    push[:, 2:5:2] = np.maximum(forces, 0.0)
    return push
