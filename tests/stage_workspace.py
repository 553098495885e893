"""A folder with complete, untrained artifacts of a small environment, as training stages leave it."""

from __future__ import annotations

import argparse
import hashlib
from pathlib import Path
from typing import Any

import torch
import yaml
from data_samples import prepare_recorded

from macflow.data.prepared import load_prepared
from macflow.nets.policy import Noise
from macflow.policy import Acting, build_policy, save_policy
from macflow.training.artifacts import (
    CriticArtifact,
    FlowArtifact,
    TeacherArtifact,
    build_critic,
    build_field,
    save_critic,
    save_flow,
    save_teacher,
)

PARAMS = Path(__file__).parents[1] / "params.yaml"


def make_workspace(
    root: Path, env_id: str, behaviour: str, noise_mode: Noise = "individual", best_of: int = 1
) -> Path:
    """Record a small dataset and save fresh nets for it, as the stages before these would."""
    prepare_recorded(root / "data", env_id, behaviour, 40)
    dataset = load_prepared(root / "data")
    spec = dataset.spec
    normalizer = dataset.normalizer
    generator = torch.Generator().manual_seed(0)
    for name in ("flow", "teacher", "critic", "policy"):
        (root / name).mkdir()
    field = build_field(spec, "joint", "mlp", (16,), generator)
    flow = FlowArtifact(spec, normalizer, field, "velocity", 10)
    save_flow(
        root / "flow",
        flow,
        {"params": {"flow": {"scope": "joint", "arch": "mlp", "objective": "velocity", "hidden": [16],
                             "euler_steps": 10}}},
    )  # fmt: skip
    noise = torch.randn((len(dataset.obs), 2, spec.n_agents, spec.action_size), generator=generator)
    obs = normalizer.normalize_obs(dataset.obs)
    samples = [flow.sample(obs, noise[:, k], dataset.legal_actions) for k in range(2)]
    save_teacher(root / "teacher", TeacherArtifact(noise, torch.stack(samples, dim=1)), {}, spec.discrete)
    settings = {
        "mixer": "mean", "sees": "own", "ensemble": 2, "hidden": [16],
        "aggregate": "mean", "discount": 0.9, "polyak_tau": 0.05,
    }  # fmt: skip
    nets = build_critic(spec, "mean", "own", 2, (16,), generator)
    critic = CriticArtifact(spec, nets, "mean", 0.9, 1.0, settings)
    save_critic(root / "critic", critic, {"params": {"critic": settings}})
    save_policy(
        root / "policy",
        spec,
        normalizer,
        build_policy(spec, "shared", noise_mode, (16,), generator),
        Acting(1.0, best_of),
        critic.own_values() if best_of > 1 else None,
        {"params": {"distill": {"sharing": "shared", "hidden": [16]}}},
    )
    params: dict[str, Any] = yaml.safe_load(PARAMS.read_text())
    params["training"]["threads"] = 1
    params["evaluate"] |= {"episodes": 30, "n_envs": 8, "workers": 1}
    params["diagnose"] |= {"states": 6, "samples": 16}
    (root / "params.yaml").write_text(yaml.safe_dump(params))
    return root


def arguments(root: Path, folder: Path, **changed: Path) -> argparse.Namespace:
    inputs = {name: root / name for name in ("data", "flow", "teacher", "critic", "policy")}
    outputs = {"metrics": folder / "metrics.json", "out": folder / "plots", "plots": folder / "plots"}
    return argparse.Namespace(**({"params": root / "params.yaml"} | inputs | outputs | changed))


def digests(folder: Path) -> dict[str, str]:
    return {
        str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest()
        for p in sorted(folder.rglob("*"))
        if p.is_file()
    }


def change(root: Path, to: Path, section: str, **values: Any) -> Path:
    params = yaml.safe_load((root / "params.yaml").read_text())
    params[section] |= values
    to.write_text(yaml.safe_dump(params))
    return to
