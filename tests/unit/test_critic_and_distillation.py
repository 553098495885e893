"""TD targets and the distillation loss: against NumPy, and which parameters each term reaches."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from data_samples import make_spec
from torch import Tensor

from macflow.algorithms.distillation import distillation_loss, masked_log_softmax
from macflow.algorithms.igm_critic import critic_loss, polyak_update, td_target
from macflow.nets.critic import Aggregate, Critic, FactoredCritic
from macflow.nets.policy import Noise, OneStepPolicy
from macflow.training.actor_critic import CriticLearner
from macflow.training.artifacts import CriticArtifact
from macflow.training.loop import adam, descend
from macflow.types import Batch


def make_critic(discrete: bool = False, mixer: str = "mean") -> FactoredCritic:
    return FactoredCritic(2, 3, 2, 4, discrete, mixer, "own", 2, [16], torch.Generator().manual_seed(0))  # type: ignore[arg-type]


def make_batch(size: int = 5) -> Batch:
    g = torch.Generator().manual_seed(1)
    rows = torch.arange(size)
    return Batch(
        rows=rows,
        next_rows=rows + 1,
        obs=torch.randn(size, 2, 3, generator=g),
        actions=torch.rand(size, 2, 2, generator=g) * 2 - 1,
        reward=torch.randn(size, generator=g),
        bootstrap_mask=(torch.arange(size) % 2).float(),
        next_obs=torch.randn(size, 2, 3, generator=g),
        state=torch.randn(size, 4, generator=g),
        next_state=torch.randn(size, 4, generator=g),
        legal_actions=None,
        next_legal_actions=None,
    )


@pytest.mark.parametrize("aggregate", ["mean", "min"])
def test_target_takes_the_best_candidate_and_masks_termination(aggregate: str) -> None:
    critic, batch = make_critic(), make_batch()
    candidates = torch.rand(5, 3, 2, 2) * 2 - 1
    y = td_target(critic, batch, candidates, 0.9, aggregate)  # type: ignore[arg-type]
    with torch.no_grad():
        q = np.stack(
            [critic(batch.next_obs, batch.next_state, candidates[:, k]).numpy() for k in range(3)], axis=-1
        )  # (C, B, K)
    q = q.mean(axis=0) if aggregate == "mean" else q.min(axis=0)
    expected = batch.reward.numpy() + 0.9 * batch.bootstrap_mask.numpy() * q.max(axis=-1)
    assert y.shape == (5, 1)
    np.testing.assert_allclose(y.numpy()[:, 0], expected, rtol=1e-5)
    terminated = batch.bootstrap_mask == 0
    torch.testing.assert_close(y[terminated, 0], batch.reward[terminated])


def test_without_a_mixer_each_agent_has_a_target_of_its_own() -> None:
    critic, batch = make_critic(mixer="none"), make_batch()
    candidates = torch.rand(5, 3, 2, 2) * 2 - 1
    y = td_target(critic, batch, candidates, 0.9, "min")
    with torch.no_grad():
        q = np.stack(
            [
                critic.agent_values(batch.next_obs, batch.next_state, candidates[:, k]).numpy()
                for k in range(3)
            ],
            axis=-1,
        )  # (C, B, N, K)
    best = q.min(axis=0).max(axis=-1)
    reward, mask = batch.reward.numpy()[:, None], batch.bootstrap_mask.numpy()[:, None]
    np.testing.assert_allclose(y.numpy(), reward + 0.9 * mask * best, rtol=1e-5)
    # An agent's error trains its own value alone: the other's target does not enter its gradient.
    moved = torch.cat([y[:, :1], y[:, 1:] + 1.0], dim=1)
    grads = []
    for target in (y, moved):
        values = critic.trained_values(batch.obs, batch.state, batch.actions)
        loss = (values - target).square().mean(dim=(1, 2)).sum()
        torch.testing.assert_close(critic_loss(critic, batch, target)[0], loss)
        grads.append(torch.autograd.grad(loss, values)[0])
    torch.testing.assert_close(grads[0][..., 0], grads[1][..., 0])
    assert not torch.allclose(grads[0][..., 1], grads[1][..., 1])


def test_critic_loss_equals_its_formula_and_trains_each_member() -> None:
    critic, batch = make_critic(mixer="qmix"), make_batch()
    y = torch.randn(5, 1)
    loss, info = critic_loss(critic, batch, y)
    with torch.no_grad():
        q = critic(batch.obs, batch.state, batch.actions).numpy()
    np.testing.assert_allclose(
        float(loss.detach()), sum(np.mean((q[c] - y.numpy()[:, 0]) ** 2) for c in range(2)), rtol=1e-5
    )
    np.testing.assert_allclose(float(info["td_loss"]), np.mean((q - y.numpy()[:, 0]) ** 2), rtol=1e-5)
    loss.backward()
    for name, parameter in critic.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


def test_polyak_update_moves_by_its_fraction() -> None:
    online = make_critic()
    target = copy.deepcopy(online).requires_grad_(False)
    with torch.no_grad():
        for parameter in online.parameters():
            parameter.add_(1.0)
    before = [p.clone() for p in target.parameters()]
    polyak_update(target, online, 0.25)
    for old, new in zip(before, target.parameters(), strict=True):
        torch.testing.assert_close(new, old + 0.25)


def loss_parts(
    discrete: bool, alpha: float, critic: Critic | None
) -> tuple[OneStepPolicy, Tensor, dict[str, Tensor]]:
    g = torch.Generator().manual_seed(2)
    policy = OneStepPolicy(2, 3, 2, "shared", "individual", [16], g)
    batch = make_batch(6)
    noise = torch.randn(6, 2, 2, generator=g)
    teacher = torch.eye(2)[torch.randint(0, 2, (6, 2), generator=g)] if discrete else noise.tanh()
    legal = torch.ones(6, 2, 2, dtype=torch.bool) if discrete else None
    loss, info = distillation_loss(
        policy, critic, batch.obs, batch.state, noise, teacher, legal, alpha, "mean"
    )
    return policy, loss, info


@pytest.mark.parametrize("discrete", [False, True])
@pytest.mark.parametrize("alpha", [0.0, 3.0])
def test_each_term_reaches_the_policy_and_the_value_term_leaves_the_frozen_critic_alone(
    discrete: bool, alpha: float
) -> None:
    critic = make_critic(discrete).requires_grad_(False)
    for use_critic in (True, False):
        if not use_critic and alpha == 0.0:
            continue
        policy, loss, _ = loss_parts(discrete, alpha, critic if use_critic else None)
        loss.backward()
        for name, parameter in policy.named_parameters():
            assert parameter.grad is not None, name
            assert parameter.grad.abs().sum() > 0, name
        assert all(parameter.grad is None for parameter in critic.parameters())


def test_beyond_the_bounds_only_gradients_that_lead_back_are_passed_on() -> None:
    critic = make_critic().requires_grad_(False)
    batch, out = make_batch(6), torch.zeros(6, 2, 2)
    out[0::3], out[1::3] = 5.0, -5.0
    out.requires_grad_(True)

    def gradient(actions: Tensor, inward: bool, at: Tensor) -> np.ndarray:
        loss, _ = distillation_loss(
            lambda *_: actions, critic, batch.obs, batch.state, out, out, None, 0.0, "mean", inward
        )
        return torch.autograd.grad(loss, at)[0].numpy()

    assert not gradient(out, False, out)[[0, 1, 3, 4]].any()
    passed, inside = gradient(out, True, out), gradient(out, False, out)
    # What the loss says of the clipped actions themselves.
    clipped = out.detach().clamp(-1, 1).requires_grad_(True)
    wanted = gradient(clipped, False, clipped)
    np.testing.assert_array_equal(passed[2::3], inside[2::3])
    np.testing.assert_array_equal(passed[0::3], np.maximum(wanted[0::3], 0))
    np.testing.assert_array_equal(passed[1::3], np.minimum(wanted[1::3], 0))
    assert (passed[0::3] > 0).any()
    assert (wanted[0::3] < 0).any()


def test_continuous_loss_equals_its_formula_in_numpy() -> None:
    critic = make_critic().requires_grad_(False)
    policy, loss, info = loss_parts(False, 3.0, critic)
    batch = make_batch(6)
    g = torch.Generator().manual_seed(2)
    OneStepPolicy(2, 3, 2, "shared", "individual", [16], g)
    noise = torch.randn(6, 2, 2, generator=g)
    with torch.no_grad():
        out = policy(batch.obs, noise)
        q = critic(batch.obs, batch.state, out.clamp(-1, 1)).numpy().mean(axis=0)
    distance = ((out.numpy() - np.tanh(noise.numpy())) ** 2).sum(-1).mean()
    np.testing.assert_allclose(float(info["distill_loss"]), distance, rtol=1e-5)
    np.testing.assert_allclose(float(loss.detach()), -q.mean() / np.abs(q).mean() + 3.0 * distance, rtol=1e-5)


def test_masked_softmax_gives_illegal_actions_nothing() -> None:
    logits = torch.tensor([[[5.0, 1.0, 2.0]]], requires_grad=True)
    legal = torch.tensor([[[False, True, True]]])
    p = masked_log_softmax(logits, legal).exp()
    np.testing.assert_allclose(p.detach().numpy()[0, 0], [0, 1 / (1 + np.e), np.e / (1 + np.e)], rtol=1e-5)
    (p * torch.tensor([1.0, 2.0, 3.0])).sum().backward()
    assert logits.grad is not None
    assert torch.isfinite(logits.grad).all()
    assert logits.grad[0, 0, 0] == 0


def test_value_term_alone_finds_the_best_legal_action() -> None:
    """The expected value under the softmax has a gradient; the best action is illegal here."""
    critic = make_critic(discrete=True).requires_grad_(False)
    g = torch.Generator().manual_seed(3)
    policy = OneStepPolicy(2, 3, 2, "shared", "individual", [32], g)
    obs, state = torch.randn(1, 2, 3, generator=g), torch.randn(1, 4, generator=g)
    legal = torch.ones(1, 2, 2, dtype=torch.bool)
    values = torch.stack(
        [critic.agent_values(obs, state, torch.eye(2)[a].expand(1, 2, 2)).mean(0)[0] for a in range(2)], -1
    )
    best = values.argmax(-1)  # (N,)
    legal[0, 0, best[0]] = False
    optimizer = torch.optim.Adam(policy.parameters(), lr=1e-2)
    noise, teacher = torch.zeros(1, 2, 2), torch.eye(2)[(1 - best)][None]
    for _ in range(200):
        loss, _ = distillation_loss(policy, critic, obs, state, noise, teacher, legal, 0.0, "mean")
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    chosen = masked_log_softmax(policy(obs, noise), legal).argmax(-1)[0]
    assert chosen[0] == 1 - best[0]
    assert chosen[1] == best[1]


def make_learner(
    discrete: bool, noise: Noise, aggregate: Aggregate, mixer: str
) -> tuple[CriticLearner, OneStepPolicy, torch.optim.Optimizer, Batch]:
    """Return critics on their way with a policy whose actions leave [-1, 1], and a batch for them."""
    critic = make_critic(discrete, mixer).requires_grad_(False)
    g = torch.Generator().manual_seed(4)
    policy = OneStepPolicy(2, 3, 2, "shared", noise, [16], g)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.mul_(4.0)
    artifact = CriticArtifact(make_spec(discrete, 2, 3, 2), critic, aggregate, 0.9, 1.0, {"polyak_tau": 0.25})
    batch = make_batch(32)
    if discrete:
        actions = torch.eye(2)[torch.randint(0, 2, (32, 2), generator=g)]
        legal = torch.ones(32, 2, 2, dtype=torch.bool)
        following = legal.clone()
        following[:, 0, 1] = torch.arange(32) % 3 > 0
        batch = replace(batch, actions=actions, legal_actions=legal, next_legal_actions=following)
    optimizer = adam([*policy.parameters(), *critic.parameters()])
    return CriticLearner(artifact, policy), policy, optimizer, batch


def numbers(module: torch.nn.Module) -> list[Tensor]:
    return [parameter.detach().clone() for parameter in module.parameters()]


@pytest.mark.parametrize("mixer", ["mean", "none"])
@pytest.mark.parametrize("noise", ["individual", "common"])
@pytest.mark.parametrize(("discrete", "aggregate"), [(False, "mean"), (False, "min"), (True, "mean")])
def test_learning_critics_take_the_policies_own_next_actions(
    discrete: bool, aggregate: Aggregate, noise: Noise, mixer: str
) -> None:
    learner, policy, optimizer, batch = make_learner(discrete, noise, aggregate, mixer)
    optimizer.param_groups[0]["lr"] = 0.0
    drawn, generator = (torch.Generator().manual_seed(5) for _ in range(2))
    losses = []
    for _ in range(2):
        z = torch.randn(32, 2, 2, generator=drawn)
        with torch.no_grad():
            out = policy(batch.next_obs, z, batch.next_legal_actions).numpy()
            q = learner.critic.trained_values(batch.obs, batch.state, batch.actions).numpy()
        if batch.next_legal_actions is None:
            assert np.abs(out).max() > 1
            actions = np.clip(out, -1, 1)
        else:
            best = np.where(batch.next_legal_actions.numpy(), out, -np.inf).argmax(axis=-1)
            assert (best != out.argmax(axis=-1)).any()
            actions = np.eye(2, dtype=np.float32)[best]
        with torch.no_grad():
            following = learner.target.trained_values(
                batch.next_obs, batch.next_state, torch.from_numpy(actions)
            ).numpy()
        following = following.mean(axis=0) if aggregate == "mean" else following.min(axis=0)
        y = batch.reward.numpy()[:, None] + 0.9 * batch.bootstrap_mask.numpy()[:, None] * following
        losses.append(float(learner.step(batch, optimizer, generator)["td_loss"]))
        np.testing.assert_allclose(losses[-1], np.mean((q - y) ** 2), rtol=1e-5)
    assert losses[0] != pytest.approx(losses[1], rel=1e-4), "the noise is not fresh"


@pytest.mark.parametrize("discrete", [False, True])
def test_each_loss_moves_its_own_and_the_target_follows_by_tau(discrete: bool) -> None:
    learner, policy, optimizer, batch = make_learner(discrete, "individual", "mean", "qmix")
    generator = torch.Generator().manual_seed(5)
    for _ in range(2):
        acting, critic, target = numbers(policy), numbers(learner.critic), numbers(learner.target)
        learner.step(batch, optimizer, generator)
        assert all(parameter.grad is None for parameter in policy.parameters())
        assert all(torch.equal(a, b) for a, b in zip(acting, policy.parameters(), strict=True))
        moved = numbers(learner.critic)
        for before, online, old, new in zip(critic, moved, target, learner.target.parameters(), strict=True):
            assert not torch.equal(before, online)
            torch.testing.assert_close(new, old + 0.25 * (online - old))
        follows = numbers(learner.target)

        z = torch.randn(32, 2, 2, generator=generator)
        teacher = batch.actions
        loss, _ = distillation_loss(
            policy, learner.critic, batch.obs, batch.state, z, teacher, batch.legal_actions, 0.1, "mean"
        )
        descend(optimizer, loss)
        for module, still in ((learner.critic, moved), (learner.target, follows)):
            assert all(torch.equal(a, b) for a, b in zip(still, module.parameters(), strict=True))
        assert not any(torch.equal(a, b) for a, b in zip(acting, policy.parameters(), strict=True))
