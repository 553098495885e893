"""OMIGA: the team's value regularisation, made local by a mixer of positive weights.

Source: Wang et al., "Offline Multi-Agent Reinforcement Learning with Implicit Global-to-Local Value
Regularization", NeurIPS 2023.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn

from macflow.algorithms.baselines.learner import (
    Acting,
    Learner,
    Loss,
    Positive,
    PositiveFloat,
    RecordedBatch,
    Settings,
    parameters_of,
    team_target,
)
from macflow.algorithms.baselines.parts import AgentNet, StochasticPolicy, factored_critic
from macflow.algorithms.igm_critic import polyak_update
from macflow.nets.stacked import StackedMLP
from macflow.types import MultiAgentSpec

# Beyond it the exponential goes on as its tangent, whose gradient still points the right way.
MAX_EXPONENT = 5.0
# Largest weight of a recorded action in the policies' loss.
MAX_WEIGHT = 100.0


class OMIGASettings(Settings):
    """Settings of OMIGA."""

    # Temperature: the larger it is, the closer the policies stay to the data.
    alpha: PositiveFloat = 10.0
    discount: Annotated[float, Field(ge=0, lt=1)] = 0.99
    polyak_tau: Annotated[float, Field(gt=0, le=1)] = 0.005
    ensemble: Positive = 2
    acting: Acting = "mode"


class PositiveMixer(nn.Module):
    """Weights w_i(o) >= 0 and offset b(o) from all observations: X_tot = sum_i w_i X_i + b."""

    def __init__(self, spec: MultiAgentSpec, hidden: Sequence[int], generator: torch.Generator) -> None:
        super().__init__()
        n = spec.n_agents
        self.net = StackedMLP(1, n * spec.obs_size, hidden, n + 1, generator)

    def forward(self, obs: Tensor) -> tuple[Tensor, Tensor]:
        """Map obs (B, N, O) to w (B, N) and b (B,)."""
        out = self.net(obs.flatten(1).unsqueeze(0))[0]
        return out[:, :-1].abs(), out[:, -1]


class OMIGA(Learner):
    """Local V_i and Q_i of a regularised team value; policies clone the actions, weighted by both."""

    def __init__(
        self, spec: MultiAgentSpec, settings: OMIGASettings, hidden: Sequence[int], generator: torch.Generator
    ) -> None:
        super().__init__()
        self.settings = settings
        self.critic = factored_critic(spec, "mean", "own", settings.ensemble, hidden, generator)
        self.mixer = PositiveMixer(spec, hidden, generator)
        self.value = AgentNet(1, spec.n_agents, spec.obs_size, hidden, 1, generator)
        self.policy = StochasticPolicy(spec, hidden, generator)
        self.target_critic = copy.deepcopy(self.critic).requires_grad_(False)
        self.target_mixer = copy.deepcopy(self.mixer).requires_grad_(False)
        self.target_value = copy.deepcopy(self.value).requires_grad_(False)

    def losses(
        self, batch: RecordedBatch, generator: torch.Generator
    ) -> tuple[list[Loss], dict[str, Tensor]]:
        """Return the losses of critics and mixer, of the values, and of the policies.

        With z_i = w_i (Q_i - V_i) / alpha: mean exp z_i + w_i V_i / alpha for V_i, and
        -mean exp z_i log pi_i(a_i | o_i) for pi_i.
        """
        alpha = self.settings.alpha
        v = self.value(batch.obs)[0].squeeze(-1)  # (B, N)
        q = self.critic.agent_values(batch.obs, batch.state, batch.actions)  # (C, B, N)
        w, b = self.mixer(batch.obs)
        with torch.no_grad():
            next_v = self.target_value(batch.next_obs)[0].squeeze(-1)
            next_w, next_b = self.target_mixer(batch.next_obs)
            y = team_target(batch, (next_w * next_v).sum(dim=-1) + next_b, self.settings.discount)
            target_q = self.target_critic.agent_values(batch.obs, batch.state, batch.actions).amin(dim=0)
            scale = self.target_mixer(batch.obs)[0] / alpha
        td = ((w * q).sum(dim=-1) + b - y).square().mean(dim=-1).sum()
        z = scale * (target_q - v)
        value_loss = (_bounded_exp(z) + scale * v).mean()
        weight = z.detach().exp().clamp_max(MAX_WEIGHT)
        policy_loss = -(weight * self.policy.log_prob(batch.obs, batch.actions, batch.legal_actions)).mean()
        losses: list[Loss] = [
            (td, parameters_of(self.critic, self.mixer)),
            (value_loss, list(self.value.parameters())),
            (policy_loss, list(self.policy.parameters())),
        ]
        return losses, {
            "td_loss": td.detach() / len(q),
            "value_loss": value_loss.detach(),
            "policy_loss": policy_loss.detach(),
            "weight_max": weight.max(),
        }

    def follow(self) -> None:
        """Move the targets of critics, mixer and values."""
        polyak_update(self.target_critic, self.critic, self.settings.polyak_tau)
        polyak_update(self.target_mixer, self.mixer, self.settings.polyak_tau)
        polyak_update(self.target_value, self.value, self.settings.polyak_tau)

    def act(self, obs: Tensor, state: Tensor, noise: Tensor, legal_actions: Tensor | None) -> Tensor:
        """Take the mean or most likely action, or draw one, as `acting` says."""
        return self.policy.act(obs, noise[:, 0], legal_actions, self.settings.acting)


def _bounded_exp(z: Tensor) -> Tensor:
    inside = z.clamp_max(MAX_EXPONENT)
    return inside.exp() + math.exp(MAX_EXPONENT) * (z - inside)
