"""Walk the manifests: what each artifact was made from, and whether that is what lies there now."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import Any, Literal

import yaml

from macflow.files import digest, read_json
from macflow.types import DataError

InputState = Literal["match", "mismatch", "absent"]


@dataclass(frozen=True)
class Input:
    """One `made_from` entry of a manifest, next to the present digest of that input."""

    path: str
    recorded: str
    # None where nothing lies at `path` any more.
    present: str | None

    @property
    def state(self) -> InputState:
        if self.present is None:
            return "absent"
        return "match" if self.present == self.recorded else "mismatch"


@dataclass(frozen=True)
class Setting:
    """One parameter recorded in a manifest, next to its value in the present params file."""

    name: str
    value: Any
    # Whether the params file still says the same; true also where it has no such parameter.
    current: bool


@dataclass(frozen=True)
class Artifact:
    """A file or folder of the pipeline with what is known of its making."""

    path: str
    # None where the artifact is a source that is not present any more.
    sha256: str | None
    # DVC's own hash, None where dvc.lock does not list the path.
    dvc_md5: str | None
    # Empty for a source: nothing says what it was made from.
    inputs: tuple[Input, ...]
    settings: tuple[Setting, ...]

    @property
    def name(self) -> str:
        return Path(self.path).name

    @property
    def sound(self) -> bool:
        return all(i.state == "match" for i in self.inputs) and all(s.current for s in self.settings)


@dataclass(frozen=True)
class Lineage:
    """All artifacts, each after what it was made from."""

    artifacts: tuple[Artifact, ...]

    def artifact(self, path: str) -> Artifact:
        return next(a for a in self.artifacts if a.path == path)

    @property
    def warnings(self) -> tuple[str, ...]:
        """Say in one sentence each where the recorded making and the present state differ."""
        found = []
        for artifact in self.artifacts:
            for entry in artifact.inputs:
                if entry.state == "mismatch":
                    found.append(f"{artifact.path} was made from another {entry.path} than the present one")
                elif entry.state == "absent":
                    found.append(f"{artifact.path} was made from {entry.path}, which is not present")
            for changed in (s for s in artifact.settings if not s.current):
                found.append(f"{artifact.path} was made with another {changed.name} than the parameters say")
        return tuple(found)


def read_lineage(manifests: Sequence[Path], lock: Path, params: Mapping[str, Any]) -> Lineage:
    """Read the manifests and check them against the present files.

    Args:
        manifests: one JSON file inside each artifact's folder.
        lock: `dvc.lock`; may be missing.
        params: the present params file, section by section.

    Raises:
        DataError: a manifest is missing or malformed, or artifacts are made from each other.
    """
    read = {_key(path.parent): _read_manifest(path) for path in manifests}
    made_from = {path: manifest["made_from"] for path, manifest in read.items()}
    try:
        order = list(TopologicalSorter({path: sorted(m) for path, m in made_from.items()}).static_order())
    except CycleError as error:
        raise DataError(f"manifests: artifacts made from each other: {' <- '.join(error.args[1])}") from None
    present = {path: digest(Path(path)) if Path(path).exists() else None for path in order}
    md5s = _locked_md5s(lock)
    return Lineage(
        tuple(
            Artifact(
                path=path,
                sha256=present[path],
                dvc_md5=md5s.get(path),
                inputs=tuple(
                    Input(source, recorded, present[source])
                    for source, recorded in sorted(
                        made_from.get(path, {}).items(), key=lambda item: order.index(item[0])
                    )
                ),
                settings=_settings(read.get(path, {}).get("params", {}), params),
            )
            for path in order
        )
    )


def _read_manifest(path: Path) -> dict[str, Any]:
    raw = read_json(path)
    made_from = raw.get("made_from") if isinstance(raw, dict) else None
    if not isinstance(made_from, dict) or not all(isinstance(v, str) for v in made_from.values()):
        raise DataError(
            f"{path}: `made_from` must map each input's path to its digest (received {made_from!r})"
        )
    params = raw.get("params", {})
    if not isinstance(params, dict) or not all(isinstance(v, dict) for v in params.values()):
        raise DataError(f"{path}: `params` must map sections to their parameters (received {params!r})")
    return {"made_from": {_key(Path(k)): v for k, v in made_from.items()}, "params": params}


def _key(path: Path) -> str:
    """Return the path as manifests and dvc.lock write it: relative to the working folder where inside it."""
    absolute = Path(os.path.abspath(path))
    here = Path.cwd()
    return (absolute.relative_to(here) if absolute.is_relative_to(here) else path).as_posix()


def _settings(recorded: Mapping[str, Mapping[str, Any]], params: Mapping[str, Any]) -> tuple[Setting, ...]:
    found = []
    for section, values in recorded.items():
        now = params.get(section)
        for key, value in values.items():
            same = not isinstance(now, Mapping) or key not in now or now[key] == value
            found.append(Setting(f"{section}.{key}", value, same))
    return tuple(found)


def _locked_md5s(lock: Path) -> dict[str, str]:
    if not lock.exists():
        return {}
    try:
        raw = yaml.safe_load(lock.read_text(encoding="utf-8"))
        outs = [out for stage in raw["stages"].values() for out in stage.get("outs", [])]
        return {out["path"]: out["md5"] for out in outs if "md5" in out}
    except (yaml.YAMLError, UnicodeDecodeError, AttributeError, KeyError, TypeError) as error:
        raise DataError(f"{lock}: not a DVC lock file: {error!r}") from None
