"""Training state on disk: everything that makes a resumed run end with the same bytes.

One safetensors file per training, replaced in one step: modules, targets, optimiser moments,
the random generator, the step and the curve so far.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

# Fields of `TrainingState` that are kept as JSON.
PROGRESS = ("step", "curves", "sums", "counters")


@dataclass
class TrainingState:
    """Hold what a training changes: the loop saves and restores exactly this."""

    modules: Mapping[str, nn.Module]
    optimizer: torch.optim.Optimizer
    generator: torch.Generator
    step: int = 0
    # Rows of the named curves, and sums since the last row.
    curves: dict[str, list[dict[str, float]]] = field(default_factory=dict)
    sums: dict[str, float] = field(default_factory=dict)
    # What else a training counts beside its steps.
    counters: dict[str, int] = field(default_factory=dict)


class CheckpointFile:
    """Save and restore a `TrainingState`, valid only for one fingerprint of code, data and parameters."""

    def __init__(self, path: Path, fingerprint: str) -> None:
        self.path = path
        self.fingerprint = fingerprint

    def save(self, state: TrainingState) -> None:
        """Write the state; a crash while writing leaves the previous checkpoint."""
        tensors: dict[str, Tensor] = {"generator": state.generator.get_state()}
        for name, module in state.modules.items():
            tensors |= {f"module.{name}.{key}": value for key, value in module.state_dict().items()}
        for index, entry in state.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{index}.{key}": value for key, value in entry.items()}
        meta = {
            "fingerprint": self.fingerprint,
            "progress": json.dumps({name: getattr(state, name) for name in PROGRESS}),
        }
        self.path.parent.mkdir(parents=True, exist_ok=True)
        fresh = self.path.with_suffix(".new")
        save_file({k: v.detach().cpu().contiguous() for k, v in tensors.items()}, fresh, metadata=meta)
        fresh.replace(self.path)

    def restore(self, state: TrainingState) -> bool:
        """Load the checkpoint into `state`; return False where there is none for this fingerprint."""
        try:
            with safe_open(self.path, framework="pt") as file:
                meta: dict[str, str] = file.metadata() or {}
                if meta.get("fingerprint") != self.fingerprint:
                    return False
                tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        except (OSError, SafetensorError):
            return False
        progress: dict[str, Any] = json.loads(meta["progress"])
        for name, module in state.modules.items():
            module.load_state_dict(_under(tensors, f"module.{name}."))
        moments: dict[int, dict[str, Tensor]] = {}
        for key, value in _under(tensors, "optimizer.").items():
            index, entry = key.split(".", 1)
            moments.setdefault(int(index), {})[entry] = value
        groups = state.optimizer.state_dict()["param_groups"]
        state.optimizer.load_state_dict({"state": moments, "param_groups": groups})
        state.generator.set_state(tensors["generator"])
        for name in PROGRESS:
            setattr(state, name, progress[name])
        return True

    def remove(self) -> None:
        """Forget the checkpoint: the training's outputs are in place."""
        self.path.unlink(missing_ok=True)


def _under(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {key[len(prefix) :]: value for key, value in tensors.items() if key.startswith(prefix)}
