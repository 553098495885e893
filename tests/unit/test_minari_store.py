"""Minari datasets: what is written is read, by Minari too; what is broken is refused."""

from __future__ import annotations

import json
import os
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium as gym
import h5py
import minari
import numpy as np
import pytest
from data_samples import ENV, assert_same_episodes, make_episodes, make_spec
from hypothesis import given, settings
from hypothesis import strategies as st
from minari.data_collector import EpisodeBuffer

from macflow.data import hdf5_reader
from macflow.data.minari_store import StructureError, read_minari, read_minari_rows, write_minari
from macflow.data.rows import UNKNOWN_SEED, stack_episodes
from macflow.files import digest
from macflow.types import DataError

DATASET = "macflow/test-medium-v0"
BEHAVIOUR = {"name": "medium", "seed": 3}


def write(root: Path, discrete: bool = False, lengths: tuple[int, ...] = (3, 1, 4)) -> Path:
    """Write a sample dataset; return its data folder."""
    spec = make_spec(discrete)
    write_minari(root, DATASET, make_episodes(spec, list(lengths)), spec, ENV, BEHAVIOUR)
    return root / DATASET / "data"


@settings(max_examples=15, deadline=None, derandomize=True)
@given(
    lengths=st.lists(st.integers(1, 6), min_size=0, max_size=5),
    discrete=st.booleans(),
    agents=st.integers(1, 4),
    seed=st.integers(0, 1000),
)
def test_round_trip(lengths: list[int], discrete: bool, agents: int, seed: int) -> None:
    spec = make_spec(discrete, agents)
    episodes = make_episodes(spec, lengths, seed)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "raw"
        write_minari(root, DATASET, episodes, spec, ENV, BEHAVIOUR)
        found, found_spec, meta = read_minari(root)
    assert found_spec == spec
    assert_same_episodes(episodes, found)
    assert meta["env"] == ENV
    assert meta["behaviour"] == BEHAVIOUR
    assert meta["dataset_id"] == DATASET
    assert not meta["inferred"]


@pytest.mark.parametrize("discrete", [False, True])
def test_minari_itself_loads_the_dataset(
    tmp_path: Path, discrete: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "raw", discrete)
    episodes = make_episodes(make_spec(discrete), [3, 1, 4])
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "raw"))
    dataset = minari.load_dataset(DATASET)
    assert (dataset.total_episodes, dataset.total_steps) == (3, 8)
    for episode, found in zip(episodes, dataset.iterate_episodes(), strict=True):
        np.testing.assert_array_equal(found.observations, episode.obs)
        np.testing.assert_array_equal(found.actions, episode.actions)
        np.testing.assert_allclose(found.rewards, episode.rewards.mean(axis=1), rtol=1e-6)
        np.testing.assert_array_equal(found.terminations, episode.terminated)
        np.testing.assert_array_equal(found.truncations, episode.truncated)
        np.testing.assert_array_equal(found.infos["agent_rewards"][1:], episode.rewards)
        np.testing.assert_array_equal(found.infos["state"], episode.state)
        assert dataset.action_space.contains(found.actions[0])
    assert [m["seed"] for m in dataset.storage.get_episode_metadata(range(3))] == [100, 101, 102]


def test_writing_twice_gives_the_same_bytes(tmp_path: Path) -> None:
    write(tmp_path / "one")
    time.sleep(1.1)  # HDF5 keeps times in whole seconds, where it keeps them
    write(tmp_path / "two")
    assert digest(tmp_path / "one") == digest(tmp_path / "two")


def test_writing_leaves_minaris_folder_setting_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MINARI_DATASETS_PATH", "elsewhere")
    write(tmp_path / "raw")
    assert os.environ["MINARI_DATASETS_PATH"] == "elsewhere"


def own_buffers(lengths: list[int], with_infos: bool) -> list[EpisodeBuffer]:
    buffers = []
    for episode in make_episodes(make_spec(), lengths):
        rewards = np.zeros((episode.length + 1, 2), np.float32)
        rewards[1:] = episode.rewards
        infos = {
            "agent_rewards": rewards,
            "state": episode.state,
            "step": np.arange(episode.length + 1),
        }
        buffers.append(
            EpisodeBuffer(
                observations=episode.obs.astype(np.float64),
                actions=episode.actions,
                rewards=episode.rewards.mean(axis=1),
                terminations=episode.terminated,
                truncations=episode.truncated,
                infos=infos if with_infos else None,
            )
        )
    return buffers


