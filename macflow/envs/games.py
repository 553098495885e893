"""Small cooperative games with a known optimum, as PettingZoo parallel environments.

Each isolates one thing that factorised policies find hard: choosing among equally good joint
actions (`xor`, `landmark`), interaction between agents (`payoff`), a best joint action that the
data hardly shows (`rare-optimum`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from macflow.envs.base import AgentAction, Frame, JointEnv, Transition
from macflow.types import FloatArray

Colour = tuple[int, int, int]

_SIZE = 300  # width and height of a picture, in pixels
_WHITE, _BLACK, _GREY, _BLUE, _GREEN = (
    (255, 255, 255),
    (30, 30, 30),
    (190, 190, 190),
    (70, 110, 200),
    (60, 150, 90),
)

# Joint actions (N, A) or (N,) -> team reward.
Payoff = Callable[[NDArray[Any]], float]


class LandmarkGame(JointEnv):
    """Cover N landmarks with N agents in the square [-1, 1]^2 for a few steps.

    An action moves its agent by `STRIDE` times itself, so every landmark can be reached in one
    step. The team reward is the mean over landmarks of max(0, 1 - d / r), with d the distance of
    the nearest agent and r = 1 / sqrt(N), so that the landmarks' share of the square does not
    depend on N. Its optimum is 1 per step: one agent exactly on each landmark.
    """

    metadata: ClassVar[dict[str, Any]] = {
        "name": "macflow_landmark",
        "render_modes": ["rgb_array"],
        "render_fps": 2,
    }
    STRIDE = 2.0

    def __init__(self, n_agents: int, max_cycles: int) -> None:
        self.max_cycles = max_cycles
        self.render_mode = "rgb_array"
        self.possible_agents = [f"agent_{i}" for i in range(n_agents)]
        self.agents: list[str] = []
        # Own position; landmarks, then the other agents in order, relative to it.
        seen = spaces.Box(-2.0, 2.0, (2 + 2 * n_agents + 2 * (n_agents - 1),), np.float32)
        self._observation_spaces = dict.fromkeys(self.possible_agents, seen)
        self._action_spaces = {a: spaces.Box(-1.0, 1.0, (2,), np.float32) for a in self.possible_agents}
        self.state_space = spaces.Box(-1.0, 1.0, (4 * n_agents,), np.float32)
        self._others = np.array([[j for j in range(n_agents) if j != i] for i in range(n_agents)], np.int64)
        self._radius = 1.0 / np.sqrt(n_agents)
        self._rng = np.random.default_rng()
        self._positions = np.zeros((n_agents, 2), np.float32)
        self._landmarks = np.zeros((n_agents, 2), np.float32)
        self._steps = 0

    def observation_space(self, agent: str) -> spaces.Space[Any]:
        return self._observation_spaces[agent]

    def action_space(self, agent: str) -> spaces.Space[Any]:
        return self._action_spaces[agent]

    def reset(
        self, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, FloatArray], dict[str, dict[str, Any]]]:
        if seed is not None:
            self._rng = np.random.default_rng(seed)
        self.agents = list(self.possible_agents)
        self._steps = 0
        self._positions = self._rng.uniform(-1, 1, self._positions.shape).astype(np.float32)
        self._landmarks = self._rng.uniform(-1, 1, self._landmarks.shape).astype(np.float32)
        return self._observe(), {agent: {} for agent in self.agents}

    def step(self, actions: dict[str, AgentAction]) -> Transition:
        moves = np.clip(np.stack([actions[agent] for agent in self.agents]), -1.0, 1.0).astype(np.float32)
        self._positions = np.clip(self._positions + self.STRIDE * moves, -1.0, 1.0)
        self._steps += 1
        ended = self._steps >= self.max_cycles
        acted = self.agents
        if ended:
            self.agents = []
        return (
            self._observe(),
            dict.fromkeys(acted, self._coverage()),
            dict.fromkeys(acted, False),
            dict.fromkeys(acted, ended),
            {agent: {} for agent in acted},
        )

    def state(self) -> FloatArray:
        return np.concatenate([self._positions.ravel(), self._landmarks.ravel()])

    def render(self) -> Frame:
        picture = Image.new("RGB", (_SIZE, _SIZE), _WHITE)
        draw = ImageDraw.Draw(picture)
        for centre in self._landmarks:
            _disc(draw, centre, 0.5 * self._radius, None, _GREY)
            _disc(draw, centre, 0.025, _BLACK)
        for centre in self._positions:
            _disc(draw, centre, 0.05, _BLUE)
        draw.text((6, 6), f"coverage {self._coverage():.2f}", fill=_BLACK)
        return np.asarray(picture)

    def close(self) -> None:
        """Hold nothing that needs releasing."""

    def _coverage(self) -> float:
        apart = np.linalg.norm(self._landmarks[:, None] - self._positions[None], axis=2)  # (landmark, agent)
        return float(np.maximum(0.0, 1.0 - apart.min(axis=1) / self._radius).mean())

    def _observe(self) -> dict[str, FloatArray]:
        landmarks = self._landmarks[None] - self._positions[:, None]  # (agent, landmark, 2)
        others = self._positions[self._others] - self._positions[:, None]  # (agent, N - 1, 2)
        n = len(self._positions)
        seen = np.concatenate([self._positions, landmarks.reshape(n, -1), others.reshape(n, -1)], axis=1)
        return dict(zip(self.possible_agents, seen, strict=True))


class OneStepGame(JointEnv):
    """Act once, at the same time, then end: a matrix or payoff game.

    Nothing is observed but who one is (one-hot), and the state is constant.
    """

    metadata: ClassVar[dict[str, Any]] = {
        "name": "macflow_one_step",
        "render_modes": ["rgb_array"],
        "render_fps": 1,
    }

    def __init__(self, n_agents: int, action_space: spaces.Box | spaces.Discrete, payoff: Payoff) -> None:
        self.max_cycles = 1
        self.render_mode = "rgb_array"
        self.possible_agents = [f"agent_{i}" for i in range(n_agents)]
        self.agents: list[str] = []
        seen = spaces.Box(0.0, 1.0, (n_agents,), np.float32)
        self._observation_spaces = dict.fromkeys(self.possible_agents, seen)
        # A copy each: a space holds its own random state.
        self._action_spaces: dict[str, spaces.Space[Any]] = {
            agent: spaces.Discrete(int(action_space.n))
            if isinstance(action_space, spaces.Discrete)
            else spaces.Box(action_space.low, action_space.high, dtype=np.float32)
            for agent in self.possible_agents
        }
        self.state_space = spaces.Box(0.0, 1.0, (1,), np.float32)
        self._discrete = isinstance(action_space, spaces.Discrete)
        self._payoff = payoff
        self._identity = np.eye(n_agents, dtype=np.float32)
        self._played: NDArray[Any] | None = None

    def observation_space(self, agent: str) -> spaces.Space[Any]:
        return self._observation_spaces[agent]

    def action_space(self, agent: str) -> spaces.Space[Any]:
        return self._action_spaces[agent]

    def reset(
        self, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, FloatArray], dict[str, dict[str, Any]]]:
        self.agents = list(self.possible_agents)
        self._played = None
        return self._observe(), {agent: {} for agent in self.agents}

    def step(self, actions: dict[str, AgentAction]) -> Transition:
        played = np.stack([np.asarray(actions[agent]) for agent in self.agents])
        self._played = played if self._discrete else np.clip(played, -1.0, 1.0)
        acted = self.agents
        self.agents = []
        return (
            self._observe(),
            dict.fromkeys(acted, self._payoff(self._played)),
            dict.fromkeys(acted, True),
            dict.fromkeys(acted, False),
            {agent: {} for agent in acted},
        )

    def state(self) -> FloatArray:
        return np.ones(1, np.float32)

    def render(self) -> Frame:
        picture = Image.new("RGB", (_SIZE, _SIZE), _WHITE)
        draw = ImageDraw.Draw(picture)
        if self._discrete and len(self.possible_agents) == 2:
            self._draw_table(draw)
        elif not self._discrete:
            self._draw_bars(draw)
        if self._played is not None:
            draw.text((6, 6), f"reward {self._payoff(self._played):.2f}", fill=_BLACK)
        return np.asarray(picture)

    def close(self) -> None:
        """Hold nothing that needs releasing."""

    def _observe(self) -> dict[str, FloatArray]:
        return dict(zip(self.possible_agents, self._identity, strict=True))

    def _draw_table(self, draw: ImageDraw.ImageDraw) -> None:
        """Draw the payoff matrix, first agent's action down, second's across; the played cell is filled."""
        size = int(self._action_spaces[self.possible_agents[0]].n)  # type: ignore[attr-defined]
        cell = (_SIZE - 60) // size
        for row in range(size):
            for column in range(size):
                joint = np.array([row, column])
                left, top = 30 + column * cell, 30 + row * cell
                chosen = self._played is not None and bool((self._played == joint).all())
                draw.rectangle((left, top, left + cell, top + cell), _GREEN if chosen else _WHITE, _BLACK)
                draw.text(
                    (left + cell // 2 - 8, top + cell // 2 - 5), f"{self._payoff(joint):.1f}", fill=_BLACK
                )

    def _draw_bars(self, draw: ImageDraw.ImageDraw) -> None:
        """Draw each agent's action as a bar from the middle line: up is +1, down is -1."""
        middle, reach = _SIZE // 2, _SIZE // 2 - 30
        draw.line((20, middle, _SIZE - 20, middle), _GREY)
        if self._played is None:
            return
        width = (_SIZE - 40) / len(self.possible_agents)
        for i, action in enumerate(self._played[:, 0]):
            left, end = 20 + i * width + 0.2 * width, middle - float(action) * reach
            draw.rectangle((left, min(middle, end), left + 0.6 * width, max(middle, end)), _BLUE)


