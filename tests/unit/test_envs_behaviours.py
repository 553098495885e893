"""Scripted behaviours: truly multi-modal, of the promised quality, and a function of the seed."""

from __future__ import annotations

import numpy as np
import pytest
from env_cases import environments

from macflow.data.record import record_episodes
from macflow.envs.behaviours import Uniform
from macflow.envs.references import team_returns
from macflow.envs.registry import (
    ENVIRONMENTS,
    make_behaviour,
    make_env,
    normalized_return,
    reference_returns,
)
from macflow.types import BatchObs, BoolArray, FloatArray, MultiAgentSpec

SPREAD = "mpe/spread"


def seen(obs: FloatArray, legal: BoolArray | None = None) -> BatchObs:
    return BatchObs(obs, obs.reshape(len(obs), -1), legal)


def test_joint_behaviour_covers_all_assignments_evenly() -> None:
    # All agents at rest in one place, the landmarks near enough for a push that is not clipped.
    landmarks = np.array([[0.05, 0.0], [-0.05, 0.0], [0.0, 0.05]], np.float32)
    obs = np.zeros((600, 3, 18), np.float32)
    obs[:, :, 4:10] = landmarks.ravel()
    actor = make_behaviour(SPREAD, {}, "expert")
    actor.reset(range(600))
    pushes = actor.act(seen(obs))
    direction = (pushes[:, :, None, :] * landmarks).sum(axis=3)  # (episode, agent, landmark)
    targets = direction.argmax(axis=2)
    assert (np.sort(targets, axis=1) == np.arange(3)).all(), "two agents head for one landmark"
    _, counts = np.unique(targets, axis=0, return_counts=True)
    # 600 draws of 6 permutations: 100 each, standard deviation 9.1.
    assert len(counts) == 6
    assert counts.min() > 60
    assert counts.max() < 140


def test_assignment_stays_for_the_whole_episode() -> None:
    env = make_env(SPREAD, {}, 8)
    actor = make_behaviour(SPREAD, {}, "expert")
    actor.reset(range(8))
    batch = env.reset(range(8))
    for _ in range(25):
        step = env.step(actor.act(batch))
        batch = step
    ends = batch.obs[:, :, 4:10].reshape(8, 3, 3, 2)
    nearest = np.linalg.norm(ends, axis=3)
    # Every agent sits on a landmark of its own unless two landmarks are so close that agents push each other.
    assert np.median(nearest.min(axis=2)) < 0.05


@pytest.mark.parametrize("env_id", [SPREAD, "mpe/spread-discrete", "game/landmark"])
def test_qualities_are_in_their_order(env_id: str) -> None:
    reference = reference_returns(env_id, {})
    assert reference is not None
    scores = {
        name: normalized_return(float(team_returns(env_id, {}, name, 60, workers=1).mean()), reference)
        for name in ENVIRONMENTS[env_id].behaviours
    }
    assert scores["random"] == pytest.approx(0, abs=12)
    assert scores["expert"] == pytest.approx(100, abs=6)
    assert 35 < scores["medium"] < 65
    assert scores["random"] < scores["medium-replay"] < scores["medium"] < scores["medium-expert"] < 95


# Experts may leave nothing to chance; this is the script of SMAX's experts, where it is none.
SAME_ALWAYS = ("smax/5m_vs_6m", "focus-fire")


