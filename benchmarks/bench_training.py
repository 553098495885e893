"""Steps per second of the training stages with the paper's nets, on a GPU against the same machine's CPU.

    python benchmarks/bench_training.py [--dataset NAME] [--steps 3000] [--devices cuda cpu]

Records the dataset once, then runs the pipeline's own stages (four layers of 512 everywhere, batches of 640
transitions): flow, critic with the flow's next actions, distillation. The rate is the stages' own, at their
last step: start-up is left out. Trains twice on each device and says whether the bytes were the same.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import time
from pathlib import Path
from typing import Any

import torch

from macflow.files import digest
from workspace import make_workspace, run_stages, stage_command, stage_environment

NETS = [512] * 4
BATCH = 640
STAGES = {"train_flow": "flow", "train_critic": "critic", "distill": "policy"}
# The CPU takes as many steps as this share of the GPU's.
CPU_SHARE = 0.1


def main() -> None:
    """Measure and print one JSON line per device."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--dataset", default="mpe-spread/medium")
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument(
        "--devices", nargs="+", default=["cuda", "cpu"] if torch.cuda.is_available() else ["cpu"]
    )
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--workspace", type=Path, default=Path("build/bench-training"))
    arguments = parser.parse_args()
    data = make_workspace(arguments.workspace / "data", {"dataset": arguments.dataset})
    if not (data / "models/teacher").exists():
        run_stages(data, ("record", "prepare", "train_flow", "teacher"))
    for device in arguments.devices:
        steps = arguments.steps if device == "cuda" else max(1, int(CPU_SHARE * arguments.steps))
        name = torch.cuda.get_device_name(0) if device == "cuda" else f"cpu, {arguments.threads} threads"
        found: dict[str, Any] = {"device": name, "torch": torch.__version__, "steps": steps}
        runs = []
        for repeat in range(2):
            folder = make_workspace(
                arguments.workspace / f"{device}-{repeat}-{int(time.time())}",
                {"dataset": arguments.dataset},
                settings(device, arguments.threads, steps),
                reuse=data,
                artifacts=("data/prepared", "models/teacher"),
            )
            runs.append(folder)
            for stage in STAGES:
                key = f"{stage}_steps_per_s"
                found[key] = max(found.get(key, 0), rate(folder, stage, steps))
        made = [[digest(run / "models" / model) for model in STAGES.values()] for run in runs]
        print(json.dumps(found | {"same_bytes_twice": made[0] == made[1]}), flush=True)


def settings(device: str, threads: int, steps: int) -> dict[str, Any]:
    """Return the overrides of params.yaml for a run."""
    common = {"hidden": NETS, "batch_size": BATCH, "steps": steps}
    return {
        # A run is short: neither checkpoints nor measurements on the way.
        "training": {"device": device, "threads": threads, "checkpoint_every": steps},
        "flow": common,
        "critic": common | {"next_action": "flow"},
        "distill": common | {"diagnose_every": steps},
    }


def rate(folder: Path, stage: str, steps: int) -> int:
    """Run a stage and return its steps per second, as the line of its last step says."""
    command = stage_command(folder, stage)
    done = subprocess.run(
        command, cwd=folder, check=True, env=stage_environment(), stdout=subprocess.PIPE, text=True
    )
    said = re.search(rf"step {steps}/{steps}  (\d+)/s", done.stdout)
    if said is None:
        raise RuntimeError(f"{stage} did not say its rate: {done.stdout}")
    return int(said[1])


if __name__ == "__main__":
    main()
