"""Play for SMAX from each agent's own observation, with more or less noise: focus fire, and a trained net."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from macflow.envs.behaviours import Behaviour, Uniform, draw_each, episode_generator, pick_legal
from macflow.envs.controllers import FOLDER as WEIGHTS
from macflow.envs.controllers import hidden_and_head, load_layers
from macflow.types import ActionArray, Actor, BoolArray, DataError, FloatArray, MultiAgentSpec, Seen

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


class Straying(ABC):
    """Play a battle; with a probability drawn per episode an agent takes a uniform legal action instead."""

    def __init__(self, spec: MultiAgentSpec, noise: Noise) -> None:
        self._n = spec.n_agents
        self._noise = noise
        self._episodes: list[Generator] = []
        self._chance: NDArray[np.float64] = np.zeros((0, 1))

    def reset(self, seeds: Sequence[int]) -> None:
        self._episodes = [episode_generator(seed) for seed in seeds]
        self._chance = np.array([[self._noise(rng)] for rng in self._episodes])

    def act(self, seen: Seen) -> ActionArray:
        legal = seen.legal_actions
        if legal is None:
            raise DataError("battles are played by `legal_actions`, which say who is in range")
        chosen = self._choose(seen.obs, legal)
        draws = draw_each(self._episodes, lambda rng: rng.random((2, self._n)))
        stray = pick_legal(draws[:, 0], legal, legal.shape)
        actions: ActionArray = np.where(draws[:, 1] < self._chance, stray, chosen)
        return actions

    @abstractmethod
    def _choose(self, obs: FloatArray, legal: BoolArray) -> ActionArray:
        """Return the actions (E, N) of agents that do not stray."""


class FocusFire(Straying):
    """Shoot the enemy in range with the least health; otherwise close in on the nearest in sight.

    With nobody in sight an agent heads for its starting place mirrored at the map's centre, as the
    enemy does; where `gathers`, it first joins the allies that it sees.
    """

    def __init__(self, spec: MultiAgentSpec, noise: Noise, gathers: bool) -> None:
        super().__init__(spec, noise)
        self._enemies = spec.action_size - STOP - 1
        self._gathers = gathers
        # (E, N, 2) in shares of the map; set by the first look of an episode.
        self._goals: FloatArray | None = None

    def reset(self, seeds: Sequence[int]) -> None:
        super().reset(seeds)
        self._goals = None

    def _choose(self, obs: FloatArray, legal: BoolArray) -> ActionArray:
        e, n = len(obs), self._n
        own = obs[:, :, -OWN_FEATURES:]
        others = obs[:, :, :-OWN_FEATURES].reshape(e, n, n - 1 + self._enemies, UNIT_FEATURES)
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
        return np.where(in_range.any(axis=2), STOP + 1 + target, np.where(alive, moves, STOP))

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


class Trained(Straying):
    """Play by a net of each agent's own observation and index, the likeliest legal action.

    `tools/train_battle.py` makes the weights; they lie in `weights/SCENARIO/LEVEL.safetensors`.
    """

    def __init__(self, spec: MultiAgentSpec, noise: Noise, scenario: str, level: str) -> None:
        super().__init__(spec, noise)
        self._layers = load_layers(
            WEIGHTS / scenario / f"{level}.safetensors",
            (spec.obs_size + spec.n_agents, spec.action_size),
            "tools/train_battle.py",
        )

    def _choose(self, obs: FloatArray, legal: BoolArray) -> ActionArray:
        ids = np.broadcast_to(np.eye(self._n, dtype=np.float32), (len(obs), self._n, self._n))
        logits = hidden_and_head(self._layers, np.concatenate([obs, ids], axis=2))
        actions: ActionArray = np.where(legal, logits, -np.inf).argmax(axis=2)
        return actions


# Plays with the noise that an episode draws.
Play = Callable[[MultiAgentSpec, Noise], Actor]


def qualities(play: Play) -> Mapping[str, Behaviour]:
    """Return the customary qualities of `play`, and `random`."""

    def playing(noise: Noise) -> Behaviour:
        return lambda spec: play(spec, noise)

    return MappingProxyType(
        {
            "expert": playing(lambda rng: 0.0),
            "medium": playing(lambda rng: MEDIUM_NOISE),
            "medium-replay": playing(lambda rng: rng.uniform(MEDIUM_NOISE, 1.0)),
            "medium-expert": playing(lambda rng: MEDIUM_NOISE * float(rng.random() < 0.5)),
            "random": Uniform,
        }
    )


def scripted(gathers: bool) -> Mapping[str, Behaviour]:
    """Return the customary qualities of focus fire, and `random`."""
    return qualities(lambda spec, noise: FocusFire(spec, noise, gathers))


def outnumbered(scenario: str) -> Mapping[str, Behaviour]:
    """Return the customary qualities of trained agents, and focus fire, which hardly ever wins there."""

    def focus_fire(noise: float) -> Behaviour:
        return lambda spec: FocusFire(spec, lambda rng: noise, gathers=True)

    return MappingProxyType(
        {
            **qualities(lambda spec, noise: Trained(spec, noise, scenario, "expert")),
            "focus-fire": focus_fire(0.0),
            "noisy-focus-fire": focus_fire(MEDIUM_NOISE),
        }
    )
