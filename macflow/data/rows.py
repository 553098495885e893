"""Many episodes as one stack of rows: the in-memory form of the canonical dataset.

An episode of L transitions takes L + 1 rows, so that the observation after its last action is kept
and the next observation of row t is simply row t + 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from macflow.data.episode import Episode
from macflow.types import ActionArray, BoolArray, DataError, FloatArray, MultiAgentSpec

IntArray = NDArray[np.int64]
UNKNOWN_SEED = -1


@dataclass(frozen=True)
class EpisodeRows:
    """Hold E episodes in R rows; what has no meaning in an episode's last row is zero there."""

    obs: FloatArray  # (R, N, O)
    state: FloatArray  # (R, S)
    actions: ActionArray  # (R, N, A) float32, or (R, N) int64 where discrete
    rewards: FloatArray  # (R, N)
    terminated: BoolArray  # (R,)
    truncated: BoolArray  # (R,)
    legal_actions: BoolArray | None  # (R, N, A), discrete only
    lengths: IntArray  # (E,) transitions of each episode
    seeds: IntArray  # (E,) UNKNOWN_SEED where the recorder kept none
    # Numbers that the recorder itself wrote down, by which order is checked; None where it did not.
    recorded_ids: IntArray | None = None  # (E,)
    recorded_steps: IntArray | None = None  # (R,)

    @property
    def n_rows(self) -> int:
        return len(self.obs)

    @property
    def n_episodes(self) -> int:
        return len(self.lengths)

    @cached_property
    def first_rows(self) -> IntArray:
        """Return each episode's first row, (E,)."""
        starts: IntArray = np.cumsum(self.lengths + 1) - (self.lengths + 1)
        return starts

    @cached_property
    def final_rows(self) -> IntArray:
        """Return each episode's last row, which has no transition, (E,)."""
        finals: IntArray = self.first_rows + self.lengths
        return finals

    @cached_property
    def train_rows(self) -> IntArray:
        """Return the rows that begin a transition, in order, (T,)."""
        has_transition = np.ones(self.n_rows, dtype=np.bool_)
        has_transition[self.final_rows] = False
        return np.flatnonzero(has_transition)

    @cached_property
    def episode_of_row(self) -> IntArray:
        """Return each row's episode, (R,)."""
        return np.repeat(np.arange(self.n_episodes), self.lengths + 1)

    @cached_property
    def step_of_row(self) -> IntArray:
        """Return each row's time step within its episode, (R,)."""
        steps: IntArray = np.arange(self.n_rows) - self.first_rows[self.episode_of_row]
        return steps

    @property
    def team_rewards(self) -> NDArray[np.float64]:
        """Return the agents' mean reward of each row, (R,)."""
        team: NDArray[np.float64] = self.rewards.mean(axis=1, dtype=np.float64)
        return team

    @property
    def team_returns(self) -> NDArray[np.float64]:
        """Return each episode's undiscounted sum of team rewards, (E,)."""
        if self.n_episodes == 0:
            return np.zeros(0)
        totals: NDArray[np.float64] = np.add.reduceat(self.team_rewards, self.first_rows)
        return totals

    def episodes(self) -> list[Episode]:
        """Return the episodes as views, without copying."""
        ends = (self.final_rows + 1).tolist()
        return [
            Episode(
                obs=self.obs[start:end],
                state=self.state[start:end],
                actions=self.actions[start : end - 1],
                rewards=self.rewards[start : end - 1],
                terminated=self.terminated[start : end - 1],
                truncated=self.truncated[start : end - 1],
                legal_actions=None if self.legal_actions is None else self.legal_actions[start:end],
                seed=seed,
            )
            for start, end, seed in zip(self.first_rows.tolist(), ends, self.seeds.tolist(), strict=True)
        ]


def stack_episodes(episodes: Sequence[Episode], spec: MultiAgentSpec) -> EpisodeRows:
    """Stack episodes that all match `spec`; `DataError` names the first array that does not."""
    for index, episode in enumerate(episodes):
        check_episode(episode, spec, f"episode {index}")
    lengths = np.array([episode.length for episode in episodes], dtype=np.int64)
    rows = int(lengths.sum()) + len(lengths)
    n, action_size = spec.n_agents, spec.action_size
    obs = np.empty((rows, n, spec.obs_size), np.float32)
    state = np.empty((rows, spec.state_size), np.float32)
    actions: ActionArray = (
        np.zeros((rows, n), np.int64) if spec.discrete else np.zeros((rows, n, action_size), np.float32)
    )
    rewards = np.zeros((rows, n), np.float32)
    terminated, truncated = np.zeros(rows, np.bool_), np.zeros(rows, np.bool_)
    legal = np.empty((rows, n, action_size), np.bool_) if spec.discrete else None
    start = 0
    for episode in episodes:
        end = start + episode.length
        obs[start : end + 1] = episode.obs
        state[start : end + 1] = episode.state
        actions[start:end] = episode.actions
        rewards[start:end] = episode.rewards
        terminated[start:end] = episode.terminated
        truncated[start:end] = episode.truncated
        if legal is not None and episode.legal_actions is not None:
            legal[start : end + 1] = episode.legal_actions
        start = end + 1
    seeds = np.array([episode.seed for episode in episodes], dtype=np.int64)
    return EpisodeRows(obs, state, actions, rewards, terminated, truncated, legal, lengths, seeds)


def check_episode(episode: Episode, spec: MultiAgentSpec, where: str) -> None:
    """Raise `DataError` if an array's shape or kind is not what `spec` calls for."""
    steps, n = episode.length, spec.n_agents
    expected: dict[str, tuple[tuple[int, ...], str]] = {
        "obs": ((steps + 1, n, spec.obs_size), "f"),
        "state": ((steps + 1, spec.state_size), "f"),
        "actions": ((steps, n), "iu") if spec.discrete else ((steps, n, spec.action_size), "f"),
        "rewards": ((steps, n), "f"),
        "terminated": ((steps,), "b"),
        "truncated": ((steps,), "b"),
    }
    if spec.discrete:
        expected["legal_actions"] = ((steps + 1, n, spec.action_size), "b")
    elif episode.legal_actions is not None:
        raise DataError(f"{where}: `legal_actions` must be None where actions are continuous")
    names = {"f": "floating point", "iu": "integer", "b": "boolean"}
    for field, (shape, kinds) in expected.items():
        array = getattr(episode, field)
        if array is None:
            raise DataError(f"{where}: `{field}` is missing")
        if array.shape != shape:
            raise DataError(f"{where}: `{field}` must have shape {shape}, received {array.shape}")
        if array.dtype.kind not in kinds:
            raise DataError(f"{where}: `{field}` must be {names[kinds]}, received {array.dtype}")
