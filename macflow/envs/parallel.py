"""Any batch of one environment seen as a PettingZoo parallel environment."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
from gymnasium import spaces
from gymnasium.spaces.space import MaskNDArray
from numpy.typing import NDArray

from macflow.envs.base import AgentAction, BatchedEnv, BatchStep, Frame, JointEnv, Transition
from macflow.types import BatchObs, DataError, FloatArray


class LegalDiscrete(spaces.Discrete):
    """A space of `size` actions that samples what is legal at the moment, where no mask is given."""

    def __init__(self, size: int) -> None:
        super().__init__(size)
        self.legal: NDArray[np.int8] = np.ones(size, np.int8)

    def sample(self, mask: MaskNDArray | None = None, probability: MaskNDArray | None = None) -> np.int64:
        if mask is None and probability is None:
            mask = self.legal
        action: np.int64 = super().sample(mask=mask, probability=probability)
        return action


class ParallelView(JointEnv):
    """Show the one copy of a batch as agents that live and end together.

    Whatever the batch refuses, such as an action that is not legal, is refused. Without a seed,
    `reset` draws one from the generator that the last seed started.
    """

    metadata: ClassVar[dict[str, Any]] = {
        "name": "macflow_batch_of_one",
        "render_modes": ["rgb_array"],
        "render_fps": 10,
    }

    def __init__(self, batch: BatchedEnv) -> None:
        if batch.n_envs != 1:
            raise DataError(f"a parallel view takes a batch of 1 (received {batch.n_envs})")
        self._batch = batch
        self._spec = spec = batch.spec
        self.max_cycles = batch.max_steps
        self.render_mode = "rgb_array"
        self.possible_agents = list(spec.agent_ids)
        self.agents: list[str] = []
        self.state_space = spaces.Box(-np.inf, np.inf, (spec.state_size,), np.float32)
        self._observation_spaces = {
            agent: spaces.Box(-np.inf, np.inf, (size,), np.float32)
            for agent, size in zip(spec.agent_ids, spec.obs_dims, strict=True)
        }
        low, high = np.array(spec.action_low, np.float32), np.array(spec.action_high, np.float32)
        self._action_spaces: dict[str, spaces.Space[Any]] = {
            agent: LegalDiscrete(spec.action_size) if spec.discrete else spaces.Box(low, high)
            for agent in spec.agent_ids
        }
        self._seeds = np.random.default_rng()
        self._seen: BatchObs | BatchStep | None = None

    def observation_space(self, agent: str) -> spaces.Space[Any]:
        return self._observation_spaces[agent]

    def action_space(self, agent: str) -> spaces.Space[Any]:
        return self._action_spaces[agent]

    def reset(
        self, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, FloatArray], dict[str, dict[str, Any]]]:
        if seed is None:
            seed = int(self._seeds.integers(2**31))
        else:
            self._seeds = np.random.default_rng(seed)
        self._seen = self._batch.reset([seed])
        self.agents = list(self.possible_agents)
        return self._observations(), self._infos()

    def step(self, actions: dict[str, AgentAction]) -> Transition:
        if not self.agents:
            raise DataError("`step` needs a `reset` before it, also after the end of an episode")
        step = self._batch.step(np.stack([np.asarray(actions[agent]) for agent in self.agents])[None])
        self._seen = step
        acted, terminated, truncated = self.agents, bool(step.terminated[0]), bool(step.truncated[0])
        if terminated or truncated:
            self.agents = []
        return (
            self._observations(),
            dict(zip(acted, step.rewards[0].tolist(), strict=True)),
            dict.fromkeys(acted, terminated),
            dict.fromkeys(acted, truncated),
            self._infos(),
        )

    def state(self) -> FloatArray:
        state: FloatArray = self._now().state[0]
        return state

    def render(self) -> Frame:
        return self._batch.render(0)

    def close(self) -> None:
        self._batch.close()

    def _now(self) -> BatchObs | BatchStep:
        if self._seen is None:
            raise DataError("`state` needs a `reset` before it")
        return self._seen

    def _observations(self) -> dict[str, FloatArray]:
        rows = self._now().obs[0]
        sizes = zip(self._spec.agent_ids, rows, self._spec.obs_dims, strict=True)
        return {agent: row[:size] for agent, row, size in sizes}

    def _infos(self) -> dict[str, dict[str, Any]]:
        legal = self._now().legal_actions
        if legal is None:
            return {agent: {} for agent in self.possible_agents}
        masks = dict(zip(self.possible_agents, legal[0].astype(np.int8), strict=True))
        for agent, mask in masks.items():
            space = self._action_spaces[agent]
            assert isinstance(space, LegalDiscrete)
            space.legal = mask
        return {agent: {"action_mask": mask} for agent, mask in masks.items()}
