"""Compare the offline multi-agent baselines on datasets, all with one gradient budget.

The budget is `--steps` gradient steps of `--batch-size` transitions, the same for every method, at one
learning rate and with nets of one width. A step moves all of a method's nets, so a step of a method with
more nets takes more time. Each dataset is recorded once; every method is trained anew for every seed and
judged by its last step on the same episodes, which chose no setting. Finished runs are kept and not
repeated. Writes `WORKSPACE/summary.json` and prints a Markdown table.

    python benchmarks/baselines.py mamujoco-hopper-3x1/medium smax-3m/medium --seeds 0 1 2
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from field import EVALUATION_SEED, interval, parameters
from macflow.algorithms.baselines.registry import METHODS, settings_of
from macflow.files import read_json, write_json
from macflow.types import ConfigError
from workspace import ROOT, make_workspace, run_stages

DATA = ("record", "prepare")
# Games of one step have a handful of distinct transitions.
GAMES = "game-"
REPETITIVE = {"prepare": {"max_duplicate_fraction": 1.0}}


def main() -> None:
    """Run and summarise."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("datasets", nargs="+", help="names of `macflow dataset list`")
    parser.add_argument("--methods", nargs="+", choices=list(METHODS), default=list(METHODS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--workspace", type=Path, default=Path("build/baselines"))
    parser.add_argument("--steps", type=int, default=20_000)
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--learning-rate", type=float, default=3e-4)
    parser.add_argument("--hidden", default="256,256", help="widths of every net's hidden layers")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--episodes", type=int, default=100)
    parser.add_argument("--evaluation-seed", type=int, default=EVALUATION_SEED)
    parser.add_argument("--set", action="append", default=[], metavar="METHOD.NAME=VALUE")
    parser.add_argument("--jobs", type=int, default=2, help="runs at the same time, one thread each")
    arguments = parser.parse_args()
    try:
        settings = given_settings(arguments.set)
    except ConfigError as error:
        parser.error(str(error))
    budget = {
        "steps": arguments.steps,
        "batch_size": arguments.batch_size,
        "learning_rate": arguments.learning_rate,
        "hidden": arguments.hidden,
        "device": arguments.device,
    }
    playing = {"episodes": arguments.episodes, "seed": arguments.evaluation_seed}
    summary: dict[str, Any] = {"budget": budget, "evaluation": playing, "settings": settings, "datasets": {}}
    with ThreadPoolExecutor(arguments.jobs) as pool:
        for name in arguments.datasets:
            folder = arguments.workspace / name.replace("/", "-")
            overrides = [parameters(name)] + ([REPETITIVE] if name.startswith(GAMES) else [])
            data = make_workspace(folder / "data", *overrides)
            prepared = data / "data" / "prepared"
            if not prepared.exists():
                run_stages(data, DATA)
            runs = {
                (method, seed): pool.submit(
                    run_once,
                    folder / method / f"seed-{seed}",
                    method,
                    prepared,
                    budget | {"seed": seed},
                    playing,
                    settings.get(method, {}),
                )
                for method in arguments.methods
                for seed in arguments.seeds
            }
            summary["datasets"][name] = {
                "mean": read_json(prepared / "dataset.json")["returns"]["mean"],
                "methods": {
                    method: interval([runs[method, seed].result() for seed in arguments.seeds])
                    for method in arguments.methods
                },
            }
            write_json(arguments.workspace / "summary.json", summary)
    print_table(summary)


def given_settings(texts: Sequence[str]) -> dict[str, dict[str, str]]:
    """Read `METHOD.NAME=VALUE`; unknown names and values that break a rule raise `ConfigError`."""
    found: dict[str, dict[str, str]] = {}
    for text in texts:
        place, equals, value = text.partition("=")
        method, dot, name = place.partition(".")
        if not equals or not dot:
            raise ConfigError(f"`--set`: must be METHOD.NAME=VALUE (received {text!r})")
        found.setdefault(method, {})[name] = value
    for method, settings in found.items():
        settings_of(method, settings)
    return found


def run_once(
    folder: Path,
    method: str,
    prepared: Path,
    training: Mapping[str, Any],
    playing: Mapping[str, Any],
    settings: Mapping[str, str],
) -> float:
    """Train and evaluate unless the same has been done here; return the mean return."""
    asked = {"method": method, "training": training, "evaluation": playing, "settings": settings}
    done = folder / "run.json"
    if done.exists():
        kept = read_json(done)
        if kept["asked"] == asked:
            return float(kept["return_mean"])
    bundle, measured = folder / "baseline", folder / "evaluation.json"
    options = [text for key, value in training.items() for text in (f"--{key.replace('_', '-')}", value)]
    own = [text for key, value in settings.items() for text in ("--set", f"{key}={value}")]
    command("train", method, "--data", prepared, "--out", bundle, *options, *own)
    played = [text for key, value in playing.items() for text in (f"--{key}", value)]
    command("evaluate", bundle, *played, "--json", measured)
    found = read_json(measured)
    write_json(done, {"asked": asked, "return_mean": found["return_mean"]})
    return float(found["return_mean"])


def command(*arguments: object) -> None:
    """Run `macflow baseline ...` of the project's own sources in a process of its own."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    words = [sys.executable, "-m", "macflow.cli", "baseline", *map(str, arguments)]
    subprocess.run(words, check=True, env=environment)


def mean_ranks(datasets: Mapping[str, Any]) -> dict[str, float]:
    """Return each method's rank by mean return, 1 the best and ties shared, averaged over datasets."""
    methods = list(next(iter(datasets.values()))["methods"])
    ranks = [
        stats.rankdata([-found["methods"][method]["mean"] for method in methods])
        for found in datasets.values()
    ]
    return dict(zip(methods, np.mean(ranks, axis=0).tolist(), strict=True))


def print_table(summary: Mapping[str, Any]) -> None:
    """Print the budget, and one Markdown row per method: mean return (95% t-interval over seeds)."""
    budget, datasets = summary["budget"], summary["datasets"]
    ranks = mean_ranks(datasets)
    print(
        f"\nEvery method: {budget['steps']} gradient steps of {budget['batch_size']} transitions, Adam at "
        f"{budget['learning_rate']}, nets {budget['hidden']}; {summary['evaluation']['episodes']} episodes "
        f"from seed {summary['evaluation']['seed']}."
    )
    if summary["settings"]:
        print(f"Settings other than the defaults: {json.dumps(summary['settings'])}.")
    names = " | ".join(f"`{name}`" for name in datasets)
    print(f"\n| method | {names} | mean rank |\n|---|{'---|' * len(datasets)}---|")
    means = " | ".join(f"{found['mean']:.2f}" for found in datasets.values())
    print(f"| (the dataset's mean) | {means} | |")
    for method, rank in ranks.items():
        cells = " | ".join(cell(found["methods"][method]) for found in datasets.values())
        print(f"| `{method}` | {cells} | {rank:.2f} |", flush=True)


def cell(value: Mapping[str, Any]) -> str:
    """Return mean and interval; one seed has no interval."""
    if value["ci95_low"] is None:
        return f"{value['mean']:.2f}"
    return f"{value['mean']:.2f} ({value['ci95_low']:.2f} to {value['ci95_high']:.2f})"


if __name__ == "__main__":
    main()
