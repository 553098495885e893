"""Environment actions and the flow's action space: [-1, 1] per dimension, or one-hot vectors."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from macflow.types import ActionArray, MultiAgentSpec


def encode_actions(spec: MultiAgentSpec, actions: Tensor) -> Tensor:
    """Scale environment actions (..., N, A) to [-1, 1], or turn indices (..., N) into one-hots."""
    if spec.discrete:
        return functional.one_hot(actions, spec.action_size).to(torch.float32)
    low, high = torch.tensor(spec.action_low), torch.tensor(spec.action_high)
    return (2 * (actions - low) / (high - low) - 1).to(torch.float32)


def decode_actions(spec: MultiAgentSpec, actions: Tensor) -> ActionArray:
    """Invert `encode_actions`: (..., N, A) to environment actions (..., N, A) or indices (..., N)."""
    array: ActionArray = actions.detach().cpu().numpy()
    if spec.discrete:
        indices: ActionArray = array.argmax(axis=-1).astype(np.int64)
        return indices
    low, high = np.asarray(spec.action_low), np.asarray(spec.action_high)
    scaled: ActionArray = (low + (array + 1) / 2 * (high - low)).astype(np.float32)
    return scaled


def of_legal(values: Tensor, legal_actions: Tensor | None) -> Tensor:
    """Set what `values` (..., A) hold for illegal actions to zero; continuous actions (None) stay."""
    return values if legal_actions is None else values * legal_actions
