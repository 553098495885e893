"""How scripted predators hunt: each comes at its prey from a side of its own, drawn per episode."""

from __future__ import annotations

import numpy as np

from macflow.envs.behaviours import Quality, Scripted
from macflow.types import FloatArray, MultiAgentSpec, Seen

# mpe2's predators in mpe2's world: a step takes a share DAMPING of the velocity, a unit force adds
# PUSH to it, and TOP is the most it can be.
_DAMPING, _PUSH, _TOP = 0.25, 0.3, 1.0
# How soon a gap should close, per second.
_HASTE = 5.0
# Where to aim: ahead of the prey by where it will be after this share of the time to reach it, seconds at most,
_LEAD, _LEAD_LIMIT = 0.5, 0.5
# and beside it by this share of the distance, up to a limit.
_SIDESTEP, _SIDESTEP_LIMIT = 0.5, 0.4


class Hunt(Scripted):
    """Drive each predator at a prey, from a side of its own; both by a permutation drawn per episode.

    The permutation deals the predators out over the prey, as evenly as it goes, and those of one prey
    over as many sides. A predator aims ahead of its prey and to its side of it; the closer, the less.
    Expects a state that ends with what the prey observe, [velocity (2), position (2), ...] each, and
    observations of predators that begin so; a prey observes `observes_less` values less.
    """

    def __init__(self, spec: MultiAgentSpec, quality: Quality, observes_less: int) -> None:
        super().__init__(spec, quality)
        self._prey_size = spec.obs_size - observes_less
        self._n_prey = (spec.state_size - sum(spec.obs_dims)) // self._prey_size

    def _wanted(self, seen: Seen, vigour: FloatArray) -> FloatArray:
        e, n = self._plans.shape
        prey = seen.state[:, -self._n_prey * self._prey_size :].reshape(e, self._n_prey, -1)
        mine = np.take_along_axis(prey, (self._plans % self._n_prey)[:, :, None], axis=1)
        velocity, position = seen.obs[:, :, :2], seen.obs[:, :, 2:4]
        gap = mine[:, :, 2:4] - position
        distance = np.linalg.norm(gap, axis=2, keepdims=True)
        ahead = np.minimum(_LEAD * distance / _TOP, _LEAD_LIMIT) * mine[:, :, :2]
        aside = np.minimum(_SIDESTEP * distance, _SIDESTEP_LIMIT) * self._sides()
        goal = vigour * _within(mine[:, :, :2] + _HASTE * (gap + ahead + aside), _TOP)
        force = (goal - (1 - _DAMPING) * velocity) / _PUSH
        # Shortened, not cut, where it is too strong: a cut force would point elsewhere.
        return force / np.maximum(1.0, np.abs(force).max(axis=2, keepdims=True))

    def _sides(self) -> FloatArray:
        """Return unit vectors (E, N, 2) from the prey to where each predator comes from."""
        prey, place = self._plans % self._n_prey, self._plans // self._n_prey
        hunters = (self._spec.n_agents - prey + self._n_prey - 1) // self._n_prey
        angles = 2 * np.pi * place / hunters
        return np.stack([np.cos(angles), np.sin(angles)], axis=2).astype(np.float32)


def _within(vectors: FloatArray, limit: float) -> FloatArray:
    return vectors * np.minimum(
        1.0, limit / np.maximum(np.linalg.norm(vectors, axis=2, keepdims=True), limit)
    )
