"""The loop that all training stages share: steps, curves, checkpoints, progress, and no NaN let through."""

from __future__ import annotations

import csv
import math
import sys
import time
from collections.abc import Callable, Mapping, Sequence
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
    log = CurveLog(name, state, steps, log_every)
    while state.step < steps:
        set_learning_rate(state.optimizer, learning_rate(state.step))
        log.count(step())
        last = state.step == steps
        if observe is not None and (state.step % observe_every == 0 or last):
            state.curves.setdefault("diagnostics", []).append({"step": state.step} | observe())
        if state.step % checkpoint_every == 0 and not last:
            log.keep()
            checkpoint.save(state)
    log.close()


class CurveLog:
    """Counts a training's steps and averages their scalars into `state.curves["curve"]`."""

    def __init__(self, name: str, state: TrainingState, steps: int, log_every: int) -> None:
        """Go on from the step and the sums of `state`; `steps` is where the training ends."""
        self.name, self.state, self.steps, self.log_every = name, state, steps, log_every
        self.sums: dict[str, Tensor | float] = dict(state.sums)
        self.progress = _Progress(name, state.step, steps)

    def count(self, info: Mapping[str, Tensor]) -> None:
        """Count one step and take in its scalars; every `log_every` steps, and after the last, write a row.

        Raises:
            TrainingDivergedError: naming the scalar that is not finite.
        """
        state = self.state
        for key, value in info.items():
            self.sums[key] = self.sums.get(key, 0.0) + value
        state.step += 1
        if state.step % self.log_every == 0 or state.step == self.steps:
            count = (state.step - 1) % self.log_every + 1
            row = {key: float(total) / count for key, total in self.sums.items()}
            self.sums = {}
            _refuse_non_finite(self.name, row, state.step, count)
            state.curves.setdefault("curve", []).append({"step": state.step} | row)
            self.progress.show(state.step, row)

    def keep(self) -> None:
        """Put the sums since the last row into `state`, for a checkpoint."""
        self.state.sums = {key: float(total) for key, total in self.sums.items()}

    def close(self) -> None:
        """End the progress bar."""
        self.progress.close()


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


def set_learning_rate(optimizer: torch.optim.Optimizer, value: float) -> None:
    """Set the learning rate of all parameters."""
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
