"""How long acting takes."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np

from macflow.types import MultiAgentSpec

WARM_UP = 200
SITUATIONS = 64


class Acts(Protocol):
    """A policy of all agents."""

    def act(self, obs: Mapping[str, Any], legal_actions: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Map each agent's observation to its action."""


def acting_times(policy: Acts, spec: MultiAgentSpec, repeats: int) -> dict[str, float]:
    """Return percentiles of the time per joint action in microseconds, at random observations."""
    random = np.random.default_rng(0)
    situations = [
        {
            agent: random.standard_normal(size, np.float32)
            for agent, size in zip(spec.agent_ids, spec.obs_dims, strict=True)
        }
        for _ in range(SITUATIONS)
    ]
    times = np.empty(repeats)
    for number in range(-WARM_UP, repeats):
        obs = situations[number % SITUATIONS]
        started = time.perf_counter_ns()
        policy.act(obs)
        if number >= 0:
            times[number] = (time.perf_counter_ns() - started) / 1000
    return {f"p{share}": round(float(np.percentile(times, share)), 1) for share in (50, 95, 99)}
