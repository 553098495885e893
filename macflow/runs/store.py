"""Finished stages in folders named by what they depend on, so that nothing is done twice."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from filelock import FileLock

from macflow.runs.pipeline import Pipeline
from macflow.types import MacflowError

DONE, LOG = "done", "log.txt"


class StageFailedError(MacflowError):
    """A stage of a run ended with an error; the message is its own last words."""

    @classmethod
    def of(cls, what: str, code: int, log: Path) -> StageFailedError:
        """Return the error of what ended with `code`, by its log."""
        lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines() or ["no word"]
        # Our own messages begin with who speaks, and may have several lines.
        own = [at for at, line in enumerate(lines) if line.startswith((f"{what.split()[0]}: ", "macflow: "))]
        words = lines[own[-1] :] if own else lines[-1:]
        if own and not any(line.startswith("Traceback") for line in words):
            last = "; ".join(line.strip() for line in words).partition(": ")[2]
        else:
            last = lines[-1]
        return cls(f"{what} ended with code {code}: {last} (all of it: {log})")


class RunStore:
    """Runs stages each in a folder of its own, with links to the outputs of those before it.

    Several threads and processes may use one folder: whoever comes second waits for the first.
    """

    def __init__(self, pipeline: Pipeline, root: Path) -> None:
        self.pipeline = pipeline
        self.root = root.absolute()

    def made(self, stage: str, params: Mapping[str, Any]) -> Path:
        """Return the folder in which `stage` has run with `params`, running it and what it needs if need be.

        Raises:
            StageFailedError: a stage failed; the message names it, its last words and its log.
        """
        folder = self.root / f"{stage}-{self.pipeline.key(stage, params)}"
        if (folder / DONE).exists():
            return folder
        inputs = self.pipeline.inputs(stage, params)
        sources = {path: self.made(maker, params) / path for path, maker in inputs.items()}
        sources |= self.pipeline.external(stage, params)
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / "lock"):
            if not (folder / DONE).exists():
                text = yaml.safe_dump(dict(params), sort_keys=False)
                (folder / "params.yaml").write_text(text, encoding="utf-8")
                for path, source in sources.items():
                    link(source, folder / path)
                self.call(stage, self.pipeline.command(stage, params), folder)
                (folder / DONE).touch()
        return folder

    def call(self, what: str, command: Sequence[str], folder: Path) -> None:
        """Run a command in a run's folder, its output at the end of the log there.

        Raises:
            StageFailedError: it failed; the message names `what` it was, its last words and the log.
        """
        with (folder / LOG).open("a") as log:
            done = subprocess.run(
                list(command),
                cwd=folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                # The project's sources, of which the folder's name tells, whatever is installed.
                env={**os.environ, "PYTHONPATH": str(self.pipeline.project)},
            )
        if done.returncode:
            raise StageFailedError.of(what, done.returncode, folder / LOG)


def link(source: Path, target: Path) -> None:
    """Make `target` share the files of `source`, unless it is there; whole or not at all."""
    if target.exists():
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.is_file():
        os.link(source, target)
        return
    fresh = target.with_name(f"{target.name}.new")
    shutil.rmtree(fresh, ignore_errors=True)
    shutil.copytree(source, fresh, copy_function=os.link)
    fresh.rename(target)
