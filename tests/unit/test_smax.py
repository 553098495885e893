"""SMAX in batches: against jaxmarl stepped by itself, and what every batch must keep."""

from __future__ import annotations

import contextlib
import importlib
import io
import os
import stat
import subprocess
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from macflow.data.record import record_episodes
from macflow.envs import smax_scripts
from macflow.envs.base import BatchStep
from macflow.envs.registry import ENVIRONMENTS, env_spec, make_behaviour, make_env, make_parallel
from macflow.envs.smax_scripts import FULL_HEALTH, SIGHT_RANGE, STOP, FocusFire, Trained
from macflow.types import BatchObs, ConfigError, DataError

missing = ENVIRONMENTS["smax/3m"].missing()
if missing is not None:
    pytest.skip(missing, allow_module_level=True)

from macflow.envs import smax  # noqa: E402
from macflow.envs.smax import CHUNK, SmaxBatch, episode_keys, programs  # noqa: E402

with warnings.catch_warnings():
    # PettingZoo's tests import games of its own in a way that it deprecates itself.
    warnings.simplefilter("ignore", DeprecationWarning)
    from pettingzoo.test import parallel_api_test, parallel_seed_test

# Compiling is most of the time.
pytestmark = pytest.mark.timeout(300)

# Observation, state, actions.
SHAPES = {
    "3m": (3, 75, 72, 8),
    "8m": (8, 205, 192, 13),
    "5m_vs_6m": (5, 140, 132, 11),
    "2s3z": (5, 127, 120, 10),
    "smacv2_5_units": (5, 127, 120, 10),
    "smacv2_10_units": (10, 257, 240, 15),
}
SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in SHAPES if name != "3m"]


def play(
    env: SmaxBatch, seeds: Sequence[int], behaviour: str = "medium", env_id: str = "smax/3m"
) -> list[BatchObs | BatchStep]:
    """Return what is seen at every step until all have ended."""
    actor = make_behaviour(env_id, {}, behaviour)
    actor.reset(seeds)
    seen: list[BatchObs | BatchStep] = [env.reset(seeds)]
    while True:
        step = env.step(actor.act(seen[-1]))
        seen.append(step)
        if step.finished.all():
            return seen


def stops(env: SmaxBatch) -> np.ndarray:
    return np.full((env.n_envs, env.spec.n_agents), STOP)


@pytest.mark.parametrize("name", SHAPES)
def test_sizes_are_the_published_ones(name: str) -> None:
    spec = env_spec(f"smax/{name}", {})
    agents, obs, state, actions = SHAPES[name]
    assert (spec.n_agents, spec.obs_size, spec.state_size, spec.action_size) == (agents, obs, state, actions)
    assert spec.agent_ids == tuple(f"ally_{i}" for i in range(agents))
    assert make_env(f"smax/{name}", {}, 1).max_steps == 100


@pytest.mark.parametrize("name", ["3m", *SLOW])
def test_episodes_are_those_of_jaxmarl_stepped_by_itself(name: str) -> None:
    """One battle at a time, by jaxmarl's own `reset` and `step_env`, from the documented keys.

    Code for one battle rounds otherwise than code for many, and collisions of many units make more of
    the difference at every step. 3m's battles are compared from start to end all the same; the others
    step by step, each step from where the batch stands.
    """
    import jax

    seeds, n_envs = range(40, 46), 6
    env = SmaxBatch(name, n_envs)
    actor = make_behaviour(f"smax/{name}", {}, "medium-expert")
    theirs = programs(name).env
    n = theirs.num_allies
    keys = episode_keys(seeds)
    actor.reset(seeds)
    seen: BatchObs | BatchStep = env.reset(seeds)
    started = [theirs.reset(jax.random.fold_in(key, 0)) for key in keys]
    obs, battles = [o for o, _ in started], [battle for _, battle in started]
    over = np.zeros(n_envs, np.bool_)
    won = np.zeros(n_envs, np.bool_)
    for t in range(1, 101):
        assert seen.legal_actions is not None
        for i in range(n_envs):
            own = np.stack([obs[i][agent] for agent in theirs.agents])
            np.testing.assert_allclose(seen.obs[i], own, atol=1e-4)
            np.testing.assert_allclose(seen.state[i], obs[i]["world_state"], atol=1e-3)
            legal = theirs.get_avail_actions(battles[i])
            np.testing.assert_array_equal(seen.legal_actions[i], [legal[a] for a in theirs.agents])
        actions = actor.act(seen)
        if name != "3m":
            battles = [jax.tree.map(lambda x, i=i: x[i], env._battles[0]) for i in range(n_envs)]
        seen = step = env.step(actions)
        for i in range(n_envs):
            if over[i]:
                assert not step.rewards[i].any()
                continue
            joint = {agent: np.int32(a) for agent, a in zip(theirs.agents, actions[i], strict=True)}
            key = jax.random.fold_in(keys[i], t)
            obs[i], battles[i], reward, done, _ = theirs.step_env(key, battles[i], joint)
            np.testing.assert_allclose(step.rewards[i], float(reward["ally_0"]), atol=1e-5)
            over[i] = bool(done["__all__"])
            alive = np.asarray(battles[i].state.unit_alive)
            allies, enemies = alive[:n].any(), alive[n:].any()
            won[i] = allies and not enemies
            assert step.finished[i] == over[i]
            assert step.truncated[i] == (over[i] and allies and enemies)
        np.testing.assert_array_equal(env.won, won)
        if over.all():
            break
    assert over.all()
    assert won.any()
    assert not won.all()


