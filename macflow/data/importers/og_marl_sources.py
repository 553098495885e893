"""The catalogue of OG-MARL's published vaults: names, addresses, and where their policies can be played.

A source is named `og-marl/SOURCE/ENV/SCENARIO`, for example `og-marl/og_marl/smac_v1/3m`; SOURCE, ENV and
SCENARIO are the publishers' (github.com/instadeepai/og-marl). Each is one zip of one vault with a dataset
per quality (UID). The publishers give no checksums.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from macflow.types import ActionKind, ConfigError

PREFIX = "og-marl"
_FILES = "https://huggingface.co/datasets/InstaDeepAI/og-marl/resolve/main"


@dataclass(frozen=True)
class VaultSource:
    """One published vault."""

    name: str
    url: str
    # Empty where the publishers do not list them.
    uids: tuple[str, ...]
    action_kind: ActionKind
    # Environment of macflow in which the data were recorded, or why there is none.
    env_id: str | None
    no_env: str = ""
    # True observation sizes where the recorder padded them; None: all have the full size.
    obs_dims: tuple[int, ...] | None = None

    @property
    def env(self) -> dict[str, Any] | None:
        """Return the environment as datasets record it; which version recorded, is not published."""
        return None if self.env_id is None else {"id": self.env_id, "kwargs": {}, "version": None}


@dataclass(frozen=True)
class _Group:
    """Vaults that share all but the scenario."""

    source: str
    env: str
    scenarios: Mapping[str, str | None]  # scenario -> environment of macflow
    uids: tuple[str, ...]
    action_kind: ActionKind
    no_env: str = ""


_LEVELS = ("Good", "Medium", "Poor")
_REPLAY = ("Replay",)
_OLD_MUJOCO = (
    "recorded with multiagent_mujoco on mujoco-py (MuJoCo 2.0 and 2.1), whose physics and observations "
    "differ from those of `mamujoco/...`"
)
_OMAR_MPE = (
    "OMAR's own variant of the particle world: two-dimensional actions in [-1, 1], rewards of min(1/d, 10) "
    "and -5 per collision; `mpe/spread` has five-dimensional actions in [0, 1] and other rewards"
)
_OMIGA_SMAC = "the variant of SMAC from MAPPO's authors, with other observations than `smac/...`"
_NOT_HERE = "not an environment of macflow"


def _none(*scenarios: str) -> dict[str, str | None]:
    return dict.fromkeys(scenarios)


def _same(prefix: str, *scenarios: str) -> dict[str, str | None]:
    return {scenario: f"{prefix}/{scenario}" for scenario in scenarios}


_GROUPS = (
    _Group(
        "og_marl",
        "smac_v1",
        _same("smac", "3m", "8m", "5m_vs_6m", "2s3z", "3s5z_vs_3s6z"),
        _LEVELS,
        "discrete",
    ),
    _Group(
        "og_marl",
        "smac_v2",
        _same("smacv2", "terran_5_vs_5", "terran_10_vs_10", "zerg_5_vs_5"),
        _REPLAY,
        "discrete",
    ),
    _Group("og_marl", "mamujoco", _none("2halfcheetah"), _LEVELS, "continuous", _OLD_MUJOCO),
    _Group("og_marl", "mamujoco", _none("2ant"), (), "continuous", _OLD_MUJOCO),
    _Group(
        "og_marl",
        "gymnasium_mamujoco",
        {
            "2ant": "mamujoco/ant-2x4",
            "2halfcheetah": "mamujoco/halfcheetah-2x3",
            "2walker": "mamujoco/walker2d-2x3",
            "3hopper": "mamujoco/hopper-3x1",
            "4ant": "mamujoco/ant-4x2",
            "6halfcheetah": "mamujoco/halfcheetah-6x1",
        },
        _REPLAY,
        "continuous",
    ),
    _Group("og_marl", "flatland", _none("20_trains", "30_trains"), (), "discrete", _NOT_HERE),
    _Group(
        "cfcql",
        "smac_v1",
        _same("smac", "6h_vs_8z", "3s_vs_5z", "5m_vs_6m", "2s3z"),
        ("Expert", "Medium", "Medium-Replay", "Mixed"),
        "discrete",
    ),
    _Group(
        "alberdice",
        "rware",
        _none("small-2ag", "small-4ag", "small-6ag", "tiny-2ag", "tiny-4ag", "tiny-6ag"),
        ("Expert",),
        "discrete",
        _NOT_HERE,
    ),
    _Group(
        "omar",
        "mpe",
        _none("simple_spread", "simple_tag", "simple_world"),
        ("Expert", "Medium", "Medium-Replay", "Random"),
        "continuous",
        _OMAR_MPE,
    ),
    _Group(
        "omar",
        "mamujoco",
        _none("2halfcheetah"),
        ("Expert", "Medium", "Medium-Replay", "Random"),
        "continuous",
        _OLD_MUJOCO,
    ),
    _Group(
        "omiga",
        "smac_v1",
        _none("2c_vs_64zg", "6h_vs_8z", "5m_vs_6m", "corridor"),
        _LEVELS,
        "discrete",
        _OMIGA_SMAC,
    ),
    _Group(
        "omiga",
        "mamujoco",
        _none("6halfcheetah", "2ant", "3hopper"),
        ("Expert", "Medium", "Medium-Expert", "Medium-Replay"),
        "continuous",
        _OLD_MUJOCO,
    ),
)

# Agents at the end of a chain of joints see fewer; OG-MARL's wrapper fills up with zeros.
_OBS_DIMS = {
    f"{PREFIX}/og_marl/gymnasium_mamujoco/3hopper": (8, 9, 8),
    f"{PREFIX}/og_marl/gymnasium_mamujoco/6halfcheetah": (9, 9, 8, 9, 9, 8),
}


def _entry(group: _Group, scenario: str, env_id: str | None) -> VaultSource:
    name = f"{PREFIX}/{group.source}/{group.env}/{scenario}"
    folder = "core" if group.source == "og_marl" else f"prior_work/{group.source}"
    return VaultSource(
        name=name,
        url=f"{_FILES}/{folder}/{group.env}/{scenario}.zip",
        uids=group.uids,
        action_kind=group.action_kind,
        env_id=env_id,
        no_env=group.no_env,
        obs_dims=_OBS_DIMS.get(name),
    )


SOURCES: Mapping[str, VaultSource] = MappingProxyType(
    {
        entry.name: entry
        for group in _GROUPS
        for entry in (_entry(group, scenario, env_id) for scenario, env_id in group.scenarios.items())
    }
)


def source_named(name: str) -> VaultSource:
    """Return the source called `name`; `ConfigError` suggests names that are near."""
    if name in SOURCES:
        return SOURCES[name]
    scenario = name.rsplit("/", 1)[-1]
    near = [known for known in SOURCES if known.rsplit("/", 1)[-1] == scenario]
    near += difflib.get_close_matches(name, SOURCES, n=3, cutoff=0.7)
    shown = ", ".join(dict.fromkeys(near))
    raise ConfigError(
        f"{name!r} is not a published OG-MARL vault; "
        + (f"near names: {shown}" if shown else f"names are like {next(iter(SOURCES))}")
    )
