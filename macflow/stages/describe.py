"""Measure what a prepared dataset is like: returns, coverage, coordination."""

from __future__ import annotations

import argparse
import csv
import io
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from macflow.config import DescribeParams, load_section
from macflow.data.prepared import load_rows
from macflow.data.statistics import (
    Histogram,
    action_histograms,
    describe,
    histogram,
    integer_histogram,
)
from macflow.files import replace_directory, write_json, write_text
from macflow.stages._common import run_stage

BINS = ("bin_left", "bin_right", "count")


def main(arguments: argparse.Namespace) -> None:
    """Write statistics and histograms of a prepared dataset."""
    params = load_section(arguments.params, "describe", DescribeParams)
    rows, spec, _ = load_rows(arguments.data)
    metrics = describe(
        rows, spec, state_cells=params.state_cells, action_bins=params.action_bins, seed=params.seed
    )
    with replace_directory(arguments.plots) as folder:
        _write_csv(folder / "returns.csv", BINS, _bins(histogram(rows.team_returns)))
        _write_csv(folder / "lengths.csv", BINS, _bins(integer_histogram(rows.lengths)))
        _write_csv(
            folder / "actions.csv",
            ("agent", "dim", *BINS),
            (
                (agent, dimension, *line)
                for agent, dimension, counted in action_histograms(rows, spec)
                for line in _bins(counted)
            ),
        )
    write_json(arguments.metrics, metrics)
    gap = metrics["factorisation_gap_nats"] - metrics["factorisation_gap_baseline_nats"]
    print(
        f"describe: mean return {metrics['return']['mean']:.3f}, "
        f"agents' coordination beyond their state {gap:.3f} nats",
        flush=True,
    )


def _bins(counted: Histogram) -> Iterable[tuple[float, float, int]]:
    edges = counted.edges.tolist()
    return zip(edges[:-1], edges[1:], counted.counts.tolist(), strict=True)


def _write_csv(path: Path, header: Sequence[str], lines: Iterable[Sequence[Any]]) -> None:
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(lines)
    write_text(path, text.getvalue())


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the stage's paths."""
    parser.add_argument("--data", type=Path, required=True, help="folder of a prepared dataset")
    parser.add_argument("--metrics", type=Path, required=True, help="JSON file")
    parser.add_argument("--plots", type=Path, required=True, help="folder of CSV files")


if __name__ == "__main__":
    run_stage("describe", main, add_arguments)
