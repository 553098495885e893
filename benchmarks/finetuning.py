"""Fine-tune variants of the pipeline in the live environment with several seeds; print a table, draw curves.

    python benchmarks/finetuning.py benchmarks/studies/finetuning.yaml --seeds 0 1 2 --jobs 2

A study as for `benchmarks/study.py`, whose workspace and stages these are; `variants` differ in the section
`finetune`. The last return of the first one is what steps are counted to. Judged by the last checkpoint
on episodes from 50,000, which chose nothing; curves are the guard's evaluations, on its own episodes.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import altair as alt
import numpy as np
import pandas as pd
import polars as pl
import yaml

from field import EVALUATION_SEED, interval
from macflow.config import check_params
from macflow.files import read_json, write_json
from study import Store, params_of, spread
from workspace import ROOT, merged


def main() -> None:
    """Run, tabulate and draw."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("study", type=Path)
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2], help="none: print what there is")
    parser.add_argument("--variants", nargs="+", help="default: all of the study")
    parser.add_argument("--set", default="{}", metavar="YAML", help="further overrides of params.yaml")
    parser.add_argument("--workspace", type=Path, help="default: build/studies/NAME")
    parser.add_argument("--results", type=Path, help="JSON file that runs are added to")
    parser.add_argument("--picture", type=Path, help="PNG file to draw")
    parser.add_argument("--jobs", type=int, default=2, help="processes at the same time, one thread each")
    arguments = parser.parse_args()
    study = yaml.safe_load(arguments.study.read_text())
    study["params"] = merged(study.get("params", {}), yaml.safe_load(arguments.set))
    workspace = (arguments.workspace or Path("build/studies") / arguments.study.stem).absolute()
    out = arguments.results or workspace / "results.json"
    results: dict[str, Any] = read_json(out) if out.exists() else {}
    names = arguments.variants or list(study["variants"])
    paths = [str(ROOT), os.environ.get("PYTHONPATH", "")]
    os.environ |= {"PYTHONPATH": os.pathsep.join(filter(None, paths)), "OMP_NUM_THREADS": "1"}
    workers = ProcessPoolExecutor(arguments.jobs, multiprocessing.get_context("spawn"))
    failed = []
    with workers, ThreadPoolExecutor(2 * arguments.jobs) as pool:
        store = Store(workspace, workers)

        def run(dataset: str, name: str, seed: int) -> None:
            found = measured(store, study, dataset, study["variants"][name], seed)
            with store.lock:
                results.setdefault(dataset, {}).setdefault(name, {})[str(seed)] = found
                write_json(out, results)

        runs = {
            pool.submit(run, dataset, name, seed): (dataset, name, seed)
            for dataset in study["datasets"]
            for name in names
            for seed in arguments.seeds
        }
        for future, what in runs.items():
            if (error := future.exception()) is not None:
                failed.append(f"{what}: {error}")
    print_tables(results, list(study["variants"]))
    if arguments.picture:
        draw(results, list(study["variants"]), arguments.picture)
    if failed:
        sys.exit("\n".join(failed))


def measured(
    store: Store, study: Mapping[str, Any], dataset: str, change: Mapping[str, Any], seed: int
) -> dict[str, Any]:
    """Run one variant with one seed, as far as it has not run before, and return what was measured."""
    params = params_of(study, dataset, change, seed, EVALUATION_SEED)
    check_params(ROOT / "params.yaml", params)
    played = read_json(store.made("evaluate_finetuned", params) / "metrics/evaluate_finetuned.json")
    folder = store.made("finetune", params)
    tuned = read_json(folder / "metrics/finetune.json")
    curve = pl.read_csv(folder / "plots/finetune/evaluations.csv")
    return {
        "reference": played["reference"],
        **{name: played[name]["return_mean"] for name in ("offline", "last", "kept")},
        "change": tuned.get("change"),
        "updates": tuned["updates"],
        "curve": curve.select("env_steps", "changed", "return_mean", "return_ci95_low").to_dicts(),
    }


def print_tables(results: Mapping[str, Any], order: Sequence[str]) -> None:
    """Print a Markdown table per dataset."""
    for dataset, variants in results.items():
        names = [name for name in order if name in variants]
        goal = float(np.mean([run["curve"][-1]["return_mean"] for run in variants[names[0]].values()]))
        print(f"\n`{dataset}`; on the guard's episodes {names[0]} ends at {goal:.2f}\n")
        print(
            "| variant | offline | last | kept | way to the expert | lowest evaluation against offline's "
            f"interval | steps to {goal:.2f} | steps to regain 80% |\n|---|---|---|---|---|---|---|---|"
        )
        for name in names:
            runs = list(variants[name].values())
            means = " | ".join(spread([run[key] for run in runs]) for key in ("offline", "last", "kept"))
            regained = [
                "never" if (steps := run["change"]["regained_after_steps"]) is None else f"{steps:.0f}"
                for run in runs
                if run["change"]
            ]
            print(
                f"| {name} | {means} | {spread([100 * way(run) for run in runs])} % "
                f"| {', '.join(f'{dip(run):+.2f}' for run in runs)} "
                f"| {', '.join(reached(run, goal) for run in runs)} | {', '.join(regained)} |"
            )


def way(run: Mapping[str, Any]) -> float:
    """Return how much of the way from the offline policies to the expert the last ones have come."""
    if run["reference"] is None:
        return float("nan")
    gain: float = (run["last"] - run["offline"]) / (run["reference"]["expert"] - run["offline"])
    return gain


def dip(run: Mapping[str, Any]) -> float:
    """Return the lowest evaluation before any change, less the low end of the offline policies' interval."""
    before = [row for row in run["curve"] if not row["changed"]]
    lowest: float = min(row["return_mean"] for row in before) - before[0]["return_ci95_low"]
    return lowest


def reached(run: Mapping[str, Any], goal: float) -> str:
    """Return the environment steps of the first evaluation at `goal`, or how long there was none."""
    steps = [row["env_steps"] for row in run["curve"] if row["return_mean"] >= goal]
    return f"{steps[0]}" if steps else f"> {run['curve'][-1]['env_steps']}"


def draw(results: Mapping[str, Any], order: Sequence[str], out: Path) -> None:
    """Draw the mean return over seeds, with 95% t-intervals, against environment steps."""
    panels = []
    for dataset, variants in results.items():
        rows = []
        for name in (name for name in order if name in variants):
            runs = [run["curve"] for run in variants[name].values()]
            for at in range(min(len(curve) for curve in runs)):
                found = interval([curve[at]["return_mean"] for curve in runs])
                steps = float(np.mean([curve[at]["env_steps"] for curve in runs]))
                rows.append({"variant": name, "steps": steps, "part": runs[0][at]["changed"], **found})
        base = alt.Chart(pd.DataFrame(rows), title=dataset, width=420, height=280).encode(
            x=alt.X("steps:Q", title="environment steps"),
            color=alt.Color("variant:N", sort=list(order), legend=alt.Legend(orient="bottom", columns=2)),
            detail="part:N",
        )
        band = base.mark_area(opacity=0.2).encode(
            y=alt.Y("ci95_low:Q", title="return", scale=alt.Scale(zero=False)), y2="ci95_high:Q"
        )
        panels.append(band + base.mark_line().encode(y="mean:Q"))
    out.parent.mkdir(parents=True, exist_ok=True)
    alt.hconcat(*panels).save(str(out), scale_factor=2)


if __name__ == "__main__":
    main()
