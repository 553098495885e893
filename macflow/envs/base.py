"""What a batch of environments is: numpy in, numpy out, E copies stepped together.

Shapes follow the legend of `macflow.types`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray
from pettingzoo import ParallelEnv

from macflow.types import (
    ActionArray,
    ActionKind,
    BatchObs,
    BoolArray,
    ConfigError,
    DataError,
    FloatArray,
    MultiAgentSpec,
)

Frame = NDArray[np.uint8]  # (height, width, 3) RGB
# Actions of one agent: float32 (A,), or an integer where discrete.
AgentAction = Any
# What a parallel environment's step returns, each by agent:
# observations, rewards, terminations, truncations, infos.
Transition = tuple[
    dict[str, FloatArray], dict[str, float], dict[str, bool], dict[str, bool], dict[str, dict[str, Any]]
]


class JointEnv(ParallelEnv[str, FloatArray, AgentAction]):  # type: ignore[misc]
    """A PettingZoo parallel environment whose agents live and end together.

    `max_cycles` is its time limit in steps. Where not every discrete action is always legal,
    `infos[agent]["action_mask"]` (A,) tells which are, at reset and after every step.
    """

    max_cycles: int


@dataclass(frozen=True)
class BatchStep:
    """What one joint action led to; a finished environment repeats its last observation."""

    obs: FloatArray  # (E, N, O)
    state: FloatArray  # (E, S)
    legal_actions: BoolArray | None  # (E, N, A), discrete only
    rewards: FloatArray  # (E, N), zero once finished
    terminated: BoolArray  # (E,) the environment ended for good; stays set
    truncated: BoolArray  # (E,) a time limit cut it; stays set

    @property
    def finished(self) -> BoolArray:
        return self.terminated | self.truncated


class BatchedEnv(Protocol):
    """E copies of one environment. Nothing resets by itself, so episodes end where they end."""

    @property
    def spec(self) -> MultiAgentSpec: ...

    @property
    def n_envs(self) -> int: ...

    @property
    def max_steps(self) -> int: ...

    def reset(self, seeds: Sequence[int]) -> BatchObs:
        """Begin one episode per seed; an episode depends on its seed alone."""

    def step(self, actions: ActionArray) -> BatchStep:
        """Apply actions (E, N, A) or (E, N); continuous ones are clipped to the bounds."""

    def render(self, index: int) -> Frame:
        """Draw one environment."""

    def close(self) -> None:
        """Release processes and memory; closing twice is allowed."""


def spec_of(env: JointEnv) -> MultiAgentSpec:
    """Read the spaces of a parallel environment.

    Raises:
        ConfigError: where its spaces are not vectors in and one kind and size of action out.
    """
    agents = tuple(env.possible_agents)
    obs_dims = []
    for agent in agents:
        space = env.observation_space(agent)
        if not isinstance(space, spaces.Box) or len(space.shape) != 1:
            raise ConfigError(f"observations of `{agent}` must be vectors (received {space})")
        obs_dims.append(int(space.shape[0]))
    first = env.action_space(agents[0])
    for agent in agents[1:]:
        if env.action_space(agent) != first:
            raise ConfigError(
                f"all agents must share one action space: `{agents[0]}` has {first}, "
                f"`{agent}` has {env.action_space(agent)}"
            )
    kind: ActionKind
    if isinstance(first, spaces.Discrete) and first.start == 0:
        kind, size = "discrete", int(first.n)
        low, high = (-1.0,) * size, (1.0,) * size
    elif isinstance(first, spaces.Box) and len(first.shape) == 1 and first.is_bounded():
        kind, size = "continuous", int(first.shape[0])
        low, high = tuple(map(float, first.low)), tuple(map(float, first.high))
    else:
        raise ConfigError(f"actions must be a bounded vector or an index from 0 (received {first})")
    return MultiAgentSpec(
        agent_ids=agents,
        obs_dims=tuple(obs_dims),
        state_size=int(env.state_space.shape[0]),
        action_kind=kind,
        action_size=size,
        action_low=low,
        action_high=high,
    )


def check_seeds(seeds: Sequence[int], n_envs: int) -> None:
    """Refuse anything but one natural number per environment."""
    if len(seeds) != n_envs:
        raise DataError(f"`seeds`: one per environment, so {n_envs} (received {len(seeds)})")
    for seed in seeds:
        if seed < 0:
            raise DataError(f"`seeds`: natural numbers (received {seed})")


def check_actions(actions: ActionArray, spec: MultiAgentSpec, n_envs: int) -> ActionArray:
    """Return actions in the environments' type, clipped to their bounds.

    Raises:
        DataError: on a wrong shape, a value that is not finite, or an index that is no action.
    """
    shape: tuple[int, ...] = (n_envs, spec.n_agents)
    if not spec.discrete:
        shape += (spec.action_size,)
    actions = np.asarray(actions)
    if actions.shape != shape:
        raise DataError(f"`actions`: shape {shape} (received {actions.shape})")
    if not spec.discrete:
        if not np.isfinite(actions).all():
            raise DataError(f"`actions`: finite numbers (received {_first(actions, ~np.isfinite(actions))})")
        low, high = np.array(spec.action_low, np.float32), np.array(spec.action_high, np.float32)
        return np.clip(actions.astype(np.float32, copy=False), low, high)
    if actions.dtype.kind not in "iu":
        raise DataError(f"`actions`: whole numbers (received {actions.dtype})")
    outside = (actions < 0) | (actions >= spec.action_size)
    if outside.any():
        raise DataError(f"`actions`: 0 to {spec.action_size - 1} (received {_first(actions, outside)})")
    return actions.astype(np.int64, copy=False)


def _first(actions: ActionArray, where: BoolArray) -> str:
    index = tuple(int(i) for i in np.argwhere(where)[0])
    return f"{actions[index]} for environment {index[0]}, agent {index[1]}"


def action_masks(spec: MultiAgentSpec, infos: Mapping[str, Mapping[str, Any]]) -> BoolArray:
    """Return the legal actions (N, A); all of them where the environment names none."""
    legal = np.ones((spec.n_agents, spec.action_size), dtype=np.bool_)
    for row, agent in enumerate(spec.agent_ids):
        mask = infos.get(agent, {}).get("action_mask")
        if mask is not None:
            legal[row] = mask
    return legal
