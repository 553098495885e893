"""DVC's experiments as the way in: one at once, several from its queue, and what they leave behind."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
import yaml
from conftest import Project, wait_until

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]


def ran(output: str) -> set[str]:
    return set(re.findall(r"^Running stage '(\w+)'", output, re.MULTILINE))


def experiments(project: Project) -> dict[str, dict[str, Any]]:
    """Return what `dvc exp show` says of each experiment that has a name: parameters and metrics by file."""
    branches = json.loads(project.check("dvc", "exp", "show", "--json"))
    shown = [one for branch in branches for group in branch["experiments"] or [] for one in group["revs"]]
    return {one["name"]: one["data"] for one in shown if one["name"]}


def statuses(project: Project) -> dict[str, str]:
    listed = project.check("dvc", "queue", "status").splitlines()
    return {words[1]: words[-1] for line in listed if len(words := line.split()) == 5 and words[0] != "Task"}


def test_an_experiment_is_made_shown_left_and_brought_back(project: Project) -> None:
    before = (project.root / "metrics/distill.json").read_text()
    output = project.check("dvc", "exp", "run", "--name", "high", "-S", "distill.alpha=1.0", "diagnose")
    assert ran(output) == {"distill", "diagnose"}
    measured = json.loads((project.root / "metrics/distill.json").read_text())
    shown = experiments(project)["high"]
    assert shown["params"]["params.yaml"]["data"]["distill"]["alpha"] == 1.0
    assert shown["metrics"]["metrics/distill.json"]["data"] == measured

    # Back to what was committed, without running anything, and forth again.
    project.check("git", "restore", ".")
    project.check("dvc", "checkout")
    assert (project.root / "metrics/distill.json").read_text() == before
    assert "up to date" in project.check("dvc", "status")
    project.check("dvc", "exp", "apply", "high")
    assert json.loads((project.root / "metrics/distill.json").read_text()) == measured
    assert ran(project.check("dvc", "repro", "diagnose")) == set()


def test_the_queue_runs_experiments_beside_the_workspace(project: Project) -> None:
    queue = ("dvc", "exp", "run", "--queue", "distill")
    project.check(*queue, "--name", "low", "-S", "distill.alpha=0.5")
    project.check(*queue, "--name", "none", "-S", "distill.alpha=-1")
    project.check("dvc", "queue", "start")
    wait_until(
        lambda: not {"Queued", "Running"} & set(statuses(project).values()), 120, "the queue is worked off"
    )
    assert statuses(project) == {"low": "Success", "none": "Failed"}
    # A failure says in its log what the stage said.
    assert "`distill.alpha`: Input should be" in project.check("dvc", "queue", "logs", "none")
    assert project.check("git", "status", "--porcelain") == "", "the workspace is left alone"
    assert "up to date" in project.check("dvc", "status")
    project.check("dvc", "queue", "stop")
    wait_until(lambda: not project.processes("queue-worker"), 60, "no worker is left")

    # Another in the foreground; the workspace's own run of the same value comes to the same bytes.
    project.check(*queue, "--name", "twice", "-S", "distill.alpha=2.0")
    assert ran(project.check("dvc", "exp", "run", "--run-all")) == {"distill"}
    found = experiments(project)
    values = {name: data["params"]["params.yaml"]["data"]["distill"]["alpha"] for name, data in found.items()}
    assert values == {"low": 0.5, "none": -1, "twice": 2.0}
    measured = {name: found[name]["metrics"]["metrics/distill.json"]["data"] for name in ("low", "twice")}
    assert measured["low"] != measured["twice"]
    project.check("dvc", "exp", "apply", "twice")
    params = yaml.safe_load((project.root / "params.yaml").read_text())
    assert params["distill"]["alpha"] == 2.0
    applied = project.lock()["distill"]["outs"]
    assert ran(project.check("dvc", "repro", "--force", "--single-item", "distill")) == {"distill"}
    assert project.lock()["distill"]["outs"] == applied
