"""Stage II: distil the joint flow into one-step policies that also maximise Q_tot (Eq. 7, 9)."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional

from macflow.nets.critic import Critic, aggregate_ensemble
from macflow.nets.policy import OneStepPolicy

Q_SCALE_FLOOR = 1e-6


def distillation_loss(
    policy: OneStepPolicy,
    critic: Critic | None,
    obs: Tensor,
    state: Tensor,
    noise: Tensor,
    teacher: Tensor,
    legal_actions: Tensor | None,
    alpha: float,
    aggregate: Literal["mean", "min"],
    inward: bool = False,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Return -lambda Q_tot(o, mu_w(o, z)) + alpha mean_i ||mu_w_i(o_i, z_i) - [mu_phi(o, z)]_i||^2 (Eq. 9).

    lambda = 1 / mean |Q_tot| carries no gradient; the same z serves both terms. For discrete
    actions the distance is the cross-entropy to the flow's action and the value is the expected
    Q_tot under the policy's masked softmax, both with gradients. Without a critic only the
    distillation term is left (Eq. 7).

    Args:
        obs: (B, N, O) normalised. state: (B, S) normalised.
        noise: (B, N, A). teacher: (B, N, A) = mu_phi(o, z) at that noise.
        legal_actions: (B, N, A) bool, or None for continuous actions.
        inward: whether Q_tot's gradient reaches continuous outputs beyond [-1, 1] where it leads back inside.
            The clipped action has none there, so where alpha is 0 policies that left would never return.
    """
    out = policy(obs, noise, legal_actions)  # (B, N, A)
    if legal_actions is None:
        actions = _clip_inward(out) if inward else out.clamp(-1.0, 1.0)
        distill = (out - teacher).square().sum(dim=-1).mean()
    else:
        log_probabilities = masked_log_softmax(out, legal_actions)
        actions = log_probabilities.exp()
        chosen = teacher.argmax(dim=-1, keepdim=True)
        distill = -log_probabilities.gather(-1, chosen).mean()
    info = {"distill_loss": distill.detach()}
    loss = alpha * distill
    if critic is not None:
        q = aggregate_ensemble(critic(obs, state, actions), aggregate)  # (B,)
        scale = q.detach().abs().mean().clamp_min(Q_SCALE_FLOOR)
        q_loss = -q.mean() / scale
        loss = loss + q_loss
        info |= {"q_loss": q_loss.detach(), "q_mean": q.detach().mean()}
    return loss, info | {"loss": loss.detach()}


class _ClipInward(torch.autograd.Function):
    """Clip to [-1, 1]; beyond, only gradients whose descent leads back inside are passed on."""

    @staticmethod
    def forward(ctx: Any, actions: Tensor) -> Tensor:
        ctx.save_for_backward(actions)
        return actions.clamp(-1.0, 1.0)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (actions,) = ctx.saved_tensors
        outward = ((actions > 1.0) & (gradient < 0)) | ((actions < -1.0) & (gradient > 0))
        return gradient.masked_fill(outward, 0.0)


# PyTorch says nothing of its type.
_clip_inward: Any = _ClipInward.apply


def masked_log_softmax(logits: Tensor, legal_actions: Tensor) -> Tensor:
    """Return log-probabilities over the legal actions; illegal ones get a large negative number."""
    # Finite, so that probability 0 times it stays 0 in gradients.
    return functional.log_softmax(logits.masked_fill(~legal_actions, torch.finfo(logits.dtype).min / 2), -1)
