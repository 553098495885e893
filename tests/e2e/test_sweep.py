"""`macflow sweep` on the real pipeline: processes, Dask and Ray come to the same, whatever is killed."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import psutil
import pytest
import yaml
from conftest import Project, copy_of, wait_until

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]

CELL = "macflow.sweeps.cell"
GOOD = ["game-payoff/mixed", "game-rare-optimum/mostly-suboptimal"]
BAD = "game-xor/mixed"


def sweep_file(root: Path, seeds: list[int], bad: bool) -> None:
    datasets: dict[str, Any] = {name: {} for name in GOOD}
    if bad:
        # A game of one step has copies of every transition.
        datasets[BAD] = {"prepare": {"max_duplicate_fraction": 0.0}}
    content = {
        "datasets": datasets,
        "seeds": seeds,
        "params": {"prepare": {"max_duplicate_fraction": 1.0}, "distill": {"best_of": 1}},
        "methods": {
            "MAC-Flow": {},
            "without Q": {"params": {"distill": {"q_term": False, "critic": "frozen"}}},
            "bc": {"baseline": "bc"},
        },
        "peers": {"batch_size": 32, "hidden": [16]},
    }
    (root / "games.yaml").write_text(yaml.safe_dump(content, sort_keys=False))


def processes_of(root: psutil.Process, what: str) -> list[psutil.Process]:
    """Return what runs under `root` with `what` in its command line."""
    found = []
    for process in root.children(recursive=True):
        try:
            if any(what in part for part in process.cmdline()):
                found.append(process)
        except psutil.NoSuchProcess:
            continue
    return found


def sweep(project: Project, *options: str, meanwhile: Callable[[psutil.Process], None]) -> tuple[int, str]:
    """Run the sweep; return exit code and output. `meanwhile` is given its process."""
    command = ("macflow", "sweep", "run", "games.yaml", "--jobs", "2", *options)
    started = project.start(*command)
    meanwhile(psutil.Process(started.pid))
    code = started.wait(500)
    return code, (project.root.parent / f"{command[-1]}.log").read_text()


def kill_the_worker(running: psutil.Process) -> None:
    """Kill whoever runs the first cell that appears: on a cluster the worker, with its cell."""
    (first, *_) = wait_until(lambda: processes_of(running, CELL), 240, "no cell was begun")
    worker = first.parent()
    assert worker is not None
    assert worker.pid != running.pid
    worker.kill()


def kill_the_cell(running: psutil.Process) -> None:
    (first, *_) = wait_until(lambda: processes_of(running, CELL), 60, "no cell was begun")
    first.kill()


def results(project: Project) -> bytes:
    return (project.root / "sweeps/games/results.parquet").read_bytes()


@pytest.fixture(scope="module")
def swept(fresh: Project, tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A project with a sweep that was interrupted, had a cell killed, and has a dataset that is refused."""
    project = copy_of(fresh, tmp_path_factory.mktemp("swept"))
    sweep_file(project.root, [0], bad=True)

    def interrupt(running: psutil.Process) -> None:
        wait_until(
            lambda: list((project.root / "sweeps/runs").glob("prepare-*/done")), 120, "nothing was done"
        )
        started = running.children(recursive=True)
        running.send_signal(signal.SIGINT)
        _, alive = psutil.wait_procs(started, timeout=30)
        assert alive == []

    code, _ = sweep(project, meanwhile=interrupt)
    assert code != 0
    assert not (project.root / "sweeps/games").exists()
    code, said = sweep(project, meanwhile=kill_the_cell)
    assert code == 1, said
    assert "6 done, 3 failed, 0 missing" in said
    return project


def test_every_cell_is_filled_or_named_as_failed(swept: Project) -> None:
    table = pl.read_parquet(swept.root / "sweeps/games/results.parquet")
    assert table.select("dataset", "method").rows() == [
        (dataset, method) for dataset in [*GOOD, BAD] for method in ("MAC-Flow", "without Q", "bc")
    ]
    for row in table.iter_rows(named=True):
        if row["dataset"] == BAD:
            assert row["status"] == "failed"
            assert (
                "prepare ended with code 1: game-xor/mixed-v0: 1 of 13 expectations failed; few_"
                in row["error"]
            )
            continue
        assert row["status"] == "done"
        folder = swept.root / "sweeps/runs" / row["run"]
        if row["method"] == "bc":
            assert json.loads((folder / "evaluation.json").read_text())["return_mean"] == row["return_mean"]
        else:
            found = json.loads((folder / "metrics/evaluate.json").read_text())
            assert found["policy"]["return_mean"] == row["return_mean"]


