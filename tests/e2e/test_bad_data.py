"""The prepare stage refuses bad datasets by a clear message, and touches nothing that exists."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import yaml
from data_samples import ENV, make_episodes, make_spec

from macflow.data.episode import Episode
from macflow.data.expectations import Limits, expectations_for
from macflow.data.minari_store import write_minari
from macflow.data.prepared import load_prepared
from macflow.files import digest

pytestmark = pytest.mark.e2e

PARAMS = {
    "prepare": {
        "raw": "data/raw",
        "max_abs_reward": 1e6,
        "max_abs_observation": 1e6,
        "max_duplicate_fraction": 0.5,
    },
}
LENGTHS = [5, 3, 4, 6]
DATASET = "macflow/test-v0"
DOCUMENT = Path(__file__).parents[2] / "docs/bring-your-data.md"
KEPT = ("data/prepared", "models", "metrics/prepare.json")


def write(root: Path, episodes: list[Episode] | None = None) -> Path:
    """Write a dataset into a new `root`; return its HDF5 file."""
    shutil.rmtree(root, ignore_errors=True)
    spec = make_spec()
    written = make_episodes(spec, LENGTHS) if episodes is None else episodes
    write_minari(root, DATASET, written, spec, ENV, {"name": "test"})
    return root / DATASET / "data/main_data.hdf5"


def prepare(folder: Path) -> subprocess.CompletedProcess[str]:
    command = (
        "--raw data/raw --out data/prepared --validation reports/validation --metrics metrics/prepare.json"
    )
    return subprocess.run(
        [sys.executable, "-m", "macflow.stages.prepare", *command.split()],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=80,
        check=False,
    )


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a workspace with a prepared dataset and a model."""
    folder = tmp_path_factory.mktemp("good")
    (folder / "params.yaml").write_text(yaml.safe_dump(PARAMS))
    (folder / "models/flow").mkdir(parents=True)
    (folder / "models/flow/flow.safetensors").write_bytes(b"weights")
    write(folder / "data/raw")
    done = prepare(folder)
    assert done.returncode == 0, done.stderr
    return folder


def test_a_good_dataset_is_prepared(good: Path) -> None:
    loaded = load_prepared(good / "data/prepared")
    assert loaded.meta["made_from"] == {"data/raw": digest(good / "data/raw")}
    assert loaded.meta["source"]["behaviour"] == {"name": "test"}
    assert loaded.meta["env"] == ENV
    metrics = json.loads((good / "metrics/prepare.json").read_text())
    assert metrics == {"success": True, "expectations": 13, "failed": 0, "episodes": 4, "transitions": 18}
    written = json.loads((good / "reports/validation/validation.json").read_text())
    assert written["success"]
    assert written["dataset"] == DATASET


def test_the_documented_example_runs_and_is_accepted(good: Path, tmp_path: Path) -> None:
    text = DOCUMENT.read_text(encoding="utf-8")
    examples = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    (example,) = [code for code in examples if "write_minari" in code]
    subprocess.run([sys.executable, "-W", "error", "-c", example], cwd=tmp_path, check=True, timeout=60)
    shutil.move(tmp_path / "data/mine", tmp_path / "data/raw")
    shutil.copy(good / "params.yaml", tmp_path)
    done = prepare(tmp_path)
    assert done.returncode == 0, done.stderr
    assert load_prepared(tmp_path / "data/prepared").spec.agent_ids == ("north", "south")
    limits = Limits(1.0, 1.0, 1.0)
    for discrete in (False, True):
        for expectation in expectations_for(make_spec(discrete), limits):
            assert f"`{expectation.name}`" in text


def with_arrays(index: int, **arrays: Any) -> Callable[[Path], None]:
    """Write a dataset in which one episode has other arrays."""

    def make(root: Path) -> None:
        episodes = make_episodes(make_spec(), LENGTHS)
        episodes[index] = replace(episodes[index], **arrays)
        write(root, episodes)

    return make


