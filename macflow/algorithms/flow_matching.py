"""Stage I: the flow policy's loss and sampler (Eq. 4, 6)."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from macflow.actions import of_legal
from macflow.algorithms.distillation import masked_log_softmax
from macflow.nets.velocity import Field

Objective = Literal["velocity", "endpoint"]


def flow_matching_loss(
    field: Field,
    obs: Tensor,
    actions: Tensor,
    legal_actions: Tensor | None,
    objective: Objective,
    generator: torch.Generator,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Return E ||v_phi(t, o, x_t) - (a - x0)||^2 with x_t = (1 - t) x0 + t a (Eq. 4).

    The flow of discrete actions lives on the legal ones: elsewhere noise and action are zero.
    There, `endpoint` has the field name the action from x_t instead, by cross-entropy, and
    v_phi = (E[a | x_t] - x_t) / (1 - t): the flow that minimises Eq. 4 is the same.
    Source: Eijkelboom et al., "Variational Flow Matching for Graph Generation", NeurIPS 2024.

    Args:
        obs: (B, N, O) normalised.
        actions: (B, N, A) scaled to [-1, 1], or one-hot.
        legal_actions: (B, N, A) bool, or None for continuous actions, whose objective is `velocity`.
    """
    b, n, _ = actions.shape
    x0 = of_legal(torch.randn(actions.shape, generator=generator, device=actions.device), legal_actions)
    time = torch.rand(field.times_shape(b, n), generator=generator, device=actions.device)
    t = time.unsqueeze(-1)  # (B, 1 or N, 1)
    out = field(time, obs, (1 - t) * x0 + t * actions)  # (B, N, A)
    if objective == "endpoint" and legal_actions is not None:
        chosen = actions.argmax(dim=-1, keepdim=True)
        loss = -masked_log_softmax(out, legal_actions).gather(-1, chosen).mean()
    else:
        error = (out - (actions - x0)).square()
        loss = mean_of_legal(error, legal_actions)
    return loss, {"loss": loss.detach()}


@torch.no_grad()
def sample_flow(
    field: Field,
    obs: Tensor,
    noise: Tensor,
    euler_steps: int,
    legal_actions: Tensor | None,
    objective: Objective,
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
    x = of_legal(noise, legal_actions)
    for i in range(euler_steps):
        time = torch.full(field.times_shape(b, n), i / euler_steps, device=noise.device)
        out = field(time, obs, x)
        if objective == "endpoint" and legal_actions is not None:
            x = x + (masked_log_softmax(out, legal_actions).exp() - x) / (euler_steps - i)
        else:
            x = x + of_legal(out, legal_actions) / euler_steps
    if legal_actions is None:
        return x.clamp(-1.0, 1.0)
    return one_hot_of_best_legal(x, legal_actions)


def mean_of_legal(errors: Tensor, legal_actions: Tensor | None) -> Tensor:
    """Return the mean of errors (B, N, A) over the legal actions, or over all where None; scalar."""
    if legal_actions is None:
        return errors.mean()
    # No selection by the mask, whose result's size a GPU would have to wait for.
    return (errors * legal_actions).sum() / legal_actions.sum()


def one_hot_of_best_legal(scores: Tensor, legal_actions: Tensor) -> Tensor:
    """Return the one-hot of the largest legal score: (..., A) and bool (..., A) -> (..., A)."""
    best = scores.masked_fill(~legal_actions, -torch.inf).argmax(dim=-1)
    return functional.one_hot(best, scores.shape[-1]).to(scores.dtype)
