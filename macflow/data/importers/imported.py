"""What every importer hands over, its check against an environment, and how it is written."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from macflow.data.expectations import Validation, validate
from macflow.data.minari_store import write_minari
from macflow.data.rows import EpisodeRows
from macflow.data.show import NO_LIMITS
from macflow.files import replace_directory
from macflow.types import ConfigError, DataError, MultiAgentSpec


@dataclass(frozen=True)
class Imported:
    """Hold a dataset as read, not yet validated."""

    rows: EpisodeRows
    spec: MultiAgentSpec
    dataset_id: str  # Minari's
    behaviour: Mapping[str, Any]
    # Whether the source names its agents; otherwise they are agent_0, ... until an environment is known.
    named: bool
    # {"id", "kwargs", "version"} where the source itself names its environment.
    env: Mapping[str, Any] | None = None
    # What the reader found or had to assume, for the user.
    notes: tuple[str, ...] = ()


def make_dataset_id(namespace: str, *names: str) -> str:
    """Return a Minari id made of `names`, whatever characters they have."""
    slug = re.sub(r"[^A-Za-z0-9_]+", "-", "-".join(names)).strip("-")
    return f"{namespace}/{slug or 'data'}-v0"


def numbered_agents(n_agents: int) -> tuple[str, ...]:
    """Return the names of agents that the source does not name: agent_0, agent_1, ..."""
    return tuple(f"agent_{i}" for i in range(n_agents))


def same_agents(env_spec: MultiAgentSpec | None, n_agents: int) -> MultiAgentSpec | None:
    """Return `env_spec` if it can fill in what a source with `n_agents` agents leaves out."""
    return env_spec if env_spec is not None and env_spec.n_agents == n_agents else None


def match_environment(imported: Imported, env_id: str, env_spec: MultiAgentSpec) -> Imported:
    """Return the data with exactly the environment's bounds; refuse what it cannot have made.

    Agents that the source does not name get the environment's names. A state of another size is only
    noted: policies act without it.

    Raises:
        ConfigError: naming everything that differs.
    """
    spec, notes = imported.spec, imported.notes
    if not imported.named and same_agents(env_spec, spec.n_agents):
        spec = replace(spec, agent_ids=env_spec.agent_ids)
    compared: list[tuple[str, Any, Any]] = [("agents", spec.n_agents, env_spec.n_agents)]
    if spec.n_agents == env_spec.n_agents:
        compared.append(("agent ids", ", ".join(spec.agent_ids), ", ".join(env_spec.agent_ids)))
        compared.append(("observation sizes", list(spec.obs_dims), list(env_spec.obs_dims)))
    compared.append(("actions", _actions(spec), _actions(env_spec)))
    differing = [
        f"{what}: {wanted} there, {received} in the data"
        for what, received, wanted in compared
        if received != wanted
    ]
    if differing:
        raise ConfigError(f"`--env`: {env_id} did not make these data; {'; '.join(differing)}")
    if spec.state_size != env_spec.state_size:
        notes += (f"the state has {spec.state_size} values, that of {env_id} {env_spec.state_size}",)
    # They were compared as a person would write them; 0.4 is another number in single precision.
    spec = replace(spec, action_low=env_spec.action_low, action_high=env_spec.action_high)
    return replace(imported, spec=spec, notes=notes)


def _actions(spec: MultiAgentSpec) -> str:
    if spec.discrete:
        return f"{spec.action_size} discrete"
    bounds = " x ".join(
        f"[{low:g}, {high:g}]" for low, high in zip(spec.action_low, spec.action_high, strict=True)
    )
    return f"{spec.action_size} continuous in {bounds}"


def write_imported(target: Path, source: str, imported: Imported) -> Validation:
    """Validate what was read from `source` and write it as the Minari dataset of the new folder `target`.

    How large values may be, and how many may repeat, is left to the prepare stage's parameters.

    Raises:
        DataError: listing the expectations that failed; nothing is written then.
    """
    rows, spec = imported.rows, imported.spec
    validation = validate(source, rows, spec, NO_LIMITS)
    if not validation.success:
        raise DataError(validation.message())
    with replace_directory(target) as folder:
        write_minari(folder, imported.dataset_id, rows.episodes(), spec, imported.env, imported.behaviour)
    return validation
