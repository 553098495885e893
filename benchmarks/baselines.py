"""Compare MAC-Flow with the offline multi-agent baselines on datasets, all with one gradient budget.

The budget of a dataset is the number of transitions that MAC-Flow's three trainings see with the dataset's
parameters (steps times batch size, summed). Every baseline gets as many steps of `--batch-size` as see the
same number; a step moves all of a method's nets, so a step of a method with more nets takes more time. Each
dataset is recorded once; every method is trained anew for every seed and judged by its last step on the same
episodes, which chose no setting. Finished runs are kept and not repeated. `--results` is a file to which
datasets are added; the Markdown table shows all that it holds.

    python benchmarks/baselines.py mamujoco-hopper-3x1/medium smax-3m/medium --seeds 0 1 2
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from scipy import stats

from field import EVALUATION_SEED, interval, parameters, train
from macflow.algorithms.baselines.registry import METHODS, settings_of
from macflow.files import read_json, write_json
from macflow.types import ConfigError
from workspace import ROOT, make_workspace, run_stages

DATA = ("record", "prepare")
MAC_FLOW = "MAC-Flow"
# Its first training alone, played as it is: behaviour cloning by the joint flow.
FLOW = "joint flow"
TRAININGS = ("flow", "critic", "distill")
# Games of one step have a handful of distinct transitions.
GAMES = "game-"
REPETITIVE = {"prepare": {"max_duplicate_fraction": 1.0}}


def main() -> None:
    """Run and summarise."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("datasets", nargs="*", help="names of `macflow dataset list`; none: print the table")
    parser.add_argument("--methods", nargs="+", choices=[MAC_FLOW, *METHODS], default=[MAC_FLOW, *METHODS])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--workspace", type=Path, default=Path("build/baselines"))
    parser.add_argument("--results", type=Path, help="default: results.json in the workspace")
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--hidden", default="256,256", help="widths of every baseline net's hidden layers")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--evaluation-seed", type=int, default=EVALUATION_SEED)
    parser.add_argument("--set", action="append", default=[], metavar="METHOD.NAME=VALUE")
    parser.add_argument(
        "--parameters", action="append", default=[], metavar="YAML", help="overrides of MAC-Flow's parameters"
    )
    parser.add_argument("--jobs", type=int, default=2, help="runs at the same time, one thread each")
    arguments = parser.parse_args()
    try:
        settings = given_settings(arguments.set)
    except ConfigError as error:
        parser.error(str(error))
    overrides = [yaml.safe_load(text) for text in arguments.parameters]
    out = arguments.results or arguments.workspace / "results.json"
    results: dict[str, Any] = read_json(out) if out.exists() else {}
    with ThreadPoolExecutor(arguments.jobs) as pool:
        for name in arguments.datasets:
            own = [parameters(name), *([REPETITIVE] if name.startswith(GAMES) else []), *overrides]
            folder = arguments.workspace / name.replace("/", "-")
            data = make_workspace(folder / "data", *own)
            if not (data / "data/prepared").exists():
                run_stages(data, DATA)
            params = yaml.safe_load((data / "params.yaml").read_text())
            transitions = sum(params[stage]["steps"] * params[stage]["batch_size"] for stage in TRAININGS)
            case = Case(
                name,
                folder,
                own,
                budget={
                    "steps": math.ceil(transitions / arguments.batch_size),
                    "batch_size": arguments.batch_size,
                    "learning_rate": arguments.learning_rate,
                    "hidden": arguments.hidden,
                    "device": arguments.device,
                },
                playing={"episodes": params["evaluate"]["episodes"], "seed": arguments.evaluation_seed},
                settings={
                    method: as_the_critic(method, params["critic"]) | settings.get(method, {})
                    for method in arguments.methods
                    if method != MAC_FLOW
                },
            )
            runs = {
                (method, seed): pool.submit(case.run, method, seed)
                for seed in arguments.seeds
                for method in arguments.methods
            }
            returns = {
                method: interval([runs[method, seed].result() for seed in arguments.seeds])
                for method in arguments.methods
            }
            if MAC_FLOW in arguments.methods:
                returns[FLOW] = interval([case.flow_return(seed) for seed in arguments.seeds])
            results[name] = {
                "mean": read_json(data / "data/prepared/dataset.json")["returns"]["mean"],
                "transitions": transitions,
                "budget": case.budget,
                "evaluation": case.playing,
                "settings": case.settings,
                "methods": returns,
            }
            write_json(out, results)
    if not results:
        parser.error("`datasets`: none is named, and the file of results has none")
    print_table(results)


