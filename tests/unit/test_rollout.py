"""Rollouts, GIFs and latency on a small environment whose episodes are known beforehand."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from macflow.evaluation.rollout import MAX_FRAMES, latency_us, record_gif, rollout
from macflow.types import ActionArray, BatchObs, BoolArray, DataError, FloatArray, Seen

N = 2


@dataclass(frozen=True)
class Step:
    obs: FloatArray
    legal_actions: BoolArray | None
    rewards: FloatArray
    terminated: BoolArray
    truncated: BoolArray


class Walk:
    """Agents add up their actions; an episode of seed s terminates after 3 + s % 4 steps, or is cut at 6."""

    def __init__(self, n_envs: int, max_steps: int = 6, endless: bool = False) -> None:
        self.n_envs = n_envs
        self.max_steps = max_steps
        self.endless = endless

    def reset(self, seeds: Sequence[int], /) -> Step:
        assert len(seeds) == self.n_envs
        self.seeds = np.array(seeds)
        self.clock = np.zeros(self.n_envs, np.int64)
        self.place = np.repeat(self.seeds[:, None, None], N, axis=1).astype(np.float32)
        self.terminated = np.zeros(self.n_envs, np.bool_)
        self.truncated = np.zeros(self.n_envs, np.bool_)
        return self._step(np.zeros((self.n_envs, N), np.float32))

    def step(self, actions: ActionArray, /) -> Step:
        running = ~(self.terminated | self.truncated)
        self.clock += running
        self.place += np.where(running[:, None, None], actions, 0)
        if not self.endless:
            self.terminated |= self.clock >= 3 + self.seeds % 4
            self.truncated |= ~self.terminated & (self.clock >= self.max_steps)
        # An environment that has ended goes on paying, which must not count.
        return self._step(np.stack([self.clock, 2 * self.clock], axis=1).astype(np.float32))

    def render(self, index: int, /) -> NDArray[np.uint8]:
        frame = np.full((40, 60, 3), 255, np.uint8)
        column = int(self.clock[index]) % 50
        frame[10:20, column : column + 10] = (200, 30, 30)
        return frame

    def _step(self, rewards: FloatArray) -> Step:
        return Step(self.place.copy(), None, rewards, self.terminated.copy(), self.truncated.copy())


class Noisy:
    """Act by noise from each episode's own seed."""

    def reset(self, seeds: Sequence[int]) -> None:
        self.streams = [np.random.default_rng(seed) for seed in seeds]

    def act(self, seen: Seen) -> ActionArray:
        return np.stack([stream.normal(size=(N, 1)) for stream in self.streams])


class Recorder(Noisy):
    def __init__(self) -> None:
        self.seen: list[int] = []

    def reset(self, seeds: Sequence[int]) -> None:
        super().reset(seeds)
        self.seen += list(seeds)


def test_returns_are_the_agents_mean_until_the_episode_ends() -> None:
    found = rollout(Walk(4), Noisy(), 4, seed=0)
    lengths = np.array([3, 4, 5, 6])
    assert found.lengths.tolist() == lengths.tolist()
    # Step t pays (t, 2 t) to the agents: 1.5 t on average.
    assert found.returns.tolist() == [1.5 * n * (n + 1) / 2 for n in lengths]
    assert found.terminated.tolist() == [True] * 4


def test_time_limit_is_no_termination() -> None:
    found = rollout(Walk(4, max_steps=5), Noisy(), 4, seed=0)
    assert found.lengths.tolist() == [3, 4, 5, 5]
    assert found.terminated.tolist() == [True, True, True, False]


class Sensitive(Walk):
    """Pays for what the actions are, so that a wrong seed shows."""

    def step(self, actions: ActionArray, /) -> Step:
        step = super().step(actions)
        return Step(step.obs, None, step.obs[:, :, 0], step.terminated, step.truncated)


@pytest.mark.parametrize("n_envs", [1, 3, 7, 16])
def test_number_of_environments_changes_no_episode(n_envs: int) -> None:
    reference = rollout(Sensitive(7), Noisy(), 7, seed=11)
    found = rollout(Sensitive(n_envs), Noisy(), 7, seed=11)
    assert len(np.unique(reference.returns)) == 7
    assert found.returns.tolist() == reference.returns.tolist()
    assert found.lengths.tolist() == reference.lengths.tolist()


def test_episode_i_has_seed_plus_i() -> None:
    actor = Recorder()
    rollout(Walk(3), actor, 5, seed=100)
    assert actor.seen[:5] == [100, 101, 102, 103, 104]


def test_refuses_no_episodes_and_episodes_without_end() -> None:
    with pytest.raises(DataError, match="`episodes`: at least 1"):
        rollout(Walk(2), Noisy(), 0, seed=0)
    with pytest.raises(DataError, match="seed 5 did not end within `max_steps` = 6"):
        rollout(Walk(2, endless=True), Noisy(), 2, seed=5)


def test_gif_shows_the_whole_episode_in_equal_bytes(tmp_path: Path) -> None:
    record_gif(Walk(2), Noisy(), 3, tmp_path / "a" / "one.gif")
    record_gif(Walk(1), Noisy(), 3, tmp_path / "two.gif")
    assert (tmp_path / "a" / "one.gif").read_bytes() == (tmp_path / "two.gif").read_bytes()
    with Image.open(tmp_path / "two.gif") as gif:
        assert gif.n_frames == 7  # the first sight and six steps
        assert gif.size == (480, 320)
        assert gif.info["duration"] == 100
        assert gif.info["loop"] == 0
        gif.seek(6)
        assert gif.info["duration"] == 1000
        pixel = gif.convert("RGB").getpixel((80, 100))
    assert pixel == (200, 30, 30)


def test_gif_of_a_long_noisy_episode_is_thinned_and_small(tmp_path: Path) -> None:
    class Long(Walk):
        def render(self, index: int, /) -> NDArray[np.uint8]:
            frame = np.full((300, 300, 3), 255, np.uint8)
            spots = np.random.default_rng(int(self.clock[index])).integers(0, 290, (20, 2))
            for x, y in spots:
                frame[y : y + 10, x : x + 10] = (x % 256, y % 256, 128)
            return frame

        def step(self, actions: ActionArray, /) -> Step:
            self.clock += 1
            self.truncated |= self.clock >= self.max_steps
            return self._step(np.zeros((self.n_envs, N), np.float32))

    record_gif(Long(1, max_steps=400), Noisy(), 0, tmp_path / "long.gif")
    assert (tmp_path / "long.gif").stat().st_size < 500_000
    with Image.open(tmp_path / "long.gif") as gif:
        assert gif.n_frames <= MAX_FRAMES


def test_latency_is_that_of_one_environment_at_a_time() -> None:
    class Slow(Noisy):
        def act(self, seen: Seen) -> ActionArray:
            assert len(seen.obs) == 1
            assert seen.legal_actions is not None
            assert seen.legal_actions.shape == (1, N, 4)
            time.sleep(0.002)
            return super().act(seen)

    found = latency_us(
        Slow(),
        BatchObs(np.zeros((3, N, 1), np.float32), np.zeros((3, 1), np.float32), np.ones((3, N, 4), np.bool_)),
        repeats=20,
        warm_up=2,
    )
    assert 2000 <= found.p50 <= found.p95
