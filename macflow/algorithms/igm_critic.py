"""IGM critics: temporal-difference target and loss (Eq. 1)."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from macflow.nets.critic import Critic, aggregate_ensemble
from macflow.types import Batch

NextAction = Literal["flow", "flow_best_of", "in_sample"]


@torch.no_grad()
def td_target(
    target: Critic,
    batch: Batch,
    next_actions: Tensor,
    discount: float,
    aggregate: Literal["mean", "min"],
) -> Tensor:
    """Return y = r + gamma * bootstrap_mask * max_k Qbar(o', a'_k), shape (B, 1), or (B, N) without a mixer.

    Each agent without a mixer takes the candidate that is best for itself.

    Args:
        next_actions: (B, K, N, A) candidates; K = 1 evaluates, K > 1 improves within the support
            of the candidates' distribution.
    """
    b, k, n, a = next_actions.shape
    obs = batch.next_obs.repeat_interleave(k, dim=0)  # (B * K, N, O)
    state = batch.next_state.repeat_interleave(k, dim=0)
    values = target.trained_values(obs, state, next_actions.reshape(b * k, n, a))
    best = aggregate_ensemble(values, aggregate).reshape(b, k, -1).amax(dim=1)
    return batch.reward.unsqueeze(1) + discount * batch.bootstrap_mask.unsqueeze(1) * best


def critic_loss(critic: Critic, batch: Batch, y: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the squared TD error, summed over the ensemble's members and averaged over the batch."""
    q = critic.trained_values(batch.obs, batch.state, batch.actions)  # (C, B, 1 or N)
    loss = (q - y).square().mean(dim=(1, 2)).sum()
    return loss, {
        "td_loss": loss.detach() / len(q),
        "q_mean": q.detach().mean(),
        "target_mean": y.mean(),
        "q_abs_max": q.detach().abs().max(),
    }


@torch.no_grad()
def polyak_update(target: nn.Module, online: nn.Module, polyak_tau: float) -> None:
    """Move each target parameter by `polyak_tau` towards the online one."""
    torch._foreach_lerp_(list(target.parameters()), list(online.parameters()), polyak_tau)
