"""StarCraft II end to end against the test double: long runs, every map, worker processes, the pipeline.

Only the game is not the real one; smacv2 and pysc2 are. The scores mean nothing.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from numpy.typing import NDArray
from PIL import Image
from sc2_double.install import BUILD, install_double

from macflow.envs.base import BatchedEnv, BatchStep
from macflow.envs.entries.smac import V1_MAPS
from macflow.envs.registry import make_behaviour, make_env
from macflow.types import BatchObs
from workspace import make_workspace, run_stages

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.timeout(600),
    pytest.mark.skipif(
        importlib.util.find_spec("smacv2") is None, reason="smacv2 is not installed (docs/starcraft.md)"
    ),
]

LONG_RUNS = ["smac/3m", "smac/2s3z", *(f"smacv2/{race}_5_vs_5" for race in ("terran", "protoss", "zerg"))]
TINY: dict[str, Any] = {
    "record": {"kwargs": {}, "episodes": 6},
    "training": {"threads": 1, "checkpoint_every": 10, "log_every": 5},
    "flow": {"hidden": [16], "steps": 20, "batch_size": 32, "euler_steps": 2},
    "teacher": {"samples": 2},
    "critic": {"hidden": [16], "steps": 20, "batch_size": 32},
    "distill": {"hidden": [16], "steps": 20, "batch_size": 32, "diagnose_every": 10},
    "evaluate": {"episodes": 4, "n_envs": 2, "workers": 2},
}


@pytest.fixture(scope="module", autouse=True)
def _double(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    folder = install_double(tmp_path_factory.mktemp("sc2") / "StarCraftII")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SC2PATH", str(folder))
        yield


def doubles() -> list[psutil.Process]:
    """Return the running games that this process or its children started."""
    found = []
    for process in psutil.Process().children(recursive=True):
        try:
            if process.status() != psutil.STATUS_ZOMBIE and "sc2_double" in process.cmdline():
                found.append(process)
        except psutil.NoSuchProcess:
            continue
    return found


def play(env: BatchedEnv, env_id: str, behaviour: str, seeds: list[int]) -> list[list[NDArray[Any]]]:
    """Play one episode per environment; return what each showed until it had finished."""
    actor = make_behaviour(env_id, {}, behaviour)
    actor.reset(seeds)
    seen: BatchObs | BatchStep = env.reset(seeds)
    found: list[list[NDArray[Any]]] = [[seen.obs[i], seen.state[i]] for i in range(len(seeds))]
    running = np.ones(len(seeds), np.bool_)
    while running.any():
        step = env.step(actor.act(seen))
        for i in np.flatnonzero(running):
            found[i] += [step.obs[i], step.state[i], step.legal_actions[i], step.rewards[i]]
        running &= ~step.finished
        seen = step
    return found


def assert_same(left: list[NDArray[Any]], right: list[NDArray[Any]]) -> None:
    assert len(left) == len(right)
    for a, b in zip(left, right, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("env_id", LONG_RUNS)
def test_twenty_episodes_in_a_row_one_process_and_the_same_again(env_id: str) -> None:
    env = make_env(env_id, {}, 1)
    assert doubles() == [], "nothing is started before the first episode"
    first = [play(env, env_id, "focus-fire-mixed", [seed])[0] for seed in range(20)]
    (process,) = doubles()
    assert len({len(episode) for episode in first}) > 1
    # Backwards, in another process.
    other = make_env(env_id, {}, 1)
    for seed in (19, 10, 3, 0):
        assert_same(play(other, env_id, "focus-fire-mixed", [seed])[0], first[seed])
    assert len(doubles()) == 2
    env.close()
    env.close()
    other.close()
    assert doubles() == []
    assert not process.is_running()


@pytest.mark.parametrize("env_id", ["smac/3m", "smacv2/zerg_5_vs_5"])
def test_the_packages_own_way_of_restarting_plays_on_too(env_id: str) -> None:
    env = make_env(env_id, {"new_game": False}, 1)
    starts = [play(env, env_id, "random", [seed])[0][1] for seed in range(10)]
    assert len(doubles()) == 1
    assert all(np.isfinite(state).all() for state in starts)
    env.close()
    assert doubles() == []


@pytest.mark.parametrize("name", list(V1_MAPS))
def test_every_map_of_smacv1_plays_two_episodes(name: str) -> None:
    env = make_env(f"smac/{name}", {}, 1)
    for seed in (0, 1):
        shown = play(env, f"smac/{name}", "focus-fire", [seed])[0]
        assert sum(float(rewards[0]) for rewards in shown[5::4]) > 0
    env.close()


def test_workers_play_the_same_and_leave_no_process() -> None:
    env_id = "smacv2/terran_5_vs_5"
    local, split = make_env(env_id, {}, 3), make_env(env_id, {}, 3, workers=2)
    try:
        wanted, found = (play(env, env_id, "random", [4, 5, 6]) for env in (local, split))
        for a, b in zip(wanted, found, strict=True):
            assert_same(a, b)
        assert len(doubles()) == 6
    finally:
        local.close()
        split.close()
    assert doubles() == []


@pytest.mark.parametrize("env_id", ["smac/3m", "smacv2/terran_5_vs_5"])
def test_the_whole_pipeline(tmp_path: Path, env_id: str) -> None:
    dataset = f"{env_id.replace('/', '-')}/focus-fire"
    folder = make_workspace(tmp_path / "run", {"dataset": dataset}, TINY)
    run_stages(folder, ["record", "prepare", "train_flow", "teacher", "train_critic", "distill", "evaluate"])
    prepared = json.loads((folder / "data" / "prepared" / "dataset.json").read_text())
    assert prepared["env"] == {
        "id": env_id,
        "kwargs": prepared["env"]["kwargs"],
        "version": prepared["env"]["version"],
    }
    # What was recorded with the double can be told from what was recorded with the game.
    assert prepared["env"]["version"].endswith(f"StarCraft II build {BUILD}")
    metrics = json.loads((folder / "metrics" / "evaluate.json").read_text())
    assert metrics["env"] == env_id
    for actor in ("policy", "flow", "behaviour", "random"):
        assert 0 <= metrics[actor]["return_mean"] <= 22
    (gif,) = folder.rglob("episode.gif")
    with Image.open(gif) as picture:
        assert picture.n_frames > 5
    assert doubles() == []
