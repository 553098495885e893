"""macflow: from logged multi-agent data to fast, decentralised one-step policies."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from macflow.policy import Policy, load_policy

__all__ = ["Policy", "load_policy"]


def __getattr__(name: str) -> Any:
    # Lazily, so that orchestration and environment workers that import the package need no torch.
    if name in __all__:
        return getattr(import_module("macflow.policy"), name)
    raise AttributeError(f"module 'macflow' has no attribute {name!r}")
