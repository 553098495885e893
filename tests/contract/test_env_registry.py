"""What every registered environment and behaviour must keep, whatever it is."""

from __future__ import annotations

import json
import warnings
from typing import Any

import numpy as np
import pytest
from env_cases import CANDIDATES, SHORT, marks_of
from numpy.typing import NDArray

from macflow.envs.base import BatchedEnv, BatchStep, spec_of
from macflow.envs.registry import (
    ENVIRONMENTS,
    copies,
    env_spec,
    full_kwargs,
    kwargs_key,
    make_behaviour,
    make_env,
    make_parallel,
    normalized_return,
    reference_returns,
)
from macflow.types import BatchObs, ConfigError

with warnings.catch_warnings():
    # PettingZoo's tests import games of its own in a way that it deprecates itself.
    warnings.simplefilter("ignore", DeprecationWarning)
    from pettingzoo.test import parallel_api_test, parallel_seed_test

OTHER_KWARGS: dict[str, list[dict[str, Any]]] = {
    "mpe/spread": [{"n_agents": 1}, {"n_agents": 7, "local_ratio": 0}],
    "mpe/spread-discrete": [{"n_agents": 4}],
    "game/landmark": [{"n_agents": 40}, {"n_agents": 4, "max_cycles": 2}],
    "game/payoff": [{"n_agents": 5, "zeta": 0.25}],
}
# One-step games of a constant observation.
SAME_START = {"game/xor", "game/payoff", "game/rare-optimum"}
# Whose best play is known: where there is no expert, there is no scale.
SCALED = [
    env_id for env_id, entry in ENVIRONMENTS.items() if not {"expert", "mixed"}.isdisjoint(entry.behaviours)
]


def cases() -> list[Any]:
    """Return every environment, with its defaults and other keywords."""
    return [
        pytest.param(env_id, kwargs, marks=marks_of(env_id), id=f"{env_id}-{index}")
        for env_id in CANDIDATES
        for index, kwargs in enumerate([SHORT.get(env_id, {}), *OTHER_KWARGS.get(env_id, [])])
    ]


@pytest.mark.parametrize(("env_id", "kwargs"), cases())
def test_pettingzoo_accepts_it(env_id: str, kwargs: dict[str, Any]) -> None:
    env = make_parallel(env_id, kwargs)
    parallel_api_test(env, num_cycles=60)
    env.close()
    parallel_seed_test(lambda: make_parallel(env_id, kwargs), num_cycles=60)


@pytest.mark.parametrize(("env_id", "kwargs"), cases())
def test_observations_states_and_ends_are_as_declared(env_id: str, kwargs: dict[str, Any]) -> None:
    env = make_parallel(env_id, kwargs)
    spec = spec_of(env)
    assert spec == env_spec(env_id, kwargs)
    assert spec.action_kind == ENVIRONMENTS[env_id].action_kind
    obs, infos = env.reset(seed=0)
    steps = 0
    while env.agents:
        for agent in env.agents:
            assert env.observation_space(agent).contains(obs[agent])
        assert env.state_space.contains(env.state())
        assert env.state().shape == (spec.state_size,)
        masks = {agent: infos[agent].get("action_mask") for agent in env.agents}
        obs, _, terminated, truncated, infos = env.step(
            {
                a: env.action_space(a).sample(None if m is None else m.astype(np.int8))
                for a, m in masks.items()
            }
        )
        steps += 1
        assert steps <= env.max_cycles
    assert len(set(terminated.values())) == 1, "agents live and end together"
    assert len(set(truncated.values())) == 1
    # What a time limit cuts goes on; nothing ends earlier for another reason than being over.
    assert any(terminated.values()) or steps == env.max_cycles
    assert any(terminated.values()) or any(truncated.values())
    env.close()


