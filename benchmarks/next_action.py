"""Compare where the critic's next action comes from, and the discount (docs/adr/0001).

    python benchmarks/next_action.py --seeds 0 1 2 --workspace build/next-action

One recording; per seed one flow and teacher, then critic, policy and evaluation per variant; variants of the
same critic share it. Last checkpoint, 200 episodes; normalised return, mean over seeds with a 95% t-interval.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from workspace import make_workspace, run_stages

VARIANTS: dict[str, dict[str, Any]] = {
    "flow_best_of, 0.9": {"critic": {"next_action": "flow_best_of", "discount": 0.9}},
    "flow_best_of, then policy, 0.9": {
        "critic": {"next_action": "flow_best_of", "discount": 0.9},
        "distill": {"critic": "policy"},
    },
    "flow, 0.9": {"critic": {"next_action": "flow", "discount": 0.9}},
    "in_sample, 0.9": {"critic": {"next_action": "in_sample", "discount": 0.9}},
    "flow_best_of, 0.995": {"critic": {"next_action": "flow_best_of", "discount": 0.995}},
    "flow, 0.995": {"critic": {"next_action": "flow", "discount": 0.995}},
}
SHARED = ("data/prepared", "models/flow", "models/teacher")


def main() -> None:
    """Run and print one row per variant."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--variants", choices=VARIANTS, nargs="+", default=list(VARIANTS))
    parser.add_argument("--workspace", type=Path, default=Path("build/next-action"))
    arguments = parser.parse_args()

    scores: dict[str, list[float]] = {}
    data = make_workspace(arguments.workspace / "data")
    run_stages(data, ["record", "prepare"])
    for seed in arguments.seeds:
        seeded = {"training": {"seed": seed}}
        base = make_workspace(
            arguments.workspace / f"seed-{seed}", seeded, reuse=data, artifacts=("data/prepared",)
        )
        run_stages(base, ["train_flow", "teacher"])
        critics: dict[str, Path] = {}  # workspaces by their critic's settings
        for number, (name, change) in enumerate(VARIANTS.items()):
            if name not in arguments.variants:
                continue
            settings = json.dumps(change["critic"])
            known = settings in critics
            folder = make_workspace(
                arguments.workspace / f"seed-{seed}-{number}",
                seeded,
                change,
                reuse=critics.get(settings, base),
                artifacts=(*SHARED, "models/critic") if known else SHARED,
            )
            critics[settings] = folder
            run_stages(folder, [*([] if known else ["train_critic"]), "distill", "evaluate"])
            metrics = json.loads((folder / "metrics" / "evaluate.json").read_text())
            scores.setdefault(name, []).append(metrics["policy"]["normalized_return"])

    print(
        "\n| next action, discount | normalised return | 95% interval over seeds | seeds |\n|---|---|---|---|"
    )
    for name, values in scores.items():
        half = float(stats.t.ppf(0.975, len(values) - 1) * stats.sem(values))
        mean = float(np.mean(values))
        print(
            f"| {name} | {mean:.1f} | {mean - half:.1f} to {mean + half:.1f} "
            f"| {', '.join(f'{value:.1f}' for value in values)} |"
        )


if __name__ == "__main__":
    main()
