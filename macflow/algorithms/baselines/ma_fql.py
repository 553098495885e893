"""MA-FQL: flow Q-learning for each agent on its own; no joint flow and no mixer.

Source: Park et al., "Flow Q-Learning", ICML 2025.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from macflow.algorithms.baselines.learner import (
    CriticSettings,
    Learner,
    Loss,
    Positive,
    RecordedBatch,
    Weight,
)
from macflow.algorithms.baselines.parts import factored_critic
from macflow.algorithms.distillation import distillation_loss
from macflow.algorithms.flow_matching import flow_matching_loss, one_hot_of_best_legal, sample_flow
from macflow.algorithms.igm_critic import critic_loss, polyak_update, td_target
from macflow.nets.policy import OneStepPolicy
from macflow.nets.velocity import VelocityField
from macflow.types import MultiAgentSpec


class MAFQLSettings(CriticSettings):
    """Settings of MA-FQL, with the defaults of FQL."""

    # Weight of the distillation term against the normalised value.
    alpha: Weight = 10.0
    flow_steps: Positive = 10
    aggregate: Literal["mean", "min"] = "mean"


class MAFQL(Learner):
    """An individual flow, an independent critic and a one-step policy per agent, trained together."""

    def __init__(
        self, spec: MultiAgentSpec, settings: MAFQLSettings, hidden: Sequence[int], generator: torch.Generator
    ) -> None:
        super().__init__()
        self.settings = settings
        n, o, a = spec.n_agents, spec.obs_size, spec.action_size
        self.flow = VelocityField(n, o, a, spec.discrete, "individual", hidden, generator)
        self.critic = factored_critic(spec, "none", settings.sees, settings.ensemble, hidden, generator)
        self.policy = OneStepPolicy(n, o, a, "shared", "individual", hidden, generator)
        self.target_critic = copy.deepcopy(self.critic).requires_grad_(False)

    def losses(
        self, batch: RecordedBatch, generator: torch.Generator
    ) -> tuple[list[Loss], dict[str, Tensor]]:
        """Return the losses of flow, critics and one-step policies."""
        settings, legal = self.settings, batch.legal_actions
        noise, next_noise = (
            torch.randn(batch.actions.shape, generator=generator, device=batch.actions.device)
            for _ in range(2)
        )
        flow, flow_info = flow_matching_loss(
            self.flow, batch.obs, batch.actions, legal, "velocity", generator
        )
        next_actions = self._one_step(batch.next_obs, next_noise, batch.next_legal_actions).unsqueeze(1)
        y = td_target(self.target_critic, batch, next_actions, settings.discount, settings.aggregate)
        td, td_info = critic_loss(self.critic, batch, y)
        teacher = sample_flow(self.flow, batch.obs, noise, settings.flow_steps, legal, "velocity")
        policy, policy_info = distillation_loss(
            self.policy,
            self.critic,
            batch.obs,
            batch.state,
            noise,
            teacher,
            legal,
            settings.alpha,
            settings.aggregate,
        )
        info = {
            "flow_loss": flow_info["loss"],
            "td_loss": td_info["td_loss"],
            "distill_loss": policy_info["distill_loss"],
            "q_policy": policy_info["q_mean"],
        }
        return [
            (flow, list(self.flow.parameters())),
            (td, list(self.critic.parameters())),
            (policy, list(self.policy.parameters())),
        ], info

    def follow(self) -> None:
        """Move the target critics."""
        polyak_update(self.target_critic, self.critic, self.settings.polyak_tau)

    def act(self, obs: Tensor, state: Tensor, noise: Tensor, legal_actions: Tensor | None) -> Tensor:
        """Take each agent's one-step action of its own noise."""
        return self._one_step(obs, noise[:, 0], legal_actions)

    @torch.no_grad()
    def _one_step(self, obs: Tensor, noise: Tensor, legal_actions: Tensor | None) -> Tensor:
        out: Tensor = self.policy(obs, noise, legal_actions)
        if legal_actions is None:
            return out.clamp(-1.0, 1.0)
        return one_hot_of_best_legal(out, legal_actions)
