"""Measure what Q-maximisation adds on `game/rare-optimum`, and what common noise adds on `game/xor`.

    python benchmarks/games.py --seeds 0 1 2 --workspace build/games

Trains each variant from its recorded data for each seed; the last checkpoint is judged over 200 episodes.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from workspace import ROOT, make_workspace, run_stages

DATA = ("record", "prepare")
TRAIN = ("train_flow", "teacher", "train_critic")
POLICY = ("distill", "evaluate")
# Variants of the distillation on rare-optimum; the game's own parameters name the last one's alpha.
RARE_OPTIMUM: dict[str, Mapping[str, Any]] = {
    "distillation alone": {"distill": {"q_term": False}},
    "MAC-Flow, alpha 3": {"distill": {"alpha": 3.0}},
    "MAC-Flow, the game's alpha": {},
}
XOR: dict[str, Mapping[str, Any]] = {
    "MAC-Flow": {},
    "MAC-Flow, common noise": {"distill": {"noise": "common"}},
    "MAC-Flow, alpha 3": {"distill": {"alpha": 3.0}},
    "MAC-Flow, alpha 3, common noise": {"distill": {"alpha": 3.0, "noise": "common"}},
}
ARTIFACTS = ("data/prepared", "models/flow", "models/teacher", "models/critic")


def main() -> None:
    """Run and print one row per variant."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--workspace", type=Path, default=Path("build/games"))
    arguments = parser.parse_args()

    rows: dict[str, list[float]] = {}
    for seed in arguments.seeds:
        for game, variants in (("rare_optimum", RARE_OPTIMUM), ("xor", XOR)):
            override = yaml.safe_load((ROOT / "examples" / f"{game}.yaml").read_text())
            seeded = {"training": {"seed": seed}}
            base = make_workspace(arguments.workspace / f"{game}-{seed}", override, seeded)
            run_stages(base, [*DATA, *TRAIN])
            for number, (variant, change) in enumerate(variants.items()):
                folder = make_workspace(
                    arguments.workspace / f"{game}-{seed}-{number}",
                    override,
                    seeded,
                    change,
                    reuse=base,
                    artifacts=ARTIFACTS,
                )
                run_stages(folder, POLICY)
                metrics = json.loads((folder / "metrics" / "evaluate.json").read_text())
                rows.setdefault(f"{game}: {variant}, one-step policy", []).append(
                    metrics["policy"]["return_mean"]
                )
            rows.setdefault(f"{game}: joint flow", []).append(metrics["flow"]["return_mean"])

    print("\n| | mean return | over seeds |\n|---|---|---|")
    for name, values in rows.items():
        print(f"| {name} | {np.mean(values):.3f} | {', '.join(f'{value:.3f}' for value in values)} |")


if __name__ == "__main__":
    main()
