"""Per-agent critics Q_i(o_i, a_i) and the mixers that make Q_tot of them (Eq. 1).

`mean` and `qmix` never decrease in any Q_i, so the joint argmax of Q_tot is the agents' own
argmaxes (IGM: individual-global-max). `none` and `central` are the ablations without it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from macflow.nets.stacked import StackedMLP, with_agent_ids

Mixing = Literal["mean", "qmix", "none", "central"]
# What the critics see: each agent's own observation, or the state, which only training needs.
Sight = Literal["own", "state"]
Aggregate = Literal["mean", "min"]

QMIX_EMBEDDING = 32
QMIX_HYPER_HIDDEN = (64,)


class MeanMixer(nn.Module):
    """Q_tot = mean_i Q_i: value decomposition up to scale."""

    def forward(self, q: Tensor, state: Tensor) -> Tensor:
        """Map q (C, B, N) and state (B, S) to (C, B)."""
        return q.mean(dim=-1)


class QMixer(nn.Module):
    """Q_tot = monotonic two-layer net of the Q_i whose weights a hypernetwork makes from the state.

    Source: Rashid et al., "QMIX", ICML 2018.
    """

    def __init__(self, copies: int, n_agents: int, state_size: int, generator: torch.Generator) -> None:
        super().__init__()

        def hyper(outputs: int) -> StackedMLP:
            return StackedMLP(copies, state_size, QMIX_HYPER_HIDDEN, outputs, generator)

        self.first_weight = hyper(n_agents * QMIX_EMBEDDING)
        self.first_bias = hyper(QMIX_EMBEDDING)
        self.second_weight = hyper(QMIX_EMBEDDING)
        self.second_bias = hyper(1)

    def forward(self, q: Tensor, state: Tensor) -> Tensor:
        """Map q (C, B, N) and state (B, S) to (C, B)."""
        c, b, n = q.shape
        s = state.expand(c, *state.shape)
        first = self.first_weight(s).abs().reshape(c, b, n, QMIX_EMBEDDING)
        hidden = functional.elu(torch.einsum("cbn,cbne->cbe", q, first) + self.first_bias(s))
        second = self.second_weight(s).abs()
        out: Tensor = (hidden * second).sum(dim=-1) + self.second_bias(s).squeeze(-1)
        return out


class AgentValues(nn.Module):
    """An ensemble of C nets Q_i(x_i, a_i), each of shared weights over agents."""

    def __init__(
        self,
        n_agents: int,
        seen_size: int,
        action_size: int,
        discrete: bool,
        ensemble: int,
        hidden: Sequence[int],
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        self.discrete = discrete
        self.ensemble = ensemble
        self.hidden = tuple(hidden)
        inputs = seen_size + n_agents + (0 if discrete else action_size)
        outputs = action_size if discrete else 1
        self.net = StackedMLP(ensemble, inputs, hidden, outputs, generator, layer_norm=True)

    def forward(self, seen: Tensor, actions: Tensor) -> Tensor:
        """Map what agents see (B, N, X) and actions (B, N, A) to Q_i (C, B, N).

        Discrete actions may be one-hot, or probabilities: the value is then the expected one.
        """
        if self.discrete:
            return (self.of_all_actions(seen) * actions).sum(dim=-1)
        return self._outputs(torch.cat([seen, actions], dim=-1)).squeeze(-1)

    def of_all_actions(self, seen: Tensor) -> Tensor:
        """Map what agents see (B, N, X) to Q_i of every discrete action (C, B, N, A)."""
        return self._outputs(seen)

    def _outputs(self, x: Tensor) -> Tensor:
        b, n, _ = x.shape
        out: Tensor = self.net(with_agent_ids(x).reshape(1, b * n, -1).expand(self.ensemble, -1, -1))
        return out.reshape(self.ensemble, b, n, -1)


class OwnValues(nn.Module):
    """What each agent's own critic says of its actions, with the ensemble's members as one."""

    def __init__(self, agents: AgentValues, aggregate: Aggregate) -> None:
        super().__init__()
        self.agents = agents
        self.aggregate: Aggregate = aggregate

    def forward(self, obs: Tensor, actions: Tensor) -> Tensor:
        """Map obs (B, N, O) and actions (B, N, A) to Q_i (B, N)."""
        return aggregate_ensemble(self.agents(obs, actions), self.aggregate)


class FactoredCritic(nn.Module):
    """An ensemble of C critics, each with Q_i of shared weights over agents and a mixer of its own.

    `none`: no mixer. Each Q_i is trained on a target of its own, as independent learners do; their
    mean stands for Q_tot where one is asked for.
    """

    def __init__(
        self,
        n_agents: int,
        obs_size: int,
        action_size: int,
        state_size: int,
        discrete: bool,
        mixer: Literal["mean", "qmix", "none"],
        sees: Sight,
        ensemble: int,
        hidden: Sequence[int],
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        self.sees = sees
        seen_size = obs_size if sees == "own" else state_size
        self.agents = AgentValues(n_agents, seen_size, action_size, discrete, ensemble, hidden, generator)
        self.independent = mixer == "none"
        self.mixer = QMixer(ensemble, n_agents, state_size, generator) if mixer == "qmix" else MeanMixer()

    def agent_values(self, obs: Tensor, state: Tensor, actions: Tensor) -> Tensor:
        """Map obs (B, N, O), state (B, S) and actions (B, N, A) to Q_i (C, B, N)."""
        seen = obs if self.sees == "own" else state.unsqueeze(1).expand(*obs.shape[:2], -1)
        values: Tensor = self.agents(seen, actions)
        return values

    def trained_values(self, obs: Tensor, state: Tensor, actions: Tensor) -> Tensor:
        """Return the values that have a TD target each: Q_tot (C, B, 1), or the Q_i (C, B, N) of `none`."""
        q = self.agent_values(obs, state, actions)
        return q if self.independent else self.mixer(q, state).unsqueeze(-1)

    def forward(self, obs: Tensor, state: Tensor, actions: Tensor) -> Tensor:
        """Map obs (B, N, O), state (B, S) and actions (B, N, A) to Q_tot (C, B)."""
        out: Tensor = self.mixer(self.agent_values(obs, state, actions), state)
        return out


class CentralCritic(nn.Module):
    """An ensemble of C critics Q(o, a) of everything at once, in which no agent's own best action shows.

    The ablation without IGM. Discrete joint actions enter as one-hot vectors; of probabilities the
    value is that of the relaxed action, not the expected one, which would take A^N evaluations.
    """

    def __init__(
        self,
        n_agents: int,
        obs_size: int,
        action_size: int,
        state_size: int,
        sees: Sight,
        ensemble: int,
        hidden: Sequence[int],
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        self.ensemble = ensemble
        self.sees = sees
        inputs = (n_agents * obs_size if sees == "own" else state_size) + n_agents * action_size
        self.net = StackedMLP(ensemble, inputs, hidden, 1, generator, layer_norm=True)

    def trained_values(self, obs: Tensor, state: Tensor, actions: Tensor) -> Tensor:
        """Return Q_tot as (C, B, 1)."""
        seen = obs.flatten(1) if self.sees == "own" else state
        x = torch.cat([seen, actions.flatten(1)], dim=-1)
        out: Tensor = self.net(x.expand(self.ensemble, *x.shape))
        return out

    def forward(self, obs: Tensor, state: Tensor, actions: Tensor) -> Tensor:
        """Map obs (B, N, O), state (B, S) and actions (B, N, A) to Q_tot (C, B)."""
        return self.trained_values(obs, state, actions).squeeze(-1)


Critic = FactoredCritic | CentralCritic


def aggregate_ensemble(q: Tensor, how: Aggregate) -> Tensor:
    """Reduce the ensemble axis: (C, B) -> (B,)."""
    return q.mean(dim=0) if how == "mean" else q.amin(dim=0)
