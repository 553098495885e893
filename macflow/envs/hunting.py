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
# A predator aims at where its prey will be in the time to reach it, but at most so many seconds ahead,
_LEAD_LIMIT = 0.5
# and beside that by this share of its distance, up to a limit,
_SIDESTEP, _SIDESTEP_LIMIT = 0.5, 0.4
# in directions from the prey that lie up to this angle either way of the one to the arena's centre.
_SPREAD = np.pi / 3


class Hunt(Scripted):
    """Drive each predator at a prey, from a side of its own; both by a permutation drawn per episode.

    The permutation deals the predators out over the prey, as evenly as it goes, and those of one prey
    over as many sides, which face the arena's centre, so that the prey is driven to the edge between
    them. A predator aims ahead of its prey and to its side of it; the closer, the less.
    Expects a state that ends with what the prey observe, [velocity (2), position (2), ...] each, and
    observations of predators that begin so; a prey observes `observes_less` values less.
    """

    def __init__(self, spec: MultiAgentSpec, quality: Quality, observes_less: int) -> None:
        super().__init__(spec, quality)
        self._prey_size = spec.obs_size - observes_less
        self._n_prey = (spec.state_size - sum(spec.obs_dims)) // self._prey_size

    def _wanted(self, seen: Seen, vigour: FloatArray) -> FloatArray:
        prey = seen.state[:, -self._n_prey * self._prey_size :].reshape(len(seen.state), self._n_prey, -1)
        hunted = np.take_along_axis(prey, (self._plans % self._n_prey)[:, :, None], axis=1)
        flight, target = hunted[:, :, :2], hunted[:, :, 2:4]
        velocity, position = seen.obs[:, :, :2], seen.obs[:, :, 2:4]
        gap = target - position
        distance = np.linalg.norm(gap, axis=2, keepdims=True)
        ahead = np.minimum(distance / _TOP, _LEAD_LIMIT) * flight
        aside = np.minimum(_SIDESTEP * distance, _SIDESTEP_LIMIT) * self._sides(target)
        goal = vigour * _within(flight + _HASTE * (gap + ahead + aside), _TOP)
        force = (goal - (1 - _DAMPING) * velocity) / _PUSH
        # Shortened, not cut, where it is too strong: a cut force would point elsewhere.
        shortened: FloatArray = force / np.maximum(1.0, np.abs(force).max(axis=2, keepdims=True))
        return shortened

    def _sides(self, target: FloatArray) -> FloatArray:
        """Return unit vectors (E, N, 2) from prey at `target` (E, N, 2) to where each predator comes from."""
        prey, place = self._plans % self._n_prey, self._plans // self._n_prey
        hunters = (self._spec.n_agents - prey + self._n_prey - 1) // self._n_prey
        # From -1 to 1; 0 for who hunts alone.
        side = np.where(hunters > 1, 2 * place / np.maximum(hunters - 1, 1) - 1, 0.0)
        angles = np.arctan2(-target[:, :, 1], -target[:, :, 0]) + _SPREAD * side
        return np.stack([np.cos(angles), np.sin(angles)], axis=2).astype(np.float32)


def _within(vectors: FloatArray, limit: float) -> FloatArray:
    within: FloatArray = vectors * np.minimum(
        1.0, limit / np.maximum(np.linalg.norm(vectors, axis=2, keepdims=True), limit)
    )
    return within
