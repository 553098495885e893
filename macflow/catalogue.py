"""Every dataset that has a name: those recorded here, and those that others have published.

A recorded one is called `ENV/BEHAVIOUR`, the environment's id with `-` for `/`: `mpe-spread/medium`. A
published one is called `og-marl/SOURCE/ENV/SCENARIO/UID`, as its publishers have it.

Figures of recorded datasets stand in dataset_facts.json; `python tools/measure_datasets.py NAME ...` adds
them.
"""

from __future__ import annotations

import difflib
import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Literal, TypedDict, cast

from macflow.data.importers.og_marl_sources import SOURCES, VaultSource
from macflow.envs.registry import ENVIRONMENTS
from macflow.files import read_json
from macflow.types import ConfigError

FACTS = Path(__file__).with_name("dataset_facts.json")
# Episodes of a dataset, by the family of the environment: robots' have up to 1000 steps, others' at most 100.
EPISODES: Mapping[str, int] = MappingProxyType({"mpe": 4000, "game": 4000, "smax": 4000, "mamujoco": 200})
EPISODES_ELSEWHERE = 1000
# Last part of the one entry of a vault whose UIDs the publishers do not list.
UNLISTED = "UID"


class Facts(TypedDict):
    """What a recording had that was made with the environment's default keywords."""

    command: str
    episodes: int
    transitions: int
    bytes: int  # on disk
    return_mean: float  # undiscounted team return


@dataclass(frozen=True)
class RecordedDataset:
    """A behaviour to be played in its environment."""

    name: str
    env_id: str
    behaviour: str
    # Recorded unless another number is asked for.
    episodes: int

    @property
    def kind(self) -> Literal["recorded"]:
        return "recorded"

    @property
    def missing(self) -> str | None:
        """Say what has to be installed before it can be recorded, or None."""
        return ENVIRONMENTS[self.env_id].missing()


@dataclass(frozen=True)
class PublishedDataset:
    """A dataset of others, to be downloaded."""

    name: str
    source: VaultSource
    # None where the publishers do not list them; a name that is asked for has one.
    uid: str | None

    @property
    def kind(self) -> Literal["published"]:
        return "published"

    @property
    def env_id(self) -> str | None:
        """Return the environment to evaluate in, or None where macflow has none that made these data."""
        return self.source.env_id

    @property
    def missing(self) -> str | None:
        """Say what has to be installed before it can be imported, or None; a network it needs anyway."""
        if importlib.util.find_spec("tensorstore") is None:
            return "tensorstore is not installed; install it with: pip install 'macflow[vaults]'"
        return None


NamedDataset = RecordedDataset | PublishedDataset


@cache
def all_datasets() -> Mapping[str, NamedDataset]:
    """Return every dataset by name; a vault whose UIDs nobody lists stands for all of them."""
    found: list[NamedDataset] = [
        RecordedDataset(
            f"{env_id.replace('/', '-')}/{behaviour}",
            env_id,
            behaviour,
            EPISODES.get(env_id.split("/")[0], EPISODES_ELSEWHERE),
        )
        for env_id, entry in ENVIRONMENTS.items()
        for behaviour in entry.behaviours
    ]
    found += [
        PublishedDataset(f"{source.name}/{uid or UNLISTED}", source, uid)
        for source in SOURCES.values()
        for uid in source.uids or (None,)
    ]
    return MappingProxyType({dataset.name: dataset for dataset in found})


def dataset_named(name: str) -> NamedDataset:
    """Return the dataset called `name`.

    Raises:
        ConfigError: where there is none, suggesting names that are near.
    """
    parent, _, last = name.rpartition("/")
    if parent in SOURCES and not SOURCES[parent].uids:
        if last == UNLISTED:
            raise ConfigError(
                f"`dataset`: {parent} lists no UIDs; put the one you mean in place of {UNLISTED} "
                f"(received {name!r})"
            )
        return PublishedDataset(name, SOURCES[parent], last)
    known = all_datasets()
    if name in known:
        return known[name]
    beside = [other for other in known if other.rpartition("/")[0] in (parent, name)]
    near = beside or difflib.get_close_matches(name.lower(), known, n=3)
    hint = f"near names: {', '.join(near)}" if near else "`macflow dataset list` shows all names"
    raise ConfigError(f"`dataset`: no dataset has this name; {hint} (received {name!r})")


def read_facts() -> Mapping[str, Facts]:
    """Return what is known of recorded datasets, by name."""
    return cast("dict[str, Facts]", read_json(FACTS))
