"""Scripted prey of the predator-prey worlds: what the learned team plays against.

A prey acts on the observation that mpe2 gives it, and on its episode's own random numbers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from macflow.types import FloatArray

# Directions that a fleeing prey weighs.
_HEADINGS = 16
# Steps that it looks ahead; a force moves its agent in the step after the next.
_HORIZON = 8
# Distance over which the fear of a predator falls to 1 / e.
_FEAR = 0.3
# Against a predator's fear, which is 1 where they touch: leaving the arena or entering an obstacle, per
# length, and being away from food, per length.
_BOUND, _OBSTACLE, _HUNGER = 5.0, 5.0, 0.05
# Standard deviation of the noise on each component of a fleeing prey's force.
_NOISE = 0.2
# From here on mpe2 fines a prey for leaving.
_EDGE = 0.9


class Prey(Protocol):
    """What moves all prey of one world."""

    def reset(self, rng: Generator) -> None:
        """Begin an episode, all randomness of which comes from `rng`."""

    def forces(self, obs: FloatArray) -> FloatArray:
        """Map the prey's observations (P, O) to forces (P, 2) in [-1, 1]."""


@dataclass(frozen=True)
class World:
    """What a prey knows of its world besides what it observes."""

    n_predators: int
    # Landmarks are observed in this order; others (food, forests) follow.
    n_obstacles: int
    n_food: int
    n_landmarks: int
    # Distance of the centres at which a prey touches an obstacle.
    obstacle_reach: float
    predator_reach: float
    predator_speed: float
    # Of a prey: what a unit force adds to the speed per step, and the speed's limit.
    push: float
    max_speed: float
    # Seconds per step, and the share of the velocity that a step takes.
    dt: float
    damping: float


class Wander:
    """Push in a direction and with a strength that are uniform over [-1, 1]^2, anew in every step."""

    def __init__(self, world: World) -> None:
        self._rng = np.random.default_rng()

    def reset(self, rng: Generator) -> None:
        self._rng = rng

    def forces(self, obs: FloatArray) -> FloatArray:
        return self._rng.uniform(-1.0, 1.0, (len(obs), 2)).astype(np.float32)


class Flee:
    """Take the force that, held for some steps, leads away from predators, noisily.

    Weighs 16 directions at full force and no force at all by where each leads: near predators, which
    fear counts, out of the arena, into an obstacle, or away from food. A predator that a forest hides
    from it is not feared.
    """

    def __init__(self, world: World) -> None:
        self._world = world
        self._rng = np.random.default_rng()
        angles = np.arange(_HEADINGS) * 2 * np.pi / _HEADINGS
        headings = np.stack([np.cos(angles), np.sin(angles)], axis=1)
        full = headings / np.abs(headings).max(axis=1, keepdims=True)
        self._options: NDArray[np.float64] = np.concatenate([full, np.zeros((1, 2))])

    def reset(self, rng: Generator) -> None:
        self._rng = rng

    def forces(self, obs: FloatArray) -> FloatArray:
        cost = self._cost(obs.astype(np.float64))
        chosen = self._options[cost.argmin(axis=1)]
        noisy = chosen + _NOISE * self._rng.standard_normal(chosen.shape)
        return np.clip(noisy, -1.0, 1.0).astype(np.float32)

    def _cost(self, obs: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return what each option leads to, (P, options): the lower the better."""
        world = self._world
        position = obs[:, None, 2:4]
        landmarks = obs[:, 4 : 4 + 2 * world.n_landmarks].reshape(len(obs), 1, -1, 2)
        obstacles = landmarks[:, :, : world.n_obstacles]
        start = 4 + 2 * world.n_landmarks
        predators = obs[:, start : start + 2 * world.n_predators].reshape(len(obs), 1, -1, 2)
        feared = (predators != 0).any(axis=3)
        speed = obs[:, None, :2]
        # All that follows is relative to where the prey is now.
        at = np.zeros((1, 1, 2))
        cost = np.zeros((len(obs), len(self._options)))
        for _ in range(_HORIZON):
            at = at + speed * world.dt
            speed = _within(speed * (1 - world.damping) + world.push * self._options, world.max_speed)
            gap = at[:, :, None] - predators
            distance = np.sqrt((gap * gap).sum(axis=3))
            predators = predators + gap * np.minimum(1.0, world.predator_speed * world.dt / np.maximum(distance, 1e-9))[..., None]
            cost = cost + (feared * np.exp((world.predator_reach - distance) / _FEAR)).sum(axis=2)
            cost += _BOUND * np.maximum(np.abs(position + at) - _EDGE, 0.0).sum(axis=2)
            within = world.obstacle_reach - np.linalg.norm(at[:, :, None] - obstacles, axis=3)
            cost += _OBSTACLE * np.maximum(within, 0.0).sum(axis=2)
        if world.n_food:
            food = landmarks[:, :, world.n_obstacles : world.n_obstacles + world.n_food]
            cost += _HORIZON * _HUNGER * np.linalg.norm(at[:, :, None] - food, axis=3).min(axis=2)
        return cost / _HORIZON


def _within(vectors: NDArray[np.float64], limit: float) -> NDArray[np.float64]:
    norm = np.sqrt((vectors * vectors).sum(axis=-1, keepdims=True))
    return vectors * (limit / np.maximum(norm, limit))
