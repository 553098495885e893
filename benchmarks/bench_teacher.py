"""Compare solving the flow's ODE inside the training loops with caching its samples once.

    python benchmarks/bench_teacher.py        (after `dvc repro`)

Reads models/flow and params.yaml; the loops' solver calls are timed on random observations of the same
size and extrapolated to the steps of `params.yaml`. Prints one JSON line.
"""

from __future__ import annotations

import json
import time
from pathlib import Path

import torch
import yaml

from macflow.training.artifacts import FlowArtifact, load_flow

CALLS = 30


def main() -> None:
    """Measure and print."""
    params = yaml.safe_load(Path("params.yaml").read_text())
    torch.set_num_threads(params["training"]["threads"])
    flow = load_flow(Path("models/flow"))
    rows = json.loads(Path("data/prepared/dataset.json").read_text())["counts"]["rows"]
    samples, critic, distill = params["teacher"]["samples"], params["critic"], params["distill"]
    cached = rows / 1024 * seconds(flow, 1024 * samples)
    in_loop = critic["steps"] * seconds(flow, critic["batch_size"] * samples)
    in_loop += distill["steps"] * seconds(flow, distill["batch_size"])
    print(
        json.dumps(
            {
                "cached_once_s": round(cached, 1),
                "in_loops_s": round(in_loop, 1),
                "ratio": round(in_loop / cached, 1),
            }
        )
    )


def seconds(flow: FlowArtifact, batch: int) -> float:
    """Return the median time of one sampling call for `batch` joint actions."""
    generator = torch.Generator().manual_seed(0)
    obs = torch.randn(batch, flow.spec.n_agents, flow.spec.obs_size, generator=generator)
    noise = torch.randn(batch, flow.spec.n_agents, flow.spec.action_size, generator=generator)
    legal = None
    if flow.spec.discrete:
        legal = torch.ones(batch, flow.spec.n_agents, flow.spec.action_size, dtype=torch.bool)
    times = []
    for _ in range(CALLS):
        started = time.perf_counter()
        flow.sample(obs, noise, legal)
        times.append(time.perf_counter() - started)
    return sorted(times)[CALLS // 2]


if __name__ == "__main__":
    main()
