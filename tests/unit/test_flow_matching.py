"""Flow matching: loss against NumPy, sampler against closed forms, a two-mode fit."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from macflow.algorithms.flow_matching import flow_matching_loss, one_hot_of_best_legal, sample_flow
from macflow.nets.velocity import VelocityField


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
    loss, _ = flow_matching_loss(field, obs, actions, torch.Generator().manual_seed(3))
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
    out = sample_flow(LinearField(0.3), torch.zeros(32, 2, 1), noise, steps, None)
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
        loss, _ = flow_matching_loss(field, torch.zeros(256, 2, 1), actions, generator)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    noise = torch.randn(1000, 2, 1, generator=generator)
    x = sample_flow(field, torch.zeros(1000, 2, 1), noise, 10, None).squeeze(-1)
    disagree = float((x[:, 0] * x[:, 1] < 0).float().mean())
    both = float((x[:, 0] > 0).float().mean())
    assert 0.4 < both < 0.6
    assert disagree > 0.95 if scope == "joint" else 0.4 < disagree < 0.6
