"""Scripted behaviours to record: what each agent does, and how good and how varied it is.

All here act on raw observations alone, plus what each episode draws from its own seed.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from macflow.types import ActionArray, Actor, BoolArray, FloatArray, MultiAgentSpec, Seen

Behaviour = Callable[[MultiAgentSpec], Actor]
# Targets (E, N, 2) relative to each agent, velocities (E, N, 2) -> wanted action (E, N, 2) in [-1, 1].
Control = Callable[[FloatArray, FloatArray], FloatArray]

# Keeps a behaviour's random numbers apart from those the environment draws from the same seed.
_STREAM = 0x6D61_6366


@dataclass(frozen=True)
class Skill:
    """How well one episode is played."""

    # Share of the controller's speed, in (0, 1].
    vigour: float
    # Standard deviation of the Gaussian noise on each action dimension.
    noise: float
    # Weight of the controller's action against a uniform one's; 0 acts at random.
    control: float = 1.0


Quality = Callable[[Generator], Skill]


class Uniform:
    """Act uniformly at random over the bounds, or over the legal actions."""

    def __init__(self, spec: MultiAgentSpec) -> None:
        self._spec = spec
        self._episodes: list[Generator] = []

    def reset(self, seeds: Sequence[int]) -> None:
        self._episodes = [episode_generator(seed) for seed in seeds]

    def act(self, seen: Seen) -> ActionArray:
        spec = self._spec
        if spec.discrete:
            draws = draw_each(self._episodes, lambda rng: rng.random(spec.n_agents))
            return pick_legal(draws, seen.legal_actions, (len(draws), spec.n_agents, spec.action_size))
        low, high = np.array(spec.action_low, np.float32), np.array(spec.action_high, np.float32)
        shape = (spec.n_agents, spec.action_size)
        actions: ActionArray = low + (high - low) * draw_each(
            self._episodes, lambda rng: rng.random(shape, np.float32)
        )
        return actions


class Scripted(ABC):
    """Control each agent by a script that each episode plays with a skill, and a plan, of its own."""

    def __init__(self, spec: MultiAgentSpec, quality: Quality) -> None:
        self._spec = spec
        self._quality = quality
        self._episodes: list[Generator] = []
        # Of each episode: vigour, noise and control, (3, E, 1, 1).
        self._skills: FloatArray = np.zeros((3, 0, 1, 1), np.float32)
        self._plans: NDArray[np.int64] = np.zeros((0, spec.n_agents), np.int64)

    @abstractmethod
    def _wanted(self, seen: Seen, vigour: FloatArray) -> FloatArray:
        """Return the actions (E, N, 2) of a skill that has only its vigour (E, 1, 1)."""

    def reset(self, seeds: Sequence[int]) -> None:
        self._episodes = [episode_generator(seed) for seed in seeds]
        # Uniform over the permutations of the agents, and shown to nobody.
        self._plans = draw_each(self._episodes, lambda rng: rng.permutation(self._spec.n_agents))
        skills = [self._quality(rng) for rng in self._episodes]
        table = np.array([[s.vigour, s.noise, s.control] for s in skills], np.float32)
        self._skills = table.T[:, :, None, None]

    def act(self, seen: Seen) -> ActionArray:
        vigour, noise, control = self._skills
        shape = (self._spec.n_agents, 2)
        wanted = self._wanted(seen, vigour)
        wanted = wanted + noise * draw_each(
            self._episodes, lambda rng: rng.standard_normal(shape, np.float32)
        )
        return self._mix(wanted, control)

    def _mix(self, wanted: FloatArray, control: FloatArray) -> ActionArray:
        """Weigh the wanted actions (E, N, 2) by control (E, 1, 1) against uniform ones."""
        shape = (self._spec.n_agents, 2)
        stray = draw_each(self._episodes, lambda rng: rng.random(shape, np.float32)) * 2 - 1
        actions: ActionArray = np.clip(control * wanted + (1 - control) * stray, -1.0, 1.0)
        return actions


class Cover(Scripted):
    """Drive each agent to a landmark of its own, assigned by a permutation drawn per episode.

    The draw is uniform and shown to nobody, so a state has up to N! right joint actions and the
    recorded joint behaviour is truly multi-modal. Expects observations that begin with
    [velocity (2), position (2)] where `has_velocity`, else [position (2)], followed by the
    landmarks' positions relative to the agent (2 N).
    """

    def __init__(
        self,
        spec: MultiAgentSpec,
        control: Control,
        quality: Quality,
        has_velocity: bool,
        dead_zone: float = 0.0,
    ) -> None:
        super().__init__(spec, quality)
        self._control = control
        self._has_velocity = has_velocity
        # Discrete only: a wanted push shorter than this is no push.
        self._dead_zone = dead_zone

    def _wanted(self, seen: Seen, vigour: FloatArray) -> FloatArray:
        e, n = self._plans.shape
        start = 4 if self._has_velocity else 2
        obs = seen.obs
        landmarks = obs[:, :, start : start + 2 * n].reshape(e, n, n, 2)
        targets = np.take_along_axis(landmarks, self._plans[:, :, None, None], axis=2)[:, :, 0]
        velocity = obs[:, :, :2] if self._has_velocity else np.zeros_like(targets)
        return self._control(vigour * targets, velocity)

    def _mix(self, wanted: FloatArray, control: FloatArray) -> ActionArray:
        return self._push(wanted, control[:, :, 0]) if self._spec.discrete else super()._mix(wanted, control)

    def _push(self, wanted: FloatArray, control: FloatArray) -> ActionArray:
        """Choose among mpe2's [none, left, right, down, up] the push nearest to `wanted`."""
        n = self._spec.n_agents
        axis = np.abs(wanted).argmax(axis=2)
        along = np.take_along_axis(wanted, axis[:, :, None], axis=2)[:, :, 0]
        actions = np.where(np.abs(along) < self._dead_zone, 0, 1 + 2 * axis + (along > 0))
        stray = draw_each(self._episodes, lambda rng: rng.integers(0, 5, n))
        strays = draw_each(self._episodes, lambda rng: rng.random(n)) >= control
        return np.where(strays, stray, actions)