def write_by_minari(root: Path, buffers: list[EpisodeBuffer], monkeypatch: pytest.MonkeyPatch) -> None:
    root.mkdir()
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(root))
    with pytest.warns(UserWarning, match="is set to None"):
        minari.create_dataset_from_buffers(
            "someone/theirs-v0",
            buffer=buffers,
            observation_space=gym.spaces.Box(-np.inf, np.inf, (2, 4)),
            action_space=gym.spaces.Box(-1, 1, (2, 3)),
            data_format="hdf5",
        )


@pytest.mark.filterwarnings("ignore:env_spec is None")
def test_datasets_recorded_by_minari_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_by_minari(tmp_path / "raw", own_buffers([3, 2], with_infos=True), monkeypatch)
    found, spec, meta = read_minari(tmp_path / "raw")
    assert spec == make_spec()
    assert meta["inferred"]
    assert meta["env"] is None
    expected = [replace(episode, seed=UNKNOWN_SEED) for episode in make_episodes(spec, [3, 2])]
    assert_same_episodes(expected, found)


@pytest.mark.filterwarnings("ignore:env_spec is None")
def test_without_infos_rewards_are_the_teams_and_the_state_is_all_observations(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_by_minari(tmp_path / "raw", own_buffers([3], with_infos=False), monkeypatch)
    (found,), _, _ = read_minari(tmp_path / "raw")
    (episode,) = make_episodes(make_spec(), [3])
    np.testing.assert_array_equal(found.state, episode.obs.reshape(4, 8))
    team = episode.rewards.mean(axis=1)
    np.testing.assert_array_equal(found.rewards, np.stack([team, team], axis=1))


def test_several_processes_read_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lengths = tuple(1 + i % 5 for i in range(23))
    write(tmp_path / "raw", discrete=True, lengths=lengths)
    alone, spec, _ = read_minari(tmp_path / "raw")
    monkeypatch.setattr(hdf5_reader, "EPISODES_WORTH_A_PROCESS", 5)
    monkeypatch.setattr(hdf5_reader.os, "cpu_count", lambda: 3)
    together, _, _ = read_minari(tmp_path / "raw")
    assert_same_episodes(alone, together)
    assert_same_episodes(make_episodes(spec, list(lengths)), together)


def test_problems_found_by_several_processes_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = write(tmp_path / "raw", lengths=(2,) * 20)
    with h5py.File(data / "main_data.hdf5", "r+") as file:
        for index in (3, 17):
            del file[f"episode_{index}/actions"]
    monkeypatch.setattr(hdf5_reader, "EPISODES_WORTH_A_PROCESS", 5)
    monkeypatch.setattr(hdf5_reader.os, "cpu_count", lambda: 2)
    with pytest.raises(StructureError) as raised:
        read_minari(tmp_path / "raw")
    assert [episode for episode, _ in raised.value.problems] == [3, 17]


def test_chunks_do_not_change_what_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "raw", lengths=(3, 4, 5, 6))
    whole, _, _ = read_minari(tmp_path / "raw")
    monkeypatch.setattr(hdf5_reader, "CHUNK_ROWS", 6)
    assert_same_episodes(whole, read_minari(tmp_path / "raw")[0])


# --- refused -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("content", ["dataset", "file"])
def test_a_folder_with_content_is_not_overwritten(tmp_path: Path, content: str) -> None:
    root = tmp_path / "raw"
    if content == "dataset":
        write(root)
    else:
        root.mkdir()
        (root / "mine.txt").write_text("mine")
    before = digest(root)
    with pytest.raises(DataError, match="has content"):
        write(root)
    assert digest(root) == before


