"""Which environment a dataset comes from, and whether policies fit it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from macflow.data.prepared import PreparedDataset
from macflow.types import DataError, MultiAgentSpec


@dataclass(frozen=True)
class EnvironmentId:
    """A registered environment with its keywords."""

    id: str
    kwargs: Mapping[str, Any]


def environment_of(path: Path, dataset: PreparedDataset) -> EnvironmentId:
    """Return the environment that the dataset at `path` comes from.

    Raises:
        DataError: where it names none.
    """
    if dataset.env is None:
        raise DataError(
            f"{path}: the data name no environment to play in; name it when they are imported, "
            "`macflow dataset import ... --env ID` (`macflow envs` lists them)"
        )
    return EnvironmentId(dataset.env["id"], dataset.env["kwargs"])


def check_spec(
    env: EnvironmentId, wanted: MultiAgentSpec, name: str, spec: MultiAgentSpec, state: bool = False
) -> None:
    """Raise `DataError` where what is called `name` has other agents than the environment, `wanted`.

    Args:
        state: whether the state must fit too. Policies and flow act without it, and imported data may have
            it in another form.
    """
    if not state:
        wanted = replace(wanted, state_size=spec.state_size)
    if spec != wanted:
        differing = [key for key, value in wanted.to_dict().items() if spec.to_dict()[key] != value]
        raise DataError(
            f"the {name} does not fit {env.id} {dict(env.kwargs)}: it differs in {', '.join(differing)}, "
            f"first in {differing[0]} = {getattr(spec, differing[0])} where the environment has "
            f"{getattr(wanted, differing[0])}"
        )
