"""The pipeline under DVC, as a user types it."""

from __future__ import annotations

import json
import re
import resource
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
from conftest import Project, copy_of, wait_until
from playwright.sync_api import sync_playwright

from macflow.files import digest

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
OFFLINE = {
    "record",
    "prepare",
    "describe",
    "train_flow",
    "teacher",
    "train_critic",
    "distill",
    "evaluate",
    "diagnose",
    "report",
}
ONLINE = {"finetune", "evaluate_finetuned", "report_finetuned"}
STAGES = OFFLINE | ONLINE


def ran(output: str) -> set[str]:
    return set(re.findall(r"^Running stage '(\w+)'", output, re.MULTILINE))


def test_a_fresh_clone_is_reproduced_with_one_command(reproduced: Project) -> None:
    assert ran((reproduced.root.parent / "repro.txt").read_text()) == STAGES
    assert set(reproduced.lock()) == STAGES
    for name, stage in reproduced.lock().items():
        for out in stage["outs"]:
            assert (reproduced.root / out["path"]).exists(), f"{name}: {out['path']}"
    assert "up to date" in reproduced.check("dvc", "status")
    untracked = reproduced.check("git", "status", "--porcelain")
    assert untracked == "", "every output is committed or ignored"


def test_an_unchanged_project_runs_nothing_and_is_quick(reproduced: Project) -> None:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    output = reproduced.check("dvc", "repro")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert ran(output) == set()
    assert output.count("didn't change, skipping") == len(STAGES)
    # Processor time, which a busy machine does not stretch.
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 3.0


def test_alpha_reruns_only_distillation_and_what_follows(project: Project) -> None:
    output = project.check("dvc", "exp", "run", "--name", "low-alpha", "-S", "distill.alpha=0.5")
    assert ran(output) == {"distill", "evaluate", "diagnose", "report"} | ONLINE
    assert "0.5" in project.check("dvc", "params", "diff", "HEAD")
    shown = project.check("dvc", "exp", "show", "--csv", "--no-pager")
    assert "low-alpha" in shown
    assert "distill.alpha" in shown.splitlines()[0]
    before = json.loads(project.check("git", "show", "HEAD:metrics/distill.json"))
    assert json.loads((project.root / "metrics/distill.json").read_text()) != before


def test_another_dataset_is_one_parameter(project: Project) -> None:
    output = project.check("dvc", "exp", "run", "-S", "dataset=game-landmark/medium")
    assert ran(output) == STAGES
    assert "8 episodes of game-landmark/medium" in output
    assert json.loads((project.root / "metrics/evaluate.json").read_text())["env"] == "game/landmark"
    assert "game-landmark/medium-v0" in (project.root / "reports/index.html").read_text(encoding="utf-8")


def test_fine_tuning_is_left_out_unless_asked_for(project: Project) -> None:
    project.set_params({"finetune": {"seed": 5}})
    assert ran(project.check("dvc", "repro", "report")) == set()
    assert ran(project.check("dvc", "repro", "report_finetuned")) == ONLINE
    metrics = json.loads((project.root / "metrics/finetune.json").read_text())
    assert metrics["env_steps"] == 100
    # What was played is data for the same pipeline.
    project.set_params({"prepare": {"raw": "data/online"}})
    shutil.copytree(project.root / "data/online", project.root / "played")
    project.set_params({"prepare": {"raw": "played"}})
    assert ran(project.check("dvc", "repro", "train_flow")) == {"prepare", "train_flow"}
    prepared = json.loads((project.root / "data/prepared/dataset.json").read_text())
    assert prepared["counts"]["transitions"] == 100
    assert prepared["source"]["behaviour"]["name"] == "finetune"


def test_data_of_ones_own_are_trained_on_without_any_recording(fresh: Project, tmp_path: Path) -> None:
    project = copy_of(fresh, tmp_path)
    random = np.random.default_rng(0)
    episodes, steps = 12, 10
    truncations = np.arange(episodes * steps) % steps == steps - 1
    np.savez(
        project.root / "mine.npz",
        observations=random.standard_normal((episodes * steps, 3, 18)),
        actions=random.uniform(-1, 1, (episodes * steps, 3, 2)),
        rewards=random.standard_normal(episodes * steps),
        truncations=truncations,
        final_observations=random.standard_normal((episodes, 3, 18)),
    )
    wanted = ("--from", "npz", "--to", "data/mine", "--env", "mpe/spread")
    project.check("macflow", "dataset", "import", "mine.npz", *wanted)
    project.set_params({"prepare": {"raw": "data/mine"}})
    project.check("dvc", "add", "data/mine")
    output = project.check("dvc", "repro", "report")
    assert ran(output) == OFFLINE - {"record"}
    assert not (project.root / "data/raw").exists()
    assert not (project.root / "metrics/record.json").exists()
    prepared = json.loads((project.root / "data/prepared/dataset.json").read_text())
    assert prepared["counts"]["episodes"] == episodes
    assert prepared["made_from"] == {"data/mine": digest(project.root / "data/mine")}
    page = (project.root / "reports/index.html").read_text(encoding="utf-8")
    assert "the data are those in <code>data/mine</code>" in page
    assert "data/raw" not in page
    assert ran(project.check("dvc", "repro", "report")) == set()