@pytest.mark.parametrize(("env_id", "kwargs"), cases())
def test_a_hundred_random_episodes(env_id: str, kwargs: dict[str, Any]) -> None:
    """Shapes, types, masks, seeds, ends and rewards of a batch, for 100 episodes."""
    count = copies(env_id, 50)
    env = make_env(env_id, kwargs, count)
    spec = env.spec
    n, size = spec.n_agents, spec.action_size
    actor = make_behaviour(env_id, kwargs, "random")
    firsts: list[NDArray[np.float32]] = []
    waves = [range(first, first + count) for first in range(0, 100, count)]
    for seeds in [*waves, waves[0]]:
        actor.reset(seeds)
        seen: BatchObs | BatchStep = env.reset(seeds)
        firsts.append(seen.obs)
        ended = np.zeros(count, np.bool_)
        for _ in range(env.max_steps):
            assert (seen.obs.shape, seen.obs.dtype) == ((count, n, spec.obs_size), np.float32)
            assert (seen.state.shape, seen.state.dtype) == ((count, spec.state_size), np.float32)
            for agent, own in enumerate(spec.obs_dims):
                assert not seen.obs[:, agent, own:].any(), "padding is zero"
            action = actor.act(seen)
            if spec.discrete:
                assert seen.legal_actions is not None
                assert (seen.legal_actions.shape, seen.legal_actions.dtype) == ((count, n, size), np.bool_)
                assert seen.legal_actions.any(axis=2).all(), "an agent can always do something"
                assert np.take_along_axis(seen.legal_actions, action[:, :, None], axis=2).all()
            else:
                assert seen.legal_actions is None
            step = env.step(action)
            assert (step.rewards.shape, step.rewards.dtype) == ((count, n), np.float32)
            assert np.isfinite(step.obs).all()
            assert np.isfinite(step.rewards).all()
            assert not step.rewards[ended].any(), "a finished environment pays nothing"
            np.testing.assert_array_equal(step.obs[ended], seen.obs[ended])
            assert (step.finished >= ended).all(), "flags stay set"
            ended, seen = step.finished, step
            if ended.all():
                break
        assert ended.all()
    np.testing.assert_array_equal(firsts[0], firsts[-1])
    assert not np.array_equal(firsts[0], firsts[1]) or env_id in SAME_START, "seeds matter"
    env.close()


@pytest.mark.parametrize(("env_id", "kwargs"), cases())
def test_an_episode_depends_on_its_seed_alone(env_id: str, kwargs: dict[str, Any]) -> None:
    def episode(env: BatchedEnv, seeds: list[int], index: int) -> list[NDArray[Any]]:
        actor = make_behaviour(env_id, kwargs, "random")
        actor.reset(seeds)
        seen: BatchObs | BatchStep = env.reset(seeds)
        found: list[NDArray[Any]] = [seen.obs[index], seen.state[index]]
        for _ in range(env.max_steps):
            step = env.step(actor.act(seen))
            found += [step.obs[index], step.state[index], step.rewards[index], step.finished[index]]
            seen = step
            if step.finished[index]:
                break
        return found

    few, many = make_env(env_id, kwargs, 2), make_env(env_id, kwargs, 5)
    wanted = episode(few, [3, 11], 1)
    # In other company, at another place, after other episodes.
    for seeds, index in (([11, 9, 8, 7, 6], 0), ([1, 2, 3, 4, 11], 4)):
        found = episode(many, seeds, index)
        assert len(found) == len(wanted)
        for a, b in zip(found, wanted, strict=True):
            np.testing.assert_array_equal(a, b)
    few.close()
    many.close()


@pytest.mark.parametrize(("env_id", "kwargs"), cases())
def test_every_behaviour_plays_an_episode(env_id: str, kwargs: dict[str, Any]) -> None:
    assert "random" in ENVIRONMENTS[env_id].behaviours
    for name in ENVIRONMENTS[env_id].behaviours:
        env = make_env(env_id, kwargs, 3)
        actor = make_behaviour(env_id, kwargs, name)
        actor.reset([0, 1, 2])
        batch: BatchObs | BatchStep = env.reset([0, 1, 2])
        for _ in range(env.max_steps):
            step = env.step(actor.act(batch))
            batch = step
        assert step.finished.all()
        assert np.isfinite(step.obs).all()
        env.close()