@pytest.mark.parametrize("dataset_id", ["no-version", "x/y-v0", "a b-v0"])
def test_ids_that_minari_refuses(tmp_path: Path, dataset_id: str) -> None:
    spec = make_spec()
    with pytest.raises(DataError, match="not accepted by Minari"):
        write_minari(tmp_path / "raw", dataset_id, make_episodes(spec, [2]), spec, ENV, BEHAVIOUR)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"obs": np.zeros((3, 3, 4), np.float32)}, r"episode 1: `obs` must have shape \(3, 2, 4\)"),
        ({"obs": np.zeros((2, 2, 4), np.float32)}, r"`obs` must have shape \(3, 2, 4\)"),
        ({"actions": np.zeros((2, 2, 3), np.int64)}, "`actions` must be floating point, received int64"),
        ({"terminated": np.zeros(2, np.float32)}, "`terminated` must be boolean"),
        ({"legal_actions": np.ones((3, 2, 3), np.bool_)}, "`legal_actions` must be None"),
    ],
)
def test_episodes_that_do_not_match_the_specification(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    spec = make_spec()
    first, second = make_episodes(spec, [3, 2])
    broken = [first, replace(second, **changes)]
    with pytest.raises(DataError, match=message):
        write_minari(tmp_path / "raw", DATASET, broken, spec, ENV, BEHAVIOUR)
    with pytest.raises(DataError, match=message):
        stack_episodes(broken, spec)
    assert not (tmp_path / "raw").exists()


def test_discrete_episodes_need_legal_actions() -> None:
    spec = make_spec(discrete=True)
    (episode,) = make_episodes(spec, [2])
    with pytest.raises(DataError, match="`legal_actions` is missing"):
        stack_episodes([replace(episode, legal_actions=None)], spec)


@pytest.mark.parametrize("keep", [0, 100, 0.5, 0.97])
def test_truncated_files(tmp_path: Path, keep: float) -> None:
    file = write(tmp_path / "raw") / "main_data.hdf5"
    whole = file.read_bytes()
    file.write_bytes(whole[: int(keep * len(whole)) if isinstance(keep, float) else keep])
    with pytest.raises(DataError, match="truncated or damaged"):
        read_minari(tmp_path / "raw")


@settings(max_examples=60, deadline=None, derandomize=True)
@given(position=st.floats(0, 1, exclude_max=True), bytes_=st.binary(min_size=16, max_size=16))
def test_damaged_bytes_are_refused_or_read_but_never_crash(position: float, bytes_: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        file = write(Path(folder) / "raw", lengths=(2, 2)) / "main_data.hdf5"
        content = bytearray(file.read_bytes())
        start = int(position * (len(content) - 16))
        content[start : start + 16] = bytes_
        file.write_bytes(content)
        try:
            read_minari(Path(folder) / "raw")
        except DataError as error:
            assert str(file) in str(error)  # noqa: PT017


def change_metadata(data: Path, **entries: Any) -> None:
    path = data / "metadata.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | entries))


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"data_format": "arrow"}, "`data_format` must be 'hdf5'"),
        ({"total_episodes": "3"}, "`total_episodes` must be an integer"),
        ({"total_episodes": -1}, "`total_episodes` must be an integer"),
        ({"total_episodes": 9}, "metadata promises 9 episodes, the file has 3"),
        ({"total_steps": 7}, "`total_steps` is 7, the episodes have 8"),
        ({"macflow": {"env": None}}, "`macflow` must be an object with a `spec`"),
        ({"macflow": {"spec": {"agents": 3}}}, "agent specification"),
        ({"macflow": {"spec": make_spec().to_dict(), "env": {"id": 3}}}, "`macflow.env` must be null"),
        (
            {"macflow": {"spec": make_spec().to_dict() | {"obs_dims": [4, 4, 4]}}},
            r"not consistent: `obs_dims` = \[4, 4, 4\]",
        ),
        (
            {"macflow": {"spec": make_spec().to_dict() | {"action_high": [1.0, 1.0, -1.0]}}},
            "not consistent: `action_high`",
        ),
        (
            {"macflow": {"spec": make_spec().to_dict() | {"agent_ids": ["a", "a"]}}},
            "not consistent: `agent_ids`",
        ),
        (
            {"macflow": None, "observation_space": '{"type": "Dict", "subspaces": {}}'},
            "must be a Box of shape .* with all agents stacked",
        ),
        ({"macflow": None, "action_space": '{"type": "Discrete", "n": 3}'}, "`action_space` must be a Box"),
        (
            {"macflow": None, "action_space": '{"type": "MultiDiscrete", "nvec": [3, 4], "start": [0, 0]}'},
            "2 equal sizes",
        ),
        ({"macflow": None, "observation_space": 5}, "`observation_space` is missing or not Minari's"),
    ],
)
def test_metadata_that_is_wrong(tmp_path: Path, entries: dict[str, Any], message: str) -> None:
    change_metadata(write(tmp_path / "raw"), **entries)
    with pytest.raises(DataError, match=message):
        read_minari(tmp_path / "raw")


