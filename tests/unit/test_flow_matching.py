"""Flow matching: loss against NumPy, sampler against closed forms, a two-mode fit."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional

from macflow.algorithms.flow_matching import (
    Objective,
    flow_matching_loss,
    one_hot_of_best_legal,
    sample_flow,
)
from macflow.nets.velocity import AttentionVelocityField, Field, VelocityField


class LinearField(VelocityField):
    """v = c - x, whose flow has a closed form."""

    def __init__(self, centre: float) -> None:
        super().__init__(2, 1, 1, False, "joint", [4], torch.Generator())
        self.centre = centre

    def forward(self, time: torch.Tensor, obs: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        return self.centre - x


def test_loss_equals_its_formula_in_numpy() -> None:
    field = VelocityField(2, 3, 2, False, "joint", [8], torch.Generator().manual_seed(0))
    obs, actions = torch.randn(16, 2, 3), torch.rand(16, 2, 2) * 2 - 1
    loss, _ = flow_matching_loss(field, obs, actions, None, "velocity", torch.Generator().manual_seed(3))
    replay = torch.Generator().manual_seed(3)
    x0 = torch.randn(actions.shape, generator=replay).numpy()
    t = torch.rand((16, 1), generator=replay).numpy()[:, :, None]
    a = actions.numpy()
    x_t = ((1 - t) * x0 + t * a).astype(np.float32)
    with torch.no_grad():
        v = field(torch.from_numpy(t[:, :, 0]), obs, torch.from_numpy(x_t)).numpy()
    np.testing.assert_allclose(float(loss.detach()), np.mean((v - (a - x0)) ** 2), rtol=1e-5)


@pytest.mark.parametrize("steps", [1, 4, 10])
def test_euler_sampler_equals_the_closed_form(steps: int) -> None:
    """x_{i+1} = x_i + (c - x_i) / n has the solution c + (x_0 - c) (1 - 1/n)^n."""
    noise = torch.randn(32, 2, 1, generator=torch.Generator().manual_seed(0))
    out = sample_flow(LinearField(0.3), torch.zeros(32, 2, 1), noise, steps, None, "velocity")
    expected = np.clip(0.3 + (noise.numpy() - 0.3) * (1 - 1 / steps) ** steps, -1, 1)
    np.testing.assert_allclose(out.numpy(), expected, atol=1e-6)


def test_samples_are_legal_one_hots() -> None:
    scores = torch.tensor([[[0.9, 0.5, 0.1]], [[0.1, 0.2, 0.3]]])
    legal = torch.tensor([[[False, True, True]], [[True, True, False]]])
    assert torch.equal(
        one_hot_of_best_legal(scores, legal), torch.tensor([[[0.0, 1.0, 0.0]], [[0.0, 1.0, 0.0]]])
    )


@pytest.mark.parametrize("scope", ["joint", "individual"])
def test_joint_flow_keeps_the_correlation_that_an_individual_one_loses(scope: str) -> None:
    """Data (-1, 1) and (1, -1): only the joint flow's samples always disagree."""
    generator = torch.Generator().manual_seed(0)
    field = VelocityField(2, 1, 1, False, scope, [64, 64], generator)  # type: ignore[arg-type]
    optimizer = torch.optim.Adam(field.parameters(), lr=2e-3)
    for _ in range(700):
        side = torch.randint(0, 2, (256, 1, 1), generator=generator) * 2.0 - 1.0
        actions = torch.cat([side, -side], dim=1)
        loss, _ = flow_matching_loss(field, torch.zeros(256, 2, 1), actions, None, "velocity", generator)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    noise = torch.randn(1000, 2, 1, generator=generator)
    x = sample_flow(field, torch.zeros(1000, 2, 1), noise, 10, None, "velocity").squeeze(-1)
    disagree = float((x[:, 0] * x[:, 1] < 0).float().mean())
    both = float((x[:, 0] > 0).float().mean())
    assert 0.4 < both < 0.6
    assert disagree > 0.95 if scope == "joint" else 0.4 < disagree < 0.6


