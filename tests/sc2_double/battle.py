"""The battle behind the protocol: units, their orders, and what happens in a game loop."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from enum import Enum

import numpy as np

from sc2_double.maps import COMPUTER, BattleMap
from sc2_double.units import KINDS, UnitKind, learner_types

BURST_RADIUS = 2.2
HEALED_PER_LOOP, ENERGY_PER_LOOP = 0.5625, 0.1875
CHASE_EVERY = 8  # game loops

Point = tuple[float, float]


class Aim(Enum):
    """What an order is about."""

    MOVE = "move"
    # Move, and attack whom one meets.
    MARCH = "march"
    CHASE = "chase"
    TARGET = "target"


@dataclass(frozen=True)
class Order:
    aim: Aim
    place: Point = (0.0, 0.0)
    tag: int = 0


class Unit:
    """One living unit."""

    def __init__(self, tag: int, kind: UnitKind, type_id: int, owner: int, place: Point) -> None:
        self.tag = tag
        self.kind = kind
        self.type_id = type_id
        self.owner = owner
        self.x, self.y = place
        self.health = kind.health
        self.shield = kind.shield
        self.energy = 50.0
        self.cooldown = 0.0
        self.order: Order | None = None

    @property
    def learner(self) -> bool:
        """Tell whether this is a kind that the map adds for the learning team: it attacks on order only."""
        return self.type_id != self.kind.type_id

    def gap(self, other: Unit) -> float:
        return math.hypot(self.x - other.x, self.y - other.y) - self.kind.radius - other.kind.radius

    def approach(self, place: Point) -> bool:
        """Take a step; tell whether the place is reached."""
        dx, dy = place[0] - self.x, place[1] - self.y
        distance = math.hypot(dx, dy)
        if distance <= self.kind.speed:
            self.x, self.y = place
            return True
        self.x += dx / distance * self.kind.speed
        self.y += dy / distance * self.kind.speed
        return False

    def suffer(self, damage: float, hits: int) -> None:
        for _ in range(hits):
            absorbed = min(self.shield, damage)
            self.shield -= absorbed
            if damage > absorbed:
                self.health -= max(damage - absorbed - self.kind.armour, 0.5)


class Battle:
    """A game on a map. All chance comes from its seed, drawn on for as long as the game lasts."""

    def __init__(self, battle_map: BattleMap, seed: int | None) -> None:
        self.map = battle_map
        self.loop = 0
        self.units: dict[int, Unit] = {}
        self.types = learner_types({group.unit for group in battle_map.groups if group.owner != COMPUTER})
        self._random = random.Random(seed)
        self._next_tag = 1
        self._killed: list[int] = []
        # Kind, type, owner, place.
        self._created: list[tuple[UnitKind, int, int, Point]] = []
        self._ignore = battle_map.ignored_creations
        self._spawn()

    def name_of(self, type_id: int) -> str:
        """Return a type's name; empty for the many that the maps do not use."""
        for name, number in self.types.items():
            if number == type_id:
                return f"{name.title()}_RL"
        return next((name.title() for name, kind in KINDS.items() if kind.type_id == type_id), "")

    def kill(self, tags: list[int]) -> None:
        """Take units away in the next loop."""
        self._killed += tags

    def create(self, type_id: int, owner: int, place: Point, quantity: int) -> None:
        """Bring units in the next loop."""
        by_type = {number: KINDS[name] for name, number in self.types.items()}
        by_type |= {kind.type_id: kind for kind in KINDS.values()}
        for _ in range(quantity):
            if self._ignore > 0:
                self._ignore -= 1
                continue
            self._created.append((by_type[type_id], type_id, owner, place))

    def command(self, tags: list[int], order: Order | None) -> None:
        """Give an order to those that are still alive."""
        for tag in tags:
            if tag in self.units:
                self.units[tag].order = order

    def run(self, loops: int) -> None:
        for _ in range(loops):
            self._run_loop()

    def _run_loop(self) -> None:
        self.loop += 1
        dead = [self.units.pop(tag) for tag in self._killed if tag in self.units]
        for kind, type_id, owner, place in self._created:
            self._add(kind, type_id, owner, place, spread=0.2)
        self._killed, self._created = [], []
        if self.map.chase and self.loop % CHASE_EVERY == 0:
            self._send_after()
        acting = list(self.units.values())
        self._random.shuffle(acting)
        for unit in acting:
            if unit.health > 0:
                unit.cooldown = max(unit.cooldown - 1, 0)
                self._act(unit)
        dead += [unit for unit in acting if unit.health <= 0]
        self.units = {tag: unit for tag, unit in self.units.items() if unit.health > 0}
        self._push_apart()
        if dead and not self.units:
            self._spawn()

    def _spawn(self) -> None:
        for group in self.map.groups:
            kind = KINDS[group.unit]
            type_id = kind.type_id if group.owner == COMPUTER else self.types[group.unit]
            for i in range(group.count):
                # A sunflower's seeds: evenly apart, however many.
                angle, radius = 2.4 * i, 0.6 * math.sqrt(i)
                place = (group.at[0] + radius * math.cos(angle), group.at[1] + radius * math.sin(angle))
                unit = self._add(kind, type_id, group.owner, place, spread=0.05)
                if group.owner == COMPUTER and self.map.attack is not None:
                    unit.order = Order(Aim.MARCH, place=self.map.attack)

    def _add(self, kind: UnitKind, type_id: int, owner: int, place: Point, spread: float) -> Unit:
        x, y = (
            min(max(c + self._random.uniform(-spread, spread), 0.5), size - 0.5)
            for c, size in zip(place, self.map.size, strict=True)
        )
        unit = Unit((1 << 32) + self._next_tag, kind, type_id, owner, (x, y))
        self._next_tag += 1
        self.units[unit.tag] = unit
        return unit

    def _foes(self, unit: Unit) -> list[Unit]:
        return [other for other in self.units.values() if other.owner != unit.owner]

    def _send_after(self) -> None:
        for unit in self.units.values():
            if unit.owner == COMPUTER and unit.order is None:
                prey = min(self._foes(unit), key=unit.gap, default=None)
                if prey is not None:
                    unit.order = Order(Aim.CHASE, tag=prey.tag)

    def _act(self, unit: Unit) -> None:
        if unit.kind.heals and self._heal(unit):
            return
        order = unit.order
        target = self.units.get(order.tag) if order is not None and order.aim is Aim.TARGET else None
        if order is not None and order.aim is Aim.TARGET and target is None:
            unit.order = order = None
        if target is None and not unit.learner and (order is None or order.aim is not Aim.MOVE):
            target = self._in_sight(unit)
        if target is not None and not unit.kind.heals:
            if unit.gap(target) > unit.kind.reach:
                unit.approach((target.x, target.y))
            elif unit.cooldown <= 0:
                self._strike(unit, target)
        elif order is not None and order.aim in (Aim.MOVE, Aim.MARCH):
            if unit.approach(order.place):
                unit.order = None
        elif order is not None and order.aim is Aim.CHASE:
            prey = self.units.get(order.tag)
            if prey is None or unit.approach((prey.x, prey.y)):
                unit.order = None

    def _in_sight(self, unit: Unit) -> Unit | None:
        if unit.kind.damage == 0:
            return None
        nearest = min(self._foes(unit), key=unit.gap, default=None)
        return nearest if nearest is not None and unit.gap(nearest) < unit.kind.sight else None

    def _heal(self, unit: Unit) -> bool:
        """Heal whom the order names, or whoever is hurt nearby; tell whether there was somebody."""
        order = unit.order
        patient = self.units.get(order.tag) if order is not None and order.aim is Aim.TARGET else None
        if patient is None and not unit.learner:
            hurt = [
                other
                for other in self.units.values()
                if other.owner == unit.owner
                and not other.kind.flies
                and other.health < other.kind.health
                and unit.gap(other) < 8
            ]
            patient = min(hurt, key=unit.gap, default=None)
        if patient is None:
            return False
        if unit.gap(patient) > unit.kind.reach:
            unit.approach((patient.x, patient.y))
        elif unit.energy > ENERGY_PER_LOOP and patient.health < patient.kind.health:
            patient.health = min(patient.health + HEALED_PER_LOOP, patient.kind.health)
            unit.energy -= ENERGY_PER_LOOP
        return True

    def _strike(self, unit: Unit, target: Unit) -> None:
        targets = [target]
        if unit.kind.bursts:
            targets = [foe for foe in self._foes(unit) if unit.gap(foe) < BURST_RADIUS]
            unit.health = 0
        for victim in targets:
            victim.suffer(unit.kind.damage, unit.kind.hits)
        unit.cooldown = unit.kind.cooldown + self._random.uniform(-1, 2)

    def _push_apart(self) -> None:
        walkers = [unit for unit in self.units.values() if not unit.kind.flies]
        if len(walkers) > 1:
            places = np.array([(unit.x, unit.y) for unit in walkers])
            radii = np.array([unit.kind.radius for unit in walkers])
            apart = places[:, None] - places[None]
            distance = np.sqrt((apart**2).sum(axis=2)) + 1e-6
            overlap = np.maximum(radii[:, None] + radii[None] - distance, 0)
            np.fill_diagonal(overlap, 0)
            if overlap.any():
                places += (apart / distance[..., None] * overlap[..., None] * 0.25).sum(axis=1)
                for unit, (x, y) in zip(walkers, places.tolist(), strict=True):
                    if unit.kind.speed > 0:
                        unit.x, unit.y = x, y
        for unit in self.units.values():
            unit.x = min(max(unit.x, 0.2), self.map.size[0] - 0.2)
            unit.y = min(max(unit.y, 0.2), self.map.size[1] - 0.2)
