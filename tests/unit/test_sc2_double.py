"""The test double of StarCraft II: what tests of the adapter rely on it for."""

from __future__ import annotations

import importlib.util
import json

import pytest
from sc2_double.battle import Aim, Battle, Order
from sc2_double.maps import COMPUTER, FOLDER, LEARNERS, BattleMap
from sc2_double.units import KINDS, N_UNIT_TYPES

from macflow.envs.entries.smac import V1_MAPS, V2_MAP_FILE


def battle(name: str, seed: int = 0) -> Battle:
    return Battle(BattleMap.read((FOLDER / f"{name}.json").read_bytes()), seed)


def picture(game: Battle) -> list[tuple[int, float, float, float]]:
    return [(unit.tag, unit.x, unit.y, unit.health) for unit in game.units.values()]


def team(game: Battle, owner: int) -> list[int]:
    return [tag for tag, unit in game.units.items() if unit.owner == owner]


@pytest.mark.parametrize("name", [*V1_MAPS, V2_MAP_FILE])
def test_every_map_is_there_with_the_teams_that_it_should_have(name: str) -> None:
    game = battle(name)
    allies, enemies, bits = V1_MAPS.get(name, (None, None, 0))
    assert len(team(game, LEARNERS)) == (allies.units if allies else 0)
    assert len(team(game, COMPUTER)) == (enemies.units if enemies else 0)
    types = sorted({unit.type_id for unit in game.units.values() if unit.learner})
    assert len(types) == (max(bits, 1) if allies else 0)
    # The package takes the learners' types for the last ones.
    assert types == list(range(N_UNIT_TYPES - len(types), N_UNIT_TYPES))


def test_a_game_is_a_function_of_its_seed() -> None:
    one, same, other = battle("2s3z", 4), battle("2s3z", 4), battle("2s3z", 5)
    for game in (one, same, other):
        game.run(250)
    assert picture(one) == picture(same) != picture(other)
    assert len(one.units) < 10


def test_the_dead_are_born_again_in_the_very_loop_in_which_the_last_one_dies() -> None:
    game = battle("3m")
    before = set(game.units)
    game.kill(list(before))
    game.run(1)
    assert len(game.units) == 6
    assert not before & set(game.units)


def test_learners_wait_for_orders_and_the_computers_units_do_not() -> None:
    game = battle("3m")
    game.run(200)
    assert {game.units[tag].health for tag in team(game, COMPUTER)} == {KINDS["marine"].health}
    game = battle("3m")
    ours, theirs = team(game, LEARNERS), team(game, COMPUTER)
    game.command(ours, Order(Aim.TARGET, tag=theirs[0]))
    game.run(150)
    assert theirs[0] not in game.units


def test_units_are_created_where_told_unless_the_map_ignores_it() -> None:
    open_map = BattleMap.read(b'{"chase": true}')
    closed = BattleMap.read(json.dumps({"ignored_creations": 2}).encode())
    for battle_map, born in ((open_map, 3), (closed, 1)):
        game = Battle(battle_map, 0)
        game.create(game.types["marauder"], LEARNERS, (8, 16), 1)
        game.create(KINDS["zealot"].type_id, COMPUTER, (24, 16), 2)
        assert not game.units
        game.run(1)
        assert len(game.units) == born
    # Sent after the only foe, and there in time.
    game = Battle(open_map, 0)
    game.create(game.types["marauder"], LEARNERS, (8, 16), 1)
    game.create(KINDS["zealot"].type_id, COMPUTER, (24, 16), 2)
    game.run(300)
    assert not team(game, LEARNERS)


@pytest.mark.skipif(importlib.util.find_spec("s2clientprotocol") is None, reason="s2clientprotocol is absent")
def test_requests_are_refused_in_the_wrong_state() -> None:
    from sc2_double.protocol import Game, api

    def ask(**request: object) -> str:
        answer = game.answer(api.Request(id=7, **request))
        assert answer.id == 7
        assert answer.status == game.status
        return "".join(answer.error)

    game = Game()
    create = api.RequestCreateGame(local_map=api.LocalMap(map_data=(FOLDER / "3m.json").read_bytes()))
    assert ask(step=api.RequestStep(count=1)) == "step: not valid in the state launched"
    assert ask(create_game=create) == ""
    assert ask(join_game=api.RequestJoinGame(race=1, options=api.InterfaceOptions(raw=True))) == ""
    assert ask(create_game=create) == "create_game: not valid in the state in_game"
    assert ask(step=api.RequestStep(count=1)) == ""
    assert ask(available_maps=api.RequestAvailableMaps()) == "available_maps: not known to the test double"
    assert ask(leave_game=api.RequestLeaveGame()) == ""
    assert ask(create_game=create) == ""
