"""The baselines' learners: each on a case where what its mechanism promises is known."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from macflow.algorithms.baselines.bc import BC
from macflow.algorithms.baselines.diffusion import NOISE_LEVELS, Diffusion, cosine_schedule
from macflow.algorithms.baselines.learner import Learner, RecordedBatch
from macflow.algorithms.baselines.ma_fql import MAFQL
from macflow.algorithms.baselines.macql import MACQL
from macflow.algorithms.baselines.matd3_bc import MATD3BC
from macflow.algorithms.baselines.omiga import MAX_EXPONENT, OMIGA
from macflow.algorithms.baselines.parts import LOG_STD_RANGE, gumbel
from macflow.algorithms.baselines.registry import METHODS, find_method, settings_of
from macflow.types import ConfigError, MultiAgentSpec

Draw = Callable[[int, torch.Generator], RecordedBatch]


def make_spec(discrete: bool = False, actions: int = 1, agents: int = 2) -> MultiAgentSpec:
    return MultiAgentSpec(
        agent_ids=tuple(f"agent_{i}" for i in range(agents)),
        obs_dims=(1,) * agents,
        state_size=1,
        action_kind="discrete" if discrete else "continuous",
        action_size=actions,
        action_low=(-1.0,) * actions,
        action_high=(1.0,) * actions,
    )


def make_learner(method: str, spec: MultiAgentSpec, **settings: Any) -> Any:
    generator = torch.Generator().manual_seed(0)
    learner: Any = find_method(method).learner(spec, settings_of(method, settings), (32, 32), generator)
    learner.spec_of_test = spec
    return learner


def game_batch(
    actions: Tensor, reward: Tensor, obs: Tensor | None = None, legal: Tensor | None = None
) -> RecordedBatch:
    """Return transitions of a game of one step: each terminates."""
    b, n, a = actions.shape
    obs = torch.zeros(b, n, 1) if obs is None else obs
    if legal is None and a > 1:
        legal = torch.ones(b, n, a, dtype=torch.bool)
    rows = torch.arange(b)
    return RecordedBatch(
        rows=rows,
        next_rows=rows + 1,
        obs=obs,
        actions=actions,
        reward=reward,
        bootstrap_mask=torch.zeros(b),
        next_obs=obs,
        state=torch.zeros(b, 1),
        next_state=torch.zeros(b, 1),
        legal_actions=legal,
        next_legal_actions=legal,
        next_actions=torch.zeros_like(actions),
        next_known=torch.zeros(b),
    )


def fit(learner: Learner, draw: Draw, steps: int, rate: float = 3e-3, size: int = 128) -> Learner:
    generator = torch.Generator().manual_seed(1)
    optimizer = torch.optim.Adam(learner.trained(), lr=rate, fused=True)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = rate * (1 - step / steps)
        learner.step(draw(size, generator), optimizer, generator)
    return learner


def act(learner: Any, count: int, legal: Tensor | None = None, seed: int = 7) -> Tensor:
    """Return `count` joint actions (count, N, A) at observation 0."""
    n, a = learner.spec_of_test.n_agents, learner.spec_of_test.action_size
    noise = torch.randn(count, learner.noises, n, a, generator=torch.Generator().manual_seed(seed))
    if legal is None and a > 1:
        legal = torch.ones(count, n, a, dtype=torch.bool)
    with torch.no_grad():
        found: Tensor = learner.act(torch.zeros(count, n, 1), torch.zeros(count, 1), noise, legal)
    return found


def one_hot(indices: Tensor, size: int) -> Tensor:
    return functional.one_hot(indices, size).float()


def xor(size: int, generator: torch.Generator) -> RecordedBatch:
    """Two agents that always disagree; reward 1 where the first plays -1, else 0."""
    side = torch.randint(0, 2, (size, 1, 1), generator=generator) * 2.0 - 1.0
    return game_batch(torch.cat([side, -side], dim=1), (side[:, 0, 0] < 0).float())


def discrete_xor(size: int, generator: torch.Generator) -> RecordedBatch:
    """The same with two actions of three, the third illegal."""
    first = torch.randint(0, 2, (size,), generator=generator)
    legal = torch.tensor([True, True, False]).expand(size, 2, 3)
    return game_batch(one_hot(torch.stack([first, 1 - first], 1), 3), (first == 0).float(), legal=legal)


# Behaviour cloning


def test_gaussian_cloning_recovers_mean_and_spread_of_a_conditional_gaussian() -> None:
    def draw(size: int, generator: torch.Generator) -> RecordedBatch:
        obs = torch.rand(size, 2, 1, generator=generator) * 2 - 1
        spread = torch.tensor([0.1, 0.3])[:, None]
        slope = torch.tensor([0.5, -0.5])[:, None]
        return game_batch(
            slope * obs + spread * torch.randn(size, 2, 1, generator=generator), torch.zeros(size), obs
        )

    learner: BC = fit(make_learner("bc", make_spec()), draw, 300, size=256)  # type: ignore[assignment]
    with torch.no_grad():
        for x in (-0.8, 0.0, 0.8):
            mean, log_std = learner.policy.gaussian(torch.full((1, 2, 1), x))
            np.testing.assert_allclose(mean[0, :, 0].numpy(), [0.5 * x, -0.5 * x], atol=0.05)
            np.testing.assert_allclose(log_std.exp()[0, :, 0].numpy(), [0.1, 0.3], rtol=0.15)


def test_gaussian_cloning_averages_two_modes() -> None:
    learner = fit(make_learner("bc", make_spec()), xor, 150)
    assert act(learner, 1).abs().max() < 0.1
    learner.settings = settings_of("bc", {"acting": "sample"})  # type: ignore[assignment]
    drawn = act(learner, 500)
    assert drawn.std() > 0.6
    assert torch.equal(drawn, drawn.clamp(-1, 1))


def test_categorical_cloning_recovers_the_frequencies_of_legal_actions() -> None:
    shares = torch.tensor([[0.7, 0.3, 0.0], [0.2, 0.0, 0.8]])
    mask = shares > 0

    def draw(size: int, generator: torch.Generator) -> RecordedBatch:
        chosen = torch.stack([torch.multinomial(s, size, True, generator=generator) for s in shares], dim=1)
        return game_batch(one_hot(chosen, 3), torch.zeros(size), legal=mask.expand(size, 2, 3))

    learner = fit(make_learner("bc", make_spec(True, 3), acting="sample"), draw, 300, size=256)
    drawn = act(learner, 4000, mask.expand(4000, 2, 3)).mean(dim=0)
    np.testing.assert_allclose(drawn.numpy(), shares.numpy(), atol=0.05)
    learner.settings = settings_of("bc", {"acting": "mode"})  # type: ignore[assignment]
    assert act(learner, 1, mask.expand(1, 2, 3)).argmax(-1).tolist() == [[0, 2]]


def test_cloning_loss_equals_the_gaussian_likelihood() -> None:
    learner: BC = make_learner("bc", make_spec(actions=2))
    obs, actions = torch.randn(6, 2, 1), torch.rand(6, 2, 2) * 2 - 1
    mean, log_std = (x.detach().numpy() for x in learner.policy.gaussian(obs))
    std = np.exp(np.clip(log_std, *LOG_STD_RANGE))
    density = np.exp(-(((actions.numpy() - mean) / std) ** 2) / 2) / (std * np.sqrt(2 * np.pi))
    found = learner.policy.log_prob(obs, actions, None).detach().numpy()
    np.testing.assert_allclose(found, np.log(density).sum(-1), rtol=1e-4)


def test_gumbel_noise_has_its_mean_and_variance() -> None:
    drawn = gumbel(torch.randn(200_000, generator=torch.Generator().manual_seed(0)))
    assert float(drawn.mean()) == pytest.approx(0.5772, abs=0.02)
    assert float(drawn.var()) == pytest.approx(math.pi**2 / 6, abs=0.04)
    assert torch.isfinite(drawn).all()


# MATD3+BC


def rising(size: int, generator: torch.Generator) -> RecordedBatch:
    """Actions around 0 with spread 0.3; the reward is their mean."""
    actions = (0.3 * torch.randn(size, 2, 1, generator=generator)).clamp(-1, 1)
    return game_batch(actions, actions.mean(dim=(1, 2)))


def test_matd3_moves_to_the_better_end_and_cloning_holds_it() -> None:
    moved = act(fit(make_learner("matd3_bc", make_spec(), alpha=2.5), rising, 200), 1)
    held = act(fit(make_learner("matd3_bc", make_spec(), alpha=0.0), rising, 200), 1)
    assert held.abs().max() < 0.1
    assert moved.min() > 0.3


def test_matd3_with_discrete_actions_finds_the_better_of_two() -> None:
    """(0, 0) pays most, and is rare."""
    rewards = torch.tensor([[2.0, 1.0], [1.0, 0.0]])

    def draw(size: int, generator: torch.Generator) -> RecordedBatch:
        chosen = (torch.rand(size, 2, generator=generator) < 0.7).long()
        return game_batch(one_hot(chosen, 2), rewards[chosen[:, 0], chosen[:, 1]])

    spec = make_spec(True, 2)
    moved = fit(make_learner("matd3_bc", spec, alpha=10.0), draw, 150)
    held = fit(make_learner("matd3_bc", spec, alpha=0.0), draw, 150)
    assert act(moved, 1).argmax(-1).tolist() == [[0, 0]]
    assert act(held, 1).argmax(-1).tolist() == [[1, 1]]
    probabilities = held.policy(torch.zeros(1, 2, 1)).softmax(-1)[0, :, 1]
    np.testing.assert_allclose(probabilities.detach().numpy(), [0.7, 0.7], atol=0.08)


def test_matd3_policy_loss_equals_its_formula() -> None:
    learner: MATD3BC = make_learner("matd3_bc", make_spec(), alpha=2.5)
    batch = rising(8, torch.Generator().manual_seed(0))
    loss, _ = learner._policy_loss(batch, torch.Generator())
    with torch.no_grad():
        out = learner.policy(batch.obs)
        q = learner.critic(batch.obs, batch.state, out)[0].numpy()
    expected = ((out - batch.actions).numpy() ** 2).mean() - 2.5 * q.mean() / np.abs(q).mean()
    assert float(loss.detach()) == pytest.approx(expected, rel=1e-4)


def test_matd3_smooths_the_target_and_delays_the_policy() -> None:
    learner: MATD3BC = make_learner("matd3_bc", make_spec(), target_noise=5.0, target_noise_clip=0.1)
    batch = rising(64, torch.Generator().manual_seed(0))
    with torch.no_grad():
        shift = (
            learner._next_actions(batch, torch.Generator().manual_seed(0)) - learner.policy(batch.next_obs)
        ).abs()
    assert shift.max() <= 0.1 + 1e-6
    assert shift.min() > 0
    optimizer = torch.optim.Adam(learner.trained(), lr=1e-2, fused=True)
    for step in range(1, 5):
        before = [
            [p.clone() for p in m.parameters()]
            for m in (learner.policy, learner.critic, learner.target_critic)
        ]
        learner.step(batch, optimizer, torch.Generator())
        moved = [
            any(not torch.equal(a, b) for a, b in zip(old, m.parameters(), strict=True))
            for old, m in zip(before, (learner.policy, learner.critic, learner.target_critic), strict=True)
        ]
        assert moved == [step % 2 == 0, True, step % 2 == 0]


# MACQL


def two_of_three(size: int, generator: torch.Generator) -> RecordedBatch:
    """Actions 0 and 1 of three, in equal shares; every joint action costs 1."""
    return game_batch(one_hot(torch.randint(0, 2, (size, 2), generator=generator), 3), -torch.ones(size))


def test_cql_holds_unseen_actions_under_those_of_the_data_and_plain_td_does_not() -> None:
    values = {}
    for alpha in (0.0, 1.0):
        learner: MACQL = fit(make_learner("macql", make_spec(True, 3), alpha=alpha), two_of_three, 200)  # type: ignore[assignment]
        values[alpha] = learner.critic.agents.of_all_actions(torch.zeros(1, 2, 1))[:, 0]  # (C, N, A)
    assert (values[1.0][..., 2] < values[1.0][..., :2].amin(-1) - 1.0).all()
    # Only their mean over agents is Q_tot: TD meets it on the data, and leaves the rest where it began.
    plain = values[0.0].mean(dim=1)  # (C, A)
    np.testing.assert_allclose(plain[:, :2].detach().numpy(), -1.0, atol=0.1)
    assert (plain[:, 2] > -0.8).all()


def test_cql_acts_by_its_best_legal_action() -> None:
    def draw(size: int, generator: torch.Generator) -> RecordedBatch:
        chosen = torch.randint(0, 3, (size, 2), generator=generator)
        return game_batch(one_hot(chosen, 3), chosen.float().mean(dim=1))

    learner = fit(make_learner("macql", make_spec(True, 3), alpha=0.1), draw, 200)
    assert act(learner, 1).argmax(-1).tolist() == [[2, 2]]
    legal = torch.tensor([[[True, True, False], [True, True, True]]])
    assert act(learner, 1, legal).argmax(-1).tolist() == [[1, 2]]


def test_cql_keeps_a_continuous_policy_near_the_data_where_plain_td_extrapolates() -> None:
    def draw(size: int, generator: torch.Generator) -> RecordedBatch:
        actions = torch.rand(size, 2, 1, generator=generator) * 0.6 - 0.3
        return game_batch(actions, 2 * actions.mean(dim=(1, 2)))

    far = act(fit(make_learner("macql", make_spec(), alpha=0.0, samples=2), draw, 150), 1)
    near = act(fit(make_learner("macql", make_spec(), alpha=1.0, samples=2), draw, 150), 1)
    assert far.min() > 0.8
    assert near.abs().max() < 0.3


def test_cql_regulariser_equals_its_formula() -> None:
    learner: MACQL = make_learner("macql", make_spec(True, 3), alpha=2.0)
    batch = two_of_three(6, torch.Generator().manual_seed(0))
    legal = torch.tensor([True, True, False]).expand(6, 2, 3)
    batch = game_batch(batch.actions, batch.reward, legal=legal)
    losses, info = learner.losses(batch, torch.Generator())
    q = learner.critic.agents.of_all_actions(batch.obs).detach().numpy()  # (C, B, N, A)
    taken = (q * batch.actions.numpy()).sum(-1)
    gap = np.log(np.exp(q[..., :2]).sum(-1)) - taken
    td = (taken.mean(-1) - batch.reward.numpy()) ** 2
    assert float(info["cql_gap"]) == pytest.approx(gap.mean(), rel=1e-4)
    assert float(losses[0][0].detach()) == pytest.approx(2 * td.mean() + 2.0 * 2 * gap.mean(), rel=1e-4)


def test_cql_bootstraps_on_the_best_legal_next_action() -> None:
    learner: MACQL = make_learner("macql", make_spec(True, 3), discount=0.5)
    g = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in learner.target_critic.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=g))
    legal = torch.tensor([True, False, True]).expand(4, 2, 3)
    batch = game_batch(one_hot(torch.zeros(4, 2, dtype=torch.int64), 3), torch.zeros(4), legal=legal)
    q, target = (
        critic.agents.of_all_actions(batch.next_obs).detach().numpy()
        for critic in (learner.critic, learner.target_critic)
    )
    best = np.where(legal.numpy(), q.mean(0), -np.inf).argmax(-1)  # (B, N)
    chosen = np.take_along_axis(target, best[None, ..., None], -1)[..., 0]  # (C, B, N)
    np.testing.assert_allclose(
        learner._next_values(batch).numpy(), chosen.mean(-1).min(0), rtol=1e-4, atol=1e-6
    )


# OMIGA


def better_and_common(size: int, generator: torch.Generator) -> RecordedBatch:
    """Each agent plays 0 in 70% of the data; the reward counts the 1s."""
    chosen = (torch.rand(size, 2, generator=generator) > 0.7).long()
    return game_batch(one_hot(chosen, 2), chosen.float().sum(dim=1))


@pytest.fixture(scope="module")
def sharp_omiga() -> OMIGA:
    learner: OMIGA = make_learner("omiga", make_spec(True, 2), alpha=0.5, polyak_tau=0.05)
    fit(learner, better_and_common, 300)
    return learner


def test_omiga_picks_the_better_action_and_at_huge_temperature_clones(sharp_omiga: OMIGA) -> None:
    flat: OMIGA = make_learner("omiga", make_spec(True, 2), alpha=1e4, polyak_tau=0.05)
    fit(flat, better_and_common, 150)
    assert act(sharp_omiga, 1).argmax(-1).tolist() == [[1, 1]]
    assert act(flat, 1).argmax(-1).tolist() == [[0, 0]]
    shares = flat.policy.net(torch.zeros(1, 2, 1))[0, 0].softmax(-1)[:, 1]
    np.testing.assert_allclose(shares.detach().numpy(), [0.3, 0.3], atol=0.08)


def test_omiga_local_value_is_the_soft_maximum_over_the_data(sharp_omiga: OMIGA) -> None:
    """V_i = (alpha / w_i) log E exp(w_i Q_i / alpha), whatever weights the mixer has settled on."""
    learner, alpha = sharp_omiga, 0.5
    obs = torch.zeros(1, 2, 1)
    with torch.no_grad():
        w = learner.mixer(obs)[0][0]
        q = learner.critic.agents.of_all_actions(obs).amin(0)[0]  # (N, A)
        v = learner.value(obs)[0, 0, :, 0]
        expected = (
            alpha / w * torch.log(0.7 * (w * q[:, 0] / alpha).exp() + 0.3 * (w * q[:, 1] / alpha).exp())
        )
        assert (w > 0.05).all()
    np.testing.assert_allclose(v.numpy(), expected.numpy(), atol=0.1)


def test_omiga_losses_equal_their_formulas() -> None:
    learner: OMIGA = make_learner("omiga", make_spec(True, 2), alpha=0.02, discount=0.9)
    g = torch.Generator().manual_seed(0)
    batch = better_and_common(6, g)
    mask = (torch.arange(6) % 2).float()
    batch = RecordedBatch(**(vars(batch) | {"bootstrap_mask": mask, "next_obs": torch.randn(6, 2, 1)}))
    losses, _ = learner.losses(batch, g)
    a = batch.actions.numpy()
    with torch.no_grad():
        q = (learner.critic.agents.of_all_actions(batch.obs).numpy() * a).sum(-1)  # targets equal it still
        w, b = (x.numpy() for x in learner.mixer(batch.obs))
        next_w, next_b = (x.numpy() for x in learner.mixer(batch.next_obs))
        v, next_v = (learner.value(o)[0, ..., 0].numpy() for o in (batch.obs, batch.next_obs))
        logits = learner.policy.net(batch.obs)[0]
        logs = (logits - logits.logsumexp(-1, keepdim=True)).numpy()
    y = batch.reward.numpy() + 0.9 * mask.numpy() * ((next_w * next_v).sum(-1) + next_b)
    td = sum((((w * q[c]).sum(-1) + b - y) ** 2).mean() for c in range(2))
    z = w / 0.02 * (q.min(0) - v)
    # The exponential goes on as its tangent.
    grown = np.where(z <= MAX_EXPONENT, np.exp(z), np.exp(MAX_EXPONENT) * (1 + z - MAX_EXPONENT))
    value = (grown + w / 0.02 * v).mean()
    policy = -(np.minimum(np.exp(z), 100) * (logs * a).sum(-1)).mean()
    for (loss, _), expected in zip(losses, (td, value, policy), strict=True):
        assert float(loss.detach()) == pytest.approx(float(expected), rel=1e-4)


# MA-FQL


def test_ma_fql_improves_on_a_separable_game_and_distillation_holds_it() -> None:
    """Uniform actions; the reward is their mean."""

    def draw(size: int, generator: torch.Generator) -> RecordedBatch:
        actions = torch.rand(size, 2, 1, generator=generator) * 2 - 1
        return game_batch(actions, actions.mean(dim=(1, 2)))

    moved = act(fit(make_learner("ma_fql", make_spec(), alpha=0.3, flow_steps=2), draw, 150), 300)
    held = act(fit(make_learner("ma_fql", make_spec(), alpha=100.0, flow_steps=2), draw, 150), 300)
    assert moved.mean(dim=0).min() > 0.7
    assert held.mean(dim=0).abs().max() < 0.2
    assert held.std() > 0.3


def test_ma_fql_cannot_disagree_on_purpose() -> None:
    """Both agents play both actions, and meet by chance: a product of policies has no correlation."""

    def draw(size: int, generator: torch.Generator) -> RecordedBatch:
        batch = xor(size, generator)
        return game_batch(batch.actions, torch.ones(size))

    learner = fit(make_learner("ma_fql", make_spec(), alpha=100.0, flow_steps=4), draw, 200)
    x = act(learner, 1000)[..., 0]
    first, second = ((x[:, i] > 0).float().mean() for i in range(2))
    disagree = (x[:, 0] * x[:, 1] < 0).float().mean()
    assert 0.35 < first < 0.65
    assert 0.35 < second < 0.65
    assert float(disagree) == pytest.approx(float(first * (1 - second) + second * (1 - first)), abs=0.06)


def test_ma_fql_losses_equal_their_formulas() -> None:
    learner: MAFQL = make_learner("ma_fql", make_spec(), alpha=2.0, discount=0.9)
    batch = rising(6, torch.Generator().manual_seed(0))
    mask = (torch.arange(6) % 2).float()
    batch = RecordedBatch(**(vars(batch) | {"bootstrap_mask": mask, "next_obs": torch.randn(6, 2, 1)}))
    losses, _ = learner.losses(batch, torch.Generator().manual_seed(5))
    replay = torch.Generator().manual_seed(5)
    noise, next_noise, x0 = (torch.randn(6, 2, 1, generator=replay) for _ in range(3))
    t = torch.rand(6, 2, generator=replay)
    with torch.no_grad():
        x_t = (1 - t[..., None]) * x0 + t[..., None] * batch.actions
        flow = ((learner.flow(t, batch.obs, x_t) - (batch.actions - x0)).numpy() ** 2).mean()
        x = noise
        for i in range(10):
            x = x + learner.flow(torch.full((6, 2), i / 10), batch.obs, x) / 10
        teacher = x.clamp(-1, 1).numpy()
        out = learner.policy(batch.obs, noise)
        following = learner.policy(batch.next_obs, next_noise).clamp(-1, 1)

        def q(obs: Tensor, actions: Tensor) -> Any:  # (C, B, N), the targets' equal it still
            return learner.critic.agent_values(obs, batch.state, actions).numpy()

        y = batch.reward.numpy()[:, None] + 0.9 * mask.numpy()[:, None] * q(batch.next_obs, following).mean(0)
        td = sum(((q(batch.obs, batch.actions)[c] - y) ** 2).mean() for c in range(2))
        value = q(batch.obs, out.clamp(-1, 1)).mean((0, 2))
    policy = 2.0 * ((out.numpy() - teacher) ** 2).mean() - value.mean() / np.abs(value).mean()
    for (loss, _), expected in zip(losses, (flow, td, policy), strict=True):
        assert float(loss.detach()) == pytest.approx(float(expected), rel=1e-4)


# Diffusion


def test_denoising_loss_equals_its_formula() -> None:
    learner: Diffusion = make_learner("diffusion", make_spec(), samples=1)
    batch = rising(6, torch.Generator().manual_seed(0))
    losses, _ = learner.losses(batch, torch.Generator().manual_seed(5))
    replay = torch.Generator().manual_seed(5)
    level = torch.randint(1, NOISE_LEVELS + 1, (6,), generator=replay)
    eps = torch.randn(6, 2, 1, generator=replay).numpy()
    share = cosine_schedule().numpy()[level.numpy()][:, None, None]
    a = batch.actions.numpy()
    x = np.sqrt(share) * a + np.sqrt(1 - share) * eps
    with torch.no_grad():
        out = learner.net(level[:, None] / NOISE_LEVELS, batch.obs, torch.from_numpy(x).float()).numpy()
    expected = ((out - (np.sqrt(share) * eps - np.sqrt(1 - share) * a)) ** 2).mean()
    assert float(losses[0][0].detach()) == pytest.approx(expected, rel=1e-4)


def test_diffusion_recovers_correlated_modes_in_few_steps_as_in_many() -> None:
    learner: Diffusion = make_learner("diffusion", make_spec(), samples=1)
    fit(learner, xor, 500, size=256)
    noise = torch.randn(500, 2, 1, generator=torch.Generator().manual_seed(3))
    sampled = {}
    for steps in (5, 20, NOISE_LEVELS):
        learner.settings = settings_of("diffusion", {"samples": 1, "sampling_steps": steps})  # type: ignore[assignment]
        x = sampled[steps] = learner.sample(torch.zeros(500, 2, 1), noise, None)[..., 0]
        assert float((x[:, 0] * x[:, 1] < 0).float().mean()) > 0.95
        assert 0.4 < float((x[:, 0] > 0).float().mean()) < 0.6
        assert float(x.abs().mean()) > 0.85
    for few in (5, 20):
        same_mode = (sampled[few].sign() == sampled[NOISE_LEVELS].sign()).float().mean()
        assert float(same_mode) > 0.95


@pytest.mark.parametrize("discrete", [False, True])
def test_the_best_of_several_samples_raises_the_value_and_stays_in_the_data(discrete: bool) -> None:
    spec = make_spec(True, 3) if discrete else make_spec()
    draw = discrete_xor if discrete else xor
    learner = make_learner("diffusion", spec, samples=8, sampling_steps=5)
    fit(learner, draw, 300)
    legal = torch.tensor([True, True, False]).expand(200, 2, 3) if discrete else None

    def plays(actions: Tensor) -> tuple[float, float]:
        """Return how often the joint action is the one that pays, and one of the data."""
        x = actions.argmax(-1) * 2 - 1 if discrete else actions[..., 0]
        apart = x[:, 0] * x[:, 1] < 0
        return float((apart & (x[:, 0] < 0)).float().mean()), float(apart.float().mean())

    best, within = plays(act(learner, 200, legal))
    assert best > 0.95
    assert within > 0.95
    learner.critic, learner.noises = None, 1
    chance, within = plays(act(learner, 200, legal))
    assert 0.35 < chance < 0.65
    assert within > 0.9


def test_diffusion_sampler_returns_the_action_that_an_ideal_denoiser_names() -> None:
    """For data at one point c the best v is signal * eps - spread * c with eps = (x - signal c) / spread."""
    learner: Diffusion = make_learner("diffusion", make_spec(), samples=1, sampling_steps=5)

    class Ideal(torch.nn.Module):
        def forward(self, time: Tensor, obs: Tensor, x: Tensor) -> Tensor:
            level = int((time[0, 0] * NOISE_LEVELS).round())
            signal, spread = learner.signal[level], learner.spread[level]
            return signal * (x - signal * 0.3) / spread - spread * 0.3

    learner.net = Ideal()  # type: ignore[assignment]
    out = learner.sample(torch.zeros(32, 2, 1), torch.randn(32, 2, 1), None)
    np.testing.assert_allclose(out.numpy(), 0.3, atol=1e-4)


def test_noise_schedule_is_the_cosine() -> None:
    share = cosine_schedule().numpy()
    t = np.arange(NOISE_LEVELS + 1) / NOISE_LEVELS
    wanted = np.cos((t + 0.008) / 1.008 * np.pi / 2) ** 2
    np.testing.assert_allclose(share[:-1], (wanted / wanted[0])[:-1], rtol=1e-9)
    assert 0 < share[-1] < 1e-6


def test_diffusion_critic_leaves_out_what_has_no_recorded_next_action() -> None:
    learner: Diffusion = make_learner("diffusion", make_spec(), samples=2, discount=0.9)
    g = torch.Generator().manual_seed(0)
    mask, known = torch.tensor([1.0, 1.0, 0.0, 0.0]), torch.tensor([1.0, 0.0, 0.0, 1.0])
    batch = RecordedBatch(
        **(
            vars(rising(4, g))
            | {
                "bootstrap_mask": mask,
                "next_known": known,
                "next_obs": torch.randn(4, 2, 1, generator=g),
                "next_actions": torch.rand(4, 2, 1, generator=g),
            }
        )
    )
    losses, _ = learner.losses(batch, g)
    assert learner.critic is not None
    with torch.no_grad():
        q = learner.critic(batch.obs, batch.state, batch.actions).numpy()
        following = learner.critic(batch.next_obs, batch.next_state, batch.next_actions).numpy().mean(0)
    y = batch.reward.numpy() + 0.9 * mask.numpy() * following
    used = [0, 2, 3]
    expected = sum(((q[c] - y)[used] ** 2).mean() for c in range(2))
    assert float(losses[1][0].detach()) == pytest.approx(expected, rel=1e-4)


# All of them


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("discrete", [False, True])
def test_losses_move_parameters_of_their_own_and_all_of_them(method: str, discrete: bool) -> None:
    spec = make_spec(discrete, 2)
    learner = make_learner(method, spec)
    g = torch.Generator().manual_seed(0)
    legal = torch.ones(4, 2, 2, dtype=torch.bool) if discrete else None
    actions = one_hot(torch.randint(0, 2, (4, 2), generator=g), 2) if discrete else torch.rand(4, 2, 2)
    batch = game_batch(actions, torch.randn(4, generator=g), legal=legal)
    if not discrete:
        batch = RecordedBatch(**(vars(batch) | {"legal_actions": None, "next_legal_actions": None}))
    learner.losses(batch, g)
    losses, _ = learner.losses(batch, g)  # the second step is one of delayed policies
    moved = [id(parameter) for _, parameters in losses for parameter in parameters]
    assert len(moved) == len(set(moved))
    assert set(moved) == {id(parameter) for parameter in learner.trained()}
    for loss, parameters in losses:
        gradients = torch.autograd.grad(loss, parameters, retain_graph=True)
        assert any(gradient.abs().sum() > 0 for gradient in gradients)


def test_unknown_and_wrong_settings_are_refused() -> None:
    with pytest.raises(
        ConfigError, match=r"macql: `beta`: unknown; known are discount, .*alpha.* \(received 1\)"
    ):
        settings_of("macql", {"beta": 1})
    with pytest.raises(ConfigError, match=r"omiga: `alpha`: .*greater than 0 \(received 0\)"):
        settings_of("omiga", {"alpha": 0})
    with pytest.raises(ConfigError, match=r"diffusion: `sampling_steps`: .*5 .*\(received 4\)"):
        settings_of("diffusion", {"sampling_steps": 4})
    with pytest.raises(ConfigError, match=r"`method`: must be one of bc, .* \(received 'qmix'\)"):
        settings_of("qmix", {})
    with pytest.raises(ConfigError, match=r"macql: `sees`: .*\(received 'state'\)"):
        make_learner("macql", make_spec(True, 2), sees="state")
    assert make_learner("macql", make_spec(), sees="state").settings.sees == "state"
    assert isinstance(make_learner("ma_fql", make_spec()), MAFQL)
