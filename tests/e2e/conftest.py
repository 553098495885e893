"""A project of its own for each test: this repository's files, tiny parameters, its own git and DVC."""

from __future__ import annotations

import os
import runpy
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from workspace import stage_command

ROOT = Path(__file__).resolve().parents[2]
# What a fresh clone would hold of this, another run has made.
LEFT_OUT = ("dvc.lock", "metrics/", "tests/", "docs/", "benchmarks/")
TINY: dict[str, dict[str, Any]] = {
    "record": {"episodes": 8},
    "describe": {"state_cells": 8},
    "training": {"threads": 1, "checkpoint_every": 10, "log_every": 5},
    "flow": {"hidden": [16], "steps": 20, "batch_size": 32, "euler_steps": 2},
    "teacher": {"samples": 2},
    "critic": {"hidden": [16], "steps": 20, "batch_size": 32},
    "distill": {"hidden": [16], "steps": 20, "batch_size": 32, "diagnose_every": 10},
    "evaluate": {"episodes": 4, "n_envs": 4, "workers": 1},
    "diagnose": {"states": 8, "samples": 8},
    "finetune": {
        "env_steps": 100,
        "n_envs": 2,
        "warm_up": 20,
        "batch_size": 16,
        "evaluate_every": 50,
        "evaluate_episodes": 2,
    },
}


_of_this_test: list[subprocess.Popen[str]] = []


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_teardown() -> None:
    """End and reap what the test started, however the test ended, before fixtures remove its files."""
    while _of_this_test:
        process = _of_this_test.pop()
        process.kill()
        process.wait()


@dataclass(frozen=True)
class Project:
    """A copy of this repository that a test may change and run."""

    root: Path

    def environment(self) -> dict[str, str]:
        """Return what a user's shell has: no setting of ours, the environment's programs first."""
        ours = ("PREFECT_", "DVC_", "MAKE", "MFLAGS", "PYTHONPATH", "COV_")
        kept = {key: value for key, value in os.environ.items() if not key.startswith(ours)}
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
        # The home folder must stay as it is; git needs a name to commit under.
        return kept | {
            "PATH": path,
            "HOME": str(self.root.parent / "home"),
            "GIT_AUTHOR_NAME": "test",
            "GIT_AUTHOR_EMAIL": "test@example.org",
            "GIT_COMMITTER_NAME": "test",
            "GIT_COMMITTER_EMAIL": "test@example.org",
        }

    def run(self, *command: str, timeout: float = 240) -> subprocess.CompletedProcess[str]:
        """Run a command to its end, with both outputs in `stdout`."""
        return subprocess.run(
            command,
            cwd=self.root,
            env=self.environment(),
            text=True,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=timeout,
        )

    def check(self, *command: str, timeout: float = 240) -> str:
        """Run a command that must succeed; return what it printed."""
        done = self.run(*command, timeout=timeout)
        assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout}"
        return done.stdout

    def start(self, *command: str) -> subprocess.Popen[str]:
        """Start a command for the current test only; its outputs go to `NAME.log` in the project's parent."""
        _of_this_test.append(self.spawn(*command))
        return _of_this_test[-1]

    def spawn(self, *command: str) -> subprocess.Popen[str]:
        """Start a command as `start` does, for as long as the caller wants."""
        with (self.root.parent / f"{command[-1].split()[-1]}.log").open("w") as log:
            return subprocess.Popen(
                command,
                cwd=self.root,
                env=self.environment(),
                text=True,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    def set_params(self, changes: dict[str, dict[str, Any]]) -> None:
        """Change parameters in params.yaml."""
        file = self.root / "params.yaml"
        params = yaml.safe_load(file.read_text(encoding="utf-8"))
        for section, values in changes.items():
            assert values.keys() <= params[section].keys()
            params[section] |= values
        file.write_text(yaml.safe_dump(params, sort_keys=False), encoding="utf-8")

    def lock(self) -> dict[str, Any]:
        """Return the stages of dvc.lock."""
        stages: dict[str, Any] = yaml.safe_load((self.root / "dvc.lock").read_text(encoding="utf-8"))[
            "stages"
        ]
        return stages

    def processes(self, word: str) -> list[psutil.Process]:
        """Return the processes of this project whose command has the given word."""
        found = []
        for process in psutil.process_iter():
            try:
                if process.status() != psutil.STATUS_ZOMBIE and word in process.cmdline():
                    if Path(process.cwd()) == self.root:
                        found.append(process)
            except (psutil.NoSuchProcess, psutil.AccessDenied):
                continue
        return found


def run_here(folder: Path, stages: Iterable[str]) -> None:
    """Run dvc.yaml's commands of `stages` in `folder`, inside this process: starting one takes seconds."""
    for stage in stages:
        _, flag, module, *arguments = stage_command(folder, stage)
        assert flag == "-m"
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(folder)
            patch.setattr(sys, "argv", [module, *arguments])
            runpy.run_path(str(ROOT / f"{module.replace('.', '/')}.py"), run_name="__main__")


def wait_until(condition: Callable[[], Any], seconds: float, what: str) -> Any:
    """Return the condition's first true value; fail after `seconds`."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, f"not within {seconds} s: {what}"
        time.sleep(0.1)
    return value


@pytest.fixture(scope="session")
def fresh(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A clone with tiny parameters in which nothing has run. Not to be changed."""
    root = tmp_path_factory.mktemp("project").resolve() / "macflow"
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    for name in filter(None, listed.split("\0")):
        if not name.startswith(LEFT_OUT) and (ROOT / name).is_file():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, root / name)
    project = Project(root)
    project.set_params(TINY)
    project.check("git", "init", "--quiet", "--initial-branch=main")
    project.check("git", "add", "--all")
    project.check("git", "commit", "--quiet", "--message=fresh")
    return project


def copy_of(project: Project, parent: Path) -> Project:
    """Return a copy of a project that may be changed."""
    return Project(Path(shutil.copytree(project.root, parent.resolve() / "macflow", symlinks=True)))


@pytest.fixture(scope="session")
def reproduced(fresh: Project, tmp_path_factory: pytest.TempPathFactory) -> Project:
    """The project after `dvc repro`, committed. Not to be changed: `project` is a copy for that."""
    project = copy_of(fresh, tmp_path_factory.mktemp("reproduced"))
    (project.root.parent / "repro.txt").write_text(project.check("dvc", "repro"), encoding="utf-8")
    project.check("git", "add", "--all")
    project.check("git", "commit", "--quiet", "--message=reproduced")
    return project


@pytest.fixture
def project(reproduced: Project, tmp_path: Path) -> Iterator[Project]:
    """A reproduced project that the test may change."""
    yield copy_of(reproduced, tmp_path)
    shutil.rmtree(tmp_path / "macflow")
