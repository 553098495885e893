"""Scripted prey of the predator-prey worlds: what the learned team plays against.

A prey acts on the observation that mpe2 gives it, and on its episode's own random numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal, Protocol

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from macflow.types import FloatArray

# Directions that a fleeing prey weighs.
_HEADINGS = 16
# Steps that it looks ahead; a force moves its agent in the step after the next.
_HORIZON = 6
# Fear of a predator is 1 where they touch, and falls to 1 / e over this distance.
_FEAR = 0.3
# On the same scale, per length: leaving the arena, entering an obstacle, being away from food.
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
    # Distance of the centres at which a prey touches an obstacle, or a predator.
    obstacle_reach: float
    predator_reach: float
    # The most that a predator's can be.
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

    Weighs 16 directions at force 1 and no force at all by where each leads in the next steps while
    all predators run straight at it: near to them, out of the arena, into an obstacle, or away from
    food. A predator that a forest hides from it, which mpe2 shows at (0, 0), is not feared.
    """

    def __init__(self, world: World) -> None:
        self._world = world
        self._rng = np.random.default_rng()
        angles = np.arange(_HEADINGS) * 2 * np.pi / _HEADINGS
        headings = np.stack([np.cos(angles), np.sin(angles)], axis=1)
        # Of length 1 each: a force into a corner of [-1, 1]^2 is longer, and would always be the best.
        self._options: NDArray[np.float64] = np.concatenate([headings, np.zeros((1, 2))])

    def reset(self, rng: Generator) -> None:
        self._rng = rng

    def forces(self, obs: FloatArray) -> FloatArray:
        cost = self._cost(obs)
        chosen = self._options[cost.argmin(axis=1)]
        noisy = chosen + _NOISE * self._rng.standard_normal(chosen.shape)
        forces: FloatArray = np.clip(noisy, -1.0, 1.0).astype(np.float32)
        return forces

    def _cost(self, obs: FloatArray) -> NDArray[np.float64]:
        """Return what each option leads to, (P, options): the lower the better."""
        world = self._world
        seen = obs.astype(np.float64)
        position, speed = seen[:, None, 2:4], seen[:, None, :2]
        landmarks, predators = self._surroundings(seen)
        obstacles = landmarks[:, :, : world.n_obstacles]
        food = landmarks[:, :, world.n_obstacles : world.n_obstacles + world.n_food]
        feared = (predators != 0).any(axis=3)
        cost: NDArray[np.float64] = np.zeros((len(obs), len(self._options)))
        # All that follows is relative to where the prey is now.
        at = np.zeros((1, 1, 2))
        for _ in range(_HORIZON):
            at = at + speed * world.dt
            speed = _within(speed * (1 - world.damping) + world.push * self._options, world.max_speed)
            gap = at[:, :, None] - predators
            cost += (feared * np.exp((world.predator_reach - _lengths(gap)) / _FEAR)).sum(axis=2)
            predators = predators + _within(gap, world.predator_speed * world.dt)
            cost += _BOUND * np.maximum(np.abs(position + at) - _EDGE, 0.0).sum(axis=2)
            depth = world.obstacle_reach - _lengths(at[:, :, None] - obstacles)
            cost += _OBSTACLE * np.maximum(depth, 0.0).sum(axis=2)
        cost /= _HORIZON
        if world.n_food:
            cost += _HUNGER * _lengths(at[:, :, None] - food).min(axis=2)
        return cost

    def _surroundings(self, seen: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return where landmarks and predators are, relative to each prey: (P, 1, things, 2) each."""
        middle = 4 + 2 * self._world.n_landmarks
        end = middle + 2 * self._world.n_predators
        shape = (len(seen), 1, -1, 2)
        return seen[:, 4:middle].reshape(shape), seen[:, middle:end].reshape(shape)


PreyName = Literal["flee", "random"]
PREY: Mapping[PreyName, Callable[[World], Prey]] = MappingProxyType({"flee": Flee, "random": Wander})


def _lengths(vectors: NDArray[np.float64]) -> NDArray[np.float64]:
    lengths: NDArray[np.float64] = np.sqrt((vectors * vectors).sum(axis=-1))
    return lengths


def _within(vectors: NDArray[np.float64], limit: float) -> NDArray[np.float64]:
    """Shorten what is longer than `limit`."""
    shortened: NDArray[np.float64] = vectors * (limit / np.maximum(_lengths(vectors), limit))[..., None]
    return shortened
