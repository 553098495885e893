"""What factorised policies lose as agents' actions depend on each other: `game/payoff` against zeta.

    python benchmarks/payoff.py --seeds 0 1 2

At zeta the game rewards the agents' agreement by that share, and in that share of its data's episodes they
agree. The joint flow is distilled (Eq. 7 alone) with noise of the agents' own and with common noise. Prints a
Markdown table of W2(policies, flow) and of the return that is lost; draws both into docs/images/payoff.png.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import altair as alt
import pandas as pd

from field import interval
from workspace import ROOT, make_workspace, run_stages

# zeta -> the behaviour whose agents agree in that share of the episodes.
BEHAVIOURS = {0.0: "together-0", 0.25: "together-25", 0.5: "together-50", 0.75: "together-75", 1.0: "mixed"}
NOISES = ("individual", "common")
SETTINGS: dict[str, Any] = {
    # A one-step game's observations say nothing, and its critic has nothing to look ahead to.
    "prepare": {"max_duplicate_fraction": 1.0},
    "flow": {"hidden": [64, 64], "steps": 3000, "schedule": "cosine"},
    "teacher": {"samples": 8},
    # One Q of everything: Q_tot of a sum would not see agreement, nor the gap that its loss makes.
    "critic": {"mixer": "central", "hidden": [64, 64], "steps": 1500, "discount": 0.0},
    "distill": {
        "hidden": [64, 64],
        "steps": 3000,
        "q_term": False,
        "schedule": "cosine",
        "diagnose_every": 3000,
    },
    "diagnose": {"states": 16, "samples": 512},
    "evaluate": {"episodes": 2000, "n_envs": 500, "seed": 50_000, "workers": 1},
}
DATA = ("record", "prepare", "train_flow", "teacher", "train_critic")
POLICY = ("distill", "evaluate", "diagnose")
ARTIFACTS = ("data/prepared", "models/flow", "models/teacher", "models/critic")


def main() -> None:
    """Run, print and draw; finished runs are kept and not repeated."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--workspace", type=Path, default=Path("build/payoff"))
    parser.add_argument("--picture", type=Path, default=ROOT / "docs/images/payoff.png")
    arguments = parser.parse_args()
    rows = [
        measured(arguments.workspace, zeta, noise, seed)
        for seed in arguments.seeds
        for zeta in BEHAVIOURS
        for noise in NOISES
    ]
    print_table(rows)
    draw(rows, arguments.picture)


def measured(workspace: Path, zeta: float, noise: str, seed: int) -> dict[str, Any]:
    """Train and measure one case."""
    common = {
        "dataset": f"game-payoff/{BEHAVIOURS[zeta]}",
        "record": {"kwargs": {"zeta": zeta}},
        "training": {"seed": seed, "threads": 1},
    }
    base = make_workspace(workspace / f"{zeta}-{seed}", SETTINGS, common)
    if not (base / "metrics/train_critic.json").exists():
        run_stages(base, DATA)
    folder = make_workspace(
        workspace / f"{zeta}-{seed}-{noise}",
        SETTINGS,
        common,
        {"distill": {"noise": noise}},
        reuse=base,
        artifacts=ARTIFACTS,
    )
    if not (folder / "metrics/diagnose.json").exists():
        run_stages(folder, POLICY)
    diagnose, evaluate = (
        json.loads((folder / f"metrics/{name}.json").read_text()) for name in ("diagnose", "evaluate")
    )
    return {
        "zeta": zeta,
        "noise": noise,
        "seed": seed,
        "w2": diagnose["w2"],
        "lost": evaluate["flow"]["return_mean"] - evaluate["policy"]["return_mean"],
        "gap": abs(diagnose["value_gap"]),
        "bound": diagnose["value_gap_bound"],
        "holds": diagnose["value_gap_bound_holds"] and diagnose["w2_bound_holds"],
    }


def print_table(rows: list[dict[str, Any]]) -> None:
    """Print means over seeds with 95% t-intervals."""
    print("\n| zeta | noise | W2 | return lost | gap of Q | its bound | bounds hold |")
    print("|---|---|---|---|---|---|---|")
    for zeta in BEHAVIOURS:
        for noise in NOISES:
            here = [row for row in rows if row["zeta"] == zeta and row["noise"] == noise]
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
