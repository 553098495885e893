"""Zero mean and unit spread for what nets see; fitted on the training rows, shipped with the policy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, overload

import numpy as np
from numpy.typing import NDArray

from macflow.types import DataError, FloatArray

if TYPE_CHECKING:
    import torch

# A spread below this share of the feature's size is rounding noise, not information.
RELATIVE_STD_FLOOR = 1e-6
# Rows converted to double precision at a time: bounds the memory that fitting takes.
CHUNK_ROWS = 1 << 16


@dataclass(frozen=True)
class Normalizer:
    """Scale observations, states and rewards.

    Features that are constant in the training rows, padding included, come out as 0. Rewards are
    divided by `reward_scale` and never shifted: a shift would reward ending episodes early or late.
    """

    obs_mean: FloatArray  # (N, O)
    obs_std: FloatArray  # (N, O)
    state_mean: FloatArray  # (S,)
    state_std: FloatArray  # (S,)
    reward_scale: float

    @classmethod
    def fit(
        cls, obs: FloatArray, state: FloatArray, rewards: FloatArray, train_rows: NDArray[np.int64]
    ) -> Normalizer:
        """Measure means and spreads over `train_rows` of obs (R, N, O), state (R, S), rewards (R, N)."""
        if len(train_rows) == 0:
            raise DataError("a normalizer needs at least one transition, received none")
        obs_mean, obs_std = _mean_and_std(obs, train_rows)
        state_mean, state_std = _mean_and_std(state, train_rows)
        team = rewards[train_rows].mean(axis=1, dtype=np.float64)
        spread = float(team.std())
        constant = spread <= RELATIVE_STD_FLOOR * max(1.0, float(np.abs(team).max()))
        return cls(obs_mean, obs_std, state_mean, state_std, 1.0 if constant else spread)

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON types."""
        return {
            "obs_mean": self.obs_mean.tolist(),
            "obs_std": self.obs_std.tolist(),
            "state_mean": self.state_mean.tolist(),
            "state_std": self.state_std.tolist(),
            "reward_scale": self.reward_scale,
        }

    @classmethod
    def from_dict(cls, raw: dict[str, Any]) -> Normalizer:
        """Build from `to_dict`'s result; a missing or malformed value raises `DataError`."""
        try:
            arrays = {
                name: np.asarray(raw[name], dtype=np.float32)
                for name in ("obs_mean", "obs_std", "state_mean", "state_std")
            }
            scale = float(raw["reward_scale"])
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(f"normalizer is malformed: {error!r}") from None
        for kind, dimensions in (("obs", 2), ("state", 1)):
            mean, std = arrays[f"{kind}_mean"], arrays[f"{kind}_std"]
            if mean.ndim != dimensions or mean.shape != std.shape:
                raise DataError(
                    f"normalizer: `{kind}_mean` and `{kind}_std` must have one shape of {dimensions} "
                    f"dimension(s), received {mean.shape} and {std.shape}"
                )
            if not (np.isfinite(mean).all() and np.isfinite(std).all() and (std > 0).all()):
                raise DataError(f"normalizer: `{kind}_mean` must be finite and `{kind}_std` finite and > 0")
        if not (np.isfinite(scale) and scale > 0):
            raise DataError(f"normalizer: `reward_scale` must be finite and > 0, received {scale}")
        return cls(**arrays, reward_scale=scale)

    @overload
    def normalize_obs(self, obs: torch.Tensor) -> torch.Tensor: ...
    @overload
    def normalize_obs(self, obs: FloatArray) -> FloatArray: ...
    def normalize_obs(self, obs: torch.Tensor | FloatArray) -> torch.Tensor | FloatArray:
        """Map raw observations (..., N, O), array or tensor, to zero mean and unit spread."""
        return _standardize(obs, self.obs_mean, self.obs_std)

    @overload
    def normalize_state(self, state: torch.Tensor) -> torch.Tensor: ...
    @overload
    def normalize_state(self, state: FloatArray) -> FloatArray: ...
    def normalize_state(self, state: torch.Tensor | FloatArray) -> torch.Tensor | FloatArray:
        """Map raw states (..., S), array or tensor, to zero mean and unit spread."""
        return _standardize(state, self.state_mean, self.state_std)


def _mean_and_std(values: FloatArray, rows: NDArray[np.int64]) -> tuple[FloatArray, FloatArray]:
    chunks = [rows[start : start + CHUNK_ROWS] for start in range(0, len(rows), CHUNK_ROWS)]
    total = np.zeros(values.shape[1:])
    for chunk in chunks:
        total += values[chunk].sum(axis=0, dtype=np.float64)
    mean = total / len(rows)
    squares = np.zeros(values.shape[1:])
    for chunk in chunks:
        squares += np.square(values[chunk] - mean).sum(axis=0)
    std = np.sqrt(squares / len(rows))
    std[std <= RELATIVE_STD_FLOOR * np.maximum(1.0, np.abs(mean))] = 1.0
    return mean.astype(np.float32), std.astype(np.float32)


def _standardize(
    values: torch.Tensor | FloatArray, mean: FloatArray, std: FloatArray
) -> torch.Tensor | FloatArray:
    if isinstance(values, np.ndarray):
        scaled: FloatArray = ((values - mean) / std).astype(np.float32, copy=False)
        return scaled
    # The tensor makes its own constants, so that this module, which environment workers
    # may load, has no need of torch.
    return (values - values.new_tensor(mean)) / values.new_tensor(std)
