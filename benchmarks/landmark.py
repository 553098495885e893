"""Cover landmarks with 3 to 40 agents: what one-step policies keep of the joint flow, and what a step costs.

    python benchmarks/landmark.py --seeds 0 1 2

All numbers of agents have the same nets, batches and steps. Prints two Markdown tables: of coverage (the
game's reward per step, mean over 200 episodes that chose no parameter) with W2 and the bound of Prop. 4.3,
and of the CPU time of a training step. Draws both into docs/images/landmark.png. Finished runs are kept and
not repeated.
"""

from __future__ import annotations

import argparse
import csv
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import altair as alt
import pandas as pd

from field import interval
from macflow.evaluation.diagnostics import PolicyDiagnostics
from workspace import ROOT, make_workspace, merged, run_stages

AGENTS = (3, 5, 10, 20, 40)
EPISODE_STEPS = 5
# Training stage -> its section of params.yaml.
STAGES = {"train_flow": "flow", "train_critic": "critic", "distill": "distill"}
SETTINGS: dict[str, Any] = {
    "dataset": "game-landmark/medium-expert",
    "record": {"episodes": 1000},
    "training": {"threads": 1},
    "flow": {
        "arch": "transformer",
        "hidden": [64, 64],
        "steps": 4000,
        "batch_size": 16,
        "schedule": "cosine",
    },
    "teacher": {"samples": 4},
    "critic": {"next_action": "flow", "hidden": [64, 64], "steps": 3000, "batch_size": 16},
    "distill": {
        "alpha": 3.0,
        "critic": "frozen",
        # Who takes which landmark is the joint noise's choice: without it agents meet at one.
        "noise": "common",
        "hidden": [64, 64],
        "steps": 6000,
        "batch_size": 16,
        "schedule": "cosine",
        "diagnose_every": 1000,
    },
    "diagnose": {"states": 32, "samples": 64},
    "evaluate": {"episodes": 200, "seed": 50_000, "workers": 1},
}
RUN = ("record", "prepare", "train_flow", "teacher", "train_critic", "distill", "evaluate")
ARTIFACTS = ("data/prepared", "models/flow", "models/teacher", "models/critic")
ACTORS = {
    "policy": "one-step policies",
    "flow": "joint flow",
    "behaviour": "data's script",
    "random": "random",
}
# A step at 40 agents is to take at most so many times that at 3.
STEP_RATIO = 5.0


def main() -> None:
    """Run, print and draw."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--agents", type=int, nargs="+", default=list(AGENTS))
    parser.add_argument("--workspace", type=Path, default=Path("build/landmark"))
    parser.add_argument("--picture", type=Path, default=ROOT / "docs/images/landmark.png")
    arguments = parser.parse_args()
    rows = [
        measured(arguments.workspace, n_agents, seed)
        for seed in arguments.seeds
        for n_agents in arguments.agents
    ]
    print_coverage(rows)
    print_steps(rows)
    draw(rows, arguments.picture)


def measured(workspace: Path, n_agents: int, seed: int) -> dict[str, Any]:
    """Train and evaluate one number of agents with one seed."""
    own = {"record": {"kwargs": {"n_agents": n_agents}}, "training": {"seed": seed}}
    folder = make_workspace(workspace / f"{n_agents}-{seed}", SETTINGS, own)
    if not (folder / "metrics/evaluate.json").exists():
        run_stages(folder, RUN)
    evaluate = json.loads((folder / "metrics/evaluate.json").read_text())
    with (folder / "plots/distill/diagnostics.csv").open() as file:
        checkpoints = [{key: float(value) for key, value in row.items()} for row in csv.DictReader(file)]
    steps = [int(checkpoint.pop("step")) for checkpoint in checkpoints]
    found = [PolicyDiagnostics(**checkpoint) for checkpoint in checkpoints]
    return {
        "n_agents": n_agents,
        "seed": seed,
        "coverage": {actor: evaluate[actor]["return_mean"] / EPISODE_STEPS for actor in ACTORS},
        "w2": dict(zip(steps, (one.w2 for one in found), strict=True)),
        "held": sum(one.value_gap_bound_holds for one in found),
        "step_ms": step_ms(folder, workspace / f"{n_agents}-{seed}-short", own),
        "cpu_minutes": sum(cpu_seconds(folder, stage) for stage in RUN) / 60,
    }


def step_ms(folder: Path, short: Path, own: Mapping[str, Any]) -> dict[str, float]:
    """Return the CPU milliseconds of a training step, by stage.

    They are what the stage took in `folder` beyond a run of few steps, over the steps that it took more: both
    start up alike and, in distillation, measure the policies equally often. Other work on the machine counts
    less in CPU time than by the clock.
    """
    measurements = SETTINGS["distill"]["steps"] // SETTINGS["distill"]["diagnose_every"]
    few = {section: {"steps": measurements} for section in STAGES.values()}
    few["distill"]["diagnose_every"] = 1
    make_workspace(short, merged(SETTINGS, few), own, reuse=folder, artifacts=ARTIFACTS)
    found = {}
    for stage, section in STAGES.items():
        if not (short / f"metrics/run_cards/{stage}.json").exists():
            run_stages(short, (stage,))
        seconds = cpu_seconds(folder, stage) - cpu_seconds(short, stage)
        found[stage] = 1000 * seconds / (SETTINGS[section]["steps"] - measurements)
    return found


def cpu_seconds(folder: Path, stage: str) -> float:
    """Return a finished stage's CPU seconds."""
    return float(json.loads((folder / f"metrics/run_cards/{stage}.json").read_text())["cpu_seconds"])


