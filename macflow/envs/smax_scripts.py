"""Scripted play for SMAX: focus fire, with more or less noise, from each agent's own observation."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from macflow.envs.behaviours import Behaviour, Uniform, draw_each, episode_generator, pick_legal
from macflow.types import ActionArray, BoolArray, DataError, FloatArray, MultiAgentSpec, Seen

# Of another unit in an observation: health (1 is full), offset (2, in sight ranges of the observer),
# last move (2), last target, weapon cooldown, type (6).
UNIT_FEATURES = 13
# Of oneself, at the end: health, position (2, in shares of the map), weapon cooldown, type (6).
OWN_FEATURES = 10
# Actions: 0 to 3 move so, 4 stops, the others shoot.
MOVES = np.array([[0, 1], [1, 0], [0, -1], [-1, 0]], np.float32)
STOP = 4
# By type: marine, marauder, stalker, zealot, zergling, hydralisk.
FULL_HEALTH = np.array([45, 125, 160, 150, 35, 80], np.float32)
SIGHT_RANGE = np.array([9, 10, 10, 9, 8, 9], np.float32)
# How much health, in points, one length nearer makes up for in the choice of a target.
HEALTH_PER_LENGTH = 2.0
# Where agents gather first: so far from the allies' middle, in lengths, is near enough.
GATHERED = 1.5
MEDIUM_NOISE = 0.2

# How often an episode's agents act at random: drawn once per episode.
Noise = Callable[[Generator], float]


class FocusFire:
    """Shoot the enemy in range with the least health; otherwise close in on the nearest in sight.

    With nobody in sight an agent heads for its starting place mirrored at the map's centre, as the
    enemy does; where `gathers`, it first joins the allies that it sees. With a probability drawn per
    episode an agent takes a uniform legal action instead.
    """

    def __init__(self, spec: MultiAgentSpec, noise: Noise, gathers: bool) -> None:
        self._n = spec.n_agents
        self._enemies = spec.action_size - STOP - 1
        self._noise = noise
        self._gathers = gathers
        self._episodes: list[Generator] = []
        self._chance: NDArray[np.float64] = np.zeros((0, 1))
        # (E, N, 2) in shares of the map; set by the first look of an episode.
        self._goals: FloatArray | None = None

    def reset(self, seeds: Sequence[int]) -> None:
        self._episodes = [episode_generator(seed) for seed in seeds]
        self._chance = np.array([[self._noise(rng)] for rng in self._episodes])
        self._goals = None

    def act(self, seen: Seen) -> ActionArray:
        legal = seen.legal_actions
        if legal is None:
            raise DataError("focus fire needs `legal_actions` to know who is in range")
        e, n = len(seen.obs), self._n
        own = seen.obs[:, :, -OWN_FEATURES:]
        others = seen.obs[:, :, :-OWN_FEATURES].reshape(e, n, n - 1 + self._enemies, UNIT_FEATURES)
        sight = (own[:, :, 4:] @ SIGHT_RANGE)[:, :, None, None]
        allies, enemies = others[:, :, : n - 1], others[:, :, n - 1 :]
        offsets = enemies[..., 1:3] * sight  # (E, N, enemies, 2) lengths
        visible = np.asarray(others[..., 0] > 0)
        in_sight = visible[:, :, n - 1 :]
        distance = np.where(in_sight, np.linalg.norm(offsets, axis=3), np.inf)

        in_range = legal[:, :, STOP + 1 :]
        health = enemies[..., 0] * (enemies[..., 7:] @ FULL_HEALTH)
        target = np.where(in_range, health + HEALTH_PER_LENGTH * distance, np.inf).argmin(axis=2)

        nearest = np.take_along_axis(offsets, distance.argmin(axis=2)[:, :, None, None], axis=2)[:, :, 0]
        ahead = self._ahead(own[:, :, 1:3], visible[:, :, : n - 1], allies[..., 1:3] * sight)
        heading = np.where(in_sight.any(axis=2, keepdims=True), nearest, ahead)
        moves = (heading @ MOVES.T).argmax(axis=2)

        alive = legal[:, :, 0]
        chosen = np.where(in_range.any(axis=2), STOP + 1 + target, np.where(alive, moves, STOP))
        draws = draw_each(self._episodes, lambda rng: rng.random((2, n)))
        stray = pick_legal(draws[:, 0], legal, legal.shape)
        actions: ActionArray = np.where(draws[:, 1] < self._chance, stray, chosen)
        return actions

    def _ahead(self, position: FloatArray, ally_in_sight: BoolArray, allies: FloatArray) -> FloatArray:
        """Return where to (E, N, 2) with no enemy in sight; `allies`: (E, N, N - 1, 2) from the agent."""
        if self._goals is None:
            self._goals = 1.0 - position
        onward: FloatArray = self._goals - position
        if not self._gathers:
            return onward
        count = np.maximum(1, ally_in_sight.sum(axis=2))[:, :, None]
        middle = np.where(ally_in_sight[..., None], allies, 0.0).sum(axis=2) / count
        apart = np.linalg.norm(middle, axis=2) > GATHERED
        joined: FloatArray = np.where(apart[:, :, None], middle, onward)
        return joined


def qualities(gathers: bool) -> Mapping[str, Behaviour]:
    """Return the customary qualities of focus fire, and `random`."""
    return MappingProxyType(
        {
            "expert": _focus_fire(lambda rng: 0.0, gathers),
            "medium": _focus_fire(lambda rng: MEDIUM_NOISE, gathers),
            "medium-replay": _focus_fire(lambda rng: rng.uniform(MEDIUM_NOISE, 1.0), gathers),
            "medium-expert": _focus_fire(lambda rng: MEDIUM_NOISE * float(rng.random() < 0.5), gathers),
            "random": Uniform,
        }
    )


def outnumbered() -> Mapping[str, Behaviour]:
    """Return focus fire under names that promise nothing, where it hardly ever wins, and `random`."""
    return MappingProxyType(
        {
            "focus-fire": _focus_fire(lambda rng: 0.0, gathers=True),
            "noisy-focus-fire": _focus_fire(lambda rng: MEDIUM_NOISE, gathers=True),
            "random": Uniform,
        }
    )


def _focus_fire(noise: Noise, gathers: bool) -> Behaviour:
    return lambda spec: FocusFire(spec, noise, gathers)