def discrete_batch(size: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return obs (B, 2, 1), legal (B, 2, 3) and the actions (B, 2, 3) of one of two joint modes.

    Half of the joint actions is (0, 1), half (1, 0); where the observation is 1, action 1 is illegal
    and both take 2 in its place.
    """
    first = torch.randint(0, 2, (size, 1), generator=generator)
    chosen = torch.cat([first, 1 - first], dim=1)
    shut = torch.randint(0, 2, (size, 1), generator=generator).bool().expand(-1, 2)
    chosen = torch.where(shut & (chosen == 1), 2, chosen)
    legal = torch.stack([torch.ones_like(shut), ~shut, shut], dim=-1)
    return shut.float().unsqueeze(-1), legal, functional.one_hot(chosen, 3).float()


@pytest.mark.parametrize("objective", ["velocity", "endpoint"])
def test_what_is_illegal_has_no_part_in_loss_and_sample(objective: Objective) -> None:
    """The field sees zeros there, and whatever it says there changes nothing."""
    inputs: list[torch.Tensor] = []

    class Shifted(VelocityField):
        shift: torch.Tensor | float = 0.0

        def forward(self, time: torch.Tensor, obs: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
            inputs.append(x)
            return super().forward(time, obs, x) + self.shift

    field = Shifted(2, 1, 3, True, "joint", [16], torch.Generator().manual_seed(0))
    obs, legal, actions = discrete_batch(32, torch.Generator().manual_seed(1))
    noise = torch.randn(actions.shape, generator=torch.Generator().manual_seed(2))

    def both() -> tuple[float, torch.Tensor]:
        loss, _ = flow_matching_loss(field, obs, actions, legal, objective, torch.Generator().manual_seed(3))
        return float(loss.detach()), sample_flow(field, obs, noise, 5, legal, objective)

    loss, sample = both()
    field.shift = torch.where(legal, 0.0, 7.0)
    assert both()[0] == loss
    assert torch.equal(both()[1], sample)
    assert all(torch.count_nonzero(x[~legal]) == 0 for x in inputs)


def test_endpoint_loss_equals_its_formula_in_numpy() -> None:
    field = VelocityField(2, 1, 3, True, "joint", [8], torch.Generator().manual_seed(0))
    obs, legal, actions = discrete_batch(16, torch.Generator().manual_seed(1))
    loss, _ = flow_matching_loss(field, obs, actions, legal, "endpoint", torch.Generator().manual_seed(3))
    replay = torch.Generator().manual_seed(3)
    x0 = torch.randn(actions.shape, generator=replay) * legal
    time = torch.rand((16, 1), generator=replay)
    t = time[:, :, None]
    with torch.no_grad():
        logits = field(time, obs, (1 - t) * x0 + t * actions).numpy()
    weights = np.where(legal.numpy(), np.exp(logits), 0.0)
    taken = (weights * actions.numpy()).sum(-1) / weights.sum(-1)
    np.testing.assert_allclose(float(loss.detach()), -np.log(taken).mean(), rtol=1e-5)


@pytest.mark.parametrize("steps", [1, 4, 10])
def test_euler_steps_of_the_endpoint_objective_arrive_at_the_endpoint(steps: int) -> None:
    """A field that always names action 2 leads there from any noise, and never beyond."""

    class Named(VelocityField):
        def forward(self, time: torch.Tensor, obs: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
            return torch.tensor([0.0, 90.0, 50.0]).expand(x.shape)

    field = Named(2, 1, 3, True, "joint", [4], torch.Generator())
    legal = torch.tensor([True, False, True]).expand(64, 2, 3)
    noise = torch.randn(64, 2, 3, generator=torch.Generator().manual_seed(0)) * 9
    sample = sample_flow(field, torch.zeros(64, 2, 1), noise, steps, legal, "endpoint")
    assert torch.equal(sample, torch.tensor([0.0, 0.0, 1.0]).expand(64, 2, 3))


@pytest.mark.parametrize("arch", ["mlp", "transformer"])
def test_endpoint_flow_keeps_both_joint_modes(arch: str) -> None:
    generator = torch.Generator().manual_seed(0)
    field: Field
    if arch == "mlp":
        field = VelocityField(2, 1, 3, True, "joint", [64, 64], generator)
    else:
        field = AttentionVelocityField(2, 1, 3, True, [16, 16], generator)
    optimizer = torch.optim.Adam(field.parameters(), lr=3e-3)
    for _ in range(250):
        obs, legal, actions = discrete_batch(128, generator)
        loss, _ = flow_matching_loss(field, obs, actions, legal, "endpoint", generator)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    obs, legal, _ = discrete_batch(1000, generator)
    sample = sample_flow(
        field, obs, torch.randn(1000, 2, 3, generator=generator), 10, legal, "endpoint"
    ).argmax(-1)
    assert bool(legal.gather(-1, sample.unsqueeze(-1)).all())
    one_stays = (sample == 0).sum(dim=1) == 1
    assert float(one_stays.float().mean()) > 0.95
    assert 0.4 < float((sample[:, 0] == 0).float().mean()) < 0.6
