"""What `dvc.lock` and `dvc.yaml` say, read without DVC: importing it takes longer than most answers may."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import yaml

from macflow.types import DataError

LOCK_FILE = "dvc.lock"
PIPELINE_FILE = "dvc.yaml"
PARAMS_FILE = "params.yaml"
CODE_FOLDER = "macflow/"

_STAGE_LINE = re.compile(r"^  ([^\s#][^:]*):\s*$")
_TEMPLATE = re.compile(r"\$\{([^}]+)\}")


@dataclass(frozen=True)
class Entry:
    """A file or folder that a stage read or wrote, as the lock has it."""

    path: str
    # DVC's hash; of a folder with the suffix `.dir`. Empty where the lock has none.
    md5: str
    size: int | None
    nfiles: int | None

    @property
    def is_code(self) -> bool:
        return self.path.startswith(CODE_FOLDER)


@dataclass(frozen=True)
class LockedStage:
    """One stage as it last ran."""

    name: str
    cmd: str
    deps: tuple[Entry, ...]
    outs: tuple[Entry, ...]
    # File -> the tracked names (dotted, or whole sections) -> value.
    params: Mapping[str, Mapping[str, Any]]

    @property
    def code(self) -> tuple[Entry, ...]:
        return tuple(dep for dep in self.deps if dep.is_code)

    @property
    def inputs(self) -> tuple[Entry, ...]:
        return tuple(dep for dep in self.deps if not dep.is_code)

    @property
    def settings(self) -> dict[str, Any]:
        """Return every parameter by its full dotted name."""
        return dict(
            flatten({name: value for values in self.params.values() for name, value in values.items()})
        )


@dataclass(frozen=True)
class Lock:
    """All stages of one version of `dvc.lock`."""

    stages: Mapping[str, LockedStage]

    @cached_property
    def producers(self) -> dict[str, LockedStage]:
        """Return the stage that wrote each path."""
        return {out.path: stage for stage in self.stages.values() for out in stage.outs}

    @cached_property
    def outs(self) -> dict[str, Entry]:
        return {out.path: out for stage in self.stages.values() for out in stage.outs}

    def ancestors(self, path: str) -> list[LockedStage]:
        """Return the stages that led to `path`, each after those that it reads from."""
        found: dict[str, LockedStage] = {}
        visiting: set[str] = set()

        def visit(target: str) -> None:
            stage = self.producers.get(target)
            if stage is None or stage.name in found or stage.name in visiting:
                return
            visiting.add(stage.name)
            for dep in stage.inputs:
                visit(dep.path)
            found[stage.name] = stage

        visit(path)
        return list(found.values())

    def descendants(self, start: Mapping[str, str]) -> dict[str, tuple[LockedStage, str]]:
        """Return the stages that read artifacts (path -> MD5) or what came of them, by name.

        With each stage goes the path by which it was reached. One that has not run again since its input
        changed has read another version, so it is not reached.
        """
        reached = dict(start)
        found: dict[str, tuple[LockedStage, str]] = {}
        while fresh := {
            stage.name: (stage, by[0])
            for stage in self.stages.values()
            if stage.name not in found
            and (by := [dep.path for dep in stage.inputs if reached.get(dep.path) == dep.md5])
        }:
            found |= fresh
            reached |= {out.path: out.md5 for stage, _ in fresh.values() for out in stage.outs}
        return found


@dataclass(frozen=True)
class Defined:
    """One stage as `dvc.yaml` defines it, with `${...}` filled in."""

    cmd: str
    deps: frozenset[str]
    # Metrics and plots are outputs too.
    outs: frozenset[str]


def parse_lock(text: str, where: str) -> Lock:
    """Read a lock file.

    Raises:
        DataError: naming `where` and what is wrong.
    """
    raw = _load(text, where)
    try:
        stages = raw["stages"]
        return Lock({name: _stage(name, stage) for name, stage in stages.items()})
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise DataError(f"{where}: not a DVC lock file: {error!r}") from None


def blocks(text: str) -> dict[str, str]:
    """Return the lines of each stage in a lock file, whether or not they are YAML; `""` are those before."""
    found: dict[str, list[str]] = {"": []}
    current = found[""]
    for line in text.split("\n"):
        if match := _STAGE_LINE.match(line):
            current = found.setdefault(match[1], [])
        current.append(line)
    return {name: "\n".join(lines) for name, lines in found.items()}


def parse_pipeline(text: str, params: Mapping[str, Any], where: str) -> dict[str, Defined]:
    """Read the stages of `dvc.yaml`; those with `foreach` or `matrix` are left out.

    Raises:
        DataError: naming `where` and what is wrong.
    """
    raw = _load(text, where)
    try:
        return {
            name: _defined(stage, params)
            for name, stage in raw["stages"].items()
            if not {"foreach", "matrix"} & stage.keys()
        }
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise DataError(f"{where}: not a DVC pipeline: {error!r}") from None


def parse_params(text: str, where: str) -> dict[str, Any]:
    """Read a parameter file; raises as `parse_lock` does."""
    raw = _load(text, where)
    if not isinstance(raw, dict):
        raise DataError(f"{where}: must map names to values (received {raw!r})")
    return raw


def flatten(content: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """Return nested mappings as (dotted name, value); an empty mapping is a value."""
    pairs: list[tuple[str, Any]] = []
    for key, value in content.items():
        name = f"{prefix}.{key}" if prefix else str(key)
        pairs += flatten(value, name) if isinstance(value, Mapping) and value else [(name, value)]
    return pairs


def lookup(params: Mapping[str, Any], name: str) -> Any:
    """Return the value of a dotted name; raise KeyError where there is none."""
    value: Any = params
    for part in name.split("."):
        value = value[part]
    return value


def _load(text: str, where: str) -> Any:
    try:
        return yaml.load(text, Loader=_LOADER)  # noqa: S506, a safe loader either way
    except yaml.YAMLError as error:
        raise DataError(f"{where}: not valid YAML: {str(error).splitlines()[0]}") from None


# libyaml reads a lock of 2,500 lines in 20 ms; the pure Python loader takes a second.
_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def _stage(name: str, raw: Mapping[str, Any]) -> LockedStage:
    return LockedStage(
        name=str(name),
        cmd=str(raw["cmd"]),
        deps=tuple(_entry(dep) for dep in raw.get("deps", [])),
        outs=tuple(_entry(out) for out in raw.get("outs", [])),
        params={str(file): dict(values) for file, values in raw.get("params", {}).items()},
    )


def _entry(raw: Mapping[str, Any]) -> Entry:
    return Entry(str(raw["path"]), str(raw.get("md5", "")), raw.get("size"), raw.get("nfiles"))


def _defined(raw: Mapping[str, Any], params: Mapping[str, Any]) -> Defined:
    def fill(text: str) -> str:
        return _TEMPLATE.sub(lambda match: str(lookup(params, match[1].strip())), text)

    outs = [item for kind in ("outs", "metrics", "plots") for item in raw.get(kind, [])]
    return Defined(
        cmd=fill(raw["cmd"]),
        deps=frozenset(fill(str(dep)) for dep in raw.get("deps", [])),
        # An output with options is a mapping from its path to them.
        outs=frozenset(fill(next(iter(out)) if isinstance(out, Mapping) else out) for out in outs),
    )
