"""Self-attention over agents: every agent's vector is updated from all of them, by shared weights."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from macflow.nets.stacked import StackedLayerNorm, StackedLinear
from macflow.types import ATTENTION_HEADS

# Hidden units of a block's perceptron, in widths of the block.
EXPANSION = 2


class AttentionBlock(nn.Module):
    """Pre-norm self-attention and perceptron, each added to its input: (1, B * N, W) -> (1, B * N, W)."""

    def __init__(self, width: int, generator: torch.Generator) -> None:
        super().__init__()
        self.attention_norm = StackedLayerNorm(1, width)
        self.queries_keys_values = StackedLinear(1, width, 3 * width, generator)
        self.attended = StackedLinear(1, width, width, generator)
        self.perceptron_norm = StackedLayerNorm(1, width)
        self.expand = StackedLinear(1, width, EXPANSION * width, generator)
        self.contract = StackedLinear(1, EXPANSION * width, width, generator)

    def forward(self, x: Tensor, n_agents: int) -> Tensor:
        width = x.shape[-1]
        split = self.queries_keys_values(self.attention_norm(x))
        split = split.reshape(-1, n_agents, 3, ATTENTION_HEADS, width // ATTENTION_HEADS).permute(
            2, 0, 3, 1, 4
        )
        mixed = functional.scaled_dot_product_attention(split[0], split[1], split[2])  # (B, H, N, W / H)
        x = x + self.attended(mixed.transpose(1, 2).reshape(1, -1, width))
        out: Tensor = x + self.contract(functional.gelu(self.expand(self.perceptron_norm(x))))
        return out
