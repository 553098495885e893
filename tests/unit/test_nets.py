"""Nets: against per-copy references, factorisation by agent, and IGM itself."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from macflow.nets.critic import CentralCritic, Critic, FactoredCritic, QMixer, aggregate_ensemble
from macflow.nets.policy import OneStepPolicy
from macflow.nets.stacked import StackedMLP, with_agent_ids
from macflow.nets.velocity import AttentionVelocityField, VelocityField


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("layer_norm", [False, True])
def test_stacked_mlp_equals_separate_perceptrons(layer_norm: bool) -> None:
    stacked = StackedMLP(3, 5, [7, 6], 2, generator(), layer_norm)
    x = torch.randn(3, 11, 5, generator=generator(1))
    out = stacked(x)
    for copy in range(3):
        y = x[copy]
        for layer in stacked.hidden:
            y = functional.gelu(y @ layer.weight[copy] + layer.bias[copy])
            if layer_norm:
                y = nn.LayerNorm(y.shape[-1])(y)
        y = y @ stacked.head.weight[copy] + stacked.head.bias[copy]
        torch.testing.assert_close(out[copy], y)


def test_agent_ids_are_appended_as_one_hots() -> None:
    out = with_agent_ids(torch.zeros(2, 3, 1))
    assert out.shape == (2, 3, 4)
    assert torch.equal(out[1, :, 1:], torch.eye(3))


@pytest.mark.parametrize("discrete", [False, True])
def test_joint_field_couples_agents_and_individual_field_does_not(discrete: bool) -> None:
    for scope, couples in (("joint", True), ("individual", False)):
        field = VelocityField(3, 4, 2, discrete, scope, [16], generator())  # type: ignore[arg-type]
        x = torch.randn(1, 3, 2, generator=generator(1), requires_grad=True)
        out = field(torch.full(field.times_shape(1, 3), 0.3), torch.randn(1, 3, 4), x)
        out[0, 0].sum().backward()
        assert x.grad is not None
        assert bool((x.grad[0, 1:].abs() > 0).any()) is couples


def attention_field(n_agents: int = 3, discrete: bool = False) -> AttentionVelocityField:
    return AttentionVelocityField(n_agents, 4, 2, discrete, [16, 16], generator())


@pytest.mark.parametrize("discrete", [False, True])
def test_attention_field_turns_with_the_agents_once_ids_say_nothing(discrete: bool) -> None:
    field = attention_field(5, discrete)
    time = torch.rand(7, 1, generator=generator(1))
    obs, x = torch.randn(7, 5, 4, generator=generator(2)), torch.randn(7, 5, 2, generator=generator(3))
    order = torch.tensor([3, 0, 4, 1, 2])
    with torch.no_grad():
        assert not torch.allclose(field(time, obs[:, order], x[:, order]), field(time, obs, x)[:, order])
        # Rows of the ids: the last of the embedding's inputs.
        field.embed.weight[:, -5:] = 0.0
        torch.testing.assert_close(field(time, obs[:, order], x[:, order]), field(time, obs, x)[:, order])


def test_attention_field_couples_all_agents_and_no_samples() -> None:
    field = attention_field()
    x = torch.randn(2, 3, 2, generator=generator(1), requires_grad=True)
    obs = torch.randn(2, 3, 4, generator=generator(2), requires_grad=True)
    field(torch.rand(2, 1), obs, x)[0, 0].sum().backward()
    for grad in (obs.grad, x.grad):
        assert grad is not None
        assert (grad[0].abs() > 0).all()
        assert torch.count_nonzero(grad[1]) == 0


def test_only_the_ids_share_of_an_attention_field_grows_with_the_agents() -> None:
    def shapes(n_agents: int) -> dict[str, torch.Size]:
        return {name: p.shape for name, p in attention_field(n_agents).named_parameters()}

    few, many = shapes(3), shapes(40)
    assert {name for name in few if few[name] != many[name]} == {"embed.weight"}
    assert many["embed.weight"][1] - few["embed.weight"][1] == 37


def test_gradients_reach_every_parameter_of_an_attention_field() -> None:
    field = attention_field()
    field(torch.rand(8, 1), torch.randn(8, 3, 4), torch.randn(8, 3, 2)).square().mean().backward()
    for name, parameter in field.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


def test_attention_fields_of_one_seed_are_equal() -> None:
    first, second = attention_field().state_dict(), attention_field().state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("sharing", ["shared", "separate"])
def test_policy_of_an_agent_depends_on_its_own_observation_and_noise_alone(sharing: str) -> None:
    policy = OneStepPolicy(3, 4, 2, sharing, "individual", [16], generator())  # type: ignore[arg-type]
    obs = torch.randn(1, 3, 4, generator=generator(1), requires_grad=True)
    noise = torch.randn(1, 3, 2, generator=generator(2), requires_grad=True)
    policy(obs, noise)[0, 1].sum().backward()
    for grad in (obs.grad, noise.grad):
        assert grad is not None
        assert (grad[0, 1].abs() > 0).all()
        assert torch.count_nonzero(grad[0, [0, 2]]) == 0


@pytest.mark.parametrize("sharing", ["shared", "separate"])
def test_with_common_noise_an_agent_sees_all_of_it_but_its_own_observation_alone(sharing: str) -> None:
    policy = OneStepPolicy(3, 4, 2, sharing, "common", [16], generator())  # type: ignore[arg-type]
    obs = torch.randn(1, 3, 4, generator=generator(1), requires_grad=True)
    noise = torch.randn(1, 3, 2, generator=generator(2), requires_grad=True)
    out = policy(obs, noise)
    assert out.shape == (1, 3, 2)
    out[0, 1].sum().backward()
    assert obs.grad is not None
    assert noise.grad is not None
    assert (noise.grad.abs() > 0).all()
    assert torch.count_nonzero(obs.grad[0, [0, 2]]) == 0


def test_of_the_legal_actions_an_agent_uses_its_own_alone() -> None:
    obs, noise = torch.randn(1, 2, 4, generator=generator(1)), torch.randn(1, 2, 3, generator=generator(2))
    legal = torch.ones(1, 2, 3, dtype=torch.bool)
    others = legal.clone()
    others[0, 1, 0] = False
    for kind in ("individual", "common"):
        policy = OneStepPolicy(2, 4, 3, "shared", kind, [16], generator())  # type: ignore[arg-type]
        assert torch.equal(policy(obs, noise, legal)[0, 0], policy(obs, noise, others)[0, 0])


def test_shared_policy_tells_agents_apart() -> None:
    policy = OneStepPolicy(2, 4, 2, "shared", "individual", [16], generator())
    out = policy(torch.zeros(1, 2, 4), torch.zeros(1, 2, 2))
    assert not torch.allclose(out[0, 0], out[0, 1])


def test_mean_mixer_is_the_mean_of_agent_values() -> None:
    critic = FactoredCritic(3, 4, 2, 5, False, "mean", "own", 2, [16], generator())
    obs, state, actions = torch.randn(7, 3, 4), torch.randn(7, 5), torch.randn(7, 3, 2)
    values = critic.agent_values(obs, state, actions)
    assert values.shape == (2, 7, 3)
    torch.testing.assert_close(critic(obs, state, actions), values.mean(-1))


def test_qmix_never_decreases_in_any_agent_value() -> None:
    mixer = QMixer(2, 4, 6, generator())
    q = torch.randn(2, 64, 4, generator=generator(1), requires_grad=True)
    mixer(q, torch.randn(64, 6, generator=generator(2)) * 3).sum().backward()
    assert q.grad is not None
    assert (q.grad >= 0).all()
    assert (q.grad > 0).any()


@pytest.mark.parametrize("mixer", ["mean", "qmix"])
@pytest.mark.parametrize("sees", ["own", "state"])
def test_joint_argmax_is_the_agents_own_argmaxes(mixer: str, sees: str) -> None:
    """IGM by brute force over all 27 joint actions."""
    critic = FactoredCritic(3, 2, 3, 4, True, mixer, sees, 1, [32], generator(5))  # type: ignore[arg-type]
    obs, state = torch.randn(1, 3, 2, generator=generator(6)), torch.randn(1, 4, generator=generator(7))
    eye = torch.eye(3)
    joint = list(itertools.product(range(3), repeat=3))
    actions = torch.stack([eye[list(choice)] for choice in joint])  # (27, 3, 3)
    q = critic(obs.expand(27, -1, -1), state.expand(27, -1), actions)[0]
    single = torch.stack(
        [critic.agent_values(obs, state, eye[a].expand(1, 3, 3))[0, 0] for a in range(3)], dim=-1
    )
    assert joint[int(q.argmax())] == tuple(single.argmax(-1).tolist())


@pytest.mark.parametrize("sees", ["own", "state"])
@pytest.mark.parametrize("mixer", ["mean", "qmix", "none", "central"])
def test_a_critic_sees_what_it_is_said_to_see(mixer: str, sees: str) -> None:
    critic: Critic = (
        CentralCritic(3, 4, 2, 5, sees, 2, [16], generator())  # type: ignore[arg-type]
        if mixer == "central"
        else FactoredCritic(3, 4, 2, 5, False, mixer, sees, 2, [16], generator())  # type: ignore[arg-type]
    )
    obs = torch.randn(7, 3, 4, generator=generator(1), requires_grad=True)
    state = torch.randn(7, 5, generator=generator(2), requires_grad=True)
    actions = torch.randn(7, 3, 2, generator=generator(3), requires_grad=True)
    q = critic(obs, state, actions)
    values = critic.trained_values(obs, state, actions)
    assert q.shape == (2, 7)
    assert values.shape == (2, 7, 3 if mixer == "none" else 1)
    torch.testing.assert_close(q, values.mean(-1))
    by_obs, by_state, by_action = torch.autograd.grad(
        values[..., 0].sum(), (obs, state, actions), allow_unused=True
    )
    assert (by_obs is not None) == (sees == "own")
    assert (by_state is not None) == (sees == "state" or mixer == "qmix")
    # The first agent's own value knows nothing of the others.
    for seen in (by_obs, by_action):
        if seen is not None:
            assert (seen[:, 0].abs() > 0).all()
            assert bool(torch.count_nonzero(seen[:, 1:])) == (mixer != "none")


def test_only_a_central_critic_can_prefer_to_differ() -> None:
    """XOR: no sum of the agents' values has its optimum where they differ; one Q of everything fits it."""
    eye = torch.eye(2)
    actions = torch.stack([eye[[a, b]] for a, b in itertools.product(range(2), repeat=2)])  # (4, 2, 2)
    payoff = torch.tensor([0.0, 1.0, 1.0, 0.0])
    obs, state = torch.zeros(4, 2, 1), torch.zeros(4, 1)
    errors = {}
    critics: dict[str, Critic] = {
        "central": CentralCritic(2, 1, 2, 1, "own", 1, [32], generator()),
        "mean": FactoredCritic(2, 1, 2, 1, True, "mean", "own", 1, [32], generator()),
    }
    for name, critic in critics.items():
        optimizer = torch.optim.Adam(critic.parameters(), lr=1e-2)
        for _ in range(300):
            loss = (critic(obs, state, actions)[0] - payoff).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        errors[name] = float(loss.detach())
    assert errors["central"] < 1e-3
    # The best additive fit is 0.5 everywhere.
    assert abs(errors["mean"] - 0.25) < 1e-3


def test_discrete_critic_takes_the_expectation_under_probabilities() -> None:
    critic = FactoredCritic(2, 3, 4, 1, True, "mean", "own", 1, [16], generator())
    obs, state = torch.randn(1, 2, 3), torch.zeros(1, 1)
    p = torch.tensor([[[0.1, 0.2, 0.3, 0.4], [0.7, 0.1, 0.1, 0.1]]])
    eye = torch.eye(4)
    expected = sum(
        float(p[0, 0, a] * p[0, 1, b]) * critic(obs, state, torch.stack([eye[a], eye[b]])[None])[0, 0]
        for a in range(4)
        for b in range(4)
    )
    torch.testing.assert_close(critic(obs, state, p)[0, 0], expected)


def test_aggregation_of_the_ensemble() -> None:
    q = torch.tensor([[1.0, 5.0], [3.0, 4.0]])
    np.testing.assert_allclose(aggregate_ensemble(q, "mean").numpy(), [2.0, 4.5])
    np.testing.assert_allclose(aggregate_ensemble(q, "min").numpy(), [1.0, 4.0])
