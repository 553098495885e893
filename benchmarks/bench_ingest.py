"""Time `prepare` and `describe` on a synthetic dataset, as DVC runs them; print JSON.

    python benchmarks/bench_ingest.py                       # 1M transitions in episodes of 1000 steps
    python benchmarks/bench_ingest.py --episode-steps 25    # the same in episodes of 25 steps

Wall time includes starting Python. Peak memory is sampled over each stage's whole process tree.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import psutil

from macflow.data.episode import Episode
from macflow.data.minari_store import write_minari
from macflow.types import MultiAgentSpec

AGENTS, OBS, ACTION, STATE = 3, 18, 2, 54
SAMPLE_SECONDS = 0.1
PARAMS = """
prepare:
  raw: data/raw
  max_abs_reward: 1.0e+6
  max_abs_observation: 1.0e+6
  max_duplicate_fraction: 0.5
describe: {state_cells: 256, action_bins: 5, seed: 0}
"""


def main() -> None:
    """Generate, run, measure, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--transitions", type=int, default=1_000_000)
    parser.add_argument("--episode-steps", type=int, default=1000)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="macflow-bench-") as name:
        folder = Path(name)
        (folder / "params.yaml").write_text(PARAMS, encoding="utf-8")
        started = time.perf_counter()
        generate(
            folder / "data/raw", arguments.transitions // arguments.episode_steps, arguments.episode_steps
        )
        written = time.perf_counter() - started
        size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
        stages = {
            "prepare": "--raw data/raw --out data/prepared --validation reports/validation "
            "--metrics metrics/prepare.json",
            "describe": "--data data/prepared --metrics metrics/describe.json --plots plots/describe",
        }
        measured = {stage: run(stage, options.split(), folder) for stage, options in stages.items()}
    print(
        json.dumps(
            {
                "transitions": arguments.transitions,
                "episode_steps": arguments.episode_steps,
                "raw_mb": round(size / 1e6, 1),
                "write_seconds": round(written, 1),
                **measured,
                "total_wall_seconds": round(sum(m["wall_seconds"] for m in measured.values()), 1),
                "peak_memory_mb": max(m["peak_memory_mb"] for m in measured.values()),
                "cpu_count": os.cpu_count(),
                "load_average": round(os.getloadavg()[0], 1),
            },
            indent=2,
        )
    )


def generate(root: Path, episodes: int, steps: int) -> None:
    """Write random episodes of 3 agents x 18 observations in the style of a mixture of two behaviours."""
    spec = MultiAgentSpec(
        agent_ids=tuple(f"agent_{i}" for i in range(AGENTS)),
        obs_dims=(OBS,) * AGENTS,
        state_size=STATE,
        action_kind="continuous",
        action_size=ACTION,
        action_low=(-1.0,) * ACTION,
        action_high=(1.0,) * ACTION,
    )
    truncated = np.zeros(steps, np.bool_)
    truncated[-1] = True

    def one(seed: int) -> Episode:
        random = np.random.default_rng(seed)
        obs = random.standard_normal((steps + 1, AGENTS, OBS), np.float32)
        mode = random.choice([-0.6, 0.6], size=(steps, 1, 1))
        actions = np.clip(mode + 0.1 * random.standard_normal((steps, AGENTS, ACTION)), -1, 1)
        return Episode(
            obs=obs,
            state=obs.reshape(steps + 1, STATE),
            actions=actions.astype(np.float32),
            rewards=random.standard_normal((steps, AGENTS), np.float32),
            terminated=np.zeros(steps, np.bool_),
            truncated=truncated,
            legal_actions=None,
            seed=seed,
        )

    behaviour = {"name": "synthetic"}
    write_minari(root, "macflow/synthetic-v0", [one(seed) for seed in range(episodes)], spec, None, behaviour)


def run(stage: str, options: list[str], folder: Path) -> dict[str, float]:
    """Run one stage; return its wall time, processor time and peak resident memory."""
    started = time.perf_counter()
    process = psutil.Popen([sys.executable, "-m", f"macflow.stages.{stage}", *options], cwd=folder)
    peak, cpu = 0, 0.0
    while process.poll() is None:
        try:
            tree = [process, *process.children(recursive=True)]
            peak = max(peak, sum(one.memory_info().rss for one in tree))
        except psutil.NoSuchProcess:
            pass
        time.sleep(SAMPLE_SECONDS)
    wall = time.perf_counter() - started
    if process.returncode != 0:
        raise subprocess.CalledProcessError(process.returncode, stage)
    card = json.loads((folder / f"metrics/run_cards/{stage}.json").read_text(encoding="utf-8"))
    cpu = card["cpu_seconds"]
    return {"wall_seconds": round(wall, 1), "main_cpu_seconds": cpu, "peak_memory_mb": round(peak / 1e6, 1)}


if __name__ == "__main__":
    main()