@dataclass(frozen=True)
class Case:
    """A recorded dataset and how every method is trained and judged on it."""

    name: str
    folder: Path
    overrides: Sequence[Mapping[str, Any]]  # of params.yaml, for MAC-Flow
    budget: Mapping[str, Any]
    playing: Mapping[str, Any]
    settings: Mapping[str, Mapping[str, str]]  # by baseline

    def run(self, method: str, seed: int) -> float:
        """Train and evaluate a method with one seed; return the mean return."""
        folder, data = self.folder / method / f"seed-{seed}", self.folder / "data"
        if method == MAC_FLOW:
            overrides = [*self.overrides, {"training": {"device": self.budget["device"]}}]
            found = train(self.name, folder, data, seed, overrides, self.playing["seed"])
            return float(found["evaluate"]["policy"]["return_mean"])
        prepared, budget = data / "data/prepared", {**self.budget, "seed": seed}
        return run_once(folder, method, prepared, budget, self.playing, self.settings[method])

    def flow_return(self, seed: int) -> float:
        """Return the mean return of the joint flow of MAC-Flow's run."""
        metrics = read_json(self.folder / MAC_FLOW / f"seed-{seed}" / "metrics/evaluate.json")
        return float(metrics["flow"]["return_mean"])


def as_the_critic(method: str, critic: Mapping[str, Any]) -> dict[str, str]:
    """Return the settings of a baseline that MAC-Flow's critic has too, where the baseline learns values."""
    known = METHODS[method].settings.model_fields
    return {name: str(critic[name]) for name in ("discount", "polyak_tau") if name in known}


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


def mean_ranks(results: Mapping[str, Any]) -> dict[str, float]:
    """Return each method's rank by mean return, 1 the best and ties shared, averaged over datasets.

    Only methods that every dataset has are ranked.
    """
    first, *others = (found["methods"] for found in results.values())
    methods = [method for method in first if all(method in other for other in others)]
    ranks = [
        stats.rankdata([-found["methods"][method]["mean"] for method in methods])
        for found in results.values()
    ]
    return dict(zip(methods, np.mean(ranks, axis=0).tolist(), strict=True))


def print_table(results: Mapping[str, Any]) -> None:
    """Print one Markdown row per dataset: mean return of each method (95% t-interval over seeds)."""
    ranks = mean_ranks(results)
    print(f"\n| dataset | transitions | its mean | {' | '.join(f'`{method}`' for method in ranks)} |")
    print(f"|---|---|---|{'---|' * len(ranks)}")
    for name, found in results.items():
        cells = " | ".join(cell(found["methods"][method]) for method in ranks)
        print(f"| `{name}` | {found['transitions'] / 1e6:.1f}M | {found['mean']:.2f} | {cells} |")
    print(f"| mean rank | | | {' | '.join(f'{rank:.2f}' for rank in ranks.values())} |", flush=True)
    for name, found in results.items():
        given = {method: settings for method, settings in found["settings"].items() if settings}
        budget = found["budget"]
        print(f"`{name}`: {budget['steps']} steps of {budget['batch_size']}; {json.dumps(given)}")


def cell(value: Mapping[str, Any]) -> str:
    """Return mean and interval; one seed has no interval."""
    if value["ci95_low"] is None:
        return f"{value['mean']:.2f}"
    return f"{value['mean']:.2f} ({value['ci95_low']:.2f} to {value['ci95_high']:.2f})"


if __name__ == "__main__":
    main()