def table_game(table: Sequence[Sequence[float]]) -> OneStepGame:
    """Make the two-agent game whose reward is `table[first agent's action][second's]`."""
    rewards = np.array(table)
    return OneStepGame(2, spaces.Discrete(len(table)), lambda joint: float(rewards[joint[0], joint[1]]))


def payoff_game(n_agents: int, zeta: float) -> OneStepGame:
    """Make the continuous game (1 - zeta) mean a_i^2 + zeta mean over pairs a_i a_j.

    Its optimum is 1 at every zeta, where all agents play +1 or all play -1. At zeta 0 every
    combination of signs is as good; the larger zeta, the more agreement is worth.
    """
    pairs = n_agents * (n_agents - 1)

    def payoff(joint: NDArray[Any]) -> float:
        actions = joint[:, 0].astype(np.float64)
        squares = float((actions**2).sum())
        return (1 - zeta) * squares / n_agents + zeta * (float(actions.sum()) ** 2 - squares) / pairs

    return OneStepGame(n_agents, spaces.Box(-1.0, 1.0, (1,), np.float32), payoff)


def _disc(
    draw: ImageDraw.ImageDraw,
    centre: FloatArray,
    radius: float,
    fill: Colour | None,
    outline: Colour | None = None,
) -> None:
    scale = _SIZE / 2.2
    x, y, r = _SIZE / 2 + float(centre[0]) * scale, _SIZE / 2 - float(centre[1]) * scale, radius * scale
    draw.ellipse((x - r, y - r, x + r, y + r), fill, outline)
