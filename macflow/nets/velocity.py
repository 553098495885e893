"""The velocity field v_phi(t, o, x) of the flow policy (Eq. 4)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from macflow.nets.attention import AttentionBlock
from macflow.nets.stacked import StackedLayerNorm, StackedLinear, StackedMLP, with_agent_ids

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
        self.fourier_time = discrete
        copies = n_agents if scope == "joint" else 1
        ids = 0 if scope == "joint" else n_agents
        inputs = time_size(discrete) + copies * (obs_size + action_size) + ids
        self.net = StackedMLP(1, inputs, hidden, copies * action_size, generator)

    def times_shape(self, batch: int, n_agents: int) -> tuple[int, int]:
        """Return the shape of the times: one per joint sample, or one per agent."""
        return (batch, 1) if self.scope == "joint" else (batch, n_agents)

    def forward(self, time: Tensor, obs: Tensor, x: Tensor) -> Tensor:
        """Map time (B, 1) or (B, N), obs (B, N, O) and x (B, N, A) to velocities (B, N, A)."""
        b, n, a = x.shape
        if self.scope == "joint":
            parts = [embed_time(time, self.fourier_time), obs.reshape(b, -1), x.reshape(b, -1)]
        else:
            per_agent = torch.cat([obs, x], dim=-1)
            times = embed_time(time.reshape(-1, 1), self.fourier_time)
            parts = [times, with_agent_ids(per_agent).reshape(b * n, -1)]
        out: Tensor = self.net(torch.cat(parts, dim=-1).unsqueeze(0))
        return out.reshape(b, n, a)


class AttentionVelocityField(nn.Module):
    """A joint velocity field of one token per agent, coupled by self-attention.

    A token is an agent's own (t, o_i, x_i, id), with one time per joint sample. Weights are shared
    by all agents, so only the id's share of the parameters grows with their number.
    """

    def __init__(
        self,
        n_agents: int,
        obs_size: int,
        action_size: int,
        discrete: bool,
        hidden: Sequence[int],
        generator: torch.Generator,
    ) -> None:
        """Make a block per entry of `hidden`, all of its one width."""
        super().__init__()
        self.fourier_time = discrete
        inputs = time_size(discrete) + obs_size + action_size + n_agents
        self.embed = StackedLinear(1, inputs, hidden[0], generator)
        self.blocks = nn.ModuleList(AttentionBlock(width, generator) for width in hidden)
        self.norm = StackedLayerNorm(1, hidden[-1])
        self.head = StackedLinear(1, hidden[-1], action_size, generator)

    def times_shape(self, batch: int, n_agents: int) -> tuple[int, int]:
        """Return the shape of the times: one per joint sample."""
        return (batch, 1)

    def forward(self, time: Tensor, obs: Tensor, x: Tensor) -> Tensor:
        """Map time (B, 1), obs (B, N, O) and x (B, N, A) to velocities (B, N, A)."""
        b, n, a = x.shape
        times = embed_time(time, self.fourier_time).unsqueeze(1).expand(b, n, -1)
        tokens = self.embed(with_agent_ids(torch.cat([times, obs, x], dim=-1)).reshape(1, b * n, -1))
        for block in self.blocks:
            tokens = block(tokens, n)
        out: Tensor = self.head(self.norm(tokens))
        return out.reshape(b, n, a)


Field = VelocityField | AttentionVelocityField


def time_size(fourier: bool) -> int:
    """Return how many numbers `embed_time` makes of a time."""
    return 2 * TIME_FREQUENCIES if fourier else 1


def embed_time(time: Tensor, fourier: bool) -> Tensor:
    """Map times (B, 1) to (B, T): sines and cosines, or the time as it is."""
    # One-hot targets need a field that changes fast in t; continuous ones do not.
    if not fourier:
        return time
    scale = math.pi * 2.0 ** torch.arange(TIME_FREQUENCIES, dtype=time.dtype, device=time.device)
    return torch.cat([torch.sin(time * scale), torch.cos(time * scale)], dim=-1)
