"""mpe/tag and mpe/world are mpe2's predator-prey worlds, seen by the predators, against scripted prey."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from mpe2 import simple_tag_v3, simple_world_comm_v3
from numpy.random import Generator
from numpy.typing import NDArray

from macflow.envs.behaviours import Skill, always
from macflow.envs.hunting import Hunt
from macflow.envs.particle import five_way
from macflow.envs.prey import Flee, Wander, World
from macflow.envs.pursuit import Pursuit, Tag, WorldComm
from macflow.envs.references import team_returns
from macflow.envs.registry import (
    ENVIRONMENTS,
    make_behaviour,
    make_env,
    make_parallel,
    normalized_return,
    reference_returns,
)
from macflow.types import BatchObs, ConfigError, FloatArray

TAG, WORLD = "mpe/tag", "mpe/world"
PREY_OBS = {TAG: 14, WORLD: 28}


class Noted:
    """Let another prey decide, and remember what it decided."""

    def __init__(self, prey: Flee | Wander) -> None:
        self.prey = prey
        self.decided: list[FloatArray] = []

    def reset(self, rng: Generator) -> None:
        self.prey.reset(rng)

    def forces(self, obs: FloatArray) -> FloatArray:
        self.decided.append(self.prey.forces(obs))
        return self.decided[-1]


def tag(prey: Callable[[World], Any], n_predators: int, n_prey: int, n_obstacles: int) -> tuple[Pursuit, Any]:
    ours = Tag(n_predators, n_prey, n_obstacles, 25, prey)
    theirs = simple_tag_v3.parallel_env(
        num_good=n_prey, num_adversaries=n_predators, num_obstacles=n_obstacles, continuous_actions=True
    )
    return ours, theirs


def world(
    prey: Callable[[World], Any], n_predators: int, n_prey: int, n_obstacles: int, food: int, forests: int
) -> tuple[Pursuit, Any]:
    ours = WorldComm(n_predators, n_prey, n_obstacles, food, forests, 25, prey)
    theirs = simple_world_comm_v3.parallel_env(
        num_good=n_prey,
        num_adversaries=n_predators,
        num_obstacles=n_obstacles,
        num_food=food,
        num_forests=forests,
        continuous_actions=True,
    )
    return ours, theirs


@pytest.mark.parametrize("script", [Flee, Wander])
@pytest.mark.parametrize(
    ("make", "counts"),
    [
        (tag, (3, 1, 2)),
        (tag, (1, 3, 0)),
        (world, (4, 2, 1, 2, 2)),
        (world, (1, 1, 0, 1, 0)),
        (world, (5, 3, 2, 3, 4)),
    ],
)
def test_trajectories_are_those_of_the_package(
    make: Callable[..., tuple[Pursuit, Any]],
    counts: tuple[int, ...],
    script: Callable[[World], Flee | Wander],
) -> None:
    noted: list[Noted] = []

    def prey(of: World) -> Noted:
        noted.append(Noted(script(of)))
        return noted[-1]

    ours, theirs = make(prey, *counts)
    predators = [agent for agent in theirs.possible_agents if "adversary" in agent]
    assert ours.possible_agents == predators
    for seed in (0, 1):
        our_obs, _ = ours.reset(seed=seed)
        their_obs, _ = theirs.reset(seed=seed)
        rng = np.random.default_rng(seed)
        while theirs.agents:
            assert list(our_obs) == predators
            for agent in predators:
                np.testing.assert_array_equal(our_obs[agent], their_obs[agent])
            np.testing.assert_array_equal(ours.state(), theirs.state())
            forces = rng.uniform(-1, 1, (len(predators), 2)).astype(np.float32)
            our_obs, our_rewards, our_ends, our_cuts, _ = ours.step(dict(zip(predators, forces, strict=True)))
            pushes = five_way(np.concatenate([forces, noted[0].decided[-1]]))
            yours: dict[str, Any] = dict(zip(theirs.agents, pushes, strict=True))
            if make is world:
                yours["leadadversary_0"] = np.concatenate([yours["leadadversary_0"], np.zeros(4, np.float32)])
            their_obs, their_rewards, their_ends, their_cuts, _ = theirs.step(yours)
            assert our_rewards == {agent: their_rewards[agent] for agent in predators}
            assert our_ends == {agent: their_ends[agent] for agent in predators}
            assert our_cuts == {agent: their_cuts[agent] for agent in predators}
        assert ours.agents == []
        assert set(our_cuts.values()) == {True}
        assert set(our_ends.values()) == {False}
    assert len(noted[0].decided) == 50


@pytest.mark.parametrize("env_id", [TAG, WORLD])
def test_rewards_count_touches(env_id: str) -> None:
    """The rewards, computed anew from the positions that the state shows."""
    env = make_env(env_id, {}, 20)
    spec = env.spec
    actor = make_behaviour(env_id, {}, "expert")
    actor.reset(range(20))
    seen: Any = env.reset(range(20))
    touches_seen = 0
    for _ in range(25):
        seen = env.step(actor.act(seen))
        predators = seen.obs[:, :, 2:4].astype(np.float64)
        prey = seen.state[:, sum(spec.obs_dims) :].reshape(20, -1, PREY_OBS[env_id])[:, :, 2:4]
        apart = np.linalg.norm(predators[:, :, None] - prey[:, None], axis=3)
        reach = 0.075 + (0.05 if env_id == TAG else 0.045)
        # Where single precision cannot say whether they touch, nothing is claimed.
        clear = (np.abs(apart - reach) > 1e-5).all(axis=(1, 2))
        touches = (apart < reach).sum(axis=(1, 2))
        expected = np.repeat(touches[:, None] * (10.0 if env_id == TAG else 5.0), spec.n_agents, axis=1)
        if env_id == WORLD:
            expected = expected - 0.1 * apart.min(axis=2)
        np.testing.assert_allclose(seen.rewards[clear], expected[clear], atol=1e-5)
        touches_seen += int(touches[clear].sum())
    assert seen.truncated.all()
    assert not seen.terminated.any()
    assert touches_seen > 20


def test_sizes_are_as_documented() -> None:
    for env_id, n, own, state in ((TAG, 3, 16, 62), (WORLD, 4, 34, 192)):
        spec = make_env(env_id, {}, 1).spec
        assert (spec.obs_dims, spec.state_size, spec.action_size) == ((own,) * n, state, 2)
        assert state == n * own + (state - n * own) // PREY_OBS[env_id] * PREY_OBS[env_id]
    assert make_env(WORLD, {}, 1).spec.agent_ids == (
        "leadadversary_0",
        "adversary_0",
        "adversary_1",
        "adversary_2",
    )


def test_the_leader_says_nothing() -> None:
    env = make_env(WORLD, {}, 5)
    env.reset(range(5))
    step = env.step(np.ones((5, 4, 2), np.float32))
    assert not step.obs[:, :, -4:].any()


@pytest.mark.parametrize("env_id", [TAG, WORLD])
@pytest.mark.parametrize("prey", ["flee", "random"])
def test_prey_depend_on_the_seed_alone(env_id: str, prey: str) -> None:
    def ends(seeds: list[int], n_envs: int, workers: int = 1) -> FloatArray:
        env = make_env(env_id, {"prey": prey}, n_envs, workers)
        found = []
        for first in range(0, len(seeds), n_envs):
            env.reset(seeds[first : first + n_envs])
            for _ in range(6):
                step = env.step(np.zeros((n_envs, env.spec.n_agents, 2), np.float32))
            found.append(step.state)
        env.close()
        return np.concatenate(found)

    together = ends([3, 4, 5, 6], 4)
    np.testing.assert_array_equal(together, ends([3, 4, 5, 6], 1))
    np.testing.assert_array_equal(together, ends([3, 4, 5, 6], 4, workers=2))
    np.testing.assert_array_equal(together[::-1], ends([6, 5, 4, 3], 2))
    assert len(np.unique(together, axis=0)) == 4


def test_without_a_seed_episodes_differ() -> None:
    env = make_parallel(TAG, {})
    env.reset(seed=1)
    starts = [env.state()]
    for _ in range(2):
        env.reset()
        starts.append(env.state())
    assert len(np.unique(starts, axis=0)) == 3


def of_tag(n_predators: int, n_obstacles: int = 0, n_food: int = 0) -> World:
    return World(
        n_predators=n_predators,
        n_obstacles=n_obstacles,
        n_food=n_food,
        n_landmarks=n_obstacles + n_food,
        obstacle_reach=0.25,
        predator_reach=0.125,
        predator_speed=1.0,
        push=0.4,
        max_speed=1.3,
        dt=0.1,
        damping=0.25,
    )


def mean_force(world: World, *parts: tuple[float, ...], velocity: tuple[float, float] = (0, 0)) -> Any:
    """Return the mean over 50 draws of the force of one prey that observes [velocity, *parts]."""
    prey = Flee(world)
    prey.reset(np.random.default_rng(0))
    obs = np.array([sum(parts, start=tuple(velocity))], np.float32)
    forces = np.stack([prey.forces(obs)[0] for _ in range(50)])
    assert forces.std(axis=0).max() > 0.05, "no noise"
    assert np.abs(forces).max() <= 1
    return forces.mean(axis=0)


@pytest.mark.parametrize("angle", np.arange(0, 6.28, 0.7))
def test_prey_flee_from_a_predator(angle: float) -> None:
    away = -np.array([np.cos(angle), np.sin(angle)])
    force = mean_force(of_tag(1), (0, 0), tuple(-0.3 * away))
    assert force @ away / np.linalg.norm(force) > 0.85


def test_prey_squeeze_out_between_predators() -> None:
    # From above, below and the left: the way out is to the right.
    force = mean_force(of_tag(3), (0, 0), (0, 0.3), (0, -0.3), (-0.3, 0))
    assert force[0] > 0.7
    assert abs(force[1]) < 0.3


def test_prey_stay_in_the_arena_and_out_of_obstacles() -> None:
    # At the right edge, with a predator coming from the left: up or down, not out.
    cornered = mean_force(of_tag(1), (0.9, 0), (-0.4, 0.01), velocity=(0.5, 0))
    assert cornered[0] < 0.3
    assert abs(cornered[1]) > 0.5
    # An obstacle in the straight way from the predator: not straight ahead.
    straight = mean_force(of_tag(1), (0, 0), (-0.3, 0.01))
    around = mean_force(of_tag(1, n_obstacles=1), (0, 0), (0.35, 0), (-0.3, 0.01))
    assert straight[0] > 0.7
    assert abs(straight[1]) < abs(around[1])


def test_prey_eat_where_it_is_safe() -> None:
    # The only predator is one that a forest hides: mpe2 shows it where the prey is.
    assert mean_force(of_tag(1, n_food=1), (0, 0), (0, 0.8), (0, 0))[1] > 0.7
    assert mean_force(of_tag(1, n_food=1), (0, 0), (0, 0.8), (0, 0.2))[1] < 0


@pytest.mark.parametrize("env_id", [TAG, WORLD])
def test_fleeing_prey_stay_inside_and_are_hard_to_catch(env_id: str) -> None:
    caught = {
        prey: team_returns(env_id, {"prey": prey}, "expert", 30, workers=1).mean()
        for prey in ("flee", "random")
    }
    assert caught["flee"] < 0.7 * caught["random"]
    env = make_env(env_id, {}, 20)
    actor = make_behaviour(env_id, {}, "expert")
    actor.reset(range(20))
    seen: Any = env.reset(range(20))
    outside = []
    for _ in range(25):
        seen = env.step(actor.act(seen))
        prey = seen.state[:, sum(env.spec.obs_dims) :].reshape(20, -1, PREY_OBS[env_id])[:, :, 2:4]
        outside.append(np.abs(prey).max(axis=2) > 1.1)
    assert np.mean(outside) < 0.05


def wanted(env_id: str, seed: int, episodes: int) -> tuple[NDArray[Any], BatchObs]:
    """Return the noiseless actions of many episodes that are all in one state, and that state."""
    env = make_env(env_id, {}, 1)
    seen = env.reset([seed])
    actor = Hunt(env.spec, always(Skill(vigour=1.0, noise=0.0)), 2 if env_id == TAG else 6)
    actor.reset(range(episodes))
    many = BatchObs(np.repeat(seen.obs, episodes, axis=0), np.repeat(seen.state, episodes, axis=0), None)
    return actor.act(many), seen


@pytest.mark.parametrize(("env_id", "modes"), [(TAG, 6), (WORLD, 24)])
def test_joint_behaviour_has_all_its_modes_evenly(env_id: str, modes: int) -> None:
    actions, _ = wanted(env_id, 0, 100 * modes)
    found, counts = np.unique(actions.reshape(len(actions), -1).round(4), axis=0, return_counts=True)
    # 100 of each are expected, standard deviation 10.
    assert len(found) == modes
    assert counts.min() > 60
    assert counts.max() < 140


def test_each_predator_comes_from_a_side_of_its_own() -> None:
    actions, _ = wanted(TAG, 0, 200)
    for agent in range(3):
        ways, side = np.unique(actions[:, agent].round(4), axis=0, return_inverse=True)
        assert len(ways) == 3
        # A predator's side tells what is left to the others: two of the six joint plans.
        for way in range(3):
            rest = np.unique(np.delete(actions, agent, axis=1)[side == way].round(4), axis=0)
            assert len(rest) == 2


def test_predators_share_out_the_prey() -> None:
    actions, seen = wanted(WORLD, 0, 200)
    prey = seen.state[0, -2 * 28 :].reshape(2, 28)[:, 2:4]
    gap = prey[None] - seen.obs[0, :, None, 2:4]
    unit = gap / np.linalg.norm(gap, axis=2, keepdims=True)
    hunted = np.einsum("ena,npa->enp", actions, unit).argmax(axis=2)
    assert (hunted.sum(axis=1) == 2).mean() > 0.95, "two for each prey"
    assert len(np.unique(hunted, axis=0)) >= 6


def test_a_plan_lasts_its_episode_and_catches() -> None:
    env = make_env(TAG, {"prey": "random", "n_obstacles": 0}, 50)
    actor = Hunt(env.spec, always(Skill(vigour=1.0, noise=0.0)), 2)
    actor.reset(range(50))
    seen: Any = env.reset(range(50))
    total = np.zeros(50)
    for _ in range(25):
        seen = env.step(actor.act(seen))
        total += seen.rewards[:, 0]
    assert (total > 0).mean() > 0.95


@pytest.mark.timeout(180)
@pytest.mark.parametrize("env_id", [TAG, WORLD])
def test_qualities_are_in_their_order(env_id: str) -> None:
    reference = reference_returns(env_id, {})
    assert reference is not None
    scores = {
        name: normalized_return(float(team_returns(env_id, {}, name, 40, workers=1).mean()), reference)
        for name in ENVIRONMENTS[env_id].behaviours
    }
    assert scores["random"] == pytest.approx(0, abs=12)
    assert scores["expert"] == pytest.approx(100, abs=25)
    assert 25 < scores["medium"] < 75
    assert 0 < scores["medium-replay"] < scores["medium"] < scores["medium-expert"] < scores["expert"]


@pytest.mark.parametrize(
    ("env_id", "kwargs"),
    [
        (TAG, {"n_predators": 1, "n_prey": 2}),
        (TAG, {"n_predators": 5}),
        (WORLD, {"n_forests": 0, "n_prey": 3}),
    ],
)
def test_hunters_find_their_prey_in_any_number(env_id: str, kwargs: dict[str, Any]) -> None:
    expert = team_returns(env_id, {**kwargs, "prey": "random"}, "expert", 10, workers=1).mean()
    assert expert > team_returns(env_id, {**kwargs, "prey": "random"}, "random", 10, workers=1).mean() + 5


@pytest.mark.parametrize(
    ("env_id", "kwargs", "message"),
    [
        (TAG, {"n_predators": 0}, r"`kwargs.n_predators`: .*\(received 0\)"),
        (TAG, {"n_prey": 0}, r"`kwargs.n_prey`: .*\(received 0\)"),
        (TAG, {"n_obstacles": -1}, r"`kwargs.n_obstacles`: .*\(received -1\)"),
        (TAG, {"prey": "hide"}, r"`kwargs.prey`: .*'flee' or 'random'.*\(received 'hide'\)"),
        (
            TAG,
            {"n_food": 1},
            r"mpe/tag takes n_predators, n_prey, n_obstacles, max_cycles, prey \(received n_food\)",
        ),
        (WORLD, {"n_food": 0}, r"`kwargs.n_food`: .*\(received 0\)"),
        (WORLD, {"n_forests": 1.5}, r"`kwargs.n_forests`: .*\(received 1.5\)"),
    ],
)
def test_what_is_not_allowed_is_refused(env_id: str, kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make_env(env_id, kwargs, 1)


@pytest.mark.parametrize("env_id", [TAG, WORLD])
def test_drawing_shows_the_world(env_id: str) -> None:
    env = make_env(env_id, {}, 1)
    env.reset([1])
    before = env.render(0)
    env.step(np.ones((1, env.spec.n_agents, 2), np.float32))
    env.step(np.ones((1, env.spec.n_agents, 2), np.float32))
    after = env.render(0)
    env.close()
    assert before.shape == after.shape == (700, 700, 3)
    assert not np.array_equal(before, after)
