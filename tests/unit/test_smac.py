"""StarCraft II's adapter: what it says where the game is absent, and each fault of the package it repairs.

The real packages play against `sc2_double`; the scores here mean nothing.
"""

from __future__ import annotations

import copy
import importlib.util
import json
import random
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from numpy.typing import NDArray
from sc2_double.install import BUILD, install_double

from macflow.envs import smac_install
from macflow.envs.base import BatchedEnv, BatchStep
from macflow.envs.entries import smac as entries
from macflow.envs.registry import ENVIRONMENTS, env_spec, make_behaviour, make_env, make_parallel
from macflow.envs.smac_protobuf import install_protocol
from macflow.envs.smac_scripts import FocusFire, Layout
from macflow.types import BatchObs, ConfigError, DataError, MultiAgentSpec

if TYPE_CHECKING:
    from macflow.envs.smac import StarCraftBattle
    from macflow.envs.smac_game import Battle

needs_package = pytest.mark.skipif(
    importlib.util.find_spec("smacv2") is None, reason="smacv2 is not installed (docs/starcraft.md)"
)

# Observations, state, actions, step limit: as SMAC's and SMACv2's papers and code have them.
SIZES = {
    "smac/3m": (30, 48, 9, 60),
    "smac/8m": (80, 168, 14, 120),
    "smac/2s3z": (80, 120, 11, 120),
    "smac/5m_vs_6m": (55, 98, 12, 70),
    "smac/MMM2": (176, 322, 18, 180),
    "smac/corridor": (156, 282, 30, 400),
    "smacv2/terran_5_vs_5": (82, 120, 11, 200),
    "smacv2/zerg_10_vs_10": (162, 290, 16, 200),
    "smacv2/terran_10_vs_11": (170, 306, 17, 200),
    "smacv2/terran_20_vs_20": (322, 780, 26, 200),
    "smacv2/protoss_5_vs_5": (92, 130, 11, 200),
    "smacv2/protoss_10_vs_10": (182, 310, 16, 200),
}