def truncated(root: Path) -> None:
    file = write(root)
    content = file.read_bytes()
    file.write_bytes(content[: len(content) // 2])


def not_hdf5(root: Path) -> None:
    write(root).write_bytes(b"these are no data\n" * 100)


def without_metadata(root: Path) -> None:
    (write(root).parent / "metadata.json").unlink()


def laden_with_nan(root: Path) -> None:
    episodes = make_episodes(make_spec(), LENGTHS)
    episodes[1].rewards[2] = np.nan
    episodes[2].obs[1, 0, 0] = np.nan
    episodes[2].actions[3, 1, 1] = np.nan
    write(root, episodes)


def wrongly_shaped(root: Path) -> None:
    with h5py.File(write(root), "r+") as file:
        del file["episode_2/observations"]
        file["episode_2/observations"] = np.zeros((5, 3, 4), np.float32)


def ragged(root: Path) -> None:
    with h5py.File(write(root), "r+") as file:
        for index in (1, 3):
            del file[f"episode_{index}/actions"]
            file[f"episode_{index}/actions"] = np.zeros((LENGTHS[index], 1, 3), np.float32)


def reversed_in_time(root: Path) -> None:
    episodes = [
        replace(
            episode,
            obs=episode.obs[::-1],
            rewards=episode.rewards[::-1],
            terminated=episode.terminated[::-1],
            truncated=episode.truncated[::-1],
        )
        for episode in make_episodes(make_spec(), LENGTHS)
    ]
    write(root, episodes)


def steps_out_of_order(root: Path) -> None:
    with h5py.File(write(root), "r+") as file:
        for index, length in enumerate(LENGTHS):
            steps = np.arange(length + 1)
            if index == 1:
                steps[[1, 2]] = [2, 1]
            file[f"episode_{index}/infos/step"] = steps


def episodes_out_of_order(root: Path) -> None:
    with h5py.File(write(root), "r+") as file:
        file.move("episode_1", "other")
        file.move("episode_2", "episode_1")
        file.move("other", "episode_2")


def empty(root: Path) -> None:
    write(root, [])


def huge(root: Path) -> None:
    episodes = make_episodes(make_spec(), LENGTHS)
    episodes[0].rewards[4, 1] = 1e30
    episodes[3].obs[6, 1, 2] = -1e30
    write(root, episodes)


def copied(root: Path) -> None:
    episodes = make_episodes(make_spec(), LENGTHS)
    write(root, episodes * 3)


REFUSED_BY_READING = [
    (truncated, ["main_data.hdf5", "truncated or damaged"]),
    (not_hdf5, ["main_data.hdf5", "not a readable HDF5 file"]),
    (without_metadata, ["data/raw", "holds no Minari dataset"]),
    (lambda root: shutil.rmtree(root), ["data/raw: folder not found"]),
]
REFUSED_BY_EXPECTATIONS = [
    (
        laden_with_nan,
        {"rewards_finite": [[1, 2]], "observations_finite": [[2, 1]], "actions_finite": [[2, 3]]},
    ),
    (wrongly_shaped, {"constant_shapes": [[2, 0]]}),
    (ragged, {"constant_shapes": [[1, 0], [3, 0]]}),
    (reversed_in_time, {"end_flags": [[0, 0], [0, 4], [1, 0], [1, 2], [2, 0], [2, 3], [3, 0], [3, 5]]}),
    (steps_out_of_order, {"episodes_in_order": [[1, 1], [1, 2], [1, 3]]}),
    (episodes_out_of_order, {"episodes_in_order": [[1, 0], [2, 0], [3, 0]]}),
    (empty, {"not_empty": []}),
    (huge, {"rewards_believable": [[0, 4]], "observations_believable": [[3, 6]]}),
    (
        with_arrays(1, actions=np.full((3, 2, 3), 1.5, np.float32)),
        {"actions_in_bounds": [[1, 0], [1, 1], [1, 2]]},
    ),
    (
        copied,
        {"few_duplicates": [[4, 0], [4, 1], [4, 2], [4, 3], [4, 4], [5, 0], [5, 1], [5, 2], [6, 0], [6, 1]]},
    ),
]


def refuse(good: Path, folder: Path, make: Callable[[Path], None]) -> str:
    """Prepare bad data in a copy of `good`; return the message after checking what is left."""
    shutil.copytree(good, folder)
    make(folder / "data/raw")
    before = {name: digest(folder / name) for name in KEPT}
    done = prepare(folder)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert done.stderr.startswith("prepare: ")
    assert {name: digest(folder / name) for name in KEPT} == before
    assert sorted(path.name for path in (folder / "data").iterdir() if path.name != "raw") == ["prepared"]
    return done.stderr


@pytest.mark.parametrize(("make", "told"), REFUSED_BY_READING)
def test_what_cannot_be_read_is_refused(
    good: Path, tmp_path: Path, make: Callable[[Path], None], told: list[str]
) -> None:
    message = refuse(good, tmp_path / "bad", make)
    assert len(message.splitlines()) == 1
    for part in told:
        assert part in message


@pytest.mark.parametrize(("make", "offenders"), REFUSED_BY_EXPECTATIONS)
def test_what_breaks_an_expectation_is_refused_and_reported(
    good: Path, tmp_path: Path, make: Callable[[Path], None], offenders: dict[str, list[list[int]]]
) -> None:
    message = refuse(good, tmp_path / "bad", make)
    written = json.loads((tmp_path / "bad/reports/validation/validation.json").read_text())
    assert not written["success"]
    failed = {
        entry["name"]: entry["first_failures"]
        for entry in written["expectations"]
        if not entry["success"] and entry["evaluated"]
    }
    assert failed == offenders
    html = (tmp_path / "bad/reports/validation/index.html").read_text()
    for name, pairs in offenders.items():
        assert name in message
        assert name in html
        for episode, step in pairs:
            assert f"({episode}, {step})" in message
            assert f"({episode}, {step})" in html


def test_data_that_name_no_environment_are_prepared(good: Path, tmp_path: Path) -> None:
    shutil.copytree(good, tmp_path / "nameless")
    shutil.rmtree(tmp_path / "nameless/data/raw")
    spec = make_spec()
    write_minari(tmp_path / "nameless/data/raw", DATASET, make_episodes(spec, LENGTHS), spec, None, {})
    done = prepare(tmp_path / "nameless")
    assert done.returncode == 0, done.stderr
    assert load_prepared(tmp_path / "nameless/data/prepared").env is None
