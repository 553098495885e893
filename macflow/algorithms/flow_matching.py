"""Stage I: the flow policy's loss and sampler (Eq. 4, 6)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from macflow.nets.velocity import Field


def flow_matching_loss(
    field: Field, obs: Tensor, actions: Tensor, generator: torch.Generator
) -> tuple[Tensor, dict[str, Tensor]]:
    """Return E ||v_phi(t, o, x_t) - (a - x0)||^2 with x_t = (1 - t) x0 + t a (Eq. 4).

    Args:
        obs: (B, N, O) normalised.
        actions: (B, N, A) scaled to [-1, 1], or one-hot.
    """
    b, n, _ = actions.shape
    x0 = torch.randn(actions.shape, generator=generator, device=actions.device)
    time = torch.rand(field.times_shape(b, n), generator=generator, device=actions.device)
    t = time.unsqueeze(-1)  # (B, 1 or N, 1)
    velocity = field(time, obs, (1 - t) * x0 + t * actions)  # (B, N, A)
    loss = (velocity - (actions - x0)).square().mean()
    return loss, {"loss": loss.detach()}


@torch.no_grad()
def sample_flow(
    field: Field, obs: Tensor, noise: Tensor, euler_steps: int, legal_actions: Tensor | None
) -> Tensor:
    """Integrate the field from noise to a joint action mu_phi(o, z) by Euler steps (Eq. 6).

    Args:
        obs: (B, N, O) normalised.
        noise: (B, N, A) standard normal.
        legal_actions: None for continuous actions; else (B, N, A) bool, and the sample is the
            one-hot of the largest legal component.

    Returns:
        (B, N, A), clipped to [-1, 1] where continuous.
    """
    b, n, _ = noise.shape
    x = noise
    for i in range(euler_steps):
        time = torch.full(field.times_shape(b, n), i / euler_steps, device=noise.device)
        x = x + field(time, obs, x) / euler_steps
    if legal_actions is None:
        return x.clamp(-1.0, 1.0)
    return one_hot_of_best_legal(x, legal_actions)


def one_hot_of_best_legal(scores: Tensor, legal_actions: Tensor) -> Tensor:
    """Return the one-hot of the largest legal score: (..., A) and bool (..., A) -> (..., A)."""
    best = scores.masked_fill(~legal_actions, -torch.inf).argmax(dim=-1)
    return functional.one_hot(best, scores.shape[-1]).to(scores.dtype)
