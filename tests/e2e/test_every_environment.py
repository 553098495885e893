"""Every environment that can be made here goes through the real stages: record, train a little, play."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from conftest import TINY, run_here
from env_cases import marks_of

from macflow.envs.registry import ENVIRONMENTS
from workspace import make_workspace

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]

STAGES = (
    "record",
    "prepare",
    "describe",
    "train_flow",
    "teacher",
    "train_critic",
    "distill",
    "evaluate",
    "diagnose",
)
# One of each family is enough for every day.
QUICK = {"mamujoco/hopper-3x1", "smax/3m", "mpe/tag"}


def cases() -> list[Any]:
    found = []
    for env_id in ENVIRONMENTS:
        # Stage processes would need a StarCraft II of their own: tests/e2e/test_smac_pipeline.py has one.
        if not env_id.startswith("smac"):
            marks = [*marks_of(env_id), *([] if env_id in QUICK else [pytest.mark.slow])]
            found.append(pytest.param(env_id, marks=marks))
    return found


@pytest.mark.parametrize("env_id", cases())
def test_from_recording_to_evaluation(tmp_path: Path, env_id: str) -> None:
    behaviours = ENVIRONMENTS[env_id].behaviours
    behaviour = next(name for name in ("medium", *behaviours) if name in behaviours)
    kwargs = {"max_cycles": 60} if env_id.startswith("mamujoco/") else {}
    folder = make_workspace(
        tmp_path / "w",
        TINY,
        {
            "dataset": f"{env_id.replace('/', '-')}/{behaviour}",
            "record": {"kwargs": kwargs},
            "prepare": {"max_duplicate_fraction": 1.0},
        },
    )
    run_here(folder, STAGES)
    metrics = {stage: json.loads((folder / f"metrics/{stage}.json").read_text()) for stage in STAGES[7:]}
    evaluated = metrics["evaluate"]
    assert evaluated["env"] == env_id
    assert {"policy", "flow", "behaviour", "random"} <= evaluated.keys()
    for actor in ("policy", "flow", "behaviour", "random"):
        assert evaluated[actor]["length_mean"] > 0
    # The behaviour of other seeds is the dataset's, up to the chance of four episodes.
    dataset = json.loads((folder / "data/prepared/dataset.json").read_text())
    assert dataset["env"]["id"] == env_id
    spread = dataset["returns"]["max"] - dataset["returns"]["min"]
    middle = dataset["returns"]["mean"]
    assert abs(evaluated["behaviour"]["return_mean"] - middle) <= 3 * spread + 0.2 * abs(middle) + 1
