"""The canonical dataset: what goes in comes out, and nothing damaged is believed."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from data_samples import ENV, assert_same_episodes, make_episodes, make_spec
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from macflow.data.minari_store import read_minari_rows, write_minari
from macflow.data.normalizer import Normalizer
from macflow.data.prepared import load_prepared, load_rows, write_prepared
from macflow.data.rows import EpisodeRows, stack_episodes
from macflow.files import digest
from macflow.types import DataError, MultiAgentSpec


def write(path: Path, rows: EpisodeRows, spec: MultiAgentSpec) -> None:
    write_prepared(path, rows, spec, env=ENV, source={"kind": "test"}, made_from={"raw": "1"}, params={})


def write_sample(path: Path, discrete: bool = False) -> tuple[EpisodeRows, MultiAgentSpec]:
    spec = make_spec(discrete)
    rows = stack_episodes(make_episodes(spec, [3, 1, 2]), spec)
    write(path, rows, spec)
    return rows, spec


@settings(max_examples=15, deadline=None, derandomize=True)
@given(
    lengths=st.lists(st.integers(1, 6), min_size=1, max_size=5),
    discrete=st.booleans(),
    agents=st.integers(1, 3),
    seed=st.integers(0, 1000),
)
def test_episodes_survive_minari_and_preparation(
    lengths: list[int], discrete: bool, agents: int, seed: int
) -> None:
    spec = make_spec(discrete, agents)
    episodes = make_episodes(spec, lengths, seed)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_minari(folder / "raw", "macflow/test-v0", episodes, spec, ENV, {"name": "x"})
        rows, _, _ = read_minari_rows(folder / "raw")
        write(folder / "prepared", rows, spec)
        loaded = load_prepared(folder / "prepared")
        again, again_spec, _ = load_rows(folder / "prepared")
    assert loaded.spec == again_spec == spec
    assert_same_episodes(episodes, again.episodes())
    np.testing.assert_array_equal(loaded.obs.numpy(), np.concatenate([e.obs for e in episodes]))
    np.testing.assert_allclose(loaded.returns, [e.team_return for e in episodes], rtol=1e-5, atol=1e-5)
    # Every train row and its next row are one recorded transition.
    transitions = [(e, t) for e in episodes for t in range(e.length)]
    assert len(loaded.train_rows) == len(transitions)
    for row, (episode, t) in zip(loaded.train_rows.tolist(), transitions, strict=True):
        np.testing.assert_array_equal(loaded.state[row].numpy(), episode.state[t])
        np.testing.assert_array_equal(loaded.state[row + 1].numpy(), episode.state[t + 1])
        np.testing.assert_array_equal(loaded.actions[row].numpy(), episode.actions[t])
        np.testing.assert_array_equal(loaded.rewards[row].numpy(), episode.rewards[t])
        assert bool(loaded.terminated[row]) == bool(episode.terminated[t])
        assert bool(loaded.truncated[row]) == bool(episode.truncated[t])


@pytest.mark.parametrize("discrete", [False, True])
def test_layout_on_disk_and_in_memory(tmp_path: Path, discrete: bool) -> None:
    rows, _ = write_sample(tmp_path / "prepared", discrete)
    loaded = load_prepared(tmp_path / "prepared")
    assert loaded.env == ENV
    assert loaded.meta["counts"] == {"episodes": 3, "transitions": 6, "rows": 9}
    assert loaded.meta["made_from"] == {"raw": "1"}
    assert loaded.train_rows.tolist() == [0, 1, 2, 4, 6, 7]
    final = torch.tensor([3, 5, 8])
    for array in (loaded.actions, loaded.rewards, loaded.terminated, loaded.truncated):
        assert not array[final].any()
    assert loaded.actions.dtype == (torch.int64 if discrete else torch.float32)
    assert (loaded.legal_actions is not None) == discrete
    expected = Normalizer.fit(rows.obs, rows.state, rows.rewards, rows.train_rows)
    np.testing.assert_array_equal(loaded.normalizer.obs_std, expected.obs_std)
    episodes = pl.read_parquet(tmp_path / "prepared/episodes.parquet")
    assert episodes["first_row"].to_list() == [0, 4, 6]
    assert episodes["length"].to_list() == [3, 1, 2]
    assert episodes["terminated"].to_list() == [False, True, False]
    transitions = pl.read_parquet(tmp_path / "prepared/transitions.parquet")
    assert transitions["row"].to_list() == loaded.train_rows.tolist()
    assert transitions["episode"].to_list() == [0, 0, 0, 1, 2, 2]
    assert transitions["step"].to_list() == [0, 1, 2, 0, 0, 1]
    by_table = transitions.group_by("episode", maintain_order=True).agg(pl.col("team_reward").sum())
    np.testing.assert_allclose(by_table["team_reward"].to_numpy(), loaded.returns)
    assert loaded.meta["returns"]["mean"] == pytest.approx(loaded.returns.mean())


def test_writing_twice_gives_the_same_bytes_and_replaces(tmp_path: Path) -> None:
    write_sample(tmp_path / "one")
    (tmp_path / "one/left_over.txt").write_text("old")
    write_sample(tmp_path / "one")
    write_sample(tmp_path / "two")
    assert digest(tmp_path / "one") == digest(tmp_path / "two")


def test_a_failed_write_leaves_the_old_dataset(tmp_path: Path) -> None:
    _, spec = write_sample(tmp_path / "prepared")
    before = digest(tmp_path / "prepared")
    with pytest.raises(DataError, match="at least one transition"):
        write(tmp_path / "prepared", stack_episodes([], spec), spec)
    assert digest(tmp_path / "prepared") == before
    assert [path.name for path in tmp_path.iterdir()] == ["prepared"]


def test_loaded_tensors_are_no_views_of_the_file(tmp_path: Path) -> None:
    write_sample(tmp_path / "prepared")
    before = digest(tmp_path / "prepared")
    loaded = load_prepared(tmp_path / "prepared")
    loaded.obs.zero_()
    assert digest(tmp_path / "prepared") == before
    assert load_prepared(tmp_path / "prepared").obs.any()


# --- refused -----------------------------------------------------------------------------------------


def edit_json(**entries: Any) -> Callable[[Path], None]:
    def edit(path: Path) -> None:
        file = path / "dataset.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | entries))

    return edit


def edit_arrays(**entries: np.ndarray | None) -> Callable[[Path], None]:
    def edit(path: Path) -> None:
        file = path / "arrays.safetensors"
        arrays = {k: v for k, v in (load_file(file) | entries).items() if v is not None}
        save_file(arrays, file)

    return edit


def cut(name: str) -> Callable[[Path], None]:
    def edit(path: Path) -> None:
        file = path / name
        file.write_bytes(file.read_bytes()[:-40])

    return edit


def remove(name: str) -> Callable[[Path], None]:
    return lambda path: (path / name).unlink()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (remove("dataset.json"), r"dataset\.json: file not found"),
        (remove("arrays.safetensors"), r"arrays\.safetensors: file not found"),
        (remove("episodes.parquet"), r"episodes\.parquet: cannot be read"),
        (cut("dataset.json"), "not valid JSON"),
        (cut("arrays.safetensors"), r"arrays\.safetensors: cannot be read"),
        (cut("episodes.parquet"), r"episodes\.parquet: cannot be read"),
        (edit_json(schema_version=0), "`schema_version` must be 1, received 0; run the prepare stage"),
        (edit_json(normalizer=[]), "`normalizer` must be an object"),
        (edit_json(env={"id": "x"}), "`env` must be null or hold `id` and `kwargs`"),
        (edit_json(env=3), "`env` must be null or hold `id` and `kwargs`, received 3"),
        (edit_json(spec={"agents": 2}), "agent specification has wrong keys"),
        (
            edit_json(counts={"episodes": 3, "transitions": 6, "rows": 8}),
            r"`obs` must have shape \(8, 2, 4\)",
        ),
        (edit_json(counts={"episodes": 4, "transitions": 6, "rows": 9}), "has 3 episodes"),
        (edit_arrays(obs=np.zeros((9, 2, 5), np.float32)), r"received \(9, 2, 5\)"),
        (edit_arrays(terminated=np.zeros(9, np.float32)), "`terminated` must have .* type torch.bool"),
        (edit_arrays(state=None), "must hold the arrays"),
        (edit_arrays(legal_actions=np.ones((9, 2, 3), np.bool_)), "must hold the arrays"),
        (edit_arrays(train_rows=np.array([0, 1, 2, 4, 6, 8])), "`train_rows` must rise"),
        (edit_arrays(train_rows=np.array([0, 2, 1, 4, 6, 7])), "`train_rows` must rise"),
        (edit_arrays(train_rows=np.array([0, 1, 3, 4, 6, 7])), "disagree on where episodes begin"),
        (edit_arrays(train_rows=np.array([-1, 1, 2, 4, 6, 7])), "`train_rows` must rise"),
    ],
)
def test_damaged_datasets_are_refused(tmp_path: Path, damage: Callable[[Path], None], message: str) -> None:
    write_sample(tmp_path / "prepared")
    damage(tmp_path / "prepared")
    with pytest.raises(DataError, match=message):
        load_prepared(tmp_path / "prepared")
    with pytest.raises(DataError, match=message.replace("torch.bool", "bool")):
        load_rows(tmp_path / "prepared")


def test_a_missing_folder_says_what_makes_it(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="the prepare stage makes it"):
        load_prepared(tmp_path / "prepared")
