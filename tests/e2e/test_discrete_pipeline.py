"""The discrete path through the real stages, on games whose best return is known."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from conftest import run_here

from workspace import ROOT, make_workspace

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(240)]

SHORT: dict[str, Any] = {
    "training": {"threads": 1},
    "record": {"episodes": 1000},
    "flow": {"steps": 1200},
    "critic": {"steps": 800},
    "distill": {"steps": 800, "diagnose_every": 800},
    "evaluate": {"episodes": 100, "workers": 1},
    "diagnose": {"states": 8, "samples": 32},
}
DATA_TO_CRITIC = ("record", "prepare", "train_flow", "teacher", "train_critic")
ARTIFACTS = ("data/prepared", "models/flow", "models/teacher", "models/critic")


def overrides(game: str) -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((ROOT / "examples" / f"{game}.yaml").read_text())
    return loaded


def returns(folder: Path) -> dict[str, float]:
    metrics = json.loads((folder / "metrics/evaluate.json").read_text())
    return {actor: metrics[actor]["return_mean"] for actor in ("policy", "flow")}


@pytest.mark.parametrize("mixer", ["mean", "qmix"])
def test_only_the_value_term_finds_the_rare_optimum(tmp_path: Path, mixer: str) -> None:
    game = overrides("rare_optimum")
    mixed = {"critic": {"mixer": mixer}}
    full = make_workspace(tmp_path / "full", game, SHORT, mixed)
    run_here(full, [*DATA_TO_CRITIC, "distill", "evaluate", "diagnose"])
    plain = make_workspace(
        tmp_path / "plain",
        game,
        SHORT,
        mixed,
        {"distill": {"q_term": False}},
        reuse=full,
        artifacts=ARTIFACTS,
    )
    run_here(plain, ["distill", "evaluate"])
    assert returns(full)["policy"] >= 1.9
    assert 0.8 <= returns(plain)["policy"] <= 1.2
    bounds = json.loads((full / "metrics/diagnose.json").read_text())
    assert bounds["w2_bound_holds"]
    assert bounds["value_gap_bound_holds"]


@pytest.mark.parametrize(
    "flow",
    [{"arch": "mlp"}, {"arch": "transformer", "hidden": [32, 32], "objective": "endpoint"}],
    ids=["mlp", "transformer"],
)
def test_the_joint_flow_solves_xor_and_independent_policies_do_not(
    tmp_path: Path, flow: dict[str, Any]
) -> None:
    folder = make_workspace(tmp_path / "xor", overrides("xor"), SHORT, {"flow": flow})
    run_here(folder, [*DATA_TO_CRITIC, "distill", "evaluate", "diagnose"])
    found = returns(folder)
    assert found["flow"] >= 0.95
    # Each agent draws its own noise, so the pair cannot agree to differ: the paper's known limit.
    assert found["policy"] <= 0.8
    checks = json.loads((folder / "metrics/diagnose.json").read_text())["checks"]
    assert checks["factorisation_failure"]["raised"]

    # With common noise the same flow, critic and steps give policies that differ always, without a message:
    # near to the data, as critics of single agents have nothing to say of differing.
    common = make_workspace(
        tmp_path / "common",
        overrides("xor"),
        SHORT,
        {"distill": {"noise": "common", "alpha": 3.0}},
        reuse=folder,
        artifacts=ARTIFACTS,
    )
    run_here(common, ["distill", "evaluate"])
    assert returns(common)["policy"] >= 0.95
    played = [acted_alone(common / "models/policy", i) for i in range(2)]
    assert len(played[0]) == 200
    agreed = sum(first == second for first, second in zip(*played, strict=True))
    assert agreed <= 10
    assert 0.3 <= np.mean(played[0]) <= 0.7


def acted_alone(bundle: Path, index: int) -> list[int]:
    """Return the actions of one agent in a process of its own: own observation, shared seed, own count."""
    program = (
        "import json, sys, macflow\n"
        "policy = macflow.load_policy(sys.argv[1], seed=5)\n"
        "agent = policy.agent(policy.spec.agent_ids[int(sys.argv[2])])\n"
        "seen = [float(i == int(sys.argv[2])) for i in range(2)]\n"
        "print(json.dumps([agent.act(seen) for _ in range(200)]))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(bundle), str(index)],
        cwd=ROOT, check=True, capture_output=True, text=True,
    )  # fmt: skip
    actions: list[int] = json.loads(done.stdout)
    return actions
