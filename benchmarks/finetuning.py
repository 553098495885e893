"""What a study of fine-tuning measures, its table and its picture; `benchmarks/study.py` runs it.

The last return of the study's first variant is what steps are counted to. Judged by the last checkpoint on
episodes that chose nothing; curves are the guard's evaluations, on its own episodes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import altair as alt
import numpy as np
import pandas as pd
import polars as pl

from field import interval, spread
from macflow.files import read_json


def summary_of(tuned: Path, evaluated: Path) -> dict[str, Any]:
    """Return what a study keeps of one run, from the folders of its stages."""
    played = read_json(evaluated / "metrics/evaluate_finetuned.json")
    curve = pl.read_csv(tuned / "plots/finetune/evaluations.csv")
    return {
        "return": played["last"]["return_mean"],
        "offline": played["offline"]["return_mean"],
        "kept": played["kept"]["return_mean"],
        "reference": played["reference"],
        "recovery": read_json(tuned / "metrics/finetune.json").get("change"),
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
            means = " | ".join(spread([run[key] for run in runs]) for key in ("offline", "return", "kept"))
            regained = [
                "never" if (steps := run["recovery"]["regained_after_steps"]) is None else f"{steps:.0f}"
                for run in runs
                if run["recovery"]
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
    gain: float = (run["return"] - run["offline"]) / (run["reference"]["expert"] - run["offline"])
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
