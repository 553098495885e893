"""Find exact copies among transitions and episodes."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from macflow.data.rows import EpisodeRows
from macflow.types import BoolArray


def row_hashes(array: NDArray[Any]) -> NDArray[np.uint64]:
    """Hash each row (R, ...) of an array by its bits, (R,)."""
    flat = np.ascontiguousarray(array).reshape(len(array), -1).view(np.uint8)
    # Polars hashes wide elements faster than single bytes.
    words = flat.view(np.uint32) if flat.shape[1] % 4 == 0 else flat
    hashes: NDArray[np.uint64] = pl.Series(words).hash(seed=0).to_numpy()
    return hashes


def transition_hashes(rows: EpisodeRows) -> NDArray[np.uint64]:
    """Hash what makes up each transition, (R,); an episode's last row, which has none, counts for nothing.

    That is: observations, state, actions, rewards, end flags and next observations.
    """
    if rows.n_rows == 0:
        return np.zeros(0, np.uint64)
    obs = row_hashes(rows.obs)
    parts = [
        obs,
        np.roll(obs, -1),
        row_hashes(rows.state),
        row_hashes(rows.actions),
        row_hashes(rows.rewards),
        rows.terminated.astype(np.uint64) * 2 + rows.truncated,
    ]
    return row_hashes(np.stack(parts, axis=1))


def transition_copies(rows: EpisodeRows, hashes: NDArray[np.uint64]) -> BoolArray:
    """Mark the train rows (T,) whose transition occurred before, bit by bit."""
    copies: BoolArray = (~pl.Series(hashes[rows.train_rows]).is_first_distinct()).to_numpy()
    return copies


def episode_copies(rows: EpisodeRows, hashes: NDArray[np.uint64]) -> BoolArray:
    """Mark the episodes (E,) all of whose transitions, in order, occurred as an episode before."""
    seen: set[bytes] = set()
    copies = np.zeros(rows.n_episodes, np.bool_)
    # The last row has no transition; the row before it already holds the last next observation.
    for index, (start, end) in enumerate(zip(rows.first_rows, rows.final_rows, strict=True)):
        key = hashlib.blake2b(hashes[start:end].tobytes(), digest_size=16).digest()
        copies[index] = key in seen
        seen.add(key)
    return copies
