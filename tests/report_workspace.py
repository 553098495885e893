"""A workspace with every file that the report reads, of made-up but plausible content."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image, ImageDraw

from macflow.files import digest, write_json

AGENTS = [f"agent_{i}" for i in range(3)]
DATASET = "mpe-spread/medium"
PARAM_SECTIONS: dict[str, dict[str, Any]] = {
    "record": {"kwargs": {"n_agents": 3}, "episodes": 2000, "seed": 0},
    "prepare": {"raw": "data/raw", "max_abs_reward": 1.0e6, "max_abs_observation": 1.0e6},
    "describe": {"state_cells": 256, "action_bins": 5, "seed": 0},
    "training": {"seed": 0, "threads": 2, "device": "cpu", "checkpoint_every": 1000, "log_every": 100},
    "flow": {"scope": "joint", "hidden": [256, 256, 256], "steps": 8000, "learning_rate": 3.0e-4},
    "teacher": {"samples": 8, "seed": 0},
    "critic": {"mixer": "mean", "next_action": "flow_best_of", "discount": 0.95, "steps": 8000},
    "distill": {"alpha": 3.0, "q_term": True, "sharing": "shared", "noise": "individual", "steps": 8000},
    "evaluate": {"episodes": 200, "seed": 1000, "n_envs": 50, "workers": 2},
    "diagnose": {"states": 64, "samples": 128, "seed": 0, "factorisation_ratio": 0.5},
    "report": {"title": "MAC-Flow on MPE spread"},
}
# Returns that mark 0 and 100.
RANDOM, EXPERT = -61.2, -19.4
# Of a page of its own.
FINETUNE = {"start": "offline", "env_steps": 50000, "alpha": 0.03, "change": None}
PARAMS: dict[str, Any] = {"dataset": DATASET, **PARAM_SECTIONS, "finetune": FINETUNE}
EXPECTATIONS = {
    "rows_in_order": "rows of an episode follow each other without a gap",
    "end_flags": "Every episode ends with exactly one end flag, at its last step",
    "finite_rewards": "Every reward is a finite number within the believed range",
    "finite_observations": "Every observation is a finite number within the believed range",
    "actions_in_bounds": "Every action lies within the environment's bounds",
    "constant_agents": "The number of agents never changes",
    "few_duplicates": "At most half of the transitions are exact copies of another",
}


def make_workspace(root: Path) -> Path:
    """Fill `root` as a run of the pipeline would, and return it."""
    rng = np.random.default_rng(0)
    (root / "params.yaml").write_text(yaml.safe_dump(PARAMS, sort_keys=False))
    _describe(root, rng)
    _validation(root)
    _training(root, rng)
    _evaluate(root)
    _diagnose(root)
    _joint_actions(root, rng)
    _artifacts(root, rng)
    _machine(root)
    return root


def add_finetuning(root: Path, changed: bool) -> None:
    """Add what fine-tuning leaves behind, with or without a change of the environment."""
    steps = np.arange(0, 50_001, 5_000)
    returns = -32 + 8 * (1 - np.exp(-steps / 20_000)) - 6.0 * changed * (steps > 25_000)
    rows = _columns(
        env_steps=steps, updates=steps, changed=(steps > 25_000) * int(changed), return_mean=returns,
        return_ci95_low=returns - 1.5, return_ci95_high=returns + 1.4,
        kept_return=np.maximum.accumulate(returns), kept_env_steps=steps,
    )  # fmt: skip
    _table(root / "plots/finetune/evaluations.csv", rows)
    fall = np.exp(-steps / 9_000)
    _table(
        root / "plots/finetune/curve.csv",
        _columns(step=steps + 100, td_loss=0.1 + fall, q_mean=-12 + 3 * fall, distill_loss=0.4 + 0.2 * fall),
    )
    change = {
        "env_steps": 25_000,
        "return_before": -26.3,
        "return_after": -32.1,
        "regained_after_steps": None,
    }
    tuned = {"env_steps": 50_000, "updates": 49_000, "kept_env_steps": 50_000}
    write_json(root / "metrics/finetune.json", tuned | ({"change": change} if changed else {}))
    write_json(
        root / "metrics/evaluate_finetuned.json",
        {
            "env": "mpe/spread", "env_kwargs": {"n_agents": 3}, "episodes": 200, "seed": 1000,
            "reference": {"random": RANDOM, "expert": EXPERT},
            "offline": _returns(-32.0, 1.5), "last": _returns(-24.7, 1.4), "kept": _returns(-24.7, 1.4),
        },
    )  # fmt: skip
    _gif(root / "plots/evaluate_finetuned/episode.gif")


def edit_json(path: Path, **changes: Any) -> None:
    """Replace top-level fields of a JSON file."""
    write_json(path, json.loads(path.read_text()) | changes)


def _table(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = list(rows)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(lines[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(lines)


def _summary(values: np.ndarray) -> dict[str, float]:
    q25, median, q75 = np.quantile(values, [0.25, 0.5, 0.75])
    named = {"mean": values.mean(), "std": values.std(), "min": values.min(), "max": values.max()}
    return {k: float(v) for k, v in (named | {"q25": q25, "median": median, "q75": q75}).items()}


def _bins(values: np.ndarray, bins: int) -> list[dict[str, float]]:
    counts, edges = np.histogram(values, bins)
    return [
        {"bin_left": float(left), "bin_right": float(right), "count": int(count)}
        for left, right, count in zip(edges[:-1], edges[1:], counts, strict=True)
    ]


def _describe(root: Path, rng: np.random.Generator) -> None:
    returns = np.concatenate([rng.normal(-27, 5, 1400), rng.normal(-44, 6, 600)])
    lengths = rng.integers(18, 26, 2000)
    write_json(
        root / "metrics/describe.json",
        {
            "episodes": 2000,
            "transitions": 50000,
            "return": _summary(returns),
            "length": _summary(lengths.astype(float)),
            "terminated_fraction": 0.0,
            "truncated_fraction": 1.0,
            "constant_features": [["agent_0", 14], ["agent_0", 15]],
            "duplicate_transitions": 0,
            "duplicate_episodes": 0,
            "saco": 1.0,
            "joint_action_coverage": 0.412,
            "factorisation_gap_nats": 1.247,
            "factorisation_gap_baseline_nats": 0.318,
            "bimodality_mean": 0.617,
            "bimodality_share_above_uniform": 0.58,
        },
    )
    _table(root / "plots/describe/returns.csv", _bins(returns, 40))
    _table(root / "plots/describe/lengths.csv", _bins(lengths, 8))
    _table(
        root / "plots/describe/actions.csv",
        (
            {"agent": agent, "dim": dim} | row
            for agent in AGENTS
            for dim in range(2)
            for row in _bins(np.clip(rng.normal(0, 0.55, 4000), -1, 1), 20)
        ),
    )


def _validation(root: Path) -> None:
    checked = {"success": True, "evaluated": True, "failures": 0, "first_failures": []}
    expectations = [{"name": name, "meaning": meaning} | checked for name, meaning in EXPECTATIONS.items()]
    write_json(
        root / "reports/validation/validation.json",
        {"success": True, "dataset": f"{DATASET}-v0", "expectations": expectations},
    )


def _training(root: Path, rng: np.random.Generator) -> None:
    steps = np.arange(100, 8001, 100)
    noise = rng.normal(0, 0.01, (6, len(steps)))
    fall = np.exp(-steps / 900)
    loss = 0.52 + 1.1 * fall + noise[0]
    td_loss = 0.006 + 0.9 * np.exp(-steps / 350) + 0.002 * np.abs(noise[1])
    q = -18 * (1 - np.exp(-steps / 1500)) + 10 * noise[2]
    distill = 0.03 + 0.6 * fall + 0.2 * np.abs(noise[3])
    _table(root / "plots/train_flow/curve.csv", _columns(step=steps, loss=loss))
    _table(
        root / "plots/train_critic/curve.csv",
        _columns(step=steps, td_loss=td_loss, q_mean=q, target_mean=q + 0.3 + 10 * noise[4]),
    )
    _table(
        root / "plots/distill/curve.csv",
        _columns(step=steps, loss=3 * distill + 0.9, distill_loss=distill, q_loss=0.9 + noise[5]),
    )
    at = np.arange(0, 8001, 1000)
    w2 = 0.41 + 1.15 * np.exp(-at / 1200)
    q_flow = np.full(len(at), -16.9)
    q_policy = q_flow + 1.9 * (1 - np.exp(-at / 2500)) - 0.7 * np.exp(-at / 700)
    _table(
        root / "plots/distill/diagnostics.csv",
        _columns(
            step=at, w2=w2, coupling_bound=w2 * 1.22, value_gap=np.abs(q_policy - q_flow),
            lipschitz_q=5 + 0 * w2, value_gap_bound=5 * w2, flow_spread=1.02 + 0 * w2,
            q_policy=q_policy, q_flow=q_flow,
        ),
    )  # fmt: skip
    metrics = root / "metrics"
    write_json(
        metrics / "train_flow.json",
        {"loss_first": float(loss[0]), "loss_last": float(loss[-1]), "steps": 8000},
    )
    write_json(
        metrics / "train_critic.json",
        {"td_loss_last": float(td_loss[-1]), "q_mean": -18.0, "q_abs_max": 31.5, "steps": 8000},
    )
    write_json(
        metrics / "distill.json",
        {
            "distill_loss_first": float(distill[0]), "distill_loss_last": float(distill[-1]),
            "w2_first": float(w2[0]), "w2_last": float(w2[-1]), "q_mean": -15.0, "steps": 8000,
        },
    )  # fmt: skip


def _columns(**columns: np.ndarray) -> list[dict[str, float]]:
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def _returns(mean: float, half: float) -> dict[str, float]:
    low, high = mean - half, mean + half
    found = {"return_mean": mean, "return_ci95_low": low, "return_ci95_high": high, "length_mean": 25.0}
    names = ("normalized_return", "normalized_return_ci95_low", "normalized_return_ci95_high")
    values = (100 * (value - RANDOM) / (EXPERT - RANDOM) for value in (mean, low, high))
    return found | dict(zip(names, values, strict=True))


def _evaluate(root: Path) -> None:
    write_json(
        root / "metrics/evaluate.json",
        {
            "env": "mpe/spread",
            "episodes": 200,
            "seed": 1000,
            "reference": {
                "random": RANDOM,
                "expert": EXPERT,
            },
            "policy": _returns(-24.1, 0.8),
            "flow": _returns(-29.9, 1.2),
            "behaviour": _returns(-31.6, 1.3),
            "random": _returns(-61.0, 2.1),
            "dataset": {
                "return_mean": -32.1,
                "normalized_return": 100 * (-32.1 - RANDOM) / (EXPERT - RANDOM),
            },
            "gain_over_dataset": 100 * 8.0 / (EXPERT - RANDOM),
        },
    )
    how = "python -m macflow.envs.references mpe/spread --episodes 10000"
    write_json(root / "plots/evaluate/texts.json", {"reference": {"how": how}})
    _gif(root / "plots/evaluate/episode.gif")


def _gif(path: Path) -> None:
    starts = np.array([[30, 40], [210, 60], [120, 220]])
    goals = np.array([[180, 190], [70, 150], [200, 30]])
    frames = []
    for t in np.linspace(0, 1, 25):
        frame = Image.new("RGB", (256, 256), "white")
        draw = ImageDraw.Draw(frame)
        for x, y in goals:
            draw.ellipse((x - 7, y - 7, x + 7, y + 7), fill="#404040")
        for x, y in starts + (goals - starts) * (1 - (1 - t) ** 2):
            draw.ellipse((x - 15, y - 15, x + 15, y + 15), fill="#5a5ad9", outline="#30308a")
        frames.append(frame)
    path.parent.mkdir(parents=True, exist_ok=True)
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=100, loop=0)


def _diagnose(root: Path) -> None:
    meanings = {
        "q_collapse": "Largest |Q| as a multiple of the largest possible value.",
        "factorisation_failure": "W2 as a multiple of the flow's own spread.",
        "mode_dropping": "Share of the flow's modes that the policies never play.",
    }
    texts = {"checks": {name: {"meaning": text} for name, text in meanings.items()}}
    write_json(root / "plots/diagnose/texts.json", texts)

    def check(value: float, threshold: float) -> dict[str, Any]:
        return {"value": value, "threshold": threshold, "raised": value > threshold}

    write_json(
        root / "metrics/diagnose.json",
        {
            "w2": 0.411, "w2_sampling": 0.2, "coupling_bound": 0.502, "w2_bound_holds": True,
            "value_gap": 1.88, "lipschitz_q": 5.61, "value_gap_bound": 2.306, "value_gap_bound_holds": True,
            "flow_spread": 1.02,
            "mutual_information": {"dataset": 0.214, "flow": 0.197, "policy": 0.021},
            "checks": {
                "q_collapse": check(0.31, 1.0),
                "factorisation_failure": check(0.24, 0.5),
                "mode_dropping": check(0.11, 0.5),
            },
        },
    )  # fmt: skip


def _joint_actions(root: Path, rng: np.random.Generator) -> None:
    modes = np.array([[-0.7, 0.6], [0.6, -0.7]])
    flow = modes[rng.integers(0, 2, 128)] + rng.normal(0, 0.08, (128, 2))
    policy = modes[np.arange(128) % 2] * [1.0, 0.9] + rng.normal(0, 0.05, (128, 2))
    _table(
        root / "plots/diagnose/actions.csv",
        (
            {"state": 7, "source": source, "dim": dim, "x": x, "y": y}
            for source, points in (("flow", flow), ("policy", policy))
            for dim in range(2)
            for x, y in points
        ),
    )


def _artifacts(root: Path, rng: np.random.Generator) -> None:
    source = {
        "kind": "minari",
        "path": "data/raw",
        "dataset_id": f"{DATASET}-v0",
        "behaviour": {"name": "medium", "seed": 0},
    }
    env = {"id": "mpe/spread", "kwargs": {"n_agents": 3}, "version": "mpe2 1.1.1"}
    spec = {
        "agent_ids": AGENTS, "obs_dims": [18, 18, 18], "state_size": 54, "action_kind": "continuous",
        "action_size": 2, "action_low": [-1.0, -1.0], "action_high": [1.0, 1.0],
    }  # fmt: skip
    _artifact(root, "data/raw", (), rng)
    facts = {"source": source, "env": env, "spec": spec}
    _artifact(root, "data/prepared", ("data/raw",), rng, ("prepare",), facts)
    _artifact(root, "models/flow", ("data/prepared",), rng, ("training", "flow"))
    _artifact(root, "models/teacher", ("data/prepared", "models/flow"), rng, ("training", "teacher"))
    _artifact(root, "models/critic", ("data/prepared", "models/teacher"), rng, ("training", "critic"))
    made_from = ("data/prepared", "models/flow", "models/teacher", "models/critic")
    _artifact(root, "models/policy", made_from, rng, ("training", "distill"))
    paths = ["data/raw", "data/prepared", *(f"models/{m}" for m in ("flow", "teacher", "critic", "policy"))]
    stages = {
        Path(path).name: {"cmd": "python", "outs": [{"path": path, "md5": f"{i:032x}.dir"}]}
        for i, path in enumerate(paths)
    }
    (root / "dvc.lock").write_text(yaml.safe_dump({"schema": "2.0", "stages": stages}))


def _artifact(
    root: Path,
    path: str,
    made_from: tuple[str, ...],
    rng: np.random.Generator,
    sections: tuple[str, ...] = (),
    facts: Mapping[str, Any] | None = None,
) -> None:
    folder = root / path
    folder.mkdir(parents=True)
    (folder / "content.bin").write_bytes(rng.bytes(256))
    if made_from:
        manifest = {
            "made_from": {source: digest(root / source) for source in made_from},
            "params": {section: PARAMS[section] for section in sections},
        }
        name = "dataset.json" if path == "data/prepared" else f"{folder.name}.json"
        write_json(folder / name, manifest | dict(facts or {}))


def _machine(root: Path) -> None:
    for i, stage in enumerate(
        ("record", "prepare", "train_flow", "teacher", "train_critic", "distill", "evaluate")
    ):
        write_json(
            root / f"metrics/run_cards/{stage}.json",
            {
                "stage": stage,
                "started_utc": f"2026-01-05T09:{i:02d}:00Z",
                "wall_seconds": 20.5 + i,
                "cpu_seconds": 38.1 + i,
                "peak_memory_mb": 512.4,
                "git_commit": "0123456789abcdef0123456789abcdef01234567",
                "git_dirty": False,
                "python": "3.11.9",
                "platform": "Linux-6.1-x86_64",
                "cpu_count": 2,
                "packages": {"torch": "2.13.0", "numpy": "2.4.6", "ray": None},
            },
        )
    write_json(
        root / "metrics/timings/evaluate.json",
        {
            "policy": {"latency_us_p50": 182.0, "latency_us_p95": 240.5},
            "flow": {"latency_us_p50": 1530.0, "latency_us_p95": 1911.0},
        },
    )
