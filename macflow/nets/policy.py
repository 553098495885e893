"""The decentralised one-step policies mu_w_i(o_i, z_i) (Eq. 7)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from macflow.actions import of_legal
from macflow.nets.stacked import StackedMLP, with_agent_ids

Sharing = Literal["shared", "separate"]
Noise = Literal["individual", "common"]


class OneStepPolicy(nn.Module):
    """Map each agent's own observation and its noise to its action, or to its logits.

    `shared`: one net for all agents, agent id appended. `separate`: one net per agent.
    `individual`: an agent's noise is its own (the paper's). `common`: every agent sees the whole joint
    noise z, which agents can draw alike without a message from a seed and a step that they share; then
    the product of local policies can represent joint behaviour that a product of independent ones cannot.
    """

    def __init__(
        self,
        n_agents: int,
        obs_size: int,
        action_size: int,
        sharing: Sharing,
        noise: Noise,
        hidden: Sequence[int],
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        self.sharing = sharing
        self.noise = noise
        copies = n_agents if sharing == "separate" else 1
        ids = n_agents if sharing == "shared" else 0
        noise_size = action_size if noise == "individual" else n_agents * action_size
        self.net = StackedMLP(copies, obs_size + noise_size + ids, hidden, action_size, generator)

    def forward(self, obs: Tensor, noise: Tensor, legal_actions: Tensor | None = None) -> Tensor:
        """Map obs (B, N, O) and noise (B, N, A) to unclipped actions or logits (B, N, A).

        Args:
            legal_actions: (B, N, A) bool, or None for continuous actions. The flow starts from the
                noise of legal actions alone, and so does an agent with noise of its own; of the
                common noise an agent does not know what is legal for the others, and sees all.
        """
        b, n, a = noise.shape
        if self.noise == "individual":
            seen = of_legal(noise, legal_actions)
        else:
            seen = noise.reshape(b, 1, n * a).expand(b, n, n * a)
        x = torch.cat([obs, seen], dim=-1)
        if self.sharing == "separate":
            out: Tensor = self.net(x.transpose(0, 1)).transpose(0, 1)
        else:
            out = self.net(with_agent_ids(x).reshape(1, b * n, -1)).reshape(b, n, a)
        return out
