"""Critics that learn the value of what the one-step policies do, next to the policies."""

from __future__ import annotations

import copy

import torch
from torch import Tensor

from macflow.algorithms.flow_matching import one_hot_of_best_legal
from macflow.algorithms.igm_critic import critic_loss, polyak_update, td_target
from macflow.nets.policy import OneStepPolicy
from macflow.training.artifacts import CriticArtifact
from macflow.training.loop import descend
from macflow.types import Batch


class CriticLearner:
    """Critics that go on learning while policies follow them: next actions are those of the policies.

    In each step of the distillation they go first, on the same batch and at the same learning rate, and the
    policies follow what they have become. Between their steps they take no gradient: the policies' loss
    leaves them as they are.
    """

    def __init__(self, artifact: CriticArtifact, policy: OneStepPolicy) -> None:
        """Go on from the critics of `artifact`, in place, with its discount, aggregate and polyak_tau."""
        self.artifact = artifact
        self.critic = artifact.critic
        self.target = copy.deepcopy(artifact.critic)
        self.policy = policy

    def step(
        self, batch: Batch, optimizer: torch.optim.Optimizer, generator: torch.Generator
    ) -> dict[str, Tensor]:
        """Take one step of `optimizer` down the TD loss of `batch`, move the target and return the loss."""
        noise = torch.randn(batch.actions.shape, generator=generator, device=batch.actions.device)
        next_actions = one_step_actions(self.policy, batch.next_obs, noise, batch.next_legal_actions)
        y = td_target(
            self.target, batch, next_actions.unsqueeze(1), self.artifact.discount, self.artifact.aggregate
        )
        self.critic.requires_grad_(True)
        loss, info = critic_loss(self.critic, batch, y)
        descend(optimizer, loss)
        self.critic.requires_grad_(False)
        polyak_update(self.target, self.critic, self.artifact.params["polyak_tau"])
        return {"td_loss": info["td_loss"]}


@torch.no_grad()
def one_step_actions(
    policy: OneStepPolicy, obs: Tensor, noise: Tensor, legal_actions: Tensor | None
) -> Tensor:
    """Return what the agents do (B, N, A) at normalised obs (B, N, O) by noise (B, N, A).

    Continuous actions are clipped to [-1, 1]; discrete ones are the one-hot of the best legal action.
    """
    out: Tensor = policy(obs, noise, legal_actions)
    return out.clamp(-1.0, 1.0) if legal_actions is None else one_hot_of_best_legal(out, legal_actions)