@pytest.fixture(scope="module")
def sc2path(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """An installation of the test double, to which SC2PATH points."""
    folder = install_double(tmp_path_factory.mktemp("sc2") / "StarCraftII")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SC2PATH", str(folder))
        yield folder


Make = Callable[..., "Battle"]


@pytest.fixture
def battle(sc2path: Path) -> Iterator[Make]:
    """Makes battles that are closed in the end."""
    made = []

    def make(map_name: str, new_game: bool = True, race: str = "", **options: Any) -> Battle:
        from macflow.envs.smac_game import Battle

        config = entries.capabilities(race, 5, 5) if race else {}
        made.append(Battle(map_name, new_game, config, **options))
        return made[-1]

    yield make
    for one in made:
        one.close()


@pytest.fixture
def bare(sc2path: Path) -> Iterator[Callable[[str], Any]]:
    """Makes environments of the package as it is."""
    made = []

    def make(map_name: str) -> Any:
        from macflow.envs.smac_game import starcraft2

        made.append(starcraft2.StarCraft2Env(map_name=map_name))
        return made[-1]

    yield make
    for one in made:
        one.close()


def play_on(env: Any, steps: int = 1000) -> list[tuple[float, bool, dict[str, Any]]]:
    """Take the last legal action of each agent, which is to attack where that is possible."""
    taken = []
    for _ in range(steps):
        actions = [int(np.flatnonzero(mask)[-1]) for mask in env.get_avail_actions()]
        taken.append((env.play if hasattr(env, "play") else env.step)(actions))
        if taken[-1][1]:
            break
    return taken


def episode(env: BatchedEnv, seeds: list[int], index: int = 0) -> list[NDArray[Any]]:
    """Play at random until environment `index` has finished; return all that it showed."""
    actor = make_behaviour("game/xor", {}, "random")
    actor._spec = env.spec  # uniform over the legal actions of any discrete environment
    actor.reset(seeds)
    seen: BatchObs | BatchStep = env.reset(seeds)
    found = [seen.obs[index], seen.state[index], seen.legal_actions[index]]
    for _ in range(env.max_steps):
        step = env.step(actor.act(seen))
        found += [step.obs[index], step.state[index], step.legal_actions[index], step.rewards[index]]
        seen = step
        if step.finished[index]:
            break
    return found


def assert_same(left: list[NDArray[Any]], right: list[NDArray[Any]]) -> None:
    assert len(left) == len(right)
    for a, b in zip(left, right, strict=True):
        np.testing.assert_array_equal(a, b)


def global_random_numbers() -> tuple[Any, ...]:
    """Return the state of the generators that the whole process shares."""
    return random.getstate(), np.random.get_state()[1].tolist()  # noqa: NPY002


# ---- without the package


def test_all_maps_and_scenarios_are_listed() -> None:
    ours = [env_id for env_id in ENVIRONMENTS if env_id.startswith(("smac/", "smacv2/"))]
    assert len(ours) == 23 + 3 * 5
    assert {"smac/3m", "smac/5m_vs_6m", "smacv2/terran_20_vs_23", "smacv2/zerg_10_vs_11"} < set(ours)
    for env_id in ours:
        assert ENVIRONMENTS[env_id].behaviours.keys() == {"focus-fire", "focus-fire-mixed", "random"}


def test_what_is_missing_is_told_in_the_order_of_installing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    missing = ENVIRONMENTS["smacv2/terran_5_vs_5"].missing
    monkeypatch.setattr(smac_install, "_is_there", lambda module: module not in ("smacv2", "pysc2"))
    told = missing()
    assert told is not None
    assert told.startswith("smacv2, pysc2: not installed; pip install absl-py ")
    assert "--no-deps pysc2 s2clientprotocol git+https://github.com/oxwhirl/smacv2" in told

    monkeypatch.setattr(smac_install, "_is_there", lambda module: True)
    monkeypatch.delenv("SC2PATH", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    told = missing()
    assert told is not None
    assert f"no build in {tmp_path / 'StarCraftII' / 'Versions'} (SC2PATH is not set)" in told
    assert "https://github.com/Blizzard/s2client-proto#linux-packages, and set SC2PATH" in told

    folder = tmp_path / "game"
    monkeypatch.setenv("SC2PATH", str(folder))
    for name in ("BaseX", "Base75689", "Base4712"):
        assert f"no build in {folder / 'Versions'} (as SC2PATH says)" in str(missing())
        (folder / "Versions" / name).mkdir(parents=True)
        if name == "BaseX":
            continue
        told = missing()
        assert told is not None
        assert told.startswith(f"the map {folder / 'Maps' / 'SMAC_Maps' / '32x32_flat.SC2Map'} is not there")
        assert f"into {folder / 'Maps'} (docs/starcraft.md" in told
        break
    (folder / "Maps" / "SMAC_Maps").mkdir(parents=True)
    (folder / "Maps" / "SMAC_Maps" / "32x32_flat.SC2Map").touch()
    assert missing() is None
    # Each map is looked for by itself.
    assert "3m.SC2Map is not there" in str(ENVIRONMENTS["smac/3m"].missing())


def test_the_newest_build_counts(tmp_path: Path) -> None:
    assert smac_install.game_build(tmp_path) is None
    for name in ("Base4712", "Base75689", "Base60321", "Shared"):
        (tmp_path / "Versions" / name).mkdir(parents=True)
    assert smac_install.game_build(tmp_path) == 75689


def test_every_use_of_an_absent_game_is_a_config_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(smac_install, "_is_there", lambda module: module != "smacv2")
    for use in (
        lambda: make_env("smac/3m", {}, 1),
        lambda: make_env("smac/3m", {}, 4, workers=2),
        lambda: make_parallel("smac/3m", {}),
        lambda: make_behaviour("smac/3m", {}, "random"),
        lambda: env_spec("smac/3m", {}),
    ):
        with pytest.raises(ConfigError, match="smac/3m: smacv2: not installed; pip install"):
            use()


@pytest.mark.parametrize(
    ("env_id", "kwargs", "message"),
    [
        ("smac/3m", {"new_game": 1}, r"`.*new_game`: .*valid boolean \(received 1\)"),
        ("smac/3m", {"prob_obs_enemy": 0.5}, r"smac/3m takes new_game \(received prob_obs_enemy\)"),
        ("smacv2/zerg_5_vs_5", {"prob_obs_enemy": 1.5}, r"prob_obs_enemy`: .*\(received 1.5\)"),
    ],
)
def test_keywords_are_checked_before_anything_is_looked_for(
    env_id: str, kwargs: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        make_env(env_id, kwargs, 1)


# ---- the scripted behaviour

MARINES = Layout(ally_shields=False, enemy_shields=False, type_bits=0, healers=False)
HEALERS = Layout(ally_shields=False, enemy_shields=False, type_bits=3, healers=True)


def spec_for(n: int, m: int, layout: Layout) -> MultiAgentSpec:
    own = 1 + layout.ally_shields + layout.type_bits
    obs = 4 + m * layout.enemy_features + (n - 1) * layout.ally_features + own
    state = n * (layout.ally_features - 1) + m * (layout.enemy_features - 2)
    a = 6 + m
    agents = tuple(f"agent_{i}" for i in range(n))
    return MultiAgentSpec(agents, (obs,) * n, state, "discrete", a, (-1.0,) * a, (1.0,) * a)


class Scene:
    """One environment of two agents and three enemies, all alive and nobody in sight."""

    def __init__(self, layout: Layout) -> None:
        self.layout, self.spec = layout, spec_for(2, 3, layout)
        self.obs = np.zeros((1, 2, self.spec.obs_size), np.float32)
        self.state = np.zeros((1, self.spec.state_size), np.float32)
        self.legal = np.zeros((1, 2, 9), np.bool_)
        self.legal[:, :, 1:6] = True

    def sees_enemy(self, agent: int, enemy: int, offset: tuple[float, float], health: float = 1.0) -> None:
        size = self.layout.enemy_features
        seen = self.obs[0, agent, 4 + enemy * size : 4 + (enemy + 1) * size]
        seen[1:5] = [np.hypot(*offset), *offset, health]

    def in_range(self, agent: int, *targets: int) -> None:
        for target in targets:
            self.legal[0, agent, 6 + target] = True
            self.obs[0, agent, 4 + target * self.layout.enemy_features] = 1

    def act(self, chance: float = 0.0) -> list[int]:
        actor = FocusFire(self.spec, self.layout, lambda rng: chance)
        actor.reset([0])
        found: list[int] = actor.act(BatchObs(self.obs, self.state, self.legal))[0].tolist()
        return found


def test_focus_fire_shoots_the_weakest_in_range() -> None:
    scene = Scene(MARINES)
    for enemy, health in enumerate((0.9, 0.3, 0.1)):
        scene.sees_enemy(0, enemy, (0.1 * (enemy + 1), 0.0), health)
    scene.in_range(0, 0, 1)
    # The weakest of all is out of range. The other agent is dead.
    scene.legal[0, 1] = np.arange(9) == 0
    assert scene.act() == [7, 0]
    assert scene.act(chance=1.0) != [7, 0] or scene.act(chance=1.0)[1] == 0


def test_focus_fire_counts_shields() -> None:
    scene = Scene(Layout(ally_shields=True, enemy_shields=True, type_bits=2, healers=False))
    for enemy, (health, shield) in enumerate(((0.5, 0.9), (0.8, 0.0), (1.0, 1.0))):
        scene.sees_enemy(0, enemy, (0.1, 0.1), health)
        scene.obs[0, 0, 4 + enemy * scene.layout.enemy_features + 5] = shield
    scene.in_range(0, 0, 1, 2)
    assert scene.act()[0] == 7


@pytest.mark.parametrize(
    ("offset", "action"), [((0.1, 0.5), 2), ((0.1, -0.5), 3), ((0.5, 0.1), 4), ((-0.5, 0.1), 5)]
)
def test_focus_fire_walks_to_the_nearest_in_sight(offset: tuple[float, float], action: int) -> None:
    scene = Scene(MARINES)
    scene.sees_enemy(0, 2, offset)
    scene.sees_enemy(0, 0, (-0.6, -0.6))
    assert scene.act()[0] == action
    # Round what is in the way.
    scene.legal[0, 0, action] = False
    assert scene.act()[0] == {2: 4, 3: 4, 4: 2, 5: 2}[action]


def test_focus_fire_searches_by_the_state_when_nobody_is_in_sight() -> None:
    scene = Scene(MARINES)
    own, theirs = 4, 3
    scene.state[0, own + 2 : own + 4] = [0.4, -0.4]  # agent 1; agent 0 stands in the middle
    for enemy, (health, x, y) in enumerate(((0.0, 0.1, 0.0), (1.0, 0.0, 0.4), (1.0, 0.4, 0.3))):
        scene.state[0, 2 * own + theirs * enemy : 2 * own + theirs * (enemy + 1)] = [health, x, y]
    # The nearest of all is dead. Enemy 1 is north of agent 0, enemy 2 north of agent 1.
    assert scene.act() == [2, 2]
    scene.state[0, 2 * own :] = 0
    assert scene.act() == [1, 1]


def test_focus_fire_takes_a_legal_attack_for_out_of_range_where_the_observation_says_so() -> None:
    scene = Scene(MARINES)
    scene.sees_enemy(0, 1, (0.9, 0.0))
    scene.legal[0, 0, 6:] = True  # as without the mask
    assert scene.act()[0] == 4
    scene.obs[:] = 0  # as where the package hides an enemy in range
    assert scene.act()[0] == 6


def test_healers_heal_the_weakest_ally_that_they_reach() -> None:
    scene = Scene(HEALERS)
    size, start = HEALERS.ally_features, 4 + 3 * HEALERS.enemy_features
    scene.obs[0, 1, -1] = 1  # agent 1 is of the last type
    ally = scene.obs[0, 1, start : start + size]
    ally[:5] = [1, 0.5, -0.5, 0.0, 0.2]
    scene.sees_enemy(1, 0, (0.0, 0.5))
    assert scene.act()[1] == 5, "follows"
    scene.legal[0, 1, 6] = True
    assert scene.act()[1] == 6, "heals ally 0"


# ---- with the package


@needs_package
@pytest.mark.parametrize("env_id", list(SIZES))
def test_sizes_are_the_packages(sc2path: Path, env_id: str) -> None:
    env = make_env(env_id, {}, 1)
    obs, state, actions, limit = SIZES[env_id]
    spec = env.spec
    assert set(spec.obs_dims) == {obs}
    assert (spec.state_size, spec.action_size, env.max_steps) == (state, actions, limit)
    assert spec.agent_ids == tuple(f"agent_{i}" for i in range(spec.n_agents))
    env.close()


@needs_package
def test_our_table_of_maps_is_the_packages(sc2path: Path) -> None:
    install_protocol()
    from smacv2.env.starcraft2.maps.smac_maps import get_smac_map_registry

    theirs = get_smac_map_registry()
    assert {name for name in theirs if not name.startswith("10gen")} == set(entries.V1_MAPS)
    assert {theirs[f"10gen_{race}"]["map_name"] for race in entries.V2_RACES} == {entries.V2_MAP_FILE}
    for name, (allies, enemies, bits) in entries.V1_MAPS.items():
        found = theirs[name]
        assert found["map_name"] == name
        assert (allies.units, enemies.units) == (found["n_agents"], found["n_enemies"])
        assert (allies.race, enemies.race) == (found["a_race"], found["b_race"])
        assert bits == found["unit_type_bits"]


@needs_package
@pytest.mark.parametrize("env_id", [e for e in ENVIRONMENTS if e.startswith(("smac/", "smacv2/"))])
def test_layouts_are_where_the_package_names_the_numbers(sc2path: Path, env_id: str) -> None:
    env: StarCraftBattle = make_parallel(env_id, {})
    layout = ENVIRONMENTS[env_id].behaviours["focus-fire"](env_spec(env_id, {}))._layout
    obs, state = env._battle.get_obs_feature_names(), env._battle.get_state_feature_names()
    n, m = env._battle.n_agents, env._battle.n_enemies
    for e in (0, m - 1):
        at = 4 + e * layout.enemy_features
        names = ["shootable", "distance", "relative_x", "relative_y", "health"]
        names += ["shield"] if layout.enemy_shields else []
        assert obs[at : at + len(names)] == [f"enemy_{name}_{e}" for name in names]
        at = n * (layout.ally_features - 1) + e * (layout.enemy_features - 2)
        assert state[at : at + 3] == [f"enemy_{name}_{e}" for name in ("health", "relative_x", "relative_y")]
    at = 4 + m * layout.enemy_features + (n - 2) * layout.ally_features
    names = ["visible", "distance", "relative_x", "relative_y", "health"]
    assert obs[at : at + 5] == [f"ally_{name}_{n - 1}" for name in names]
    at = (n - 1) * (layout.ally_features - 1)
    assert state[at + 2 : at + 4] == [f"ally_relative_{axis}_{n - 1}" for axis in "xy"]
    if layout.type_bits:
        assert obs[-1] == f"own_unit_type_bit_{layout.type_bits - 1}"
    env.close()


@needs_package
def test_the_message_classes_are_built_without_slowing_protobuf() -> None:
    code = (
        "import warnings; warnings.simplefilter('error')\n"
        "{shim}\n"
        "from google.protobuf.internal import api_implementation\n"
        "from s2clientprotocol import sc2api_pb2 as api\n"
        "asked = api.Request(id=3, step=api.RequestStep(count=8))\n"
        "same = api.Request.FromString(asked.SerializeToString())\n"
        "print(api_implementation.Type(), same.step.count, api.Status.Name(api.in_game))\n"
    )

    def run(shim: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([sys.executable, "-c", code.format(shim=shim)], capture_output=True, text=True)

    shim = "from macflow.envs.smac_protobuf import install_protocol as f; f(); f()"
    assert run(shim).stdout == "upb 8 in_game\n"
    # What makes it necessary.
    assert "Descriptors cannot be created directly" in run("").stderr


class Endless(Exception):
    """More requests than any reset takes."""


@needs_package
def test_the_second_reset_of_a_v1_map_returns(battle: Make, bare: Callable[[str], Any]) -> None:
    env = battle("3m", new_game=False)
    tags = set()
    for seed in range(3):
        env.begin(seed)
        tags |= {unit.tag for unit in (*env.agents.values(), *env.enemies.values())}
        assert [unit.health for unit in env.agents.values()] == [45, 45, 45]
        assert play_on(env)[-1][1]
    assert len(tags) == 18, "everyone is new each time"

    unpatched = bare("3m")
    unpatched.reset()
    play_on(unpatched)
    step, asked = unpatched._controller.step, iter(range(100))

    def counted(count: int = 1) -> Any:
        if next(asked, None) is None:
            raise Endless
        return step(count)

    unpatched._controller.step = counted
    with pytest.raises(Endless):
        unpatched.reset()


@needs_package
@pytest.mark.parametrize(
    ("name", "types"), [("2s3z", [0, 0, 1, 1, 1]), ("MMM", [0, 0, 1, 1, 1, 1, 1, 1, 1, 2])]
)
def test_allies_have_the_type_that_they_are_of(battle: Make, name: str, types: list[int]) -> None:
    env = battle(name)
    obs, state = env.begin(0)
    bits = max(types) + 1
    width = env.get_ally_num_attributes()
    shown = state[: len(types) * width].reshape(len(types), width)[:, -bits:]
    np.testing.assert_array_equal(shown, np.eye(bits)[types])
    np.testing.assert_array_equal(np.array(obs)[:, -bits:], np.eye(bits)[types])


@needs_package
def test_the_package_alone_has_wrong_types(bare: Callable[[str], Any]) -> None:
    with pytest.raises(IndexError):
        bare("2s3z").reset()
    env = bare("MMM")
    obs, _ = env.reset()
    assert np.array(obs)[:, -3:].argmax(axis=1).tolist() == [2] * 10


@needs_package
@pytest.mark.parametrize(
    ("env_id", "kwargs"), [("smac/2s3z", {}), ("smacv2/terran_5_vs_5", {"prob_obs_enemy": 0.5})]
)
def test_an_episode_depends_on_its_seed_alone(sc2path: Path, env_id: str, kwargs: dict[str, Any]) -> None:
    alone, together = make_env(env_id, kwargs, 1), make_env(env_id, kwargs, 2)
    random.seed(1)
    np.random.seed(1)  # noqa: NPY002
    first = episode(alone, [7])
    other = episode(alone, [8])
    assert not np.array_equal(first[1], other[1])
    assert_same(episode(alone, [7]), first)
    # Next to another, after other episodes, with the process's generators in another state.
    random.seed(2)
    np.random.seed(2)  # noqa: NPY002
    assert_same(episode(together, [7, 3]), first)
    assert_same(episode(together, [5, 7], index=1), first)
    alone.close()
    together.close()


@needs_package
def test_the_processs_random_numbers_are_left_alone(battle: Make) -> None:
    env = battle("10gen_zerg", race="zerg")
    before = global_random_numbers()
    env.begin(0)
    play_on(env, 3)
    env.look()
    assert global_random_numbers() == before


@needs_package
@pytest.mark.parametrize("new_game", [True, False])
def test_resetting_early_starts_no_second_process_and_keeps_the_scale(battle: Make, new_game: bool) -> None:
    env = battle("3m", new_game=new_game)
    env.begin(0)
    process, scale = env._sc2_proc, env.max_reward
    assert scale == 3 * 10 + 200 + 3 * 45
    for seed in (0, 1):
        play_on(env, 2)
        env.begin(seed)
        assert (env._sc2_proc, env.max_reward) == (process, scale)
        assert process.running


@needs_package
def test_the_package_alone_leaks_a_process_and_rescales(bare: Callable[[str], Any]) -> None:
    env = bare("3m")
    env.reset()
    first, scale = env._sc2_proc, env.max_reward
    env.reset()
    assert env._sc2_proc is not first
    assert first.running
    assert env.max_reward == scale + 3 * 45
    first.close()


@needs_package
def test_the_scale_of_rewards_is_that_of_the_episodes_own_enemies(battle: Make) -> None:
    env = battle("10gen_protoss", race="protoss")
    scales = {}
    for seed in (0, 1, 2, 1, 0):
        env.begin(seed)
        health = sum(unit.health + unit.shield for unit in env.enemies.values())
        assert env.max_reward == 5 * 10 + 200 + health
        assert scales.setdefault(seed, env.max_reward) == env.max_reward
    assert len(set(scales.values())) > 1, "teams differ"


@needs_package
def test_victory_is_told_and_worth_twenty(sc2path: Path) -> None:
    env: StarCraftBattle = make_parallel("smac/3m", {})
    actor = make_behaviour("smac/3m", {}, "focus-fire")
    ends = []
    for seed in range(4):
        actor.reset([seed])
        obs, infos = env.reset(seed=seed)
        total = 0.0
        while env.agents:
            joint = actor.act(
                BatchObs(
                    np.stack(list(obs.values()))[None],
                    env.state()[None],
                    np.stack([info["action_mask"] for info in infos.values()])[None].astype(np.bool_),
                )
            )[0]
            obs, rewards, terminated, truncated, infos = env.step(
                dict(zip(env.agents, joint.tolist(), strict=True))
            )
            assert len(set(rewards.values())) == 1, "shared"
            total += rewards["agent_0"]
        assert set(terminated.values()) == {True}
        assert set(truncated.values()) == {False}
        won = {info["battle_won"] for info in infos.values()}
        dead = all(unit.health == 0 for unit in env._battle.enemies.values())
        assert won == {dead}
        assert (total == pytest.approx(20)) == dead
        ends.append(dead)
    assert len(set(ends)) == 2, "both ends are seen"
    env.close()


@needs_package
def test_the_capabilities_given_are_not_written_into(sc2path: Path) -> None:
    from macflow.envs.smac_game import Battle

    config = entries.capabilities("terran", 5, 6)
    kept = copy.deepcopy(config)
    env = Battle("10gen_terran", True, config)
    env.begin(0)
    assert config == kept
    assert (len(env.agents), len(env.enemies)) == (5, 6)
    env.close()


@needs_package
def test_time_limits_truncate_and_battles_that_end_terminate(sc2path: Path) -> None:
    env = make_env("smac/3m", {}, 1)
    episode_of_3 = episode(env, [3])
    length = (len(episode_of_3) - 3) // 4
    raw = env._envs[0]._battle
    for limit, ends in ((length - 1, (False, True)), (length, (True, False))):
        # The battle that ends in the very last step has ended.
        raw.episode_limit = limit
        actor = make_behaviour("smac/3m", {}, "random")
        actor.reset([3])
        seen: BatchObs | BatchStep = env.reset([3])
        for _ in range(limit):
            step = env.step(actor.act(seen))
            seen = step
        assert (bool(step.terminated[0]), bool(step.truncated[0])) == ends
    env.close()


def crash(env: StarCraftBattle) -> None:
    process = env._battle._sc2_proc._proc
    process.kill()
    process.wait()


@needs_package
def test_a_crash_is_an_error_and_the_next_reset_works(sc2path: Path) -> None:
    from macflow.envs.smac_game import GameError

    env: StarCraftBattle = make_parallel("smac/3m", {})
    stop = dict.fromkeys(env.possible_agents, 1)
    first, _ = env.reset(seed=5)
    second = env.step(stop)[0]
    crash(env)
    with pytest.raises(GameError, match=r"3m: .* in step 2 of an episode, which has to be dropped \(.+\)"):
        env.step(stop)
    assert env._battle._sc2_proc is None
    with pytest.raises(DataError, match="`step` needs a `reset`"):
        env.step(stop)
    again, _ = env.reset(seed=5)
    for agent in env.agents:
        np.testing.assert_array_equal(again[agent], first[agent])
    # Between episodes nothing is lost.
    crash(env)
    again, _ = env.reset(seed=5)
    after = env.step(stop)[0]
    for agent in env.agents:
        np.testing.assert_array_equal(again[agent], first[agent])
        np.testing.assert_array_equal(after[agent], second[agent])
    env.close()


@needs_package
def test_the_package_alone_takes_time_limits_and_crashes_for_ends(bare: Callable[[str], Any]) -> None:
    env = bare("3m")
    env.reset()
    env.episode_limit = 2
    _, ended, info = play_on(env)[-1]
    assert ended
    assert "episode_limit" not in info
    env._sc2_proc._proc.kill()
    env._sc2_proc._proc.wait()
    assert env.step([1, 1, 1]) == (0, True, {})


@needs_package
def test_the_package_alone_writes_into_the_capabilities() -> None:
    install_protocol()
    from smacv2.env import StarCraftCapabilityEnvWrapper

    config: dict[str, Any] = {"n_units": 5, "n_enemies": 5, **entries.capabilities("zerg", 5, 5)}
    for part in ("team_gen", "start_positions"):
        config[part] = {key: value for key, value in config[part].items() if not key.startswith("n_")}
    kept = copy.deepcopy(config)
    StarCraftCapabilityEnvWrapper(capability_config=config, map_name="10gen_zerg")
    assert config != kept


@needs_package
def test_units_that_do_not_appear_are_drawn_again(
    sc2path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, battle: Make
) -> None:
    from macflow.envs import smac_game

    crowded = Path(shutil.copytree(sc2path, tmp_path / "sc2"))
    file = crowded / "Maps" / "SMAC_Maps" / "32x32_flat.SC2Map"
    mended = file.read_text()
    file.write_text(json.dumps(json.loads(mended) | {"ignored_creations": 1}))
    monkeypatch.setenv("SC2PATH", str(crowded))
    monkeypatch.setattr(smac_game, "SPAWN_ATTEMPTS", 1)
    env = battle("10gen_terran", race="terran")
    with pytest.raises(smac_game.GameError, match=r"did not create all units in 1 attempts .*seed 4\)"):
        env.begin(4)
    assert env._sc2_proc is None

    monkeypatch.setattr(smac_game, "SPAWN_ATTEMPTS", 2)
    close = env.close

    def close_and_mend() -> None:
        close()
        file.write_text(mended)

    monkeypatch.setattr(env, "close", close_and_mend)
    obs, state = env.begin(4)
    assert len(obs) == len(env.agents) == len(env.enemies) == 5
    assert state.shape == (env.get_state_size(),)


@needs_package
def test_a_game_that_does_not_start_is_a_clear_error(
    sc2path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, battle: Make
) -> None:
    from macflow.envs.smac_game import GameError

    broken = Path(shutil.copytree(sc2path, tmp_path / "sc2"))
    program = broken / "Versions" / f"Base{BUILD}" / "SC2_x64"
    program.write_text("#!/bin/sh\nexit 1\n")
    monkeypatch.setenv("SC2PATH", str(broken))
    with pytest.raises(GameError, match=r"3m: StarCraft II did not begin an episode \(Failed to connect"):
        battle("3m").begin(0)


@needs_package
def test_illegal_actions_are_refused_by_name(sc2path: Path) -> None:
    env: StarCraftBattle = make_parallel("smac/3m", {})
    with pytest.raises(DataError, match="`step` needs a `reset`"):
        env.step(dict.fromkeys(env.possible_agents, 1))
    env.reset(seed=0)
    for action in (0, 6, 99, -1):
        with pytest.raises(
            DataError, match=rf"received {action} for agent_1, which may take \[1, 2, 3, 4, 5\]"
        ):
            env.step({"agent_0": 1, "agent_1": action, "agent_2": 1})
    # None of these harmed it.
    assert env.step(dict.fromkeys(env.possible_agents, 1))[1]["agent_0"] == 0
    env.close()


@needs_package
def test_partial_observability_of_the_epo_variants(sc2path: Path) -> None:
    masked = make_env("smacv2/protoss_5_vs_5", {}, 1)
    blind = make_env("smacv2/protoss_5_vs_5", {"prob_obs_enemy": 0.0, "action_mask": False}, 1)
    kept = masked.reset([0])
    seen = blind.reset([0])
    # Every living enemy may be attacked from anywhere, if to no effect.
    assert seen.legal_actions is not None
    assert seen.legal_actions[0, :, 6:].all()
    assert kept.legal_actions is not None
    assert not kept.legal_actions[0, :, 6:].all()
    np.testing.assert_array_equal(seen.state, kept.state)
    masked.close()
    blind.close()


@needs_package
def test_a_frame_shows_the_living(sc2path: Path) -> None:
    env: StarCraftBattle = make_parallel("smac/3m", {})
    env.reset(seed=0)
    before = env.render()
    assert before.shape == (320, 320, 3)
    blue = (before == (45, 100, 200)).all(axis=2).sum()
    for unit in env._battle.agents.values():
        unit.health = 0
    after = env.render()
    assert blue > 100
    assert (after == (45, 100, 200)).all(axis=2).sum() == 0
    env.close()


@needs_package
def test_pettingzoo_accepts_it(sc2path: Path) -> None:
    with warnings.catch_warnings():
        # PettingZoo's tests import games of its own in a way that it deprecates itself.
        warnings.simplefilter("ignore", DeprecationWarning)
        from pettingzoo.test import parallel_api_test, parallel_seed_test

    env = make_parallel("smac/3m", {})
    parallel_api_test(env, num_cycles=60)
    env.close()
    made = []

    def make() -> Any:
        made.append(make_parallel("smac/3m", {}))
        return made[-1]

    parallel_seed_test(make, num_cycles=60)
    for one in made:
        one.close()


@needs_package
def test_the_version_tells_the_double_from_the_game(sc2path: Path) -> None:
    version = ENVIRONMENTS["smac/3m"].version()
    assert version.startswith("smacv2 ")
    assert version.endswith(f"StarCraft II build {BUILD}")
