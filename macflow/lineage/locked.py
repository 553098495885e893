"""What git and dvc.lock say of an output: its bytes, the stages behind it, their parameters and code."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from macflow.files import dvc_md5
from macflow.types import DataError

LOCK = "dvc.lock"
# End of an attestation's file name.
ATTESTATION = ".attestation.json"
# Names in one message.
SHOWN = 5


def git(root: Path, *arguments: str) -> str:
    """Return what git prints; raises `DataError` with git's own words where it fails."""
    try:
        done = subprocess.run(
            ["git", "-C", str(root), *arguments],
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=60,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise DataError(f"{root}: git cannot be run: {error}") from None
    if done.returncode:
        raise DataError(f"{root}: git {arguments[0]}: {_one_line(done.stderr)}")
    return done.stdout


def file_at(root: Path, commit: str, path: str) -> str:
    """Return a file's text at a commit; raises `DataError` where the commit does not have it."""
    try:
        return git(root, "show", f"{commit}:./{path}")
    except DataError:
        raise DataError(f"{path}: not in git at {commit[:12]}") from None


class Lock:
    """The stages of a dvc.lock; paths in it are relative to its folder."""

    def __init__(self, text: str, where: str) -> None:
        """Read the text of a dvc.lock; `where` it lies is for messages.

        Raises:
            DataError: where it is malformed.
        """
        self._where = where
        self._inputs: dict[str, dict[str, str]] = {}
        self._outputs: dict[str, dict[str, str]] = {}
        self._params: dict[str, dict[str, Any]] = {}
        try:
            for name, stage in yaml.safe_load(text)["stages"].items():
                self._inputs[name] = {dep["path"]: dep["md5"] for dep in stage.get("deps", [])}
                self._outputs[name] = {out["path"]: out["md5"] for out in stage.get("outs", [])}
                self._params[name] = _nested(
                    {k: v for file in stage.get("params", {}).values() for k, v in file.items()}
                )
        except (yaml.YAMLError, AttributeError, KeyError, TypeError) as error:
            raise DataError(f"{where}: not a lock file of DVC's: {error!r}") from None

    def maker(self, path: str) -> str | None:
        """Return the stage that writes a path or a folder above it, None where there is none."""
        above = {path, *(str(parent) for parent in Path(path).parents)}
        return next((name for name, outputs in self._outputs.items() if above & outputs.keys()), None)

    def output_md5(self, path: str) -> str | None:
        """Return what an output hashes to, None where no stage writes it."""
        return next((outs[path] for outs in self._outputs.values() if path in outs), None)

    def inputs(self, stage: str) -> Mapping[str, str]:
        """Return the paths that a stage read, and their hashes."""
        return self._inputs[stage]

    def outputs(self, stage: str) -> Mapping[str, str]:
        """Return the paths that a stage wrote, and their hashes."""
        return self._outputs[stage]

    def behind(self, stage: str) -> tuple[str, ...]:
        """Return the stages that a stage needs and itself, in the order of making."""
        order: list[str] = []

        def visit(name: str) -> None:
            makers = {maker for path in self._inputs[name] if (maker := self.maker(path)) is not None}
            for maker in sorted(makers - set(order)):
                visit(maker)
            if name not in order:
                order.append(name)

        visit(stage)
        return tuple(order)

    def params(self, stage: str) -> dict[str, Any]:
        """Return the parameters that a stage and those behind it ran with, section by section."""
        found: dict[str, Any] = {}
        for name in self.behind(stage):
            for section, values in self._params[name].items():
                both = isinstance(values, dict) and isinstance(found.get(section), dict)
                found[section] = found[section] | values if both else values
        return found

    def sources(self, stage: str) -> dict[str, str]:
        """Return the paths that no stage makes and that a stage or those behind it read: code, data."""
        return {
            path: md5
            for name in self.behind(stage)
            for path, md5 in self._inputs[name].items()
            if self.maker(path) is None
        }

    def check_consistent(self, stage: str) -> None:
        """Raise `DataError` where a stage, or one behind it, read something else than is recorded now."""
        for name in self.behind(stage):
            for path, md5 in self._inputs[name].items():
                made = self.output_md5(path)
                if made is not None and made != md5:
                    raise DataError(
                        f"{self._where}: {self.maker(path)} has made another {path} than {name} ran with; "
                        f"run: dvc repro {stage}"
                    )


@dataclass(frozen=True)
class Project:
    """A folder with dvc.yaml and dvc.lock."""

    root: Path
    lock: Lock

    def key(self, path: Path) -> str:
        """Return a path as dvc.lock writes it."""
        return path.absolute().relative_to(self.root).as_posix()

    def holds(self, key: str, md5: str | None) -> bool:
        """Say whether what lies at a path is what the lock means by `md5`."""
        path = self.root / key
        return md5 is not None and path.exists() and dvc_md5(path) == md5


def project_of(path: Path) -> Project | None:
    """Return the project that a path lies in, None where no folder above it has a dvc.lock."""
    for folder in path.absolute().parents:
        if (file := folder / LOCK).is_file():
            return Project(folder, Lock(file.read_text(encoding="utf-8"), str(file)))
    return None


def committed_at(project: Project, path: Path) -> tuple[str, str]:
    """Return the commit whose code and parameters made an output, and the stage that did.

    Raises:
        DataError: naming what differs from the commit or the lock: changed files, an output or code that
            is not what the stages ran with, code that git does not have.
    """
    key = project.key(path)
    stage = project.lock.maker(key)
    locked = project.lock.output_md5(key)
    if stage is None or locked is None:
        raise DataError(f"{path}: no output that {LOCK} lists")
    if not project.holds(key, locked):
        raise DataError(f"{path}: not what {LOCK} records for it; run: dvc repro {stage}")
    project.lock.check_consistent(stage)
    # One that is signed anew differs, and made nothing.
    check_clean(project.root, f"*{ATTESTATION}")
    tracked = set(filter(None, git(project.root, "ls-files", "-z").split("\0")))
    if LOCK not in tracked:
        raise DataError(f"{project.root / LOCK}: not in git; commit it first")
    for source, md5 in project.lock.sources(stage).items():
        code = (project.root / source).is_file()
        if code and source not in tracked:
            raise DataError(f"{source}: {stage} was made with it, but git does not have it; commit it first")
        if (project.root / source).exists() and not project.holds(source, md5):
            raise DataError(
                f"{source}: not what {stage} was made with, by {LOCK}; run `dvc repro {stage}` and commit"
            )
        if not (project.root / source).exists() and source in tracked:
            raise DataError(f"{source}: {stage} was made with it, and it is missing")
    return git(project.root, "rev-parse", "HEAD").strip(), stage


def check_clean(root: Path, *but: str) -> None:
    """Raise `DataError`, naming them, where git's files, `but` for some, differ from the last commit."""
    aside = [f":(exclude){pattern}" for pattern in but]
    lines = git(root, "status", "--porcelain", "--untracked-files=no", "--", ":/", *aside).splitlines()
    if lines:
        names = ", ".join(line[3:] for line in lines[:SHOWN]) + (", ..." if lines[SHOWN:] else "")
        raise DataError(f"{root}: differs from the last commit ({names}); commit or restore it first")


def _nested(flat: Mapping[str, Any]) -> dict[str, Any]:
    """Turn `{"a.b": 1}`, as DVC locks part of a section, into `{"a": {"b": 1}}`."""
    nested: dict[str, Any] = {}
    for name, value in flat.items():
        section, dot, rest = name.partition(".")
        if dot:
            nested.setdefault(section, {})[rest] = value
        else:
            nested[section] = value
    return nested


def _one_line(text: str) -> str:
    return " ".join(text.split())