@pytest.mark.parametrize("scenario", ["3m", *SLOW])
def test_an_episode_is_the_same_in_any_batch_and_place_bit_for_bit(scenario: str) -> None:
    # More than a chunk, so that an episode meets another chunk and another row.
    seeds = [7, 2**40 + 1, *range(100, 100 + CHUNK)]
    behaviour, env_id = "medium", f"smax/{scenario}"
    whole = play(SmaxBatch(scenario, len(seeds)), seeds, behaviour, env_id)
    for few in ([seeds[0]], [9, seeds[-1], seeds[1]]):
        part = play(SmaxBatch(scenario, len(few)), few, behaviour, env_id)
        rows = [seeds.index(seed) if seed in seeds else None for seed in few]
        for step, all_step in zip(part, whole, strict=False):
            for name, array in vars(step).items():
                for here, there in enumerate(rows):
                    if there is not None:
                        np.testing.assert_array_equal(array[here], getattr(all_step, name)[there])
    assert not np.array_equal(whole[0].obs[0], whole[0].obs[1])


def test_step_is_compiled_once_whatever_the_number_of_copies() -> None:
    for n_envs in (1, 5, CHUNK, CHUNK + 1):
        play(SmaxBatch("3m", n_envs), range(n_envs))
    compiled = programs("3m")
    assert compiled.reset._cache_size() == 1  # type: ignore[attr-defined]
    assert compiled.step._cache_size() == 1, "weak types of `reset`?"  # type: ignore[attr-defined]


def test_the_end_stays_and_nothing_starts_again() -> None:
    env = SmaxBatch("3m", 24)
    seen = play(env, range(24))
    last = seen[-1]
    assert isinstance(last, BatchStep)
    ends = [next(t for t, s in enumerate(seen) if t and s.finished[i]) for i in range(24)]  # type: ignore[union-attr]
    assert len(set(ends)) > 1
    for i, end in enumerate(ends):
        side_alive = [unit_health(seen[end].state[i])[part].any() for part in (slice(3), slice(3, 6))]
        assert side_alive[0] == env.won[i], "the last observation shows who is left"
        assert not all(side_alive)
        for later in seen[end:]:
            np.testing.assert_array_equal(later.obs[i], seen[end].obs[i])
            np.testing.assert_array_equal(later.state[i], seen[end].state[i])
        for later in seen[end + 1 :]:
            assert isinstance(later, BatchStep)
            assert not later.rewards[i].any()
            assert later.terminated[i]
            assert not later.truncated[i]
    won = env.won
    after = env.step(stops(env))
    np.testing.assert_array_equal(after.obs, last.obs)
    np.testing.assert_array_equal(env.won, won)
    assert 0 < won.sum() < 24
    env.reset(range(24))
    assert not env.won.any()
    assert not env.step(stops(env)).finished.all()


def unit_health(state: np.ndarray) -> np.ndarray:
    """Return the health of 3m's six units, of the state's ten features each."""
    return state[:60].reshape(6, 10)[:, 0]


