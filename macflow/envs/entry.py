"""The form of a registered environment: how to make it, who can play it, what its returns mean."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Annotated, Any, TypedDict

from pydantic import BaseModel, ConfigDict, Field

from macflow.envs.base import BatchedEnv, JointEnv
from macflow.envs.behaviours import Behaviour
from macflow.types import ActionKind

Fraction = Annotated[float, Field(ge=0, le=1)]
AgentCount = Annotated[int, Field(ge=1)]
StepLimit = Annotated[int, Field(ge=1)]


class Reference(TypedDict):
    """Mean team returns that mark 0 and 100 of the normalised scale, and where they come from."""

    random: float
    expert: float
    how: str


class Kwargs(BaseModel):
    """Constructor arguments of an environment: names, rules and defaults."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


def nothing_missing() -> str | None:
    """Say that an environment needs nothing beyond macflow's own dependencies."""
    return None


@dataclass(frozen=True)
class EnvEntry:
    """One registered environment; it has `make`, or `make_batch` where its package steps many at once."""

    description: str
    kwargs: type[Kwargs]
    action_kind: ActionKind
    # Of the packages that define it: recorded with every dataset.
    version: Callable[[], str]
    behaviours: Mapping[str, Behaviour]
    # Both take an instance of `kwargs`; `make_batch` also the number of copies.
    make: Callable[[Any], JointEnv] | None = None
    make_batch: Callable[[Any, int], BatchedEnv] | None = None
    # Copies that one machine can hold at a time.
    max_copies: int = 1000
    # Says what has to be installed first, or None.
    missing: Callable[[], str | None] = nothing_missing
    # By `kwargs_key`: measured.
    references: Mapping[str, Reference] = field(default_factory=dict)
    # For any kwargs, where the returns are known in closed form.
    derive_reference: Callable[[Any], Reference] | None = None


def kwargs_key(full: Mapping[str, Any]) -> str:
    """Return the text by which references are found: all keywords as JSON, sorted."""
    return json.dumps(dict(full), sort_keys=True)


def measured(
    env_id: str,
    given: Mapping[str, Any],
    random: float,
    expert: float,
    episodes: int = 1000,
    **defaults: Any,
) -> Mapping[str, Reference]:
    """Return the reference of keywords `given`, the others at `defaults`, as `how` prints it."""
    how = f"python -m macflow.envs.references {env_id} --episodes {episodes} --behaviours random expert"
    if given:
        how += f" --kwargs '{json.dumps(dict(given))}'"
    key = kwargs_key({**defaults, **given})
    return MappingProxyType({key: {"random": random, "expert": expert, "how": how}})


def versions(*packages: str) -> Callable[[], str]:
    """Return a function that names the installed versions of `packages`."""
    return lambda: ", ".join(f"{package} {importlib.metadata.version(package)}" for package in packages)


def needs(extra: str, *modules: str) -> Callable[[], str | None]:
    """Return a function that names the extra to install where one of `modules` is not there."""

    def missing() -> str | None:
        absent = [module for module in modules if importlib.util.find_spec(module) is None]
        if not absent:
            return None
        return f"{', '.join(absent)} is not installed; install it with: pip install 'macflow[{extra}]'"

    return missing