@pytest.mark.parametrize("content", ["", "{", "[]", "\udcff"])
def test_metadata_that_is_not_json(tmp_path: Path, content: str) -> None:
    path = write(tmp_path / "raw") / "metadata.json"
    path.write_bytes(content.encode(errors="surrogateescape"))
    with pytest.raises(DataError, match=r"metadata\.json"):
        read_minari(tmp_path / "raw")


def test_folders_without_exactly_one_dataset(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="folder not found"):
        read_minari(tmp_path / "raw")
    (tmp_path / "raw").mkdir()
    with pytest.raises(DataError, match="holds no Minari dataset"):
        read_minari(tmp_path / "raw")
    write(tmp_path / "raw/one")
    data = write(tmp_path / "raw/two")
    with pytest.raises(DataError, match="holds 2 Minari datasets"):
        read_minari(tmp_path / "raw")
    (data / "main_data.hdf5").unlink()
    with pytest.raises(DataError, match=r"main_data\.hdf5 is missing"):
        read_minari(data)


@pytest.mark.parametrize(
    ("array", "values", "message"),
    [
        (
            "observations",
            np.zeros((2, 3, 4), np.float32),
            r"\(steps \+ 1, ...\) = \(2, 2, 4\), received \(2, 3",
        ),
        ("observations", np.zeros((1, 2, 4), np.float32), r"= \(2, 2, 4\), received \(1, 2, 4\)"),
        ("actions", np.zeros((1, 2, 2), np.float32), r"= \(1, 2, 3\), received \(1, 2, 2\)"),
        ("actions", np.array([[["a"] * 3] * 2], "S1"), "`actions` must hold numbers"),
        ("terminations", np.zeros((1, 2), np.bool_), r"`terminations` must have shape"),
        ("truncations", np.zeros(1, np.float32), "`truncations` must hold booleans, received float32"),
        ("infos/state", np.zeros((2, 5), np.float32), r"`infos/state` must have shape"),
        ("infos/agent_rewards", np.zeros((1, 2), np.float32), r"`infos/agent_rewards` must have shape"),
        ("observations", None, "`observations` is missing"),
        ("infos/state", None, "`infos/state` is missing"),
    ],
)
def test_episodes_of_other_shapes_or_types(
    tmp_path: Path, array: str, values: np.ndarray | None, message: str
) -> None:
    data = write(tmp_path / "raw")
    with h5py.File(data / "main_data.hdf5", "r+") as file:
        del file[f"episode_1/{array}"]
        if values is not None:
            file[f"episode_1/{array}"] = values
    with pytest.raises(StructureError, match=f"episode 1: .*{message}") as raised:
        read_minari_rows(tmp_path / "raw")
    assert [episode for episode, _ in raised.value.problems] == [1]


def test_fractions_are_no_discrete_actions(tmp_path: Path) -> None:
    data = write(tmp_path / "raw", discrete=True)
    with h5py.File(data / "main_data.hdf5", "r+") as file:
        del file["episode_1/actions"]
        file["episode_1/actions"] = np.full((1, 2), 0.5, np.float32)
    with pytest.raises(StructureError, match="`actions` must hold integers, received float32"):
        read_minari(tmp_path / "raw")


def test_a_missing_episode_group(tmp_path: Path) -> None:
    data = write(tmp_path / "raw")
    with h5py.File(data / "main_data.hdf5", "r+") as file:
        file.move("episode_1", "episode_7")
    with pytest.raises(StructureError, match=r"episode 1: cannot be read: .*'episode_1' doesn't exist"):
        read_minari(tmp_path / "raw")