def print_coverage(rows: Sequence[Mapping[str, Any]]) -> None:
    """Print means over seeds with 95% t-intervals: coverage, and the distance and bounds of distillation."""
    columns = ["agents", *ACTORS.values(), "of the flow's", "W2, first to last", "bound held", "CPU minutes"]
    print(f"\n| {' | '.join(columns)} |")
    print("|---" * len(columns) + "|")
    for n_agents, here in by_agents(rows).items():
        coverage = [cell([row["coverage"][actor] for row in here], "{:.3f}".format) for actor in ACTORS]
        share = cell([row["coverage"]["policy"] / row["coverage"]["flow"] for row in here], "{:.1%}".format)
        first, last = (cell([list(row["w2"].values())[i] for row in here], "{:.2f}".format) for i in (0, -1))
        held = sum(row["held"] for row in here), sum(len(row["w2"]) for row in here)
        minutes = cell([row["cpu_minutes"] for row in here], "{:.1f}".format)
        cells = [*coverage, share, f"{first} to {last}", f"{held[0]} of {held[1]}", minutes]
        print(f"| {n_agents} | {' | '.join(cells)} |")


def print_steps(rows: Sequence[Mapping[str, Any]]) -> None:
    """Print the CPU milliseconds of a step and, in parentheses, how many times that at the fewest agents."""
    print(f"\n| agents | {' | '.join(f'`{stage}`' for stage in STAGES)} |")
    print("|---" * (len(STAGES) + 1) + "|")
    grouped = by_agents(rows)
    fewest = grouped[min(grouped)]
    for n_agents, here in grouped.items():
        cells = []
        for stage in STAGES:
            ms, least = (interval([row["step_ms"][stage] for row in some])["mean"] for some in (here, fewest))
            cells.append(f"{ms:.2f} ({ms / least:.1f})")
        print(f"| {n_agents} | {' | '.join(cells)} |", flush=True)


def by_agents(rows: Sequence[Mapping[str, Any]]) -> dict[int, list[Mapping[str, Any]]]:
    """Group rows by the number of agents, in rising order."""
    return {
        n: [row for row in rows if row["n_agents"] == n] for n in sorted({row["n_agents"] for row in rows})
    }


def cell(values: Sequence[float], text: Callable[[float], str]) -> str:
    """Write a mean over seeds, with its 95% t-interval where there are several."""
    found = interval(values)
    low, high = found["ci95_low"], found["ci95_high"]
    return text(found["mean"]) + ("" if low is None else f" ({text(low)} to {text(high)})")


def draw(rows: Sequence[Mapping[str, Any]], out: Path) -> None:
    """Draw coverage, W2 along distillation and the cost of a step, means over seeds."""
    agents = alt.X("agents:Q", scale=alt.Scale(type="log"), axis=alt.Axis(values=list(AGENTS)))
    size = {"width": 260, "height": 220}
    coverage = pd.DataFrame(
        {"agents": row["n_agents"], "actor": name, "coverage": row["coverage"][actor]}
        for row in rows
        for actor, name in ACTORS.items()
    )
    covered = (
        alt.Chart(coverage, **size)
        .mark_line(point=True)
        .encode(
            agents,
            alt.Y("mean(coverage):Q", title="landmarks covered, per step", scale=alt.Scale(domain=[0, 1])),
            alt.Color("actor:N", title=None, sort=list(ACTORS.values())),
        )
    )
    distance = pd.DataFrame(
        {"agents": row["n_agents"], "step": step, "w2": w2 / row["w2"][0]}
        for row in rows
        for step, w2 in row["w2"].items()
    )
    closer = (
        alt.Chart(distance, **size)
        .mark_line(point=True)
        .encode(
            alt.X("step:Q", title="distillation step"),
            alt.Y("mean(w2):Q", title="W2(policies, flow), share of the first", scale=alt.Scale(zero=True)),
            alt.Color("agents:O", title="agents", scale=alt.Scale(scheme="viridis")),
        )
    )
    fewest = min(row["n_agents"] for row in rows)
    cost = (
        pd.DataFrame(
            {"agents": row["n_agents"], "stage": stage, "ms": row["step_ms"][stage]}
            for row in rows
            for stage in STAGES
        )
        .groupby(["agents", "stage"], as_index=False)
        .mean()
    )
    least = cost[cost["agents"] == fewest].set_index("stage")["ms"]
    cost["ratio"] = cost["ms"] / cost["stage"].map(least)
    steps = (
        alt.Chart(cost, **size)
        .mark_line(point=True)
        .encode(
            agents,
            alt.Y("ratio:Q", title=f"CPU time of a step, times that at {fewest} agents"),
            alt.Color("stage:N", title=None, sort=list(STAGES)),
        )
    )
    limit = alt.Chart(pd.DataFrame({"ratio": [STEP_RATIO]})).mark_rule(strokeDash=[4, 4]).encode(y="ratio:Q")
    out.parent.mkdir(parents=True, exist_ok=True)
    alt.hconcat(covered, closer, steps + limit).resolve_scale(color="independent").save(
        str(out), scale_factor=2
    )


if __name__ == "__main__":
    main()
