"""Scripted play for StarCraft II battles: focus fire, from each agent's own observation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from macflow.envs.behaviours import draw_each, episode_generator, pick_legal
from macflow.types import ActionArray, BoolArray, FloatArray, MultiAgentSpec, Seen

# Actions of the package: nothing (the dead only), stop, four moves, then one per target.
STOP = 1
FIRST_MOVE = 2
FIRST_TARGET = 6
# North, south, east, west.
MOVES = np.array([[0, 1], [0, -1], [1, 0], [-1, 0]], np.float32)

# How often an episode's agents act at random.
Stray = Callable[[Generator], float]


@dataclass(frozen=True)
class Layout:
    """What decides how long the parts of observations and state are on a map."""

    ally_shields: bool
    enemy_shields: bool
    # Size of the one-hot unit type; 0 where a team has one type only.
    type_bits: int
    # Whether an ally of the last type heals allies, and so has them for targets.
    healers: bool

    @property
    def enemy_features(self) -> int:
        """Return the numbers per enemy: in range, distance, offset (2), health, shield, type."""
        return 5 + self.enemy_shields + self.type_bits

    @property
    def ally_features(self) -> int:
        """Return the numbers per other ally: in sight, distance, offset (2), health, shield, type."""
        return 5 + self.ally_shields + self.type_bits


class FocusFire:
    """Shoot the weakest enemy in range; with none in range, walk to the nearest in sight.

    With none in sight, an agent walks to the nearest living enemy of the state: the one thing it does not
    do from its own observation. Healers heal the weakest ally that they reach, or follow the nearest.
    With a probability drawn per episode an agent takes a uniform legal action instead.
    """

    def __init__(self, spec: MultiAgentSpec, layout: Layout, stray: Stray) -> None:
        self._n = spec.n_agents
        self._m = spec.action_size - FIRST_TARGET
        self._layout = layout
        self._stray = stray
        self._others = np.array([[j for j in range(self._n) if j != i] for i in range(self._n)], np.int64)
        self._episodes: list[Generator] = []
        self._chance: NDArray[np.float64] = np.zeros((0, 1))

    def reset(self, seeds: Sequence[int]) -> None:
        self._episodes = [episode_generator(seed) for seed in seeds]
        self._chance = np.array([[self._stray(rng)] for rng in self._episodes])

    def act(self, seen: Seen) -> ActionArray:
        assert seen.legal_actions is not None
        obs, legal = seen.obs, seen.legal_actions
        chosen = self._fight(obs, seen.state, legal)
        if self._layout.healers:
            heals = obs[:, :, -1] > 0  # the last number is the last type's
            chosen = np.where(heals, self._heal(obs, legal), chosen)
        chosen = np.where(legal[:, :, 0], 0, chosen)
        draws = draw_each(self._episodes, lambda rng: rng.random((2, self._n)))
        stray = pick_legal(draws[:, 0], legal, legal.shape)
        return np.where(draws[:, 1] < self._chance, stray, chosen)

    def _fight(self, obs: FloatArray, state: FloatArray, legal: BoolArray) -> ActionArray:
        e, n, m, size = len(obs), self._n, self._m, self._layout.enemy_features
        enemies = obs[:, :, 4 : 4 + m * size].reshape(e, n, m, size)
        attacks = legal[:, :, FIRST_TARGET:]
        # Legal attacks can be out of range where the environment does not mask them.
        in_range = attacks & (enemies[..., 0] > 0)
        strength = enemies[..., 4 : 5 + self._layout.enemy_shields].sum(axis=3)
        shot = FIRST_TARGET + np.where(in_range, strength, np.inf).argmin(axis=2)
        in_sight = enemies[..., 1] > 0
        heading = _nearest(enemies[..., 2:4], enemies[..., 1], in_sight)
        looks = np.asarray(in_sight.any(axis=2))
        walk = _walk(np.where(looks[:, :, None], heading, self._search(state)), legal)
        # An enemy in range can be hidden by the package: the first target is then as good as another.
        blind = FIRST_TARGET + attacks.argmax(axis=2)
        unseen = np.where(attacks.any(axis=2) & ~looks, blind, walk)
        return np.where(in_range.any(axis=2), shot, unseen)

    def _search(self, state: FloatArray) -> FloatArray:
        """Return the way (E, N, 2) from each ally to the nearest living enemy, in shares of the map."""
        e, n, m = len(state), self._n, self._m
        # Of an ally: health, cooldown, position (2), ...; of an enemy: health, position (2), ...
        own, theirs = self._layout.ally_features - 1, self._layout.enemy_features - 2
        allies = state[:, : n * own].reshape(e, n, own)
        enemies = state[:, n * own : n * own + m * theirs].reshape(e, m, theirs)
        ways = enemies[:, None, :, 1:3] - allies[:, :, None, 2:4]
        alive = np.broadcast_to(enemies[:, None, :, 0] > 0, (e, n, m))
        return _nearest(ways, np.linalg.norm(ways, axis=3), alive)

    def _heal(self, obs: FloatArray, legal: BoolArray) -> ActionArray:
        e, n, size = len(obs), self._n, self._layout.ally_features
        start = 4 + self._m * self._layout.enemy_features
        others = obs[:, :, start : start + (n - 1) * size].reshape(e, n, n - 1, size)
        in_sight = others[..., 0] > 0
        health = np.full((e, n, n), np.inf, np.float32)
        health[:, np.arange(n)[:, None], self._others] = np.where(in_sight, others[..., 4], np.inf)
        reached = legal[:, :, FIRST_TARGET : FIRST_TARGET + n]
        patient = FIRST_TARGET + np.where(reached, health, np.inf).argmin(axis=2)
        near = (reached & np.isfinite(health)).any(axis=2)
        return np.where(near, patient, _walk(_nearest(others[..., 2:4], others[..., 1], in_sight), legal))


def _nearest(offsets: FloatArray, distances: FloatArray, there: BoolArray) -> FloatArray:
    """Return the offset (E, N, 2) of the nearest of (E, N, M) that are there; zero where none is."""
    distances = np.where(there, distances, np.inf)
    row = distances.argmin(axis=2)[:, :, None, None]
    nearest = np.take_along_axis(offsets, row, axis=2)[:, :, 0]
    some = np.asarray(there.any(axis=2))
    return np.where(some[:, :, None], nearest, np.float32(0))


def _walk(heading: FloatArray, legal: BoolArray) -> ActionArray:
    """Choose the legal move that gains most in the direction (E, N, 2); stop where none gains."""
    gains = heading @ MOVES.T
    gains = np.where(legal[:, :, FIRST_MOVE:FIRST_TARGET], gains, -np.inf)
    return np.where(gains.max(axis=2) > 0, FIRST_MOVE + gains.argmax(axis=2), STOP)
