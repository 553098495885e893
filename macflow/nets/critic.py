"""Per-agent critics Q_i(o_i, a_i) and the mixers that make Q_tot of them (Eq. 1).

`mean` and `qmix` never decrease in any Q_i, so the joint argmax of Q_tot is the agents' own
argmaxes (IGM: individual-global-max).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from macflow.nets.stacked import StackedMLP, with_agent_ids

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


class MixedCritic(nn.Module):
    """An ensemble of C critics, each with shared weights over agents and a mixer of its own."""

    def __init__(
        self,
        n_agents: int,
        obs_size: int,
        action_size: int,
        state_size: int,
        discrete: bool,
        mixer: Literal["mean", "qmix"],
        ensemble: int,
        hidden: Sequence[int],
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        self.discrete = discrete
        self.ensemble = ensemble
        inputs = obs_size + n_agents + (0 if discrete else action_size)
        outputs = action_size if discrete else 1
        self.net = StackedMLP(ensemble, inputs, hidden, outputs, generator, layer_norm=True)
        self.mixer = MeanMixer() if mixer == "mean" else QMixer(ensemble, n_agents, state_size, generator)

    def agent_values(self, obs: Tensor, actions: Tensor) -> Tensor:
        """Map obs (B, N, O) and actions (B, N, A) to Q_i (C, B, N).

        Discrete actions may be one-hot, or probabilities: the value is then the expected one.
        """
        b, n, _ = obs.shape
        x = with_agent_ids(obs if self.discrete else torch.cat([obs, actions], dim=-1))
        out: Tensor = self.net(x.reshape(1, b * n, -1).expand(self.ensemble, -1, -1))
        if self.discrete:
            values: Tensor = (out.reshape(self.ensemble, b, n, -1) * actions).sum(dim=-1)
            return values
        return out.reshape(self.ensemble, b, n)

    def forward(self, obs: Tensor, state: Tensor, actions: Tensor) -> Tensor:
        """Map obs (B, N, O), state (B, S) and actions (B, N, A) to Q_tot (C, B)."""
        out: Tensor = self.mixer(self.agent_values(obs, actions), state)
        return out


def aggregate_ensemble(q: Tensor, how: Literal["mean", "min"]) -> Tensor:
    """Reduce the ensemble axis: (C, B) -> (B,)."""
    return q.mean(dim=0) if how == "mean" else q.amin(dim=0)
