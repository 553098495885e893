"""From transitions stacked on one time axis to rows of episodes.

Shapes add to the legend of `macflow.types`: T transitions of E episodes, one episode after the other.
An episode of L transitions takes L rows of the time axis here, and L + 1 rows of `EpisodeRows`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from macflow.data.rows import EpisodeRows, IntArray
from macflow.types import BoolArray, DataError, MultiAgentSpec

# Rows compared at a time: bounds the memory of what is read from a mapped file.
CHUNK_ROWS = 1 << 16


@dataclass(frozen=True)
class RowMap:
    """Say which row of `EpisodeRows` each transition takes; `ends` are the episodes' last transitions."""

    ends: IntArray  # (E,) rising; the last one is T - 1

    @cached_property
    def lengths(self) -> IntArray:
        """Return the transitions of each episode, (E,)."""
        lengths: IntArray = np.diff(self.ends, prepend=-1)
        return lengths

    @cached_property
    def step_rows(self) -> IntArray:
        """Return the row of each transition, (T,)."""
        total = int(self.ends[-1]) + 1 if len(self.ends) else 0
        rows: IntArray = np.arange(total) + np.repeat(np.arange(len(self.ends)), self.lengths)
        return rows

    @cached_property
    def final_rows(self) -> IntArray:
        """Return the row of each episode's final observation, (E,)."""
        rows: IntArray = self.ends + 1 + np.arange(len(self.ends))
        return rows

    @property
    def n_rows(self) -> int:
        return len(self.step_rows) + len(self.ends)

    def spread(self, steps: NDArray[Any], finals: NDArray[Any] | None = None) -> NDArray[Any]:
        """Place `steps` (T, ...) and `finals` (E, ...) in (R, ...); final rows are zero without `finals`."""
        placed = np.zeros((self.n_rows, *steps.shape[1:]), steps.dtype)
        placed[self.step_rows] = steps
        if finals is not None:
            placed[self.final_rows] = finals
        return placed


def breaks(now: NDArray[Any], following: NDArray[Any]) -> BoolArray:
    """Mark where `following[t]` (T, ...) is not `now[t + 1]`, in single precision, (T - 1,)."""
    marks = np.zeros(max(len(now) - 1, 0), np.bool_)
    for start in range(0, len(marks), CHUNK_ROWS):
        end = min(start + CHUNK_ROWS, len(marks))
        with np.errstate(over="ignore"):
            one = following[start:end].astype(np.float32)
            other = now[start + 1 : end + 1].astype(np.float32)
        differs = one != other
        marks[start:end] = differs.reshape(end - start, -1).any(axis=1)
    return marks


def refuse_padding(source: Path, rows: EpisodeRows, spec: MultiAgentSpec) -> None:
    """Raise `DataError` at the first observation that is not zero beyond its agent's size."""
    for agent, size in enumerate(spec.obs_dims):
        used = rows.obs[:, agent, size:] != 0
        if used.any():
            row, feature = np.argwhere(used)[0]
            raise DataError(
                f"{source}: observations must be 0 beyond the {size} features of `{spec.agent_ids[agent]}` "
                f"(received {rows.obs[row, agent, size + feature]} in feature {size + feature} of episode "
                f"{rows.episode_of_row[row]}, step {rows.step_of_row[row]})"
            )