def test_the_time_limit_truncates() -> None:
    env = SmaxBatch("3m", 2)
    env.reset([0, 1])
    # Nobody is near anybody yet; the clocks are put forward.
    battles = env._battles[0]
    env._battles[0] = battles.replace(state=battles.state.replace(step=battles.state.step + 97))
    flags = []
    for _ in range(3):
        step = env.step(stops(env))
        flags.append((step.truncated.tolist(), step.terminated.any()))
    assert flags == [([False] * 2, False)] * 2 + [([True] * 2, False)]
    assert (unit_health(step.state[0]) == 1).all()
    assert not env.won.any()
    after = env.step(stops(env))
    assert after.truncated.all()
    np.testing.assert_array_equal(after.state, step.state)
    assert not env.reset([0, 1]).state[:, 3].any()
    assert not env.step(stops(env)).truncated.any()


def test_the_dead_may_only_stop_and_what_is_illegal_is_refused() -> None:
    env = SmaxBatch("3m", 12)
    seen = play(env, range(12), "random")
    dead_agents = 0
    for step in seen:
        assert step.legal_actions is not None
        dead = step.state[:, :60].reshape(12, 6, 10)[:, :3, 0] == 0
        np.testing.assert_array_equal(step.legal_actions[:, :, STOP], True)
        np.testing.assert_array_equal(step.legal_actions.sum(axis=2) == 1, dead)
        dead_agents += int(dead.sum())
    assert dead_agents > 0

    env.reset(range(12))
    actions = stops(env)
    actions[5, 1] = 6
    with pytest.raises(
        DataError, match=r"legal ones \(received 6 for environment 5, agent 1, .*\[0, 1, 2, 3"
    ):
        env.step(actions)
    with pytest.raises(DataError, match=r"0 to 7 \(received 8 for environment 0, agent 0\)"):
        env.step(stops(env) + 4)
    with pytest.raises(DataError, match="shape"):
        env.step(stops(env)[:3])
    with pytest.raises(DataError, match="one per environment"):
        env.reset([1])
    with pytest.raises(DataError, match="natural"):
        env.reset([-1] * 12)
    with pytest.raises(DataError, match="needs a `reset`"):
        SmaxBatch("3m", 1).step(np.full((1, 3), STOP))
    with pytest.raises(ConfigError, match="at least 1"):
        SmaxBatch("3m", 0)


def test_returned_arrays_are_not_overwritten() -> None:
    env = SmaxBatch("3m", 3)
    first = env.reset(range(3))
    kept = first.obs.copy()
    first.obs[:] += 1
    second = env.step(stops(env))
    assert not np.array_equal(second.obs, first.obs)
    np.testing.assert_array_equal(env.reset(range(3)).obs, kept)


def test_behaviours_are_in_their_order() -> None:
    means, wins = {}, {}
    for name in ("random", "medium-replay", "medium", "medium-expert", "expert"):
        env = SmaxBatch("3m", 128)
        seen = play(env, range(5000, 5128), name)
        means[name] = float(sum(s.rewards[:, 0] for s in seen if isinstance(s, BatchStep)).mean())  # type: ignore[union-attr]
        wins[name] = float(env.won.mean())
    assert list(means) == sorted(means, key=means.__getitem__)
    assert means["random"] < 0.3
    assert wins["random"] < 0.05
    assert means["expert"] > 1.5
    assert wins["expert"] > 0.55


def test_behaviours_do_not_depend_on_the_batch() -> None:
    actor, env = make_behaviour("smax/3m", {}, "medium-replay"), SmaxBatch("3m", 8)
    seen = env.reset(range(8))
    alone = make_behaviour("smax/3m", {}, "medium-replay")
    actor.reset(range(8))
    alone.reset([5])
    for _ in range(8):
        actions = actor.act(seen)
        assert seen.legal_actions is not None
        one = BatchObs(seen.obs[5:6], seen.state[5:6], seen.legal_actions[5:6])
        np.testing.assert_array_equal(alone.act(one)[0], actions[5])
        seen = env.step(actions)


def test_trained_agents_take_the_likeliest_legal_action_of_their_own_net() -> None:
    spec = env_spec("smax/5m_vs_6m", {})
    weights = load_file(smax_scripts.WEIGHTS / "5m_vs_6m/expert.safetensors")
    random = np.random.default_rng(0)
    obs = random.random((3, 5, spec.obs_size), np.float32)
    legal = random.random((3, 5, spec.action_size)) < 0.5
    legal[:, :, STOP] = True
    actor = Trained(spec, lambda rng: 0.0, "5m_vs_6m", "expert")
    actor.reset([1, 2, 3])
    chosen = actor.act(BatchObs(obs, obs.reshape(3, -1), legal))
    for episode, agent in np.ndindex(3, 5):
        x = np.append(obs[episode, agent], np.arange(5) == agent).astype(np.float64)
        for layer in range(3):
            x = x @ weights[f"w{layer}"].astype(np.float64) + weights[f"b{layer}"]
            x = np.maximum(x, 0) if layer < 2 else x
        best = max(np.flatnonzero(legal[episode, agent]), key=x.__getitem__)
        assert chosen[episode, agent] == best


