"""What dvc.yaml says of the stages, for runs beside DVC: how each is called, and on what it depends."""

from __future__ import annotations

import hashlib
import json
import re
import shlex
import sys
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from macflow.files import digest
from macflow.types import ConfigError


class Pipeline:
    """The stages of a project's dvc.yaml; paths in it are relative to the project."""

    def __init__(self, project: Path) -> None:
        """Read `project`/dvc.yaml.

        Raises:
            ConfigError: naming the file that is missing or malformed.
        """
        self.project = project.absolute()
        file = project / "dvc.yaml"
        try:
            self.stages: dict[str, Any] = yaml.safe_load(file.read_text(encoding="utf-8"))["stages"]
        except FileNotFoundError:
            raise ConfigError(f"{file}: file not found; run this in the project's folder") from None
        except (yaml.YAMLError, UnicodeDecodeError, KeyError, TypeError) as error:
            raise ConfigError(f"{file}: no pipeline of DVC's: {error!r}") from None
        self._digests: dict[str, str] = {}

    @cached_property
    def makers(self) -> dict[str, str]:
        """Return which stage writes a path."""
        return {path: name for name in self.stages for path in self.outputs(name)}

    def outputs(self, stage: str) -> list[str]:
        """Return the paths that a stage writes."""
        kinds = (self.stages[stage].get(kind, []) for kind in ("outs", "metrics"))
        return [path for kind in kinds for out in kind for path in out]

    def inputs(self, stage: str, params: Mapping[str, Any]) -> dict[str, str]:
        """Return the paths that a stage reads and the stages that make them."""
        needed = (_filled(dep, params) for dep in self.stages[stage]["deps"])
        return {dep: self.makers[dep] for dep in needed if dep in self.makers}

    def command(self, stage: str, params: Mapping[str, Any]) -> list[str]:
        """Return the command line of a stage, by this Python."""
        text = _filled(self.stages[stage]["cmd"], params)
        return [sys.executable, *shlex.split(text.removeprefix("exec python "))]

    def key(self, stage: str, params: Mapping[str, Any]) -> str:
        """Return a name for all that a stage's outputs depend on: parameters, code, data, and so on back."""
        own = {name: _value_at(params, name) for name in self.stages[stage]["params"]}
        inputs = self.inputs(stage, params)
        files = {
            path: self._digest(path)
            for dep in self.stages[stage]["deps"]
            if (path := _filled(dep, params)) not in inputs
        }
        made_from = {path: self.key(maker, params) for path, maker in inputs.items()}
        text = json.dumps([own, files, made_from], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def external(self, stage: str, params: Mapping[str, Any]) -> dict[str, Path]:
        """Return the data that a stage reads and no stage makes, such as `prepare.raw` of one's own."""
        inputs = self.inputs(stage, params)
        return {
            path: self.project / path
            for dep in self.stages[stage]["deps"]
            if "${" in dep and (path := _filled(dep, params)) not in inputs
        }

    def _digest(self, path: str) -> str:
        if path not in self._digests:
            self._digests[path] = digest(self.project / path)
        return self._digests[path]


def _filled(text: str, params: Mapping[str, Any]) -> str:
    """Fill in DVC's templating, as far as dvc.yaml uses it: ${section.key}."""
    return re.sub(r"\$\{(\w+)\.(\w+)\}", lambda found: str(params[found[1]][found[2]]), text)


def _value_at(params: Mapping[str, Any], dotted: str) -> Any:
    value: Any = params
    for name in dotted.split("."):
        value = value[name]
    return value
