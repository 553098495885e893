"""One episode of several agents, as recorded: the common currency of recorders, importers and stores."""

from __future__ import annotations

from dataclasses import dataclass

from macflow.types import ActionArray, BoolArray, FloatArray


@dataclass(frozen=True)
class Episode:
    """Hold L transitions; arrays of L + 1 rows include the observation after the last action."""

    obs: FloatArray  # (L + 1, N, O)
    state: FloatArray  # (L + 1, S)
    actions: ActionArray  # (L, N, A) float32, or (L, N) int64 where discrete
    rewards: FloatArray  # (L, N)
    terminated: BoolArray  # (L,) the environment ended for good
    truncated: BoolArray  # (L,) a time limit cut it
    legal_actions: BoolArray | None  # (L + 1, N, A), discrete only
    seed: int

    @property
    def length(self) -> int:
        return len(self.rewards)

    @property
    def team_return(self) -> float:
        """Undiscounted sum of the agents' mean reward."""
        return float(self.rewards.mean(axis=1).sum())
