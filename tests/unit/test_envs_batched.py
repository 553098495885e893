"""Batches: the same episodes in any batch and any number of processes, and nothing left behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from macflow.envs.base import BatchedEnv, BatchStep
from macflow.envs.batched import LocalBatch, WorkerBatch
from macflow.envs.registry import make_env, make_parallel
from macflow.envs.wire import WorkerError
from macflow.types import BatchObs, ConfigError, DataError

SEEDS = (11, 12, 13, 14, 15)


def play(env: BatchedEnv, seeds: tuple[int, ...]) -> list[BatchObs | BatchStep]:
    """Play seeded random actions to the end, each episode from its own stream."""
    seen: list[BatchObs | BatchStep] = [env.reset(seeds)]
    streams = [np.random.default_rng(seed) for seed in seeds]
    shape = (env.spec.n_agents,) if env.spec.discrete else (env.spec.n_agents, env.spec.action_size)
    for _ in range(env.max_steps):
        draws = np.stack([rng.random(shape) for rng in streams])
        size = env.spec.action_size
        seen.append(env.step((draws * size).astype(np.int64) if env.spec.discrete else draws * 2.4 - 1.2))
    return seen


def assert_same(left: list[BatchObs | BatchStep], right: list[BatchObs | BatchStep], rows: slice) -> None:
    for a, b in zip(left, right, strict=True):
        assert vars(a).keys() == vars(b).keys()
        for name, array in vars(b).items():
            ours = getattr(a, name)
            if array is None:
                assert ours is None
                continue
            assert ours.dtype == array.dtype
            np.testing.assert_array_equal(ours[rows], array)


@pytest.mark.parametrize("env_id", ["mpe/spread", "mpe/spread-discrete", "game/landmark", "game/xor"])
def test_episodes_do_not_depend_on_batch_or_workers(env_id: str) -> None:
    whole = play(make_env(env_id, {}, 5), SEEDS)
    assert_same(whole, play(make_env(env_id, {}, 2), SEEDS[1:3]), slice(1, 3))
    split = make_env(env_id, {}, 5, workers=2)
    try:
        assert isinstance(split, WorkerBatch)
        assert split.spec == make_env(env_id, {}, 1).spec
        assert_same(whole, play(split, SEEDS), slice(0, 5))
        # A second use of the same batch starts afresh.
        assert_same(whole, play(split, SEEDS), slice(0, 5))
        np.testing.assert_array_equal(split.render(3), _last_frame(env_id, SEEDS[3]))
    finally:
        split.close()


def _last_frame(env_id: str, seed: int) -> np.ndarray:
    env = make_env(env_id, {}, 1)
    play(env, (seed,))
    return env.render(0)


def test_truncation_is_not_termination_and_the_end_repeats() -> None:
    env = make_env("mpe/spread", {"max_cycles": 3}, 2)
    env.reset([0, 1])
    push = np.ones((2, 3, 2), np.float32)
    flags = []
    for _ in range(3):
        last = env.step(push)
        flags.append((last.truncated.tolist(), last.terminated.tolist()))
    assert flags == [([False] * 2, [False] * 2)] * 2 + [([True] * 2, [False] * 2)]
    after = env.step(push)
    np.testing.assert_array_equal(after.obs, last.obs)
    np.testing.assert_array_equal(after.state, last.state)
    assert (after.rewards == 0).all()
    assert after.truncated.all()
    assert env.reset([0, 1]).obs.shape == (2, 3, 18)
    assert not env.step(push).truncated.any()

    game = make_env("game/xor", {}, 1)
    game.reset([0])
    end = game.step(np.array([[0, 1]]))
    assert (end.terminated.item(), end.truncated.item()) == (True, False)
    assert end.rewards.tolist() == [[1.0, 1.0]]


def test_returned_arrays_are_not_overwritten_by_the_next_step() -> None:
    env = make_env("mpe/spread", {}, 2)
    first = env.reset([0, 1])
    kept = first.obs.copy()
    step = env.step(np.ones((2, 3, 2), np.float32))
    kept_step = step.obs.copy()
    env.step(np.ones((2, 3, 2), np.float32))
    np.testing.assert_array_equal(first.obs, kept)
    np.testing.assert_array_equal(step.obs, kept_step)


def test_continuous_actions_are_clipped() -> None:
    small, large = make_env("mpe/spread", {}, 1), make_env("mpe/spread", {}, 1)
    small.reset([0])
    large.reset([0])
    np.testing.assert_array_equal(
        small.step(np.full((1, 3, 2), 1.0)).obs, large.step(np.full((1, 3, 2), 7.0)).obs
    )


@pytest.mark.parametrize("workers", [1, 2])
def test_wrong_actions_and_seeds_are_refused_with_their_value(workers: int) -> None:
    env = make_env("mpe/spread", {}, 2, workers)
    discrete = make_env("mpe/spread-discrete", {}, 2, workers)
    try:
        with pytest.raises(DataError, match="`step` needs a `reset`"):
            env.step(np.zeros((2, 3, 2)))
        with pytest.raises(DataError, match=r"one per environment, so 2 \(received 3\)"):
            env.reset([0, 1, 2])
        with pytest.raises(DataError, match=r"natural numbers \(received -1\)"):
            env.reset([0, -1])
        env.reset([0, 1])
        discrete.reset([0, 1])
        with pytest.raises(DataError, match=r"shape \(2, 3, 2\) \(received \(2, 3\)\)"):
            env.step(np.zeros((2, 3)))
        broken = np.zeros((2, 3, 2))
        broken[1, 2, 0] = np.nan
        with pytest.raises(DataError, match="nan for environment 1, agent 2"):
            env.step(broken)
        with pytest.raises(DataError, match=r"0 to 4 \(received 5 for environment 0, agent 1\)"):
            discrete.step(np.array([[0, 5, 0], [0, 0, 0]]))
        with pytest.raises(DataError, match="whole numbers"):
            discrete.step(np.zeros((2, 3)))
        # None of these harmed the batch.
        assert env.step(np.zeros((2, 3, 2))).obs.shape == (2, 3, 18)
    finally:
        env.close()
        discrete.close()


@pytest.mark.parametrize(("n_envs", "workers"), [(0, 1), (0, 2), (2, 0)])
def test_counts_must_be_positive(n_envs: int, workers: int) -> None:
    with pytest.raises(ConfigError, match=r"at least 1 \(received 0\)"):
        make_env("game/xor", {}, n_envs, workers)


def test_more_workers_than_environments_start_no_idle_process() -> None:
    env = WorkerBatch("game/xor", {}, 2, workers=8)
    try:
        assert len(env._processes) == 2
    finally:
        env.close()


def test_an_error_in_a_worker_reaches_the_caller() -> None:
    with pytest.raises(ConfigError, match=r"`env`: one of"):
        WorkerBatch("no/such", {}, 2, workers=2)
    env = WorkerBatch("game/xor", {}, 2, workers=2)
    try:
        env._slices = [slice(-9, 0), slice(0, 2)]  # so that the second is asked for one that it lacks
        with pytest.raises(WorkerError, match="IndexError"):
            env.render(1)
    finally:
        env.close()


def test_a_killed_worker_is_reported() -> None:
    env = WorkerBatch("game/xor", {}, 2, workers=2)
    try:
        env.reset([0, 1])
        env._processes[1].kill()
        env._processes[1].wait()
        with pytest.raises(WorkerError, match="ended unexpectedly"):
            env.step(np.zeros((2, 2), np.int64))
    finally:
        env.close()


def test_close_ends_the_workers_and_may_be_repeated() -> None:
    env = WorkerBatch("game/xor", {}, 2, workers=2)
    processes = list(env._processes)
    assert all(process.poll() is None for process in processes)
    env.close()
    assert [process.returncode for process in processes] == [0, 0]
    env.close()


def test_workers_end_with_a_killed_parent() -> None:
    script = (
        "import json, time\n"
        "from macflow.envs.batched import WorkerBatch\n"
        "env = WorkerBatch('game/xor', {}, 2, workers=2)\n"
        "print(json.dumps([p.pid for p in env._processes]), flush=True)\n"
        "time.sleep(60)\n"
    )
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        pids = json.loads(parent.stdout.readline())
        parent.send_signal(signal.SIGKILL)
        parent.wait()
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline and any(_alive(pid) for pid in pids):
        time.sleep(0.05)
    assert not any(_alive(pid) for pid in pids)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8")
    except OSError:
        return False
    return stat.rsplit(")", 1)[1].split()[0] != "Z"


def test_workers_import_no_torch() -> None:
    code = "import sys, macflow.envs.worker, macflow.envs.spread; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_smaller_observations_are_padded_with_zeros() -> None:
    class Uneven(type(make_parallel("game/xor", {}))):  # type: ignore[misc]
        """The XOR game whose second agent sees one number only."""

        def observation_space(self, agent: str):  # type: ignore[no-untyped-def]
            from gymnasium import spaces

            return spaces.Box(0.0, 1.0, (2 if agent == "agent_0" else 1,), np.float32)

        def _observe(self) -> dict[str, np.ndarray]:
            return {"agent_0": np.array([3.0, 4.0], np.float32), "agent_1": np.array([5.0], np.float32)}

    from gymnasium import spaces

    batch = LocalBatch(lambda: Uneven(2, spaces.Discrete(2), lambda joint: 0.0), 1)
    assert batch.spec.obs_dims == (2, 1)
    assert batch.reset([0]).obs.tolist() == [[[3.0, 4.0], [5.0, 0.0]]]