def test_metrics_and_graph_are_readable(reproduced: Project) -> None:
    (workspace,) = json.loads(reproduced.check("dvc", "metrics", "show", "--json")).values()
    shown = workspace["data"]
    for file in ("evaluate", "distill", "diagnose", "describe", "prepare", "record", "timings/evaluate"):
        assert shown[f"metrics/{file}.json"]["data"], file
    assert isinstance(shown["metrics/evaluate.json"]["data"]["policy"]["return_mean"], float)
    graph = reproduced.check("dvc", "dag", "--mermaid")
    named = dict(re.findall(r'(node\d+)\["(\w+)"\]', graph))
    edges = {(named[a], named[b]) for a, b in re.findall(r"(node\d+)-->(node\d+)", graph)}
    assert {("record", "prepare"), ("prepare", "train_flow"), ("train_flow", "teacher")} <= edges
    assert {("teacher", "train_critic"), ("train_critic", "distill"), ("distill", "evaluate")} <= edges


def test_the_summary_of_the_demo_says_what_the_metrics_say(reproduced: Project) -> None:
    said = reproduced.check("python", "tools/demo_summary.py")
    metrics = json.loads((reproduced.root / "metrics/evaluate.json").read_text())
    assert re.search(rf"one-step policy.* {metrics['policy']['return_mean']:.2f} \[", said)
    assert (reproduced.root / "reports/index.html").as_uri() in said
    assert "failure signature" in said


def test_a_policy_can_be_had_again_from_its_revision(project: Project, tmp_path: Path) -> None:
    declared = project.check(
        "dvc", "get", ".", "models/policy", "--rev", "HEAD", "--out", str(tmp_path / "had")
    )
    assert digest(tmp_path / "had") == digest(project.root / "models/policy"), declared


def test_plots_are_drawn_with_no_network(project: Project) -> None:
    if CHROMIUM is None:
        pytest.skip("no Chromium on PATH (Debian: apt-get install chromium)")
    output = project.check("dvc", "plots", "show")
    assert "failed" not in output
    page_url = output.strip().splitlines()[-1]
    requests: list[str] = []
    errors: list[str] = []
    with sync_playwright() as playwright:
        quiet = "--no-sandbox --disable-gpu --no-first-run --disable-background-networking --disable-sync"
        browser = playwright.chromium.launch(
            executable_path=CHROMIUM, args=[*quiet.split(), "--disable-component-update"]
        )
        page = browser.new_page()
        page.on("request", lambda request: requests.append(request.url))
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
        page.goto(page_url)
        charts = page.locator("canvas")
        charts.nth(12).wait_for()
        # A chart that drew nothing is blank: all its pixels alike.
        inked = charts.evaluate_all(
            "all => all.map(c => new Set(c.getContext('2d').getImageData(0, 0, c.width, c.height).data).size)"
        )
        pictures = page.locator("img").evaluate_all("all => all.map(i => i.naturalWidth)")
        browser.close()
    assert len(inked) == 13
    assert min(inked) > 10
    assert pictures
    assert min(pictures) > 0
    assert not errors
    assert all(url.startswith(("file:", "data:", "blob:")) for url in requests)


def test_a_failing_stage_says_why_and_leaves_everything_as_it_was(project: Project) -> None:
    kept = ("data/prepared", "models/policy", "dvc.lock")
    before = [digest(project.root / path) for path in kept]
    project.set_params({"prepare": {"max_abs_reward": 1e-9}})
    done = project.run("dvc", "repro")
    assert done.returncode != 0
    assert re.search(r"^prepare: .*reward", done.stdout, re.MULTILINE | re.DOTALL)
    assert "failed to reproduce 'prepare'" in done.stdout
    assert [digest(project.root / path) for path in kept] == before
    project.check("git", "checkout", "params.yaml")
    assert ran(project.check("dvc", "repro")) <= {"prepare"}


@pytest.mark.parametrize(
    ("stage", "section", "changes"),
    [
        ("train_flow", "flow", {"steps": 3000}),
        ("train_critic", "critic", {"steps": 1500}),
        ("distill", "distill", {"steps": 1500, "diagnose_every": 1500}),
        ("finetune", "finetune", {"env_steps": 3000, "evaluate_every": 3000}),
    ],
)
def test_a_killed_training_ends_with_the_same_bytes(
    project: Project, tmp_path: Path, stage: str, section: str, changes: dict[str, int]
) -> None:
    project.set_params({section: changes})
    whole = Project(Path(shutil.copytree(project.root, tmp_path / "whole" / "macflow", symlinks=True)))
    repro = ("dvc", "repro", "--single-item", stage)
    whole.check(*repro)
    # As under a supervisor that ignores SIGTERM (what is ignored, every child inherits) and that names no
    # SHELL: DVC's is then /bin/sh, which on Debian stays between DVC and the stage.
    running = project.start("sh", "-c", f"trap '' TERM; unset SHELL; exec {' '.join(repro)}")
    checkpoint = project.root / f".macflow/checkpoints/{stage}.safetensors"
    wait_until(lambda: checkpoint.exists() or running.poll() is not None, 60, "a checkpoint")
    stages = project.processes(f"macflow.stages.{stage}")
    assert stages, (tmp_path / f"{stage}.log").read_text()
    running.send_signal(signal.SIGKILL)
    running.wait()
    wait_until(lambda: not project.processes(f"macflow.stages.{stage}"), 10, "the stage ends with DVC")
    assert checkpoint.exists(), "killed too late to show anything"
    assert re.search(rf"{stage}: resumed at (environment )?step \d+", project.check(*repro))
    assert project.lock()[stage]["outs"] == whole.lock()[stage]["outs"]
