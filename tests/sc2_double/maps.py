"""Maps: tiny JSON files under the names of the real ones, `maps/*.json`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent / "maps"
LEARNERS, COMPUTER = 1, 2


@dataclass(frozen=True)
class Group:
    """Units that a map brings, all of a kind, around a place."""

    count: int
    unit: str
    owner: int
    at: tuple[float, float]


@dataclass(frozen=True)
class BattleMap:
    """A map and its triggers."""

    size: tuple[int, int]
    # Born when the game begins, and again in the very loop in which the last unit dies.
    groups: tuple[Group, ...]
    # Where the computer's units are sent when they are born.
    attack: tuple[float, float] | None
    # Whether the computer's idle units are sent after the nearest of the other team.
    chase: bool
    # How many requests to create a unit a game ignores, as the game does where there is no room.
    ignored_creations: int

    @classmethod
    def read(cls, content: bytes) -> BattleMap:
        """Read the JSON of a map."""
        raw: Mapping[str, Any] = json.loads(content)
        groups = tuple(
            Group(count, unit, owner, at)
            for owner, team in ((LEARNERS, raw.get("allies", {})), (COMPUTER, raw.get("enemies", {})))
            for at, units in [(tuple(team.get("at", (0, 0))), team.get("units", {}))]
            for unit, count in units.items()
        )
        attack = raw.get("attack")
        return cls(
            size=tuple(raw.get("size", (32, 32))),
            groups=groups,
            attack=None if attack is None else tuple(attack),
            chase=bool(raw.get("chase", False)),
            ignored_creations=int(raw.get("ignored_creations", 0)),
        )
