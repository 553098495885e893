"""Multi-layer perceptrons in several copies at once: one batched matrix product per layer for all of them.

Critic ensembles and separate per-agent policies are such copies; a single net is one copy.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional


class StackedLinear(nn.Module):
    """Apply G independent affine maps: (G, B, in) -> (G, B, out)."""

    def __init__(self, copies: int, inputs: int, outputs: int, generator: torch.Generator) -> None:
        super().__init__()
        bound = 1.0 / math.sqrt(inputs)
        self.weight = nn.Parameter(_uniform((copies, inputs, outputs), bound, generator))
        self.bias = nn.Parameter(_uniform((copies, 1, outputs), bound, generator))

    def forward(self, x: Tensor) -> Tensor:
        return torch.baddbmm(self.bias, x, self.weight)


class StackedLayerNorm(nn.Module):
    """Normalise the last axis, with gain and offset of its own for each of G copies."""

    def __init__(self, copies: int, size: int) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(copies, 1, size))
        self.offset = nn.Parameter(torch.zeros(copies, 1, size))

    def forward(self, x: Tensor) -> Tensor:
        return functional.layer_norm(x, x.shape[-1:]) * self.gain + self.offset


class StackedMLP(nn.Module):
    """Apply G independent GELU perceptrons: (G, B, in) -> (G, B, out).

    With `layer_norm`, each hidden layer is normalised after its activation, which keeps the
    output's Lipschitz constant in the input moderate (needed for Prop. 4.3).
    """

    def __init__(
        self,
        copies: int,
        inputs: int,
        hidden: Sequence[int],
        outputs: int,
        generator: torch.Generator,
        layer_norm: bool = False,
    ) -> None:
        super().__init__()
        sizes = [inputs, *hidden]
        self.hidden = nn.ModuleList(
            StackedLinear(copies, a, b, generator) for a, b in itertools.pairwise(sizes)
        )
        self.norms = nn.ModuleList(
            StackedLayerNorm(copies, size) if layer_norm else nn.Identity() for size in hidden
        )
        self.head = StackedLinear(copies, sizes[-1], outputs, generator)

    def forward(self, x: Tensor) -> Tensor:
        for linear, norm in zip(self.hidden, self.norms, strict=True):
            x = norm(functional.gelu(linear(x)))
        out: Tensor = self.head(x)
        return out


def with_agent_ids(x: Tensor) -> Tensor:
    """Append each agent's one-hot id: (B, N, F) -> (B, N, F + N)."""
    b, n, _ = x.shape
    return torch.cat([x, torch.eye(n, dtype=x.dtype, device=x.device).expand(b, n, n)], dim=-1)


def _uniform(shape: tuple[int, ...], bound: float, generator: torch.Generator) -> Tensor:
    # Drawn on the CPU whatever the device, so that a seed means the same initial weights everywhere.
    return (torch.rand(shape, generator=generator) * 2 - 1) * bound
