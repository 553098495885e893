"""Recording: whole episodes by seed, the same in any batch, written the same twice."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import yaml

from macflow.data.episode import Episode
from macflow.data.minari_store import read_minari
from macflow.data.record import record_episodes
from macflow.envs.registry import make_behaviour, make_env
from macflow.files import digest
from macflow.types import ActionArray, BoolArray, DataError, FloatArray, Seen

FIELDS = ("obs", "state", "actions", "rewards", "terminated", "truncated", "legal_actions")


def record(env_id: str, behaviour: str, episodes: int, n_envs: int, workers: int = 1) -> list[Episode]:
    env = make_env(env_id, {}, n_envs, workers)
    try:
        return record_episodes(env, make_behaviour(env_id, {}, behaviour), episodes, seed=40)
    finally:
        env.close()


def assert_same(left: Sequence[Episode], right: Sequence[Episode]) -> None:
    for a, b in zip(left, right, strict=True):
        assert a.seed == b.seed
        for name in FIELDS:
            np.testing.assert_array_equal(getattr(a, name), getattr(b, name))


@pytest.mark.parametrize(
    ("env_id", "behaviour"), [("mpe/spread", "medium-replay"), ("mpe/spread-discrete", "medium-expert")]
)
def test_episodes_do_not_depend_on_how_they_are_batched(env_id: str, behaviour: str) -> None:
    waves = record(env_id, behaviour, episodes=7, n_envs=3)
    assert [episode.seed for episode in waves] == list(range(40, 47))
    assert_same(waves, record(env_id, behaviour, episodes=7, n_envs=7))
    assert_same(waves, record(env_id, behaviour, episodes=7, n_envs=4, workers=2))


def test_shapes_types_and_ends() -> None:
    discrete = record("mpe/spread-discrete", "random", 2, 2)[1]
    assert discrete.obs.shape == (26, 3, 18)
    assert discrete.state.shape == (26, 54)
    assert discrete.actions.shape == (25, 3)
    assert discrete.actions.dtype == np.int64
    assert discrete.rewards.shape == (25, 3)
    assert discrete.legal_actions is not None
    assert discrete.legal_actions.shape == (26, 3, 5)
    assert discrete.truncated.tolist() == [False] * 24 + [True]
    assert not discrete.terminated.any()
    one_step = record("game/xor", "mixed", 3, 2)[2]
    assert one_step.obs.shape == (2, 2, 2)
    assert one_step.terminated.tolist() == [True]
    assert one_step.team_return == 1.0


def test_replaying_the_recorded_actions_gives_the_recorded_episode() -> None:
    episode = record("mpe/spread", "medium", 3, 3)[2]
    env = make_env("mpe/spread", {}, 1)
    first = env.reset([episode.seed])
    np.testing.assert_array_equal(first.obs[0], episode.obs[0])
    for t, action in enumerate(episode.actions):
        step = env.step(action[None])
        np.testing.assert_array_equal(step.obs[0], episode.obs[t + 1])
        np.testing.assert_array_equal(step.state[0], episode.state[t + 1])
        np.testing.assert_array_equal(step.rewards[0], episode.rewards[t])


@dataclass(frozen=True)
class Counted:
    obs: FloatArray
    state: FloatArray
    legal_actions: BoolArray | None
    rewards: FloatArray
    terminated: BoolArray
    truncated: BoolArray


class EndsBySeed:
    """Two environments whose episode ends for good after seed % 4 + 1 steps; rewards count the steps."""

    n_envs = 2

    def __init__(self, max_steps: int) -> None:
        self.max_steps = max_steps

    def reset(self, seeds: Sequence[int]) -> Counted:
        self.lengths = np.array(seeds) % 4 + 1
        self.t = 0
        return self._look()

    def step(self, actions: ActionArray) -> Counted:
        self.t += 1
        return self._look()

    def _look(self) -> Counted:
        ended = self.lengths <= self.t
        reward = np.where(self.t <= self.lengths, self.t, 0).astype(np.float32)
        here = np.minimum(self.t, self.lengths).astype(np.float32)
        return Counted(
            here[:, None, None], here[:, None], None, reward[:, None], ended, np.zeros(2, np.bool_)
        )


class Still:
    def reset(self, seeds: Sequence[int]) -> None:
        self.n = len(seeds)

    def act(self, seen: Seen) -> ActionArray:
        return np.zeros((self.n, 1, 1), np.float32)


def test_episodes_of_unequal_length_are_cut_where_they_end() -> None:
    told: list[int] = []
    episodes = record_episodes(EndsBySeed(4), Still(), 5, seed=0, progress=told.append)
    assert [episode.length for episode in episodes] == [1, 2, 3, 4, 1]
    assert [episode.team_return for episode in episodes] == [1.0, 3.0, 6.0, 10.0, 1.0]
    for episode in episodes:
        assert episode.obs[:, 0, 0].tolist() == list(range(episode.length + 1))
        assert episode.terminated.tolist() == [False] * (episode.length - 1) + [True]
    assert told == [2, 2, 1]


def test_an_episode_that_never_ends_is_reported() -> None:
    with pytest.raises(DataError, match="episode of seed 2 did not end within `max_steps` = 2"):
        record_episodes(EndsBySeed(2), Still(), 4, seed=0)


def test_no_episodes_are_refused() -> None:
    with pytest.raises(DataError, match=r"`episodes`: at least 1 \(received 0\)"):
        record_episodes(EndsBySeed(4), Still(), 0, seed=0)


def run_stage(
    folder: Path, dataset: object = "mpe-spread/medium", **record_params: object
) -> subprocess.CompletedProcess[str]:
    folder.mkdir(exist_ok=True)
    params = {
        "dataset": dataset,
        "record": {"kwargs": {"n_agents": 3}, "episodes": 5, "seed": 0, **record_params},
    }
    (folder / "params.yaml").write_text(yaml.safe_dump(params), encoding="utf-8")
    command = [
        sys.executable,
        "-m",
        "macflow.stages.record",
        "--out",
        "data/raw",
        "--metrics",
        "metrics/record.json",
    ]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


def test_stage_writes_the_same_bytes_twice_and_a_readable_dataset(tmp_path: Path) -> None:
    for name in ("one", "two"):
        done = run_stage(tmp_path / name)
        assert done.returncode == 0, done.stderr
    for output in ("data/raw", "metrics/record.json"):
        assert digest(tmp_path / "one" / output) == digest(tmp_path / "two" / output)
    episodes, spec, meta = read_minari(tmp_path / "one/data/raw")
    env = make_env("mpe/spread", {}, 5)
    assert spec == env.spec
    assert_same(episodes, record_episodes(env, make_behaviour("mpe/spread", {}, "medium"), 5, seed=0))
    assert meta["dataset_id"] == "mpe-spread/medium-v0"
    assert meta["behaviour"] == {"name": "medium", "seed": 0, "episodes": 5}
    assert meta["env"]["kwargs"] == {"n_agents": 3, "max_cycles": 25, "local_ratio": 0.5, "thrust": 1.0}
    assert meta["env"]["version"].startswith("mpe2 ")
    metrics = json.loads((tmp_path / "one/metrics/record.json").read_text())
    returns = [episode.team_return for episode in episodes]
    assert metrics["return_mean"] == pytest.approx(np.mean(returns))
    assert metrics["return_ci95_low"] < metrics["return_mean"] < metrics["return_ci95_high"]
    assert (metrics["episodes"], metrics["transitions"]) == (5, 125)


def test_stage_refuses_an_unknown_dataset_and_leaves_the_one_before(tmp_path: Path) -> None:
    assert run_stage(tmp_path / "w").returncode == 0
    before = digest(tmp_path / "w/data/raw")
    done = run_stage(tmp_path / "w", "mpe-spread/perfect")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith(
        "record: `dataset`: no dataset has this name; near names: mpe-spread/expert, mpe-spread/medium"
    )
    assert "Traceback" not in done.stderr
    assert digest(tmp_path / "w/data/raw") == before
