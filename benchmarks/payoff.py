"""Draw what factorised policies lose as agents' actions depend on each other: `game/payoff` against zeta.

    python benchmarks/study.py benchmarks/studies/payoff.yaml --seeds 0 1 2
    python benchmarks/payoff.py build/studies/payoff/results.json

Prints a Markdown table of W2(policies, flow) and of the return that is lost against the flow; draws both into
docs/images/payoff.png.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import altair as alt
import pandas as pd

from field import interval
from macflow.files import read_json
from workspace import ROOT


def main() -> None:
    """Print and draw."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("results", type=Path, help="results of the study")
    parser.add_argument("--picture", type=Path, default=ROOT / "docs/images/payoff.png")
    arguments = parser.parse_args()
    (variants,) = read_json(arguments.results).values()
    rows = [row_of(name, run) for name, runs in variants.items() for run in runs.values()]
    print_table(rows)
    draw(rows, arguments.picture)


def row_of(variant: str, run: dict[str, Any]) -> dict[str, Any]:
    """Return a run's row; its variant is called ZETA NOISE."""
    zeta, noise = variant.split()
    return {
        "zeta": float(zeta),
        "noise": noise,
        "w2": run["w2"],
        "lost": run["flow_return"] - run["return"],
        "gap": abs(run["value_gap"]),
        "bound": run["value_gap_bound"],
        "holds": run["bounds_hold"],
    }


def print_table(rows: list[dict[str, Any]]) -> None:
    """Print means over seeds with 95% t-intervals."""
    print("\n| zeta | noise | W2 | return lost | gap of Q | its bound | bounds hold |")
    print("|---|---|---|---|---|---|---|")
    for zeta, noise in sorted({(row["zeta"], row["noise"]) for row in rows}, key=lambda it: (it[1], it[0])):
        here = [row for row in rows if (row["zeta"], row["noise"]) == (zeta, noise)]
        cells = []
        for name in ("w2", "lost", "gap", "bound"):
            found = interval([row[name] for row in here])
            low, high = found["ci95_low"], found["ci95_high"]
            cells.append(f"{found['mean']:.3f}" + ("" if low is None else f" ({low:.3f} to {high:.3f})"))
        held = sum(row["holds"] for row in here)
        print(f"| {zeta} | {noise} | {' | '.join(cells)} | {held} of {len(here)} |", flush=True)


def draw(rows: list[dict[str, Any]], out: Path) -> None:
    """Draw W2 and the lost return against zeta, with one standard deviation over seeds around the means."""
    titles = {"w2": "W2(policies, flow)", "lost": "return lost against the flow"}
    table = pd.DataFrame(rows)
    charts = []
    for name, title in titles.items():
        base = alt.Chart(table, width=300, height=220).encode(
            x=alt.X("zeta:Q", title="zeta"), color=alt.Color("noise:N", title="noise")
        )
        line = base.mark_line(point=True).encode(y=alt.Y(f"mean({name}):Q", title=title))
        band = base.mark_errorband(extent="stdev").encode(y=alt.Y(f"{name}:Q", title=title))
        charts.append(band + line)
    out.parent.mkdir(parents=True, exist_ok=True)
    alt.hconcat(*charts).save(str(out), scale_factor=2)


if __name__ == "__main__":
    main()
