"""Requests of StarCraft II's protocol and what they are answered with.

Which request is valid in which state is as the comments of Blizzard's sc2api.proto say.
"""

from __future__ import annotations

from typing import Any

from macflow.envs.smac_protobuf import install_protocol

# What the programs of the double and of pysc2 both need before their imports.
install_protocol()

from s2clientprotocol import sc2api_pb2 as api  # noqa: E402

from sc2_double.battle import Aim, Battle, Order, Unit  # noqa: E402
from sc2_double.maps import LEARNERS, BattleMap  # noqa: E402
from sc2_double.units import N_UNIT_TYPES  # noqa: E402

STOP, MOVE, ATTACK, HEAL = 4, 16, 23, 386  # abilities
_PLAYING = frozenset({api.in_game})
_VALID = {
    "create_game": frozenset({api.launched, api.ended}),
    "join_game": frozenset({api.init_game}),
    "leave_game": frozenset({api.in_game, api.ended}),
    "game_info": _PLAYING,
    "data": _PLAYING,
    "observation": _PLAYING,
    "action": _PLAYING,
    "step": _PLAYING,
    "debug": _PLAYING,
    "save_replay": _PLAYING,
}


class Game:
    """One running program: at most one game at a time, any number after each other."""

    def __init__(self) -> None:
        self.status = api.launched
        self._battle: Battle | None = None

    def answer(self, request: Any) -> Any:
        """Answer a `Request` with a `Response`."""
        kind = request.WhichOneof("request")
        response = api.Response()
        if request.HasField("id"):
            response.id = request.id
        handle = getattr(self, f"_{kind}", None)
        if handle is None:
            response.error.append(f"{kind}: not known to the test double")
        elif kind in _VALID and self.status not in _VALID[kind]:
            response.error.append(f"{kind}: not valid in the state {api.Status.Name(self.status)}")
        else:
            part = getattr(response, kind)
            part.SetInParent()
            handle(getattr(request, kind), part)
        response.status = self.status
        return response

    @property
    def battle(self) -> Battle:
        assert self._battle is not None
        return self._battle

    def _ping(self, request: Any, part: Any) -> None:
        part.game_version, part.data_version = "test double", ""

    def _create_game(self, request: Any, part: Any) -> None:
        seed = request.random_seed if request.HasField("random_seed") else None
        self._battle = Battle(BattleMap.read(request.local_map.map_data), seed)
        self.status = api.init_game

    def _join_game(self, request: Any, part: Any) -> None:
        part.player_id = LEARNERS
        self.status = api.in_game

    def _leave_game(self, request: Any, part: Any) -> None:
        self._battle = None
        self.status = api.launched

    def _game_info(self, request: Any, part: Any) -> None:
        width, height = self.battle.map.size
        raw = part.start_raw
        raw.map_size.x, raw.map_size.y = width, height
        raw.playable_area.p0.x = raw.playable_area.p0.y = 0
        raw.playable_area.p1.x, raw.playable_area.p1.y = width, height
        # Everything can be walked on and lies at one height.
        for image, bits, data in (
            (raw.pathing_grid, 1, b"\xff" * (width * height // 8)),
            (raw.terrain_height, 8, b"\x7f" * (width * height)),
        ):
            image.bits_per_pixel, image.data = bits, data
            image.size.x, image.size.y = width, height

    def _data(self, request: Any, part: Any) -> None:
        for type_id in range(N_UNIT_TYPES):
            part.units.add(unit_id=type_id, name=self.battle.name_of(type_id))

    def _observation(self, request: Any, part: Any) -> None:
        part.observation.game_loop = self.battle.loop
        raw = part.observation.raw_data
        raw.player.camera.x = raw.player.camera.y = 16
        for unit in self.battle.units.values():
            _show(unit, raw.units.add())

    def _action(self, request: Any, part: Any) -> None:
        for action in request.actions:
            command = action.action_raw.unit_command
            self.battle.command(list(command.unit_tags), _order(command))
            part.result.append(1)  # success

    def _step(self, request: Any, part: Any) -> None:
        self.battle.run(request.count or 1)

    def _debug(self, request: Any, part: Any) -> None:
        for command in request.debug:
            if command.HasField("kill_unit"):
                self.battle.kill(list(command.kill_unit.tag))
            elif command.HasField("create_unit"):
                born = command.create_unit
                self.battle.create(born.unit_type, born.owner, (born.pos.x, born.pos.y), born.quantity)

    def _save_replay(self, request: Any, part: Any) -> None:
        part.data = b"no replay: a test double"

    def _quit(self, request: Any, part: Any) -> None:
        self.status = api.quit


def _order(command: Any) -> Order | None:
    if command.ability_id == MOVE:
        place = command.target_world_space_pos
        return Order(Aim.MOVE, place=(place.x, place.y))
    if command.ability_id in (ATTACK, HEAL):
        return Order(Aim.TARGET, tag=command.target_unit_tag)
    assert command.ability_id == STOP
    return None


def _show(unit: Unit, shown: Any) -> None:
    kind = unit.kind
    shown.display_type = 1  # visible
    shown.alliance = 1 if unit.owner == LEARNERS else 4  # own, enemy
    shown.tag, shown.unit_type, shown.owner = unit.tag, unit.type_id, unit.owner
    shown.pos.x, shown.pos.y, shown.pos.z = unit.x, unit.y, 10
    shown.radius, shown.facing, shown.build_progress = kind.radius, 0, 1
    shown.health, shown.health_max = unit.health, kind.health
    shown.shield, shown.shield_max = unit.shield, kind.shield
    shown.weapon_cooldown = unit.cooldown
    if kind.heals:
        shown.energy, shown.energy_max = unit.energy, 200
