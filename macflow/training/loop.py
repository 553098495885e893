"""The loop that all training stages share: steps, curves, checkpoints, progress, and no NaN let through."""

from __future__ import annotations

import csv
import math
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor
from tqdm import tqdm

from macflow.training.checkpoint import CheckpointFile, TrainingState
from macflow.training.graphs import GraphedStep
from macflow.types import MacflowError

# Seconds between progress lines where the output is no terminal.
LINE_INTERVAL = 10.0


class TrainingDivergedError(MacflowError):
    """A loss is no longer finite."""


def train(
    name: str,
    state: TrainingState,
    steps: int,
    step: Callable[[], dict[str, Tensor]],
    learning_rate: Callable[[int], float],
    checkpoint: CheckpointFile,
    checkpoint_every: int,
    log_every: int,
    observe: Callable[[], dict[str, float]] | None = None,
    observe_every: int = 1,
    period: int | None = 1,
) -> None:
    """Call `step` until `state.step` is `steps`, resuming from `checkpoint` where it fits.

    Args:
        step: takes one optimiser step and returns scalars to average into `state.curves["curve"]`.
        learning_rate: of the optimiser step that follows the given number of steps.
        observe: returns a row for `state.curves["diagnostics"]`, called every `observe_every`
            steps, before the first and after the last.
        period: on a GPU, steps are replayed as `GraphedStep` says; None: all run as they are.

    Raises:
        TrainingDivergedError: naming the scalar and the steps between which it stopped being finite.
    """
    if checkpoint.restore(state):
        print(f"{name}: resumed at step {state.step} of {steps}", flush=True)
    elif observe is not None:
        state.curves.setdefault("diagnostics", []).append({"step": 0} | observe())
    if period is not None and state.generator.device.type == "cuda":
        step = GraphedStep(step, state.generator, period)
    progress = _Progress(name, state.step, steps)
    sums: dict[str, Tensor | float] = dict(state.sums)
    while state.step < steps:
        _set_learning_rate(state.optimizer, learning_rate(state.step))
        for key, value in step().items():
            sums[key] = sums.get(key, 0.0) + value
        state.step += 1
        last = state.step == steps
        if state.step % log_every == 0 or last:
            count = (state.step - 1) % log_every + 1
            row = {key: float(total) / count for key, total in sums.items()}
            sums = {}
            _refuse_non_finite(name, row, state.step, count)
            state.curves.setdefault("curve", []).append({"step": state.step} | row)
            progress.show(state.step, row)
        if observe is not None and (state.step % observe_every == 0 or last):
            state.curves.setdefault("diagnostics", []).append({"step": state.step} | observe())
        if state.step % checkpoint_every == 0 and not last:
            state.sums = {key: float(total) for key, total in sums.items()}
            checkpoint.save(state)
    progress.close()


def adam(parameters: Sequence[torch.nn.Parameter]) -> torch.optim.Optimizer:
    """Return the Adam optimiser of all stages; `train` sets its learning rate."""
    device = parameters[0].device
    if device.type == "cuda":
        # A learning rate on the GPU, so that a recorded step follows its changes.
        return torch.optim.Adam(parameters, lr=torch.zeros((), device=device), fused=True, capturable=True)
    return torch.optim.Adam(parameters, fused=True)


def learning_rate_of(
    schedule: Literal["constant", "cosine"], first: float, steps: int
) -> Callable[[int], float]:
    """Return the learning rate as a function of the steps taken: `first`, or from there to 0 after `steps`.

    It depends on the step alone, so a resumed training continues it.
    """
    if schedule == "constant":
        return lambda taken: first
    return lambda taken: first * 0.5 * (1.0 + math.cos(math.pi * taken / steps))


def descend(optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
    """Take one optimiser step down the gradient of `loss`."""
    optimizer.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]
    optimizer.step()


def _set_learning_rate(optimizer: torch.optim.Optimizer, value: float) -> None:
    for group in optimizer.param_groups:
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(value)
        else:
            group["lr"] = value


def write_curve(path: Path, rows: Sequence[dict[str, float]]) -> None:
    """Write rows as CSV with the first row's columns."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def _refuse_non_finite(name: str, row: dict[str, float], step: int, count: int) -> None:
    for key, value in row.items():
        if not math.isfinite(value):
            raise TrainingDivergedError(
                f"`{key}` became {value} between steps {step - count} and {step} of {name}; "
                "a smaller learning rate, or a smaller discount, keeps it finite"
            )


class _Progress:
    """A bar on a terminal, a line every few seconds elsewhere (logs, Prefect)."""

    def __init__(self, name: str, first: int, steps: int) -> None:
        self.name, self.first, self.steps = name, first, steps
        self.bar = tqdm(desc=name, total=steps, initial=first, unit="step") if sys.stderr.isatty() else None
        self.started = self.last_line = time.monotonic()

    def show(self, step: int, row: dict[str, float]) -> None:
        if self.bar is not None:
            self.bar.set_postfix({key: f"{value:.4g}" for key, value in row.items()}, refresh=False)
            self.bar.update(step - self.bar.n)
            return
        now = time.monotonic()
        if now - self.last_line >= LINE_INTERVAL or step == self.steps:
            self.last_line = now
            rate = (step - self.first) / max(now - self.started, 1e-9)
            values = "  ".join(f"{key} {value:.4g}" for key, value in row.items())
            print(f"{self.name}: step {step}/{self.steps}  {rate:.0f}/s  {values}", flush=True)

    def close(self) -> None:
        if self.bar is not None:
            self.bar.close()
