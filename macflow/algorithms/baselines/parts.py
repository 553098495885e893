"""Nets that several baselines are made of; all share their weights over agents."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from macflow.algorithms.baselines.learner import Acting
from macflow.algorithms.distillation import masked_log_softmax
from macflow.algorithms.flow_matching import one_hot_of_best_legal
from macflow.nets.critic import FactoredCritic, Sight
from macflow.nets.stacked import StackedMLP, with_agent_ids
from macflow.types import MultiAgentSpec

LOG_STD_RANGE = (-5.0, 2.0)


class AgentNet(nn.Module):
    """C copies of one net for all agents, the agent's id appended to its input."""

    def __init__(
        self,
        copies: int,
        n_agents: int,
        inputs: int,
        hidden: Sequence[int],
        outputs: int,
        generator: torch.Generator,
        layer_norm: bool = False,
    ) -> None:
        super().__init__()
        self.copies = copies
        self.net = StackedMLP(copies, inputs + n_agents, hidden, outputs, generator, layer_norm)

    def forward(self, x: Tensor) -> Tensor:
        """Map x (B, N, F) to (C, B, N, outputs)."""
        b, n, _ = x.shape
        out: Tensor = self.net(with_agent_ids(x).reshape(1, b * n, -1).expand(self.copies, -1, -1))
        return out.reshape(self.copies, b, n, -1)


def factored_critic(
    spec: MultiAgentSpec,
    mixer: Literal["mean", "none"],
    sees: Sight,
    ensemble: int,
    hidden: Sequence[int],
    generator: torch.Generator,
) -> FactoredCritic:
    """Return fresh critics of `spec`; methods with a mixer of their own use the Q_i alone."""
    sizes = (spec.n_agents, spec.obs_size, spec.action_size, spec.state_size)
    return FactoredCritic(*sizes, spec.discrete, mixer, sees, ensemble, hidden, generator)


class DeterministicPolicy(nn.Module):
    """Each agent's own observation to its action by a tanh, or to its logits where discrete."""

    def __init__(self, spec: MultiAgentSpec, hidden: Sequence[int], generator: torch.Generator) -> None:
        super().__init__()
        self.discrete = spec.discrete
        self.net = AgentNet(1, spec.n_agents, spec.obs_size, hidden, spec.action_size, generator)

    def forward(self, obs: Tensor) -> Tensor:
        """Map obs (B, N, O) to actions or logits (B, N, A)."""
        out: Tensor = self.net(obs)[0]
        return out if self.discrete else out.tanh()


class StochasticPolicy(nn.Module):
    """pi_i(a_i | o_i): a Gaussian of independent dimensions, or a distribution over the legal actions."""

    def __init__(self, spec: MultiAgentSpec, hidden: Sequence[int], generator: torch.Generator) -> None:
        super().__init__()
        self.discrete = spec.discrete
        outputs = spec.action_size * (1 if spec.discrete else 2)
        self.net = AgentNet(1, spec.n_agents, spec.obs_size, hidden, outputs, generator)

    def gaussian(self, obs: Tensor) -> tuple[Tensor, Tensor]:
        """Map obs (B, N, O) to means and logarithms of standard deviations, (B, N, A) each."""
        mean, log_std = self.net(obs)[0].chunk(2, dim=-1)
        return mean, log_std.clamp(*LOG_STD_RANGE)

    def log_prob(self, obs: Tensor, actions: Tensor, legal_actions: Tensor | None) -> Tensor:
        """Map obs (B, N, O) and actions (B, N, A) to log pi_i(a_i | o_i), (B, N)."""
        if legal_actions is not None:
            logs = masked_log_softmax(self.net(obs)[0], legal_actions)
            return logs.gather(-1, actions.argmax(dim=-1, keepdim=True)).squeeze(-1)
        mean, log_std = self.gaussian(obs)
        errors = (actions - mean) * torch.exp(-log_std)
        return -(0.5 * errors.square() + log_std + 0.5 * math.log(2 * math.pi)).sum(dim=-1)

    def act(self, obs: Tensor, noise: Tensor, legal_actions: Tensor | None, how: Acting) -> Tensor:
        """Map obs (B, N, O) and noise (B, N, A) to clipped or one-hot actions (B, N, A)."""
        if legal_actions is not None:
            scores = masked_log_softmax(self.net(obs)[0], legal_actions)
            return one_hot_of_best_legal(scores + gumbel(noise) if how == "sample" else scores, legal_actions)
        mean, log_std = self.gaussian(obs)
        return (mean + log_std.exp() * noise if how == "sample" else mean).clamp(-1.0, 1.0)


def gumbel(noise: Tensor) -> Tensor:
    """Map standard normal numbers to standard Gumbel ones; logits plus these have their sample as argmax."""
    return -torch.log(-torch.special.log_ndtr(noise))
