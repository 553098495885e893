"""Measure the default run over several training seeds: one-step policy, joint flow, dataset.

Data are recorded once; flow, teacher, critic and policy are trained anew for each seed and judged by
their last checkpoint on the same evaluation episodes. Writes a JSON history and prints a table.

    python benchmarks/spread_seeds.py --seeds 0 1 2 --workspace build/spread-seeds
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
from scipy import stats

from workspace import make_workspace, run_stages

DATA = ("record", "prepare", "describe")
TRAIN = ("train_flow", "teacher", "train_critic", "distill", "evaluate", "diagnose")


def main() -> None:
    """Run and summarise."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--workspace", type=Path, default=Path("build/spread-seeds"))
    parser.add_argument(
        "--evaluation-seed",
        type=int,
        default=50_000,
        help="first episode's; params.yaml's 1000 chose parameters",
    )
    arguments = parser.parse_args()

    data = make_workspace(arguments.workspace / "data")
    run_stages(data, DATA)
    results = {}
    for seed in arguments.seeds:
        folder = make_workspace(
            arguments.workspace / f"seed-{seed}",
            {"training": {"seed": seed}, "evaluate": {"seed": arguments.evaluation_seed}},
            reuse=data,
            artifacts=("data/prepared",),
        )
        run_stages(folder, TRAIN)
        results[seed] = {
            name: json.loads((folder / "metrics" / f"{name}.json").read_text())
            for name in ("evaluate", "diagnose", "distill")
        }
    report(results, arguments.workspace / "summary.json")


def report(results: dict[int, dict[str, dict]], out: Path) -> None:
    """Print one row per seed and the means with 95% t-intervals over seeds; write the same as JSON."""
    print(
        "\n| seed | policy | flow | dataset | gain | W2 first | W2 last | raised |\n"
        "|---|---|---|---|---|---|---|---|"
    )
    for seed, metrics in results.items():
        raised = [name for name, check in metrics["diagnose"]["checks"].items() if check["raised"]]
        print(
            f"| {seed} | {metrics['evaluate']['policy']['normalized_return']:.1f} "
            f"| {metrics['evaluate']['flow']['normalized_return']:.1f} "
            f"| {metrics['evaluate']['dataset']['normalized_return']:.1f} "
            f"| {metrics['evaluate']['gain_over_dataset']:.1f} "
            f"| {metrics['distill']['w2_first']:.3f} | {metrics['distill']['w2_last']:.3f} "
            f"| {', '.join(raised) or 'none'} |"
        )
    summary = {}
    for name, values in {
        actor: [m["evaluate"][actor]["normalized_return"] for m in results.values()]
        for actor in ("policy", "flow")
    }.items():
        mean, error = float(np.mean(values)), float(stats.sem(values))
        half = float(stats.t.ppf(0.975, len(values) - 1)) * error
        summary[name] = {"mean": mean, "ci95_low": mean - half, "ci95_high": mean + half, "values": values}
        print(
            f"{name}: {mean:.1f} "
            f"(95% interval over {len(values)} seeds {mean - half:.1f} to {mean + half:.1f})"
        )
    out.write_text(json.dumps({"seeds": results, "summary": summary}, indent=2) + "\n")


if __name__ == "__main__":
    main()