@pytest.mark.parametrize("env_id", environments())
def test_actions_depend_on_the_seed_and_not_on_the_batch(env_id: str) -> None:
    for name in ENVIRONMENTS[env_id].behaviours:
        env = make_env(env_id, {}, 4)
        obs = env.reset([5, 6, 7, 8])
        together, alone, other = (make_behaviour(env_id, {}, name) for _ in range(3))
        together.reset([5, 6, 7, 8])
        alone.reset([7])
        other.reset(range(100, 164))
        spec = env.spec
        legal = None if obs.legal_actions is None else obs.legal_actions[2:3]
        for _ in range(3):
            actions = together.act(obs)
            np.testing.assert_array_equal(
                actions[2], alone.act(BatchObs(obs.obs[2:3], obs.state[2:3], legal))[0]
            )
            if spec.discrete:
                assert actions.dtype == np.int64
                assert actions.shape == (4, spec.n_agents)
            else:
                assert actions.dtype == np.float32
                assert actions.shape == (4, spec.n_agents, spec.action_size)
                assert np.abs(actions).max() <= 1
        many_legal = None if legal is None else np.repeat(legal, 64, axis=0)
        many = BatchObs(*(np.repeat(a[2:3], 64, axis=0) for a in (obs.obs, obs.state)), many_legal)
        by_chance = len(np.unique(other.act(many), axis=0)) > 1
        assert by_chance or name == "expert" or (env_id, name) == SAME_ALWAYS, f"{name} is always the same"


def test_uniform_respects_the_mask_and_covers_it_evenly() -> None:
    spec = MultiAgentSpec(("a", "b"), (1, 1), 1, "discrete", 4, (-1.0,) * 4, (1.0,) * 4)
    actor = Uniform(spec)
    actor.reset(range(4000))
    legal = np.tile(np.array([[True, False, True, True], [False, True, False, False]]), (4000, 1, 1))
    actions = actor.act(seen(np.zeros((4000, 2, 1), np.float32), legal))
    assert set(actions[:, 1]) == {1}
    values, counts = np.unique(actions[:, 0], return_counts=True)
    assert values.tolist() == [0, 2, 3]
    assert counts.min() > 1200


@pytest.mark.parametrize(("behaviour", "share"), [("mixed", 1), ("together-75", 0.75), ("together-0", 0)])
def test_payoff_behaviours_agree_as_often_as_they_say(behaviour: str, share: float) -> None:
    env = make_env("game/payoff", {"n_agents": 3}, 2000)
    episodes = record_episodes(env, make_behaviour("game/payoff", {"n_agents": 3}, behaviour), 2000, seed=0)
    actions = np.stack([episode.actions[0, :, 0] for episode in episodes])  # (episodes, agents)
    correlation = np.corrcoef(np.sign(actions).T)[np.triu_indices(3, 1)]
    np.testing.assert_allclose(correlation, share, atol=0.06)
    # What one agent does alone says nothing of it.
    np.testing.assert_allclose(np.abs(actions).mean(axis=0), 0.6, atol=0.02)
    np.testing.assert_allclose((actions > 0).mean(axis=0), 0.5, atol=0.05)


def test_payoff_and_table_behaviours_are_bimodal() -> None:
    env = make_env("game/payoff", {"n_agents": 3}, 400)
    actor = make_behaviour("game/payoff", {"n_agents": 3}, "mixed")
    actor.reset(range(400))
    signs = np.sign(actor.act(env.reset(range(400)))[:, :, 0])
    assert (signs == signs[:, :1]).all(), "agents disagree"
    assert 150 < (signs[:, 0] > 0).sum() < 250

    actor = make_behaviour("game/xor", {}, "mixed")
    actor.reset(range(400))
    actions = actor.act(seen(np.zeros((400, 2, 2), np.float32)))
    assert (actions.sum(axis=1) == 1).all()
    assert 150 < (actions[:, 0] == 0).sum() < 250

    actor = make_behaviour("game/rare-optimum", {}, "mostly-suboptimal")
    actor.reset(range(4000))
    actions = actor.act(seen(np.zeros((4000, 2, 2), np.float32)))
    assert not (actions.sum(axis=1) == 0).any()
    assert 80 < (actions.sum(axis=1) == 2).sum() < 160  # 3 % of 4000, standard deviation 11


def test_medium_expert_holds_about_half_of_each() -> None:
    returns = team_returns("game/landmark", {"n_agents": 20}, "medium-expert", 200, workers=1)
    # The two skills do not overlap here: medium ends near 2.3, expert near 4.8.
    assert 70 < (returns > 3.5).sum() < 130
