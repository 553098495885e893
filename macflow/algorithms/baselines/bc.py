"""Behaviour cloning by likelihood, each agent from its own observation."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from macflow.algorithms.baselines.learner import Acting, Learner, Loss, RecordedBatch, Settings
from macflow.algorithms.baselines.parts import StochasticPolicy
from macflow.types import MultiAgentSpec


class BCSettings(Settings):
    """Settings of behaviour cloning."""

    acting: Acting = "mode"


class BC(Learner):
    """Maximise sum_i log pi_i(a_i | o_i), Gaussian or categorical."""

    def __init__(
        self, spec: MultiAgentSpec, settings: BCSettings, hidden: Sequence[int], generator: torch.Generator
    ) -> None:
        super().__init__()
        self.settings = settings
        self.policy = StochasticPolicy(spec, hidden, generator)

    def losses(
        self, batch: RecordedBatch, generator: torch.Generator
    ) -> tuple[list[Loss], dict[str, Tensor]]:
        """Return the negative log-likelihood of the recorded actions, per agent."""
        loss = -self.policy.log_prob(batch.obs, batch.actions, batch.legal_actions).mean()
        return [(loss, list(self.policy.parameters()))], {"bc_loss": loss.detach()}

    def act(self, obs: Tensor, state: Tensor, noise: Tensor, legal_actions: Tensor | None) -> Tensor:
        """Take the mean or most likely action, or draw one, as `acting` says."""
        return self.policy.act(obs, noise[:, 0], legal_actions, self.settings.acting)
