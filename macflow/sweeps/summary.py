"""A sweep's results for people: Markdown tables and pictures."""

from __future__ import annotations

import math
from pathlib import Path

import altair as alt
import numpy as np
import polars as pl

from macflow.files import write_text
from macflow.sweeps.results import (
    Estimate,
    aggregates_of,
    improvement_of,
    mean_ranks,
    over_seeds,
    profiles_of,
    scores_of,
)

RESULTS, SUMMARY = "results.parquet", "summary.md"
RETURNS, PROFILES = "returns.svg", "profiles.svg"
# Of normalised returns over 100: a little beyond random play and the expert.
THRESHOLDS = np.linspace(-0.1, 1.1, 121)


def write_summary(table: pl.DataFrame, folder: Path) -> str:
    """Write table, Markdown and pictures into `folder`; return the Markdown."""
    folder.mkdir(parents=True, exist_ok=True)
    fresh = folder / f".{RESULTS}.new"
    table.write_parquet(fresh)
    fresh.replace(folder / RESULTS)
    text = markdown_of(table)
    write_text(folder / SUMMARY, text)
    done = table.filter(pl.col("status") == "done")
    if len(done):
        _draw_returns(done, folder / RETURNS)
    if scores := scores_of(table):
        _draw_profiles(profiles_of(scores, THRESHOLDS), folder / PROFILES)
    return text


def markdown_of(table: pl.DataFrame) -> str:
    """Return counts, mean returns, aggregates, comparisons, and what failed, as Markdown."""
    counts = dict(table["status"].value_counts().iter_rows())
    parts = [", ".join(f"{counts.get(state, 0)} {state}" for state in ("done", "failed", "missing"))]
    parts.append(_returns_table(table))
    if ranks := mean_ranks(table):
        lines = [f"| {method} | {rank:.2f} |" for method, rank in sorted(ranks.items(), key=lambda it: it[1])]
        parts.append("\n".join(["| method | mean rank |", "|---|---|", *lines]))
    if scores := scores_of(table):
        found = aggregates_of(scores)
        names = list(next(iter(found.values())))
        lines = [
            f"| {method} | {' | '.join(_spread(each[name], 3) for name in names)} |"
            for method, each in found.items()
        ]
        head = [f"| method | {' | '.join(names)} |", "|---" * (len(names) + 1) + "|"]
        parts.append(
            "Normalised returns over 100 of all runs; 95% intervals of the stratified bootstrap:\n\n"
            + "\n".join([*head, *lines])
        )
        pairs = [
            f"| {one} | {other} | {_spread(chance, 2)} |"
            for (one, other), chance in improvement_of(scores).items()
        ]
        if pairs:
            parts.append(
                "\n".join(["| a run of | beats one of | with probability |", "|---|---|---|", *pairs])
            )
    failed = table.filter(pl.col("status") == "failed")
    lines = [
        f"- {row['dataset']}, {row['method']}, seed {row['seed']}: {row['error']}"
        for row in failed.iter_rows(named=True)
    ]
    if lines:
        parts.append("Failed:\n\n" + "\n".join(lines))
    return "\n\n".join(parts) + "\n"


def _returns_table(table: pl.DataFrame) -> str:
    datasets = table["dataset"].unique(maintain_order=True).to_list()
    lines = [
        f"| method | {' | '.join(f'`{name}`' for name in datasets)} |",
        "|---" * (len(datasets) + 1) + "|",
    ]
    done = table.filter(pl.col("status") == "done")
    for method in table["method"].unique(maintain_order=True):
        cells = []
        for dataset in datasets:
            values = done.filter((pl.col("method") == method) & (pl.col("dataset") == dataset))["return_mean"]
            cells.append(_spread(over_seeds(values.to_list()), 2) if len(values) else "")
        lines.append(f"| {method} | {' | '.join(cells)} |")
    return "Mean return over seeds, 95% t-intervals:\n\n" + "\n".join(lines)


def _spread(found: Estimate, digits: int) -> str:
    if math.isnan(found.low):
        return f"{found.value:.{digits}f}"
    return f"{found.value:.{digits}f} ({found.low:.{digits}f} to {found.high:.{digits}f})"


def _draw_returns(done: pl.DataFrame, out: Path) -> None:
    """Draw each run's return and each method's mean, a panel per dataset, the data's mean as a rule."""
    panels = []
    for (dataset,), part in done.group_by("dataset", maintain_order=True):
        base = alt.Chart(part.to_pandas(), title=str(dataset), width=320).encode(
            y=alt.Y("method:N", sort=done["method"].unique(maintain_order=True).to_list(), title=None)
        )
        runs = base.mark_point().encode(x=alt.X("return_mean:Q", title="return", scale=alt.Scale(zero=False)))
        means = base.mark_tick(thickness=3).encode(x=alt.X("mean(return_mean):Q", title="return"))
        rule = base.mark_rule(strokeDash=[4, 4]).encode(
            x="mean(data_return):Q", y=alt.value(0), y2=alt.value("height")
        )
        panels.append(runs + means + rule)
    alt.hconcat(*panels).save(str(out))


def _draw_profiles(profiles: pl.DataFrame, out: Path) -> None:
    base = alt.Chart(profiles.to_pandas(), width=480, height=300).encode(
        x=alt.X("threshold:Q", title="normalised return over 100"),
        color=alt.Color("method:N", sort=profiles["method"].unique(maintain_order=True).to_list()),
    )
    band = base.mark_area(opacity=0.2).encode(
        y=alt.Y("low:Q", title="share of runs above", scale=alt.Scale(domain=[0, 1])), y2="high:Q"
    )
    (band + base.mark_line().encode(y="share:Q")).save(str(out))
