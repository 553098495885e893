"""mpe/spread is mpe2's simple_spread, with a force for an action."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from mpe2 import simple_spread_v3

from macflow.envs.particle import five_way
from macflow.envs.registry import make_env, make_parallel


def test_five_way_puts_forces_where_mpe2_reads_them() -> None:
    pushes = five_way(np.array([[0.5, -0.25], [-1.0, 3.0]], np.float32))
    np.testing.assert_array_equal(pushes, np.array([[0, 0, 0.5, 0.25, 0], [0, 1, 0, 0, 1]], np.float32))


@pytest.mark.parametrize(("axis", "sign"), [(0, 1), (0, -1), (1, 1), (1, -1)])
def test_a_force_moves_its_agent_along_it(axis: int, sign: int) -> None:
    env = make_env("mpe/spread", {"n_agents": 1}, 1)
    start = env.reset([4]).obs[0, 0, 2:4]
    force = np.zeros((1, 1, 2), np.float32)
    force[0, 0, axis] = sign
    for _ in range(3):
        step = env.step(force)
    moved = step.obs[0, 0, 2:4] - start
    assert moved[axis] * sign > 0.05
    assert moved[1 - axis] == 0


@pytest.mark.parametrize("thrust", [-1.0, 0.0, 0.5, 2.0])
@pytest.mark.parametrize("env_id", ["mpe/spread", "mpe/spread-discrete"])
def test_thrust_is_a_factor_on_what_a_force_does(env_id: str, thrust: float) -> None:
    action = np.array([[[0.5, 0.0]]], np.float32) if env_id == "mpe/spread" else np.array([[2]])
    moved = []
    for kwargs in ({"n_agents": 1}, {"n_agents": 1, "thrust": thrust}):
        env = make_env(env_id, kwargs, 1)
        # After a second start too: a world keeps what it was made with.
        for seed in (3, 4):
            start = env.reset([seed]).obs[0, 0, 2:4]
            for _ in range(4):
                step = env.step(action)
        moved.append(step.obs[0, 0, 2:4] - start)
    np.testing.assert_allclose(moved[1], thrust * moved[0], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("action", "axis", "sign"), [(1, 0, -1), (2, 0, 1), (3, 1, -1), (4, 1, 1)])
def test_a_discrete_action_moves_its_agent(action: int, axis: int, sign: int) -> None:
    env = make_env("mpe/spread-discrete", {"n_agents": 1}, 1)
    start = env.reset([4]).obs[0, 0, 2:4]
    for _ in range(3):
        step = env.step(np.array([[action]]))
    moved = step.obs[0, 0, 2:4] - start
    assert moved[axis] * sign > 0.05
    assert moved[1 - axis] == 0


@pytest.mark.parametrize("continuous", [True, False])
@pytest.mark.parametrize("n_agents", [1, 3, 6])
def test_trajectories_are_those_of_the_package(continuous: bool, n_agents: int) -> None:
    ours = make_parallel("mpe/spread" if continuous else "mpe/spread-discrete", {"n_agents": n_agents})
    theirs = simple_spread_v3.parallel_env(N=n_agents, continuous_actions=continuous)
    for seed in (0, 1):
        our_obs, _ = ours.reset(seed=seed)
        their_obs, _ = theirs.reset(seed=seed)
        rng = np.random.default_rng(seed)
        while theirs.agents:
            assert our_obs.keys() == their_obs.keys()
            for agent, seen in their_obs.items():
                np.testing.assert_array_equal(our_obs[agent], seen)
            np.testing.assert_array_equal(ours.state(), theirs.state())
            if continuous:
                forces = rng.uniform(-1, 1, (n_agents, 2)).astype(np.float32)
                mine = dict(zip(theirs.agents, forces, strict=True))
                yours = dict(zip(theirs.agents, five_way(forces), strict=True))
            else:
                mine = yours = dict(zip(theirs.agents, rng.integers(0, 5, n_agents).tolist(), strict=True))
            our_obs, our_rewards, our_ends, our_cuts, _ = ours.step(mine)
            their_obs, their_rewards, their_ends, their_cuts, _ = theirs.step(yours)
            assert our_rewards == dict(their_rewards)
            assert (our_ends, our_cuts) == (their_ends, their_cuts)
        assert ours.agents == []


def test_drawing_opens_no_display_and_is_the_same_twice() -> None:
    frames = []
    for _ in range(2):
        env = make_env("mpe/spread", {}, 2)
        env.reset([1, 2])
        env.step(np.ones((2, 3, 2), np.float32))
        frames.append(env.render(1))
        assert not np.array_equal(env.render(0), frames[-1])
        env.close()
    assert frames[0].dtype == np.uint8
    assert frames[0].ndim == 3
    assert frames[0].shape[2] == 3
    assert len(np.unique(frames[0].reshape(-1, 3), axis=0)) > 2
    np.testing.assert_array_equal(frames[0], frames[1])

    import pygame

    assert not pygame.display.get_init()


def test_drawing_works_in_a_fresh_process_without_a_screen_and_greets_nobody() -> None:
    code = (
        "from macflow.envs.registry import make_env\n"
        "env = make_env('mpe/spread', {}, 1)\n"
        "env.reset([0])\n"
        "print(env.render(0).shape)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "(700, 700, 3)"
    assert done.stderr == ""
