"""What acting needs beside the nets: the agents' noise, and checks of what comes in. It needs no torch."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from macflow.types import FloatArray


def standard_normal(seed: int, key: tuple[int, ...], shape: tuple[int, ...]) -> FloatArray:
    """Draw noise from the stream that `seed` and `key` name: the same wherever it is drawn.

    With individual noise the key is (step, agent), with common noise (step,).
    """
    stream = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=key))
    return stream.standard_normal(shape, np.float32)


def checked_obs(agent: str, size: int, obs: ArrayLike) -> NDArray[np.float32]:
    """Return an agent's observation as an array; raises `ValueError` where shape or values are not right."""
    array = np.asarray(obs, np.float32)
    if array.shape != (size,):
        raise ValueError(f"observation of {agent!r} must have shape ({size},), received {array.shape}")
    if not np.isfinite(array).all():
        raise ValueError(f"observation of {agent!r} must be finite, received {array.tolist()}")
    return array


def checked_legal(agent: str, size: int, legal: ArrayLike) -> NDArray[np.bool_]:
    """Return an agent's legal actions as flags; raises `ValueError` where none is set or of a wrong size."""
    array = np.asarray(legal, np.bool_)
    if array.shape != (size,) or not array.any():
        raise ValueError(
            f"legal actions of {agent!r} must be {size} flags with at least one set, "
            f"received {array.tolist()}"
        )
    return array
