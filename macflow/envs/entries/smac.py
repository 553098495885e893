"""StarCraft II battles of the `smacv2` package: the maps of SMACv1, the drawn teams of SMACv2."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from macflow.envs.base import JointEnv
from macflow.envs.behaviours import Behaviour, Uniform
from macflow.envs.entry import EnvEntry, Fraction, Kwargs
from macflow.envs.smac_install import installed_version, needs_game
from macflow.envs.smac_scripts import FocusFire, Layout


class BattleKwargs(Kwargs):
    # A game of its own per episode; false: the units of one game are killed and born again, which is
    # faster, but an episode then depends on those before it.
    new_game: bool = True


class DrawnBattleKwargs(BattleKwargs):
    # Chance that an agent sees an enemy that a comrade saw first; the `_epo` variants have 0.
    prob_obs_enemy: Fraction = 1.0
    # Whether attacks out of range are illegal; in the `_epo` variants they are legal and do nothing.
    action_mask: bool = True


@dataclass(frozen=True)
class Side:
    """Who fights: how many of which race."""

    units: int
    # P, T or Z.
    race: str


@dataclass(frozen=True)
class Race:
    """Units that SMACv2 draws, how often, and those that cannot make up a team alone."""

    unit_types: tuple[str, str, str]
    weights: tuple[float, float, float]
    exceptions: tuple[str, ...] = ()


# Allies, enemies, size of the one-hot unit type: as the package's `map_param_registry` has them.
V1_MAPS: Mapping[str, tuple[Side, Side, int]] = MappingProxyType(
    {
        "3m": (Side(3, "T"), Side(3, "T"), 0),
        "8m": (Side(8, "T"), Side(8, "T"), 0),
        "25m": (Side(25, "T"), Side(25, "T"), 0),
        "5m_vs_6m": (Side(5, "T"), Side(6, "T"), 0),
        "8m_vs_9m": (Side(8, "T"), Side(9, "T"), 0),
        "10m_vs_11m": (Side(10, "T"), Side(11, "T"), 0),
        "27m_vs_30m": (Side(27, "T"), Side(30, "T"), 0),
        "MMM": (Side(10, "T"), Side(10, "T"), 3),
        "MMM2": (Side(10, "T"), Side(12, "T"), 3),
        "2s3z": (Side(5, "P"), Side(5, "P"), 2),
        "3s5z": (Side(8, "P"), Side(8, "P"), 2),
        "3s5z_vs_3s6z": (Side(8, "P"), Side(9, "P"), 2),
        "3s_vs_3z": (Side(3, "P"), Side(3, "P"), 0),
        "3s_vs_4z": (Side(3, "P"), Side(4, "P"), 0),
        "3s_vs_5z": (Side(3, "P"), Side(5, "P"), 0),
        "1c3s5z": (Side(9, "P"), Side(9, "P"), 3),
        "2m_vs_1z": (Side(2, "T"), Side(1, "P"), 0),
        "corridor": (Side(6, "P"), Side(24, "Z"), 0),
        "6h_vs_8z": (Side(6, "Z"), Side(8, "P"), 0),
        "2s_vs_1sc": (Side(2, "P"), Side(1, "Z"), 0),
        "so_many_baneling": (Side(7, "P"), Side(32, "Z"), 0),
        "bane_vs_bane": (Side(24, "Z"), Side(24, "Z"), 2),
        "2c_vs_64zg": (Side(2, "P"), Side(64, "Z"), 0),
    }
)
# As the package's sc2_gen_RACE.yaml have them.
V2_RACES: Mapping[str, Race] = MappingProxyType(
    {
        "terran": Race(("marine", "marauder", "medivac"), (0.45, 0.45, 0.1), ("medivac",)),
        "protoss": Race(("stalker", "zealot", "colossus"), (0.45, 0.45, 0.1)),
        "zerg": Race(("zergling", "baneling", "hydralisk"), (0.45, 0.1, 0.45), ("baneling",)),
    }
)
V2_TEAMS = ((5, 5), (10, 10), (10, 11), (20, 20), (20, 23))
# All three 10gen maps of the package are one file.
V2_MAP_FILE = "32x32_flat"


def capabilities(race: str, allies: int, enemies: int) -> dict[str, dict[str, Any]]:
    """Return the package's `capability_config` of a SMACv2 scenario, as its wrapper completes it."""
    units = V2_RACES[race]
    size = {"n_units": allies, "n_enemies": enemies}
    return {
        "team_gen": {
            "dist_type": "weighted_teams",
            "unit_types": list(units.unit_types),
            "weights": list(units.weights),
            "exception_unit_types": list(units.exceptions),
            "observe": True,
            **size,
        },
        "start_positions": {
            "dist_type": "surrounded_and_reflect",
            "p": 0.5,
            "map_x": 32,
            "map_y": 32,
            **size,
        },
    }


def _v1(map_name: str) -> Callable[[BattleKwargs], JointEnv]:
    def make(kwargs: BattleKwargs) -> JointEnv:
        from macflow.envs.smac import StarCraftBattle

        return StarCraftBattle(map_name, kwargs.new_game, {})

    return make


def _v2(race: str, allies: int, enemies: int) -> Callable[[DrawnBattleKwargs], JointEnv]:
    def make(kwargs: DrawnBattleKwargs) -> JointEnv:
        from macflow.envs.smac import StarCraftBattle

        return StarCraftBattle(
            f"10gen_{race}",
            kwargs.new_game,
            capabilities(race, allies, enemies),
            use_unit_ranges=True,
            min_attack_range=2,
            obs_own_pos=True,
            prob_obs_enemy=kwargs.prob_obs_enemy,
            action_mask=kwargs.action_mask,
        )

    return make


def _behaviours(layout: Layout) -> Mapping[str, Behaviour]:
    return MappingProxyType(
        {
            # A few strays, so that recordings show more than one action per situation.
            "focus-fire": lambda spec: FocusFire(spec, layout, lambda rng: 0.05),
            "focus-fire-mixed": lambda spec: FocusFire(spec, layout, lambda rng: float(rng.random())),
            "random": Uniform,
        }
    )


def _v1_entry(name: str, allies: Side, enemies: Side, type_bits: int) -> EnvEntry:
    layout = Layout(allies.race == "P", enemies.race == "P", type_bits, healers=name.startswith("MMM"))
    return EnvEntry(
        description=f"StarCraft II: SMACv1 map {name}, {allies.units} units against {enemies.units} (smacv2)",
        kwargs=BattleKwargs,
        make=_v1(name),
        action_kind="discrete",
        version=installed_version,
        # Each is a running game.
        max_copies=8,
        missing=needs_game(name),
        behaviours=_behaviours(layout),
    )


def _v2_entry(race: str, allies: int, enemies: int) -> EnvEntry:
    shields = race == "protoss"
    return EnvEntry(
        description=f"StarCraft II: SMACv2, {allies} {race} units of drawn types against {enemies} (smacv2)",
        kwargs=DrawnBattleKwargs,
        make=_v2(race, allies, enemies),
        action_kind="discrete",
        version=installed_version,
        # Each is a running game.
        max_copies=8,
        missing=needs_game(V2_MAP_FILE),
        behaviours=_behaviours(Layout(shields, shields, 3, healers=race == "terran")),
    )


ENTRIES: Mapping[str, EnvEntry] = MappingProxyType(
    {f"smac/{name}": _v1_entry(name, *sides) for name, sides in V1_MAPS.items()}
    | {f"smacv2/{race}_{a}_vs_{b}": _v2_entry(race, a, b) for race in V2_RACES for a, b in V2_TEAMS}
)