class JointChoice:
    """Play one joint action per episode, drawn from a table of joint actions and probabilities."""

    def __init__(self, spec: MultiAgentSpec, table: Mapping[tuple[int, ...], float]) -> None:
        self._joint = np.array(list(table), np.int64)  # (choices, N)
        self._probabilities = np.array(list(table.values()))
        self._actions: ActionArray = np.zeros((0, spec.n_agents), np.int64)

    def reset(self, seeds: Sequence[int]) -> None:
        rows = [episode_generator(s).choice(len(self._joint), p=self._probabilities) for s in seeds]
        self._actions = self._joint[rows]

    def act(self, seen: Seen) -> ActionArray:
        return self._actions.copy()


class Agreement:
    """Draw signs per episode, each agent at its own noisy distance from zero.

    In a share `together` of the episodes all agents follow one sign, in the others each its own: the
    correlation of two agents' signs is `together`, their own distribution is always the same.
    """

    def __init__(self, spec: MultiAgentSpec, mean: float, deviation: float, together: float = 1.0) -> None:
        self._shape = (spec.n_agents, spec.action_size)
        self._together = together
        self._mean = mean
        self._deviation = deviation
        self._episodes: list[Generator] = []
        self._signs: FloatArray = np.zeros((0, 1, 1), np.float32)

    def reset(self, seeds: Sequence[int]) -> None:
        self._episodes = [episode_generator(seed) for seed in seeds]
        self._signs = draw_each(self._episodes, self._draw_signs)

    def _draw_signs(self, rng: Generator) -> FloatArray:
        n_agents = self._shape[0]
        shared = np.full((n_agents, 1), 2 * rng.integers(2) - 1, np.float32)
        if self._together < 1 and rng.random() >= self._together:
            return (2 * rng.integers(2, size=(n_agents, 1)) - 1).astype(np.float32)
        return shared

    def act(self, seen: Seen) -> ActionArray:
        noise = draw_each(self._episodes, lambda rng: rng.standard_normal(self._shape, np.float32))
        actions: ActionArray = np.clip(self._signs * (self._mean + self._deviation * noise), -1.0, 1.0)
        return actions


def always(skill: Skill) -> Quality:
    """Play every episode with the same skill."""
    return lambda rng: skill


def replay_of(best: Skill) -> Quality:
    """Draw how much of `best` an episode shows, from nothing (random) to all, uniformly."""
    return lambda rng: replace(best, control=float(rng.random()))


def half_and_half(first: Skill, second: Skill) -> Quality:
    """Play each episode with one of two skills, at even odds."""
    return lambda rng: first if rng.random() < 0.5 else second


def customary(
    play: Callable[[MultiAgentSpec, Quality], Actor],
    skills: Callable[[MultiAgentSpec], tuple[Skill, Skill]],
) -> Mapping[str, Behaviour]:
    """Return the customary qualities of a script; `skills`: (medium, expert)."""

    def playing(quality: Callable[[Skill, Skill], Quality]) -> Behaviour:
        return lambda spec: play(spec, quality(*skills(spec)))

    return MappingProxyType(
        {
            "expert": playing(lambda medium, expert: always(expert)),
            "medium": playing(lambda medium, expert: always(medium)),
            "medium-replay": playing(lambda medium, expert: replay_of(medium)),
            "medium-expert": playing(half_and_half),
            "random": Uniform,
        }
    )


def covering(
    skills: Callable[[MultiAgentSpec], tuple[Skill, Skill]],
    control: Control,
    has_velocity: bool,
    dead_zone: float = 0.0,
) -> Mapping[str, Behaviour]:
    """Return the customary qualities of an environment with landmarks; `skills`: (medium, expert)."""
    return customary(lambda spec, quality: Cover(spec, control, quality, has_velocity, dead_zone), skills)


def episode_generator(seed: int) -> Generator:
    """Return a behaviour's generator for the episode of `seed`, apart from the environment's."""
    return np.random.default_rng([_STREAM, seed])


def draw_each(episodes: Sequence[Generator], draw: Callable[[Generator], NDArray[Any]]) -> NDArray[Any]:
    """Let every episode draw from its own generator, (E, ...)."""
    return np.stack([draw(rng) for rng in episodes])


def pick_legal(
    draws: NDArray[np.float64], legal: BoolArray | None, shape: tuple[int, int, int]
) -> ActionArray:
    """Turn uniform draws (E, N) into indices uniform over the legal actions."""
    mask = np.ones(shape, np.bool_) if legal is None else legal
    rank = np.floor(draws * mask.sum(axis=2)).astype(np.int64)
    picked: ActionArray = (mask.cumsum(axis=2) > rank[:, :, None]).argmax(axis=2)
    return picked