def test_weights_that_are_missing_or_of_another_battle_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(DataError, match=r"maps 145 to 11 numbers, the environment needs 78 to 8"):
        Trained(env_spec("smax/3m", {}), lambda rng: 0.0, "5m_vs_6m", "expert")
    monkeypatch.setattr(smax_scripts, "WEIGHTS", tmp_path)
    with pytest.raises(
        DataError, match=r"expert\.safetensors: file not found; tools/train_battle\.py makes it"
    ):
        Trained(env_spec("smax/5m_vs_6m", {}), lambda rng: 0.0, "5m_vs_6m", "expert")


@pytest.mark.slow
def test_trained_agents_win_against_one_more() -> None:
    won = []
    for behaviour in ("expert", "focus-fire"):
        env = SmaxBatch("5m_vs_6m", 200)
        play(env, range(200), behaviour, "smax/5m_vs_6m")
        won.append(env.won.mean())
    # 0.50 and 0.01 were measured; four standard errors.
    assert won[0] > 0.36
    assert won[1] < 0.05


def test_focus_fire_shoots_the_weakest_in_range_and_knows_the_units() -> None:
    theirs = programs("3m").env
    np.testing.assert_array_equal(FULL_HEALTH, theirs.unit_type_health)
    np.testing.assert_array_equal(SIGHT_RANGE, theirs.unit_type_sight_ranges)
    actor = FocusFire(env_spec("smax/3m", {}), lambda rng: 0.0, gathers=False)
    obs, legal = np.zeros((1, 3, 75), np.float32), np.zeros((1, 3, 8), np.bool_)
    legal[:, :, :5] = True
    others = np.zeros((1, 3, 5, 13), np.float32)
    # Three marines at the same distance; the second is hurt, but out of range.
    others[:, :, 2:, 0] = [1.0, 0.2, 0.6]
    others[:, :, 2:, 1] = 0.5
    others[:, :, 2:, 7] = 1.0
    obs[:, :, :65] = others.reshape(1, 3, 65)
    obs[:, :, 66:68] = 0.5
    obs[:, :, 69] = 1.0
    legal[0, :, 5:] = [True, False, True]
    # Nobody in range of the second, who goes east to them; the third is dead.
    legal[0, 1, 5:] = False
    legal[0, 2] = False
    legal[0, 2, STOP] = True
    actor.reset([0])
    assert actor.act(BatchObs(obs, np.zeros((1, 72), np.float32), legal)).tolist() == [[7, 1, STOP]]


def test_recording_any_number_of_episodes() -> None:
    actor = make_behaviour("smax/3m", {}, "medium")
    episodes = record_episodes(make_env("smax/3m", {}, 43), actor, 50, seed=3)
    others = record_episodes(make_env("smax/3m", {}, 25), actor, 50, seed=3)
    assert [e.length for e in episodes] == [e.length for e in others]
    for a, b in zip(episodes, others, strict=True):
        np.testing.assert_array_equal(a.obs, b.obs)
        np.testing.assert_array_equal(a.actions, b.actions)
        assert a.terminated[-1] != a.truncated[-1]
        assert not a.terminated[:-1].any()
        assert 0 <= a.team_return <= 2 + 1e-5


def test_pettingzoo_accepts_the_view() -> None:
    parallel_api_test(make_parallel("smax/3m", {}), num_cycles=120)
    parallel_seed_test(lambda: make_parallel("smax/3m", {}), num_cycles=60)


