"""Multi-agent MuJoCo: the package's robots, unchanged."""

from __future__ import annotations

import importlib.metadata
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("gymnasium_robotics", reason="needs macflow[mujoco]")

import gymnasium
from gymnasium_robotics import mamujoco_v1

from macflow.envs.entries.mamujoco import ROBOTS
from macflow.envs.registry import env_spec, make_env, make_parallel
from macflow.types import FloatArray

# Agents' observation sizes, state size, actions of each agent.
SHAPES = {
    "halfcheetah-6x1": ((9, 9, 8, 9, 9, 8), 17, 1),
    "halfcheetah-2x3": ((12, 12), 17, 3),
    "hopper-3x1": ((8, 9, 8), 11, 1),
    "ant-2x4": ((63, 63), 105, 4),
    "ant-4x2": ((42, 42, 42, 42), 105, 2),
    "walker2d-2x3": ((12, 12), 17, 3),
}


@pytest.mark.parametrize("name", SHAPES)
def test_spaces_are_the_published_ones(name: str) -> None:
    spec = env_spec(f"mamujoco/{name}", {})
    assert (spec.obs_dims, spec.state_size, spec.action_size) == SHAPES[name]
    assert (spec.action_low, spec.action_high) == ((-1.0,) * spec.action_size, (1.0,) * spec.action_size)


@pytest.mark.parametrize("name", SHAPES)
def test_trajectories_are_the_packages_own(name: str) -> None:
    """Observations, state and rewards equal those of the package and of the single-agent task."""
    scenario, partition, _ = ROBOTS[name]
    ours = make_parallel(f"mamujoco/{name}", {})
    theirs = mamujoco_v1.parallel_env(scenario, partition)
    whole = gymnasium.make(f"{scenario}-v5")
    obs, _ = ours.reset(seed=5)
    raw_obs, _ = theirs.reset(seed=5)
    state, _ = whole.reset(seed=5)
    rng = np.random.default_rng(0)
    for _ in range(40):
        for agent, value in raw_obs.items():
            np.testing.assert_array_equal(obs[agent], value.astype(np.float32))
        np.testing.assert_array_equal(ours.state(), state.astype(np.float32))
        actions = {a: rng.uniform(-1, 1, ours.action_space(a).shape).astype(np.float32) for a in obs}
        obs, rewards, terminated, truncated, _ = ours.step(actions)
        raw_obs, raw_rewards, *_ = theirs.step(actions)
        state, reward, ended, cut, _ = whole.step(theirs.map_local_actions_to_global_action(actions))
        assert rewards == raw_rewards
        assert set(rewards.values()) == {reward}
        assert (set(terminated.values()), set(truncated.values())) == ({ended}, {cut})
        if ended:
            break
    for env in (ours, theirs, whole):
        env.close()


def test_a_fall_terminates_and_the_time_limit_truncates() -> None:
    hopper = make_env("mamujoco/hopper-3x1", {"max_cycles": 200}, 4)
    hopper.reset(range(4))
    step = hopper.step(np.ones((4, 3, 1), np.float32))
    for _ in range(199):
        step = hopper.step(np.ones((4, 3, 1), np.float32))
    assert step.terminated.all()
    assert not step.truncated.any()
    cheetah = make_env("mamujoco/halfcheetah-6x1", {"max_cycles": 7}, 2)
    cheetah.reset([0, 1])
    ends = [cheetah.step(np.zeros((2, 6, 1), np.float32)) for _ in range(7)]
    assert [bool(step.truncated.all()) for step in ends] == [False] * 6 + [True]
    assert not ends[-1].terminated.any()
    hopper.close()
    cheetah.close()


def test_how_far_agents_see_is_a_keyword() -> None:
    blind = env_spec("mamujoco/halfcheetah-6x1", {"agent_obsk": 0})
    assert max(blind.obs_dims) < 9


def test_what_mujoco_warns_of_leaves_no_file_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    env = make_parallel("mamujoco/halfcheetah-2x3", {"max_cycles": 30})
    env.reset(seed=0)
    unstable: FloatArray = np.full(3, 1e30, np.float32)
    for _ in range(5):
        env.step(dict.fromkeys(env.possible_agents, unstable))
    env.close()
    assert not list(tmp_path.iterdir())


def printed(code: str) -> str:
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, timeout=80, check=True)
    return done.stdout + done.stderr


def test_making_one_prints_nothing() -> None:
    make = "make_env('mamujoco/hopper-3x1', {}, 2, workers=2)"
    assert printed(f"from macflow.envs.registry import make_env; {make}.close()") == ""


def test_notices_of_the_packages_makers_about_other_things_are_printed() -> None:
    version = importlib.metadata.version("gymnasium-robotics")
    other = f"notifications['gymnasium_robotics'] = {{{version!r}: 'robots fall faster'}}"
    code = f"from farama_notifications import notifications; {other}; import macflow.envs.mamujoco"
    assert printed(code) == "robots fall faster\n"
