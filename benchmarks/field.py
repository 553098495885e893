"""Compare what recorded the data, the joint flow and the one-step policy on the field's benchmarks.

Each dataset is recorded once; flow, teacher, critic and policy are trained anew for every seed and judged
by their last checkpoint on the same episodes, which chose no parameter. Finished runs are kept and not
repeated. Writes `WORKSPACE/summary.json` and prints a Markdown table.

    python benchmarks/field.py mamujoco-hopper-3x1/medium smax-3m/medium --seeds 0 1 2
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from scipy import stats

from workspace import ROOT, make_workspace, run_stages

DATA = ("record", "prepare", "describe")
TRAIN = ("train_flow", "teacher", "train_critic", "distill", "evaluate", "diagnose")
# Datasets whose name begins so are trained with these parameters; the last that fits counts.
EXAMPLES = {
    "mamujoco-": "mamujoco.yaml",
    "mamujoco-hopper-": "mamujoco-hopper.yaml",
    "smax-": "smax.yaml",
}
# Far from the seeds that recorded the data, and from those that parameters were chosen on.
EVALUATION_SEED = 50_000


def main() -> None:
    """Run and summarise."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("datasets", nargs="+", help="names of `macflow dataset list`")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--workspace", type=Path, default=Path("build/field"))
    parser.add_argument("--evaluation-seed", type=int, default=EVALUATION_SEED)
    parser.add_argument("--set", action="append", default=[], metavar="YAML", help="further overrides")
    parser.add_argument("--jobs", type=int, default=2, help="runs at the same time, one thread each")
    arguments = parser.parse_args()
    overrides = [yaml.safe_load(text) for text in arguments.set]
    arguments.workspace.mkdir(parents=True, exist_ok=True)
    out = arguments.workspace / "summary.json"
    summary: dict[str, Any] = json.loads(out.read_text()) if out.exists() else {}
    with ThreadPoolExecutor(arguments.jobs) as pool:
        for name in arguments.datasets:
            folder = arguments.workspace / name.replace("/", "-")
            data = make_workspace(folder / "data", parameters(name), *overrides)
            if not (data / "metrics/describe.json").exists():
                run_stages(data, DATA)
            runs = pool.map(
                lambda seed, name=name, folder=folder, data=data: train(
                    name, folder / f"seed-{seed}", data, seed, overrides, arguments.evaluation_seed
                ),
                arguments.seeds,
            )
            summary[name] = summarised(list(runs))
            out.write_text(json.dumps(summary, indent=2) + "\n")
            print_table(summary)


def parameters(name: str) -> dict[str, Any]:
    """Return the overrides of params.yaml for a dataset."""
    found: dict[str, Any] = {}
    for prefix, example in EXAMPLES.items():
        if name.startswith(prefix):
            found = yaml.safe_load((ROOT / "examples" / example).read_text())
    return found | {"dataset": name}


def train(
    name: str, folder: Path, data: Path, seed: int, overrides: Sequence[Mapping[str, Any]], first: int
) -> dict[str, Any]:
    """Train and evaluate with one seed; return the metrics of its evaluation and diagnosis."""
    own = {"training": {"seed": seed, "threads": 1}, "evaluate": {"seed": first, "workers": 1}}
    make_workspace(folder, parameters(name), *overrides, own, reuse=data, artifacts=("data/prepared",))
    if not (folder / "metrics/diagnose.json").exists():
        run_stages(folder, TRAIN)
    return {
        metrics: json.loads((folder / "metrics" / f"{metrics}.json").read_text())
        for metrics in ("evaluate", "diagnose")
    }


def summarised(runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return means over seeds with 95% t-intervals; the dataset's mean return is one number."""
    found: dict[str, Any] = {"dataset": runs[0]["evaluate"]["dataset"]["return_mean"]}
    for actor in ("behaviour", "flow", "policy"):
        if actor in runs[0]["evaluate"]:
            found[actor] = interval([run["evaluate"][actor]["return_mean"] for run in runs])
    found["raised"] = [
        [check for check, result in run["diagnose"]["checks"].items() if result["raised"]] for run in runs
    ]
    return found


def spread(values: Sequence[float]) -> str:
    """Return mean and 95% t-interval; one value has no interval."""
    found = interval(values)
    if found["ci95_low"] is None:
        return f"{found['mean']:.2f}"
    return f"{found['mean']:.2f} ({found['ci95_low']:.2f} to {found['ci95_high']:.2f})"


def interval(values: Sequence[float]) -> dict[str, Any]:
    """Return mean and 95% t-interval over seeds; the interval is None for one seed."""
    mean = float(np.mean(values))
    if len(values) == 1:
        return {"mean": mean, "ci95_low": None, "ci95_high": None, "values": list(values)}
    half = float(stats.t.ppf(0.975, len(values) - 1) * stats.sem(values))
    return {"mean": mean, "ci95_low": mean - half, "ci95_high": mean + half, "values": list(values)}


def print_table(summary: Mapping[str, Any]) -> None:
    """Print one Markdown row per dataset."""
    print("\n| dataset | its mean | joint flow (BC) | MAC-Flow | raised |\n|---|---|---|---|---|")
    for name, found in summary.items():
        cells = []
        for actor in ("flow", "policy"):
            value = found[actor]
            spread = (
                "" if value["ci95_low"] is None else f" ({value['ci95_low']:.2f} to {value['ci95_high']:.2f})"
            )
            cells.append(f"{value['mean']:.2f}{spread}")
        raised = sorted({check for checks in found["raised"] for check in checks})
        print(
            f"| `{name}` | {found['dataset']:.2f} | {' | '.join(cells)} | {', '.join(raised) or 'none'} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
