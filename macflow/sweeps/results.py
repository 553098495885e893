"""What a sweep came to: a table of its cells, and what they say of the methods."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray
from scipy import stats

from macflow.files import read_json
from macflow.sweeps.cell import MEASURES, failure_file, outcome_file
from macflow.sweeps.plan import Cell

Scores = NDArray[np.float64]
# Draws of the stratified bootstrap, and the seed that they come from.
DRAWS, BOOTSTRAP_SEED = 2000, 0
SCHEMA = {
    "dataset": pl.String,
    "method": pl.String,
    "seed": pl.Int64,
    "status": pl.String,
    **dict.fromkeys((*MEASURES, "data_return"), pl.Float64),
    "run": pl.String,
    "artifact": pl.String,
    "error": pl.String,
}


def table_of(cells: Sequence[Cell], store: Path) -> pl.DataFrame:
    """Return a row per cell: `done` with its measures, `failed` with its error, or `missing`.

    Nothing in it depends on when, where or by which engine a cell was run.
    """
    rows = []
    for cell in cells:
        row: dict[str, object] = {"dataset": cell.dataset, "method": cell.method, "seed": cell.seed}
        if (file := outcome_file(store, cell)).exists():
            row |= {"status": "done"} | read_json(file)
        elif (file := failure_file(store, cell)).exists():
            row |= {"status": "failed"} | read_json(file)
        else:
            row |= {"status": "missing"}
        rows.append({name: row.get(name) for name in SCHEMA})
    return pl.DataFrame(rows, schema=SCHEMA)


@dataclass(frozen=True)
class Estimate:
    """A number with its 95% interval."""

    value: float
    low: float
    high: float


def scores_of(table: pl.DataFrame) -> dict[str, Scores]:
    """Return each method's normalised returns over 100, (datasets, seeds): 0 random, 1 the expert reference.

    Only methods and datasets that have every seed's; none where a dataset has no reference returns.
    """
    done = table.filter(pl.col("normalized_return").is_not_null())
    datasets = table["dataset"].unique(maintain_order=True).to_list()
    seeds = table["seed"].unique(maintain_order=True).to_list()
    found = {}
    for method in table["method"].unique(maintain_order=True):
        rows = {
            (dataset, seed): value
            for dataset, seed, value in done.filter(pl.col("method") == method)
            .select("dataset", "seed", "normalized_return")
            .iter_rows()
        }
        if len(rows) == len(datasets) * len(seeds):
            found[method] = np.array([[rows[dataset, seed] for seed in seeds] for dataset in datasets]) / 100
    return found


def aggregates_of(scores: Mapping[str, Scores]) -> dict[str, dict[str, Estimate]]:
    """Return interquartile mean, mean, median and optimality gap of each method.

    Intervals are of the stratified bootstrap over seeds (Agarwal et al., *Deep Reinforcement Learning at the
    Edge of the Statistical Precipice*, 2021): each dataset draws seeds of its own.
    """
    return {
        method: {name: _estimate(values, measure) for name, measure in AGGREGATES.items()}
        for method, values in scores.items()
    }


def interquartile_mean(scores: Scores) -> float:
    """Return the mean of the middle half of all runs."""
    return float(stats.trim_mean(scores, 0.25, axis=None))


def median_of_means(scores: Scores) -> float:
    """Return the median over datasets of the mean over seeds."""
    return float(np.median(scores.mean(axis=1)))


def optimality_gap(scores: Scores) -> float:
    """Return by how much runs fall short of 1 on average; what lies above 1 counts as 1."""
    return float(1 - np.minimum(scores, 1).mean())


AGGREGATES: Mapping[str, Callable[[Scores], float]] = {
    "IQM": interquartile_mean,
    "mean": lambda scores: float(scores.mean()),
    "median": median_of_means,
    "optimality gap": optimality_gap,
}


def improvement_of(scores: Mapping[str, Scores]) -> dict[tuple[str, str], Estimate]:
    """Return the probability that a run of one method beats one of the other, averaged over datasets."""
    found = {}
    for one, other in itertools.permutations(scores, 2):
        both = np.stack([scores[one], scores[other]])
        draws = [_better(*drawn) for drawn in _resampled(both)]
        low, high = np.percentile(draws, (2.5, 97.5))
        found[one, other] = Estimate(_better(*both), float(low), float(high))
    return found


def profiles_of(scores: Mapping[str, Scores], thresholds: Scores) -> pl.DataFrame:
    """Return the share of runs above each threshold, with a band: the performance profile of each method."""
    rows = []
    for method, values in scores.items():
        draws = np.array([_shares(drawn[0], thresholds) for drawn in _resampled(values[None])])
        low, high = np.percentile(draws, (2.5, 97.5), axis=0)
        for at, share in enumerate(_shares(values, thresholds)):
            rows.append(
                {
                    "method": method,
                    "threshold": thresholds[at],
                    "share": share,
                    "low": low[at],
                    "high": high[at],
                }
            )
    return pl.DataFrame(rows)


def mean_ranks(table: pl.DataFrame) -> dict[str, float]:
    """Return each method's rank by mean return, 1 the best and ties shared, averaged over datasets.

    Only methods that every dataset has a finished run of.
    """
    means = (
        table.filter(pl.col("status") == "done")
        .group_by("dataset", "method", maintain_order=True)
        .agg(pl.col("return_mean").mean())
    )
    datasets = table["dataset"].n_unique()
    counts = means.group_by("method", maintain_order=True).len()
    ranked = counts.filter(pl.col("len") == datasets)["method"].to_list()
    ranks = [
        stats.rankdata([-part.filter(pl.col("method") == method)["return_mean"].item() for method in ranked])
        for _, part in means.group_by("dataset", maintain_order=True)
    ]
    return dict(zip(ranked, np.mean(ranks, axis=0).tolist(), strict=True)) if ranked else {}


def over_seeds(values: Sequence[float]) -> Estimate:
    """Return mean and 95% t-interval over seeds; one seed has none."""
    mean = float(np.mean(values))
    if len(values) == 1:
        return Estimate(mean, float("nan"), float("nan"))
    half = float(stats.t.ppf(0.975, len(values) - 1) * stats.sem(values))
    return Estimate(mean, mean - half, mean + half)


def _estimate(values: Scores, measure: Callable[[Scores], float]) -> Estimate:
    draws = [measure(drawn[0]) for drawn in _resampled(values[None])]
    low, high = np.percentile(draws, (2.5, 97.5))
    return Estimate(measure(values), float(low), float(high))


def _resampled(values: Scores) -> Scores:
    """Return draws (DRAWS, M, datasets, seeds) of values (M, datasets, seeds), seeds within datasets."""
    m, datasets, seeds = values.shape
    random = np.random.default_rng(BOOTSTRAP_SEED)
    chosen = random.integers(0, seeds, (DRAWS, m, datasets, seeds))
    found: Scores = np.take_along_axis(values[None], chosen, axis=3)
    return found


def _better(one: Scores, other: Scores) -> float:
    wins = one[:, :, None] > other[:, None, :]
    ties = one[:, :, None] == other[:, None, :]
    return float((wins + 0.5 * ties).mean())


def _shares(values: Scores, thresholds: Scores) -> Scores:
    found: Scores = (values.reshape(-1, 1) > thresholds).mean(axis=0)
    return found
