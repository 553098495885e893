"""What every registered environment and behaviour must keep, whatever it is."""

from __future__ import annotations

import json
import warnings
from typing import Any

import numpy as np
import pytest

from macflow.envs.base import spec_of
from macflow.envs.registry import (
    ENVIRONMENTS,
    full_kwargs,
    kwargs_key,
    make_behaviour,
    make_env,
    make_parallel,
    normalized_return,
    reference_returns,
)
from macflow.types import ConfigError

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
CASES = [(env_id, kwargs) for env_id in ENVIRONMENTS for kwargs in [{}, *OTHER_KWARGS.get(env_id, [])]]


@pytest.mark.parametrize(("env_id", "kwargs"), CASES)
def test_pettingzoo_accepts_it(env_id: str, kwargs: dict[str, Any]) -> None:
    parallel_api_test(make_parallel(env_id, kwargs), num_cycles=60)
    parallel_seed_test(lambda: make_parallel(env_id, kwargs), num_cycles=60)


@pytest.mark.parametrize(("env_id", "kwargs"), CASES)
def test_observations_states_and_ends_are_as_declared(env_id: str, kwargs: dict[str, Any]) -> None:
    env = make_parallel(env_id, kwargs)
    spec = spec_of(env)
    assert spec.action_kind == ENVIRONMENTS[env_id].action_kind
    obs, _ = env.reset(seed=0)
    steps = 0
    while env.agents:
        for agent in env.agents:
            assert env.observation_space(agent).contains(obs[agent])
        assert env.state_space.contains(env.state())
        assert env.state().shape == (spec.state_size,)
        obs, _, terminated, truncated, _ = env.step({a: env.action_space(a).sample() for a in env.agents})
        steps += 1
    assert steps == env.max_cycles
    # One-step games end for good; what a time limit cuts goes on.
    assert set(terminated.values()) == {env_id in ("game/xor", "game/payoff", "game/rare-optimum")}
    assert set(truncated.values()) != set(terminated.values())


@pytest.mark.parametrize("env_id", list(ENVIRONMENTS))
def test_every_behaviour_plays_an_episode(env_id: str) -> None:
    assert "random" in ENVIRONMENTS[env_id].behaviours
    for name in ENVIRONMENTS[env_id].behaviours:
        env = make_env(env_id, {}, 3)
        actor = make_behaviour(env_id, {}, name)
        actor.reset([0, 1, 2])
        batch = env.reset([0, 1, 2])
        for _ in range(env.max_steps):
            step = env.step(actor.act(batch.obs, batch.legal_actions))
            batch = step
        assert step.finished.all()
        assert np.isfinite(step.obs).all()


@pytest.mark.parametrize("env_id", list(ENVIRONMENTS))
def test_references_of_the_defaults_are_known(env_id: str) -> None:
    reference = reference_returns(env_id, {})
    assert reference is not None
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
    }


@pytest.mark.parametrize(
    ("env_id", "kwargs", "message"),
    [
        ("mpe/nothing", {}, r"`env.id`: one of mpe/spread, .* \(received 'mpe/nothing'\)"),
        (
            "mpe/spread",
            {"agents": 3},
            r"mpe/spread takes n_agents, max_cycles, local_ratio \(received agents\)",
        ),
        ("game/xor", {"n_agents": 2}, r"game/xor takes no keyword \(received n_agents\)"),
        (
            "mpe/spread",
            {"n_agents": 0},
            r"`env.kwargs.n_agents`: .*greater than or equal to 1 \(received 0\)",
        ),
        ("mpe/spread", {"n_agents": "3"}, r"`env.kwargs.n_agents`: .*valid integer \(received '3'\)"),
        ("mpe/spread", {"n_agents": True}, r"`env.kwargs.n_agents`: .*valid integer \(received True\)"),
        ("mpe/spread", {"local_ratio": 1.5}, r"`env.kwargs.local_ratio`: .*\(received 1.5\)"),
        ("mpe/spread", {"local_ratio": float("nan")}, r"`env.kwargs.local_ratio`: .*\(received nan\)"),
        ("game/landmark", {"n_agents": 41}, r"`env.kwargs.n_agents`: .*less than or equal to 40"),
        ("game/payoff", {"zeta": -0.1}, r"`env.kwargs.zeta`: .*\(received -0.1\)"),
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
    with pytest.raises(ConfigError, match=r"`record.behaviour`: one of expert, .* \(received 'perfect'\)"):
        make_behaviour("mpe/spread", {}, "perfect")
