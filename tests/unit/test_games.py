"""The games: payoffs by hand, known optima, pictures."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from macflow.envs.registry import make_env, make_parallel, reference_returns
from macflow.types import BoolArray, FloatArray


def play_once(env_id: str, joint: list[int]) -> list[float]:
    env = make_env(env_id, {}, 1)
    env.reset([0])
    step = env.step(np.array([joint]))
    assert step.terminated.all()
    assert not step.truncated.any()
    return step.rewards[0].tolist()


@pytest.mark.parametrize(
    ("env_id", "table"),
    [("game/xor", [[0, 1], [1, 0]]), ("game/rare-optimum", [[0, 1], [1, 2]])],
)
def test_table_games_pay_their_table(env_id: str, table: list[list[float]]) -> None:
    for row, column in itertools.product(range(2), repeat=2):
        assert play_once(env_id, [row, column]) == [table[row][column]] * 2
    reference = reference_returns(env_id, {})
    assert reference is not None
    assert reference["random"] == np.mean(table)
    assert reference["expert"] == np.max(table)


@pytest.mark.parametrize("zeta", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("n_agents", [2, 4])
def test_payoff_game(zeta: float, n_agents: int) -> None:
    env = make_env("game/payoff", {"n_agents": n_agents, "zeta": zeta}, 3)
    env.reset([0, 1, 2])
    actions = np.random.default_rng(0).uniform(-1, 1, (3, n_agents, 1)).astype(np.float32)
    actions[1], actions[2] = 1.0, -1.0
    rewards = env.step(actions).rewards
    a = actions[0, :, 0].astype(np.float64)
    pairs = [a[i] * a[j] for i, j in itertools.combinations(range(n_agents), 2)]
    assert rewards[0, 0] == pytest.approx((1 - zeta) * np.mean(a**2) + zeta * np.mean(pairs), abs=1e-6)
    np.testing.assert_allclose(rewards[1:], 1.0)


def test_payoff_optimum_and_random_reference_hold() -> None:
    kwargs = {"n_agents": 3, "zeta": 0.4}
    env = make_env("game/payoff", kwargs, 4000)
    env.reset(range(4000))
    actions = np.random.default_rng(0).uniform(-1, 1, (4000, 3, 1)).astype(np.float32)
    rewards = env.step(actions).rewards[:, 0]
    reference = reference_returns("game/payoff", kwargs)
    assert reference is not None
    assert rewards.max() <= reference["expert"] == 1.0
    assert rewards.mean() == pytest.approx(reference["random"], abs=0.02)


def test_disagreement_costs_more_with_interaction() -> None:
    def reward(zeta: float) -> float:
        env = make_env("game/payoff", {"zeta": zeta}, 1)
        env.reset([0])
        return float(env.step(np.array([[[1.0], [-1.0]]])).rewards[0, 0])

    assert [reward(zeta) for zeta in (0.0, 0.5, 1.0)] == [1.0, 0.0, -1.0]


@pytest.mark.parametrize("n_agents", [3, 40])
def test_any_landmark_is_one_leap_away_and_the_optimum_is_one_per_step(n_agents: int) -> None:
    env = make_env("game/landmark", {"n_agents": n_agents, "max_cycles": 2}, 6)
    obs = env.reset(range(6)).obs
    for last in (False, True):
        targets = _own_landmarks(obs, n_agents)
        assert np.abs(targets / 2).max() <= 1
        step = env.step(targets / 2)
        np.testing.assert_allclose(step.rewards, 1.0, atol=1e-5)
        assert step.truncated.tolist() == [last] * 6
        assert not step.terminated.any()
        obs = step.obs
    np.testing.assert_allclose(_own_landmarks(obs, n_agents), 0.0, atol=1e-6)


def _own_landmarks(obs: FloatArray, n_agents: int) -> FloatArray:
    landmarks = obs[:, :, 2 : 2 + 2 * n_agents].reshape(len(obs), n_agents, n_agents, 2)
    return landmarks[:, np.arange(n_agents), np.arange(n_agents)]


def test_landmark_reward_by_hand() -> None:
    env = make_env("game/landmark", {"n_agents": 3}, 1)
    obs = env.reset([1])
    state = obs.state[0].reshape(6, 2)
    positions, landmarks = state[:3], state[3:]
    step = env.step(np.zeros((1, 3, 2), np.float32))
    distances = [min(np.hypot(*(landmark - position)) for position in positions) for landmark in landmarks]
    expected = np.mean([max(0.0, 1 - distance * np.sqrt(3)) for distance in distances])
    np.testing.assert_allclose(step.rewards[0], expected, atol=1e-6)
    # Own position, landmarks, others: all as the state has them.
    np.testing.assert_allclose(obs.obs[0, 1, :2], positions[1])
    np.testing.assert_allclose(obs.obs[0, 1, 2:8].reshape(3, 2), landmarks - positions[1], atol=1e-6)
    np.testing.assert_allclose(obs.obs[0, 1, 8:].reshape(2, 2), positions[[0, 2]] - positions[1], atol=1e-6)


def test_agents_cannot_leave_the_square() -> None:
    env = make_env("game/landmark", {}, 1)
    env.reset([0])
    step = env.step(np.ones((1, 3, 2), np.float32))
    np.testing.assert_array_equal(step.obs[0, :, :2], np.ones((3, 2)))


def test_rewards_stay_between_zero_and_one() -> None:
    env = make_env("game/landmark", {"n_agents": 10}, 50)
    env.reset(range(50))
    rng = np.random.default_rng(0)
    for _ in range(5):
        rewards = env.step(rng.uniform(-1, 1, (50, 10, 2))).rewards
        assert rewards.min() >= 0
        assert rewards.max() <= 1


@pytest.mark.parametrize("env_id", ["game/landmark", "game/xor", "game/payoff", "game/rare-optimum"])
def test_pictures_are_deterministic_and_show_what_was_played(env_id: str) -> None:
    def frames(action: int) -> tuple[FloatArray, FloatArray, BoolArray]:
        env = make_env(env_id, {}, 1)
        env.reset([0])
        before = env.render(0)
        shape = (1, env.spec.n_agents) if env.spec.discrete else (1, env.spec.n_agents, env.spec.action_size)
        env.step(np.full(shape, action))
        return before, env.render(0), env.render(0)

    before, after, again = frames(1)
    assert after.dtype == np.uint8
    assert after.shape == (300, 300, 3)
    np.testing.assert_array_equal(after, again)
    np.testing.assert_array_equal(after, frames(1)[1])
    assert not np.array_equal(before, after)
    assert not np.array_equal(after, frames(0)[1])


def test_observations_of_one_step_games_tell_only_who_one_is() -> None:
    env = make_parallel("game/payoff", {"n_agents": 3})
    first, _ = env.reset(seed=0)
    second, _ = env.reset(seed=1)
    for row, agent in enumerate(env.possible_agents):
        np.testing.assert_array_equal(first[agent], np.eye(3)[row])
        np.testing.assert_array_equal(first[agent], second[agent])
    np.testing.assert_array_equal(env.state(), [1.0])