def test_stages_are_shared(swept: Project) -> None:
    runs = [folder.name.rsplit("-", 1)[0] for folder in (swept.root / "sweeps/runs").glob("*-*")]
    for stage, count in {"record": 3, "train_flow": 2, "teacher": 2, "distill": 4, "baseline-bc": 2}.items():
        assert runs.count(stage) == count


def test_a_rerun_does_nothing_that_is_done(swept: Project, tmp_path: Path) -> None:
    project = copy_of(swept, tmp_path)
    sweep_file(project.root, [0], bad=False)
    before = {file: file.stat().st_mtime_ns for file in (project.root / "sweeps/runs").rglob("*")}
    said = project.check("macflow", "sweep", "run", "games.yaml")
    assert "6 cells, 0 to run" in said
    assert {file: file.stat().st_mtime_ns for file in (project.root / "sweeps/runs").rglob("*")} == before


@pytest.mark.parametrize("engine", ["dask", "ray"])
def test_a_cluster_comes_to_the_same_when_a_worker_is_killed(
    swept: Project, tmp_path: Path, engine: str
) -> None:
    """The last stages of every cell are done anew there; from nothing: the slow test below."""
    project = copy_of(swept, tmp_path)
    sweep_file(project.root, [0], bad=False)
    project.check("macflow", "sweep", "show", "games.yaml")
    wanted = results(project)
    runs = project.root / "sweeps/runs"
    shutil.rmtree(runs / "cells")
    for folder in [*runs.glob("evaluate-*"), *runs.glob("baseline-*")]:
        shutil.rmtree(folder)
    (project.root / "sweeps/games/results.parquet").unlink()
    listening: set[str] = set()

    def meanwhile(running: psutil.Process) -> None:
        wait_until(lambda: processes_of(running, CELL), 240, "no cell was begun")
        for process in running.children(recursive=True):
            try:
                found = process.net_connections("inet")
            except psutil.Error:
                continue
            listening.update(one.laddr.ip for one in found if one.status == psutil.CONN_LISTEN)
        kill_the_worker(running)

    code, said = sweep(project, "--engine", engine, meanwhile=meanwhile)
    assert code == 0, said
    assert results(project) == wanted
    assert listening
    assert listening <= {"127.0.0.1", "::1", "::ffff:127.0.0.1"}


@pytest.mark.slow
@pytest.mark.timeout(2400)
def test_eighteen_cells_are_the_same_everywhere_from_nothing(fresh: Project, tmp_path: Path) -> None:
    found = set()
    for engine in ("local", "dask", "ray"):
        project = copy_of(fresh, tmp_path / engine)
        sweep_file(project.root, [0, 1, 2], bad=False)
        kill = kill_the_cell if engine == "local" else kill_the_worker
        code, said = sweep(project, "--engine", engine, meanwhile=kill)
        assert code == 0, said
        found.add(results(project))
        assert "18 cells, 0 to run" in project.check("macflow", "sweep", "run", "games.yaml")
    assert len(found) == 1


def test_a_wrong_file_is_refused_before_anything_runs(fresh: Project, tmp_path: Path) -> None:
    project = copy_of(fresh, tmp_path)
    (project.root / "wrong.yaml").write_text(
        "datasets: [mpe-spread/nobody]\nseeds: [0]\nmethods: {MAC-Flow: {}}\n"
    )
    told = project.run("macflow", "sweep", "run", "wrong.yaml")
    assert told.returncode == 1
    assert "wrong.yaml: `methods.MAC-Flow` on `mpe-spread/nobody`" in told.stdout
    assert not (project.root / "sweeps").exists()


def test_the_token_of_a_ray_cluster_is_asked_for(tmp_path: Path) -> None:
    script = """
import os, subprocess, sys
from flows.sweep import runner_of
with runner_of("ray", 1, None):
    import ray
    address = ray.get_runtime_context().gcs_address
    bare = {name: value for name, value in os.environ.items() if not name.startswith("RAY_AUTH")}
    for given in ({}, {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0" * 64}, dict(os.environ)):
        asked = f"import ray; ray.init(address='{address}', log_to_driver=False)"
        done = subprocess.run([sys.executable, "-c", asked], env={**bare, **given}, capture_output=True)
        print("answer", done.returncode)
"""
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=root,
        capture_output=True,
        text=True,
        timeout=300,
    )
    answers = [int(line.split()[1]) for line in done.stdout.splitlines() if line.startswith("answer")]
    assert len(answers) == 3, done.stderr
    assert answers[0] != 0
    assert answers[1] != 0
    assert answers[2] == 0
