"""Training steps as CUDA graphs: one launch in place of hundreds that cost more than they compute."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

# Ordinary steps before the recording: libraries set themselves up, the optimiser makes its moments.
WARM_UP = 3


class GraphedStep:
    """A training step on a GPU that is recorded once and then replayed: the same numbers in less time.

    Every call is one step: the first `WARM_UP` run as they are, the next `period` are recorded too. What a
    step reads and writes must stay where it is, it may not wait for the GPU, and its course is that recorded.

    Args:
        step: takes a step and returns scalars to log.
        generator: that of all the step's random numbers.
        period: steps after which their course repeats.
    """

    def __init__(
        self, step: Callable[[], dict[str, Tensor]], generator: torch.Generator, period: int = 1
    ) -> None:
        self.step = step
        self.generator = generator
        self.period = period
        self.taken = 0
        self.recorded: dict[int, tuple[torch.cuda.CUDAGraph, dict[str, Tensor]]] = {}

    def __call__(self) -> dict[str, Tensor]:
        """Take a step; the scalars returned are overwritten by the next one."""
        self.taken += 1
        if self.taken <= WARM_UP:
            return self._aside()
        phase = self.taken % self.period
        if phase not in self.recorded:
            fresh = torch.cuda.CUDAGraph()
            fresh.register_generator_state(self.generator)
            with torch.cuda.graph(fresh):
                self.recorded[phase] = fresh, self.step()
        graph, info = self.recorded[phase]
        graph.replay()
        return info

    def _aside(self) -> dict[str, Tensor]:
        # A recording may not begin with what was set up on the default stream.
        aside = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        here = torch.cuda.current_stream()
        aside.wait_stream(here)
        with torch.cuda.stream(aside):
            info = self.step()
        here.wait_stream(aside)
        return info
