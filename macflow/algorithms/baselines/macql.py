"""MACQL: conservative Q-learning on value decomposition, Q_tot = mean_i Q_i(o_i, a_i).

Source: Kumar et al., "Conservative Q-Learning for Offline Reinforcement Learning", NeurIPS 2020;
the regulariser per agent as in Pan et al., "Plan Better Amid Conservatism", ICML 2022.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor

from macflow.algorithms.baselines.learner import (
    CriticSettings,
    Learner,
    Loss,
    Positive,
    RecordedBatch,
    Weight,
    team_target,
)
from macflow.algorithms.baselines.parts import DeterministicPolicy, factored_critic
from macflow.algorithms.flow_matching import one_hot_of_best_legal
from macflow.algorithms.igm_critic import polyak_update
from macflow.types import ConfigError, MultiAgentSpec


class MACQLSettings(CriticSettings):
    """Settings of MACQL."""

    # Weight of the regulariser against the TD error.
    alpha: Weight = 5.0
    # Continuous: actions per agent from the uniform distribution, and as many near the policy's.
    samples: Positive = 10
    # Continuous: standard deviation of the actions near the policy's.
    policy_noise: Weight = 0.2


class MACQL(Learner):
    """Learn Q_i that are low off the data; act by their argmax, or by a policy trained on them."""

    def __init__(
        self, spec: MultiAgentSpec, settings: MACQLSettings, hidden: Sequence[int], generator: torch.Generator
    ) -> None:
        super().__init__()
        if spec.discrete and settings.sees == "state":
            raise ConfigError(
                "macql: `sees`: agents choose discrete actions by their own Q_i, which then must see their "
                "own observation (received 'state')"
            )
        self.settings = settings
        self.critic = factored_critic(spec, "mean", settings.sees, settings.ensemble, hidden, generator)
        self.target_critic = copy.deepcopy(self.critic).requires_grad_(False)
        self.policy = None if spec.discrete else DeterministicPolicy(spec, hidden, generator)

    def losses(
        self, batch: RecordedBatch, generator: torch.Generator
    ) -> tuple[list[Loss], dict[str, Tensor]]:
        """Return the critics' loss and that of the policy, if there is one.

        The critics' is TD error + alpha mean_i (log sum_a exp Q_i(o_i, a) - Q_i(o_i, a_i)).
        """
        q = self.critic.agent_values(batch.obs, batch.state, batch.actions)  # (C, B, N)
        y = team_target(batch, self._next_values(batch), self.settings.discount)
        td = (q.mean(dim=-1) - y).square().mean(dim=-1).sum()
        gap = (self._log_sum_exp(batch, generator) - q).mean(dim=(1, 2)).sum()
        losses: list[Loss] = [(td + self.settings.alpha * gap, list(self.critic.parameters()))]
        info = {
            "td_loss": td.detach() / len(q),
            "cql_gap": gap.detach() / len(q),
            "q_mean": q.detach().mean(),
        }
        if self.policy is not None:
            value = (
                self.critic.agent_values(batch.obs, batch.state, self.policy(batch.obs)).amin(dim=0).mean()
            )
            losses.append((-value, list(self.policy.parameters())))
            info["q_policy"] = value.detach()
        return losses, info

    def follow(self) -> None:
        """Move the target critics."""
        polyak_update(self.target_critic, self.critic, self.settings.polyak_tau)

    def act(self, obs: Tensor, state: Tensor, noise: Tensor, legal_actions: Tensor | None) -> Tensor:
        """Take the policies' action, or each agent's best legal one by its own Q_i."""
        return self._best_actions(obs, legal_actions)

    def _best_actions(self, obs: Tensor, legal_actions: Tensor | None) -> Tensor:
        if legal_actions is not None:
            return one_hot_of_best_legal(self.critic.agents.of_all_actions(obs).mean(dim=0), legal_actions)
        assert self.policy is not None
        out: Tensor = self.policy(obs)
        return out

    @torch.no_grad()
    def _next_values(self, batch: RecordedBatch) -> Tensor:
        actions = self._best_actions(batch.next_obs, batch.next_legal_actions)
        q = self.target_critic.agent_values(batch.next_obs, batch.next_state, actions)  # (C, B, N)
        out: Tensor = q.mean(dim=-1).amin(dim=0)
        return out

    def _log_sum_exp(self, batch: RecordedBatch, generator: torch.Generator) -> Tensor:
        """Return log sum exp of each agent's Q_i over its legal or its sampled actions: (C, B, N)."""
        if batch.legal_actions is not None:
            values = self.critic.agents.of_all_actions(batch.obs)
            out: Tensor = values.masked_fill(~batch.legal_actions, -torch.inf).logsumexp(dim=-1)
            return out
        assert self.policy is not None
        b, n, a = batch.actions.shape
        m = self.settings.samples
        shape, device = (b, m, n, a), batch.actions.device
        uniform = torch.rand(shape, generator=generator, device=device) * 2 - 1
        noise = self.settings.policy_noise * torch.randn(shape, generator=generator, device=device)
        near = (self.policy(batch.obs).detach().unsqueeze(1) + noise).clamp(-1.0, 1.0)
        actions = torch.cat([uniform, near], dim=1).reshape(b * 2 * m, n, a)
        obs, state = (seen.repeat_interleave(2 * m, dim=0) for seen in (batch.obs, batch.state))
        values = self.critic.agent_values(obs, state, actions).reshape(-1, b, 2 * m, n)
        found: Tensor = values.logsumexp(dim=2)
        return found