@pytest.mark.parametrize(("env_id", "kwargs"), cases())
def test_a_frame_can_be_drawn(env_id: str, kwargs: dict[str, Any]) -> None:
    env = make_env(env_id, kwargs, 2)
    env.reset([0, 1])
    frame = env.render(1)
    assert (frame.dtype, frame.ndim, frame.shape[2]) == (np.uint8, 3, 3)
    assert len(np.unique(frame.reshape(-1, 3), axis=0)) > 1, "something is drawn"
    env.close()


@pytest.mark.parametrize("env_id", SCALED)
def test_references_of_the_defaults_are_known(env_id: str) -> None:
    reference = reference_returns(env_id, {})
    assert reference is not None, "measure it: python -m macflow.envs.references"
    assert reference["expert"] > reference["random"]
    assert reference["how"].startswith((f"python -m macflow.envs.references {env_id} ", "known: "))
    assert normalized_return(reference["random"], reference) == 0
    assert normalized_return(reference["expert"], reference) == 100


def test_references_belong_to_their_keywords() -> None:
    assert reference_returns("mpe/spread", {"n_agents": 3}) == reference_returns("mpe/spread", {})
    assert reference_returns("mpe/spread", {"n_agents": 5}) != reference_returns("mpe/spread", {})
    assert reference_returns("mpe/spread", {"n_agents": 4}) is None
    for entry in ENVIRONMENTS.values():
        for key in entry.references:
            assert kwargs_key(json.loads(key)) == key
            assert json.loads(key).keys() == entry.kwargs.model_fields.keys()


def test_defaults_are_filled_in() -> None:
    assert full_kwargs("mpe/spread", {"n_agents": 4}) == {
        "n_agents": 4,
        "max_cycles": 25,
        "local_ratio": 0.5,
        "thrust": 1.0,
    }


@pytest.mark.parametrize(
    ("env_id", "kwargs", "message"),
    [
        ("mpe/nothing", {}, r"`env`: one of mpe/spread, .* \(received 'mpe/nothing'\)"),
        (
            "mpe/spread",
            {"agents": 3},
            r"mpe/spread takes n_agents, max_cycles, local_ratio, thrust \(received agents\)",
        ),
        ("game/xor", {"n_agents": 2}, r"game/xor takes no keyword \(received n_agents\)"),
        (
            "mpe/spread",
            {"n_agents": 0},
            r"`kwargs.n_agents`: .*greater than or equal to 1 \(received 0\)",
        ),
        ("mpe/spread", {"n_agents": "3"}, r"`kwargs.n_agents`: .*valid integer \(received '3'\)"),
        ("mpe/spread", {"n_agents": True}, r"`kwargs.n_agents`: .*valid integer \(received True\)"),
        ("mpe/spread", {"local_ratio": 1.5}, r"`kwargs.local_ratio`: .*\(received 1.5\)"),
        ("mpe/spread", {"local_ratio": float("nan")}, r"`kwargs.local_ratio`: .*\(received nan\)"),
        ("game/landmark", {"n_agents": 41}, r"`kwargs.n_agents`: .*less than or equal to 40"),
        ("game/payoff", {"zeta": -0.1}, r"`kwargs.zeta`: .*\(received -0.1\)"),
    ],
)
def test_what_is_not_allowed_is_refused(env_id: str, kwargs: dict[str, Any], message: str) -> None:
    for refuse in (
        lambda: make_parallel(env_id, kwargs),
        lambda: make_env(env_id, kwargs, 1),
        lambda: make_behaviour(env_id, kwargs, "random"),
        lambda: reference_returns(env_id, kwargs),
    ):
        with pytest.raises(ConfigError, match=message):
            refuse()


def test_an_unknown_behaviour_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"`behaviour`: one of expert, .* \(received 'perfect'\)"):
        make_behaviour("mpe/spread", {}, "perfect")
