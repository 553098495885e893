"""What a sweep is made of: its file, checked, and the cells of its matrix."""

from __future__ import annotations

import hashlib
import itertools
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from macflow.files import digest
from macflow.runs.pipeline import Pipeline
from macflow.types import ConfigError

# The trainings of MAC-Flow whose transitions a baseline gets as many of.
TRAININGS = ("flow", "critic", "distill")
# What a baseline's training and evaluation are made of; a change there is another run.
BASELINE_CODE = (
    "actions.py", "algorithms", "cli_baseline.py", "data", "envs", "evaluation", "files.py", "nets",
    "training", "types.py",
)  # fmt: skip
MACFLOW = "macflow"
Name = Annotated[str, Field(min_length=1)]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Peers(_Part):
    """How baselines are trained, all alike."""

    batch_size: Annotated[int, Field(gt=0)] = 256
    learning_rate: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1e-3
    hidden: Annotated[tuple[Annotated[int, Field(gt=0)], ...], Field(min_length=1)] = (256, 256)


class Method(_Part):
    """MAC-Flow with settings of its own, or a baseline with its."""

    params: dict[str, Any] = {}
    baseline: Name | None = None
    settings: dict[str, Any] = {}

    @model_validator(mode="after")
    def _one_or_the_other(self) -> Method:
        if self.baseline is None and self.settings:
            raise ValueError("`settings` are a baseline's: name it as `baseline`, or say `params`")
        if self.baseline is not None and self.params:
            raise ValueError("`params` are MAC-Flow's: a baseline has `settings`")
        return self


class SweepFile(_Part):
    """A sweep as its file says it."""

    # Names of `macflow dataset list`; a mapping gives each settings of its own.
    datasets: Annotated[dict[Name, dict[str, Any]], Field(min_length=1)]
    methods: Annotated[dict[Name, Method], Field(min_length=1)]
    seeds: Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(min_length=1)]
    # Of every run, over params.yaml.
    params: dict[str, Any] = {}
    peers: Peers = Peers()

    @field_validator("datasets", mode="before")
    @classmethod
    def _names_alone(cls, datasets: Any) -> Any:
        return {name: {} for name in datasets} if isinstance(datasets, list) else datasets

    @field_validator("seeds")
    @classmethod
    def _each_once(cls, seeds: tuple[int, ...]) -> tuple[int, ...]:
        if len(set(seeds)) < len(seeds):
            raise ValueError("must be different numbers")
        return seeds


@dataclass(frozen=True)
class Cell:
    """One run of a sweep, as plain data: what any worker needs to do it."""

    dataset: str
    method: str
    seed: int
    # All of params.yaml as this run has it; a baseline's is MAC-Flow's of the same dataset.
    params: dict[str, Any]
    # None, or how a baseline is trained and judged.
    baseline: dict[str, Any] | None
    # Of all that the result depends on.
    key: str

    @property
    def label(self) -> str:
        """Name the cell for people."""
        return f"{self.dataset}, {self.method}, seed {self.seed}"

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON types."""
        return asdict(self)


# Checks what macflow's other parts know: datasets, parameters, baselines; raises `ConfigError`.
Check = Callable[[str, Mapping[str, Any], Mapping[str, Any] | None], None]


def read_sweep(file: Path) -> SweepFile:
    """Read a sweep's file.

    Raises:
        ConfigError: naming the file, the field, the rule and the received value.
    """
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{file}: file not found") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file}: not valid YAML: {error}") from None
    try:
        return SweepFile.model_validate(content)
    except ValidationError as error:
        lines = [
            f"{file}: `{'.'.join(map(str, problem['loc'])) or 'sweep'}`: {problem['msg']} "
            f"(received {problem['input']!r})"
            for problem in error.errors()
        ]
        raise ConfigError("\n".join(lines)) from None


def cells_of(file: Path, base: Mapping[str, Any], pipeline: Pipeline, check: Check) -> list[Cell]:
    """Return the cells of the sweep in `file`, dataset by dataset, method by method, seed by seed.

    Args:
        base: params.yaml, which everything starts from. check: of each cell.

    Raises:
        ConfigError: naming the file, and what a cell has wrong.
    """
    sweep = read_sweep(file)
    code = _code_digest(pipeline.project)
    cells = []
    for (dataset, own), (name, method), seed in itertools.product(
        sweep.datasets.items(), sweep.methods.items(), sweep.seeds
    ):
        params: dict[str, Any] = dict(base)
        for override in (sweep.params, own, method.params, {"dataset": dataset, "training": {"seed": seed}}):
            params = merged(params, override)
        how = None if method.baseline is None else _baseline_of(method, sweep.peers, params)
        try:
            check(dataset, params, how)
        except ConfigError as error:
            raise ConfigError(f"{file}: `methods.{name}` on `{dataset}`: {error}") from None
        if how is None:
            made_from: list[Any] = ["evaluate", pipeline.key("evaluate", params)]
        else:
            made_from = ["baseline", pipeline.key("prepare", params), how, code]
        key = hashlib.sha256(json.dumps(made_from, sort_keys=True).encode()).hexdigest()[:16]
        cells.append(Cell(dataset, name, seed, params, how, key))
    return cells


def merged(base: Mapping[str, Any], override: Mapping[str, Any]) -> dict[str, Any]:
    """Return `base` with the sections of `override` merged in; `kwargs` are replaced, not merged."""
    out = dict(base)
    for key, value in override.items():
        if isinstance(value, Mapping) and isinstance(out.get(key), Mapping) and key != "kwargs":
            out[key] = merged(out[key], value)
        else:
            out[key] = value
    return out


def _baseline_of(method: Method, peers: Peers, params: Mapping[str, Any]) -> dict[str, Any]:
    """Return how a baseline is trained: as many transitions as MAC-Flow's trainings see."""
    try:
        transitions = sum(params[stage]["steps"] * params[stage]["batch_size"] for stage in TRAININGS)
        shared = {name: params["training"][name] for name in ("seed", "device", "threads")}
        played = {name: params["evaluate"][name] for name in ("episodes", "seed")}
    except (KeyError, TypeError) as error:
        raise ConfigError(f"params.yaml: has no {error}") from None
    return {
        "method": method.baseline,
        "settings": method.settings,
        "training": {
            "steps": math.ceil(transitions / peers.batch_size),
            "batch_size": peers.batch_size,
            "learning_rate": peers.learning_rate,
            "hidden": ",".join(map(str, peers.hidden)),
            **shared,
        },
        "evaluation": played,
    }


def _code_digest(project: Path) -> str:
    whole = hashlib.sha256()
    for name in BASELINE_CODE:
        part = project / MACFLOW / name
        for file in sorted(part.rglob("*.py")) if part.is_dir() else [part]:
            whole.update(f"{file.relative_to(project).as_posix()}\0{digest(file)}\n".encode())
    return whole.hexdigest()[:16]
