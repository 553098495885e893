"""The decentralised one-step policies mu_w_i(o_i, z_i) (Eq. 7)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from macflow.nets.stacked import StackedMLP, with_agent_ids


class OneStepPolicy(nn.Module):
    """Map each agent's own observation and own noise to its action, or to its logits.

    `shared`: one net for all agents, agent id appended. `separate`: one net per agent.
    """

    def __init__(
        self,
        n_agents: int,
        obs_size: int,
        action_size: int,
        sharing: Literal["shared", "separate"],
        hidden: Sequence[int],
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        self.sharing = sharing
        copies = n_agents if sharing == "separate" else 1
        ids = n_agents if sharing == "shared" else 0
        self.net = StackedMLP(copies, obs_size + action_size + ids, hidden, action_size, generator)

    def forward(self, obs: Tensor, noise: Tensor) -> Tensor:
        """Map obs (B, N, O) and noise (B, N, A) to unclipped actions or logits (B, N, A)."""
        b, n, a = noise.shape
        x = torch.cat([obs, noise], dim=-1)
        if self.sharing == "separate":
            out: Tensor = self.net(x.transpose(0, 1)).transpose(0, 1)
        else:
            out = self.net(with_agent_ids(x).reshape(1, b * n, -1)).reshape(b, n, a)
        return out
