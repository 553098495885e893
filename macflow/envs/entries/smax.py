"""SMAX: battles in the manner of StarCraft, computed by JAX."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

from macflow.envs.base import BatchedEnv
from macflow.envs.entry import EnvEntry, Kwargs, measured, needs, versions
from macflow.envs.smax_scripts import outnumbered, scripted

# Allies against enemies of jaxmarl's scenarios.
SCENARIOS = {
    "3m": "3 marines against 3",
    "8m": "8 marines against 8",
    "5m_vs_6m": "5 marines against 6",
    "2s3z": "2 stalkers and 3 zealots against the same",
    "smacv2_5_units": "5 units of random types at random places against the same types",
    "smacv2_10_units": "10 units of random types at random places against the same types",
}
# Marines that start near each other fight better once they have come together; the other scripts do not.
GATHER = ("3m", "8m")


class SmaxKwargs(Kwargs):
    pass


def _battle(scenario: str) -> Callable[[SmaxKwargs, int], BatchedEnv]:
    def make(kwargs: SmaxKwargs, n_envs: int) -> BatchedEnv:
        from macflow.envs.smax import SmaxBatch

        return SmaxBatch(scenario, n_envs)

    return make


# Mean returns of `random` and `expert`.
MEASURED = {
    "3m": (0.176, 1.705),
    "5m_vs_6m": (0.14, 1.381),
    "8m": (0.178, 1.504),
    "2s3z": (0.206, 1.807),
    "smacv2_5_units": (0.266, 1.673),
    "smacv2_10_units": (0.292, 1.746),
}
ENTRIES: Mapping[str, EnvEntry] = MappingProxyType(
    {
        f"smax/{scenario}": EnvEntry(
            description=f"{description} (jaxmarl)",
            kwargs=SmaxKwargs,
            make_batch=_battle(scenario),
            action_kind="discrete",
            version=versions("jaxmarl", "jax"),
            missing=needs("smax", "jaxmarl", "jax"),
            behaviours=outnumbered(scenario) if scenario == "5m_vs_6m" else scripted(scenario in GATHER),
            references=measured(
                f"smax/{scenario}", {}, random=MEASURED[scenario][0], expert=MEASURED[scenario][1]
            ),
        )
        for scenario, description in SCENARIOS.items()
    }
)
