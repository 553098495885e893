"""The velocity field v_phi(t, o, x) of the flow policy (Eq. 4)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from macflow.nets.stacked import StackedMLP, with_agent_ids

TIME_FREQUENCIES = 8


class VelocityField(nn.Module):
    """Map time, observations and a noisy joint action to a velocity of the joint action.

    `joint` (the paper's): one net sees all agents' observations and actions, and one time per
    joint sample. `individual` (the paper's ablation, and its released code): one shared net per
    agent on that agent's own (t_i, o_i, x_i, id), so the flow factorises over agents.
    """

    def __init__(
        self,
        n_agents: int,
        obs_size: int,
        action_size: int,
        discrete: bool,
        scope: Literal["joint", "individual"],
        hidden: Sequence[int],
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        self.scope = scope
        # One-hot targets need a field that changes fast in t; continuous ones take t as it is.
        self.fourier_time = discrete
        time_size = 2 * TIME_FREQUENCIES if discrete else 1
        copies = n_agents if scope == "joint" else 1
        ids = 0 if scope == "joint" else n_agents
        inputs = time_size + copies * (obs_size + action_size) + ids
        self.net = StackedMLP(1, inputs, hidden, copies * action_size, generator)

    def times_shape(self, batch: int, n_agents: int) -> tuple[int, int]:
        """Return the shape of the times: one per joint sample, or one per agent."""
        return (batch, 1) if self.scope == "joint" else (batch, n_agents)

    def forward(self, time: Tensor, obs: Tensor, x: Tensor) -> Tensor:
        """Map time (B, 1) or (B, N), obs (B, N, O) and x (B, N, A) to velocities (B, N, A)."""
        b, n, a = x.shape
        if self.scope == "joint":
            parts = [self._embed(time), obs.reshape(b, -1), x.reshape(b, -1)]
        else:
            per_agent = torch.cat([obs, x], dim=-1)
            times = self._embed(time.reshape(-1, 1))
            parts = [times, with_agent_ids(per_agent).reshape(b * n, -1)]
        out: Tensor = self.net(torch.cat(parts, dim=-1).unsqueeze(0))
        return out.reshape(b, n, a)

    def _embed(self, time: Tensor) -> Tensor:
        if not self.fourier_time:
            return time
        scale = math.pi * 2.0 ** torch.arange(TIME_FREQUENCIES, dtype=time.dtype, device=time.device)
        return torch.cat([torch.sin(time * scale), torch.cos(time * scale)], dim=-1)