def test_the_view_is_the_batch() -> None:
    view, batch = make_parallel("smax/3m", {}), SmaxBatch("3m", 1)
    seen = batch.reset([11])
    obs, infos = view.reset(seed=11)
    for _ in range(20):
        assert seen.legal_actions is not None
        for i, agent in enumerate(view.possible_agents):
            np.testing.assert_array_equal(obs[agent], seen.obs[0, i])
            np.testing.assert_array_equal(infos[agent]["action_mask"], seen.legal_actions[0, i])
        np.testing.assert_array_equal(view.state(), seen.state[0])
        np.testing.assert_array_equal(view.render(), batch.render(0))
        actions = {agent: view.action_space(agent).sample() for agent in view.agents}
        assert all(infos[agent]["action_mask"][a] for agent, a in actions.items()), "samples are legal"
        seen = step = batch.step(np.array([list(actions.values())]))
        obs, rewards, terminated, truncated, infos = view.step(actions)
        assert list(rewards.values()) == step.rewards[0].tolist()
        assert set(terminated.values()) == {bool(step.terminated[0])}
        assert set(truncated.values()) == {bool(step.truncated[0])}
        if not view.agents:
            break
    while view.agents:
        view.step({a: view.action_space(a).sample() for a in view.agents})
    with pytest.raises(DataError, match="needs a `reset`"):
        view.step({})


def test_a_picture_shows_both_teams_and_their_losses() -> None:
    env = SmaxBatch("3m", 2)
    with pytest.raises(DataError, match="needs a `reset`"):
        env.render(0)
    env.reset([0, 1])
    start = env.render(1)
    assert (start.dtype, start.shape) == (np.uint8, (480, 480, 3))
    blue, red = (colour_share(start, c) for c in smax._TEAMS)
    assert blue > 0.0005
    assert red > 0.0005
    # Allies begin in the west.
    assert colour_share(start[:, :240], smax._TEAMS[0]) == 2 * blue
    play(env, [0, 1], "expert")
    for i in range(2):
        end = env.render(i)
        loser = smax._TEAMS[1 if env.won[i] else 0]
        assert colour_share(end, loser) == 0
    with pytest.raises(DataError, match=r"0 to 1 \(received 2\)"):
        env.render(2)


def colour_share(frame: np.ndarray, colour: tuple[int, int, int]) -> float:
    return float((frame == colour).all(axis=2).mean())


@pytest.mark.slow
def test_the_real_packages_can_still_be_imported() -> None:
    programs("3m")
    assert "jaxmarl" not in sys.modules or hasattr(sys.modules["jaxmarl"], "make")
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        jaxmarl = importlib.import_module("jaxmarl")
    assert "HeuristicEnemySMAX" in jaxmarl.registered_envs
    assert isinstance(programs("3m").env, jaxmarl.environments.HeuristicEnemySMAX)


def test_compiled_programs_are_kept_in_a_private_folder(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = smax._private_folder(smax._cache_folder())
    assert folder is not None
    assert folder.parent == tmp_path / "cache" / "macflow" / "jax"
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    folder.chmod(0o770)
    assert smax._private_folder(folder) is None, "others could write machine code into it"
    file = tmp_path / "file"
    file.touch()
    assert smax._private_folder(file / "below") is None
    # A relative path is none, says the specification.
    monkeypatch.setenv("XDG_CACHE_HOME", "cache")
    assert smax._cache_folder().is_relative_to(Path.home())


CONFIGURED = """
import jax
from macflow.envs import smax
smax._configure_jax()
print(jax.config.jax_platforms, jax.config.jax_compilation_cache_dir)
"""


@pytest.mark.parametrize("given", [True, False])
def test_jax_stays_on_the_cpu_unless_told_otherwise(tmp_path: Path, given: bool) -> None:
    environ = {k: v for k, v in os.environ.items() if not k.startswith("JAX_")}
    environ["XDG_CACHE_HOME"] = str(tmp_path)
    if given:
        environ |= {"JAX_PLATFORMS": "cuda,cpu", "JAX_COMPILATION_CACHE_DIR": str(tmp_path / "own")}
    found = subprocess.run(
        [sys.executable, "-c", CONFIGURED], env=environ, capture_output=True, text=True, check=True
    )
    platforms, folder = found.stdout.split()
    assert platforms == ("cuda,cpu" if given else "cpu")
    assert Path(folder).parent == (tmp_path if given else tmp_path / "macflow" / "jax")


@pytest.mark.parametrize("name", SLOW)
def test_every_scenario_plays_all_its_behaviours(name: str) -> None:
    env_id = f"smax/{name}"
    assert env_id in ENVIRONMENTS
    means = {}
    for behaviour in ENVIRONMENTS[env_id].behaviours:
        episodes = record_episodes(
            make_env(env_id, {}, 40), make_behaviour(env_id, {}, behaviour), 40, seed=0
        )
        means[behaviour] = np.mean([e.team_return for e in episodes])
    assert max(means, key=means.__getitem__) == "expert"
    assert min(means, key=means.__getitem__) == "random"
