"""The units that the benchmark's maps use."""

from __future__ import annotations

from dataclasses import dataclass

# Unit types that the game's data list; those that maps add for the learning team come last.
N_UNIT_TYPES = 1971


@dataclass(frozen=True)
class UnitKind:
    """One kind of unit; distances in map cells, times in game loops."""

    name: str
    # The game's own number of it.
    type_id: int
    health: float
    shield: float = 0.0
    armour: float = 0.0
    damage: float = 0.0
    hits: int = 1
    reach: float = 0.0
    cooldown: float = 1.0
    speed: float = 0.141
    radius: float = 0.375
    sight: float = 9.0
    flies: bool = False
    # Dies of its own attack, which hurts all around.
    bursts: bool = False
    # Restores health instead of attacking.
    heals: bool = False


KINDS = {
    kind.name: kind
    for kind in (
        UnitKind("baneling", 9, 30, damage=16, reach=0.25, speed=0.156, sight=8, bursts=True),
        UnitKind("colossus", 4, 200, 150, 1, 10, 2, 7, 24, radius=1.0, sight=10),
        UnitKind("hydralisk", 107, 80, damage=12, reach=5, cooldown=13.2, radius=0.625),
        UnitKind("marauder", 51, 125, armour=1, damage=10, reach=6, cooldown=24, radius=0.5625, sight=10),
        UnitKind("marine", 48, 45, damage=6, reach=5, cooldown=13.7),
        UnitKind("medivac", 54, 150, armour=1, reach=4, speed=0.156, radius=0.75, flies=True, heals=True),
        UnitKind("spinecrawler", 98, 300, armour=2, damage=25, reach=7, cooldown=29.6, speed=0, radius=0.9),
        UnitKind("stalker", 74, 80, 80, 1, 13, 1, 6, 30, speed=0.184, radius=0.625, sight=10),
        UnitKind("zealot", 73, 100, 50, 1, 8, 2, 0.1, 19.3, radius=0.5),
        UnitKind("zergling", 105, 35, damage=5, reach=0.1, cooldown=11.1, speed=0.184, sight=8),
    )
}  # fmt: skip
# The learning team's kinds on maps whose teams are drawn, in the order of their numbers.
DRAWN_KINDS = sorted(KINDS.keys() - {"spinecrawler"})


def learner_types(names: set[str]) -> dict[str, int]:
    """Number the learning team's kinds: the last of all types, alphabetically."""
    ordered = sorted(names) if names else DRAWN_KINDS
    return {name: N_UNIT_TYPES - len(ordered) + i for i, name in enumerate(ordered)}
