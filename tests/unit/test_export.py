"""Exported, imported and prepared again, a dataset is the same; what a format cannot hold is said."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import minari
import numpy as np
import pytest
from data_samples import ENV, make_episodes, make_spec
from hypothesis import given, settings
from hypothesis import strategies as st

from macflow.data.episode import Episode
from macflow.data.export import ExportFormat, export_prepared
from macflow.data.importers.imported import Imported, numbered_agents, write_imported
from macflow.data.importers.minari_ids import read_minari_source
from macflow.data.importers.npz import read_npz
from macflow.data.importers.omar import read_omar
from macflow.data.minari_store import read_minari_rows
from macflow.data.prepared import load_rows, write_prepared
from macflow.data.rows import UNKNOWN_SEED, EpisodeRows, stack_episodes
from macflow.types import DataError, MultiAgentSpec


def prepare(folder: Path, episodes: list[Episode], spec: MultiAgentSpec, source: Any = None) -> Path:
    write_prepared(
        folder, stack_episodes(episodes, spec), spec, env=ENV, source=source or {}, made_from={}, params={}
    )
    return folder


def read(folder: Path, form: ExportFormat, env_spec: MultiAgentSpec | None = None) -> Imported:
    match form:
        case "npz":
            return read_npz(folder)
        case "omar":
            return read_omar(folder, env_spec=env_spec)
        case "minari":
            return read_minari_source(str(folder))


def assert_same_rows(found: EpisodeRows, expected: EpisodeRows) -> None:
    for name in ("obs", "state", "actions", "rewards", "terminated", "truncated", "legal_actions", "lengths"):
        one, other = getattr(found, name), getattr(expected, name)
        if other is None:
            assert one is None
        else:
            assert one.dtype == other.dtype, name
            # Bit by bit: -0.0 is not 0.0.
            assert one.tobytes() == np.ascontiguousarray(other).tobytes(), name


def padded(episodes: list[Episode], sizes: tuple[int, ...]) -> list[Episode]:
    """Cut each agent's observations to its size."""
    for episode in episodes:
        for agent, size in enumerate(sizes):
            episode.obs[:, agent, size:] = 0
    return episodes


@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    lengths=st.lists(st.integers(1, 5), min_size=1, max_size=5),
    sizes=st.lists(st.integers(1, 4), min_size=1, max_size=3).map(tuple),
    form=st.sampled_from(["npz", "minari", "omar"]),
    discrete=st.booleans(),
    own_state=st.booleans(),
    both=st.booleans(),
    seed=st.integers(0, 99),
)
def test_a_round_trip_changes_nothing(
    lengths: list[int],
    sizes: tuple[int, ...],
    form: ExportFormat,
    discrete: bool,
    own_state: bool,
    both: bool,
    seed: int,
) -> None:
    discrete = discrete and form != "omar"
    spec = replace(make_spec(discrete, len(sizes), max(sizes)), obs_dims=sizes)
    if not discrete:
        spec = replace(spec, action_low=(-1.5, -1.0, -1.25), action_high=(1.0, 0.1 + 1, 3.0))
    spec = replace(spec, agent_ids=tuple(f"cart {i}" for i in range(len(sizes))))
    if not own_state:
        spec = replace(spec, state_size=sum(sizes))
    episodes = padded(make_episodes(spec, lengths, seed), sizes)
    for episode in episodes:
        episode.rewards[0, 0] = -0.0
        # OMAR's flags tell terminations only.
        if both and form != "omar":
            episode.truncated[-1] = episode.terminated[-1] = True
        if not own_state:
            parts = [episode.obs[:, i, :size] for i, size in enumerate(sizes)]
            episode.state[:] = np.concatenate(parts, axis=1)
    with tempfile.TemporaryDirectory() as root:
        source = prepare(Path(root) / "prepared", episodes, spec)
        expected, _, _ = load_rows(source)
        exported = export_prepared(source, Path(root) / "out", form)
        found = read(Path(root) / "out", form, spec)
        assert (Path(root) / "out" / "seed_0_data" / "states_0.npy").exists() == (
            form == "omar" and own_state
        )
    assert_same_rows(found.rows, expected)
    assert found.spec == (spec if found.named else replace(spec, agent_ids=numbered_agents(len(sizes))))
    assert found.named == (form != "omar")
    assert (exported.episodes, exported.transitions) == (len(lengths), sum(lengths))
    if form == "omar":
        assert (found.rows.seeds == UNKNOWN_SEED).all()
    else:
        np.testing.assert_array_equal(found.rows.seeds, expected.seeds)


@pytest.mark.parametrize("form", ["npz", "minari", "omar"])
def test_writing_twice_gives_the_same_bytes(tmp_path: Path, form: ExportFormat) -> None:
    spec = make_spec()
    source = prepare(tmp_path / "prepared", make_episodes(spec, [3, 2]), spec)

    def written(name: str) -> dict[str, bytes]:
        export_prepared(source, tmp_path / name, form)
        files = [path for path in sorted((tmp_path / name).rglob("*")) if path.is_file()]
        return {str(path.relative_to(tmp_path / name)): path.read_bytes() for path in files}

    assert written("one") == written("two")


def test_minari_keeps_everything_and_loads_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = make_spec()
    behaviour = {"name": "medium", "seed": 3}
    source = prepare(
        tmp_path / "prepared",
        make_episodes(spec, [3, 2]),
        spec,
        {"dataset_id": "macflow/test-medium-v0", "behaviour": behaviour},
    )
    exported = export_prepared(source, tmp_path / "out", "minari")
    assert exported.notes == ()
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "out"))
    assert minari.load_dataset("macflow/test-medium-v0").total_steps == 5
    found = read_minari_source("macflow/test-medium-v0")
    assert found.env == ENV
    assert found.behaviour == behaviour
    assert found.dataset_id == "macflow/test-medium-v0"


def test_a_dataset_without_an_id_gets_one(tmp_path: Path) -> None:
    spec = make_spec()
    source = prepare(tmp_path / "prepared", make_episodes(spec, [3]), spec)
    export_prepared(source, tmp_path / "out", "minari")
    assert read_minari_rows(tmp_path / "out")[2]["dataset_id"] == "export/mpe-spread-v0"


def test_what_omar_has_no_place_for_is_told(tmp_path: Path) -> None:
    spec = replace(make_spec(), action_low=(-2.0,) * 3, action_high=(1.0,) * 3, agent_ids=("a", "b"))
    episodes = make_episodes(spec, [3, 2])
    episodes[1].truncated[-1] = episodes[1].terminated[-1] = True
    source = prepare(tmp_path / "prepared", episodes, spec)
    exported = export_prepared(source, tmp_path / "out", "omar")
    assert exported.notes == (
        "the environment is not part of the format; import with --env mpe/spread --env-kwarg n_agents=2",
        "omar has no place for the bounds of actions; import with --action-bounds -2.0 1.0, or with --env",
        "omar has no place for the agents' names, a, b",
        "omar has no place for the episodes' seeds",
        "1 episodes end by termination and time limit at once; omar keeps the termination",
    )
    found = read_omar(tmp_path / "out", action_bounds=(-2.0, 1.0))
    assert found.spec == replace(spec, agent_ids=("agent_0", "agent_1"))
    assert found.rows.terminated[found.rows.train_rows].tolist() == [False, False, False, False, True]


# --- refused ---------------------------------------------------------------------------------------------


def test_omar_holds_no_discrete_actions(tmp_path: Path) -> None:
    spec = make_spec(discrete=True)
    source = prepare(tmp_path / "prepared", make_episodes(spec, [3]), spec)
    with pytest.raises(DataError, match=r"holds continuous actions only \(received 3 discrete ones"):
        export_prepared(source, tmp_path / "out", "omar")
    assert [path.name for path in tmp_path.iterdir()] == ["prepared"]


def test_omar_cannot_show_an_end_without_a_jump(tmp_path: Path) -> None:
    spec = make_spec()
    episodes = make_episodes(spec, [3, 2, 2])
    # Number 0 is cut where number 1 begins; that number 1 terminates where 2 begins is no harm.
    for before, after in ((0, 1), (1, 2)):
        episodes[after].obs[0] = episodes[before].obs[-1]
        episodes[after].state[0] = episodes[before].state[-1]
    source = prepare(tmp_path / "prepared", episodes, spec)
    with pytest.raises(
        DataError, match=r"episode 0 ends with those that the next one begins with \(received 1"
    ):
        export_prepared(source, tmp_path / "out", "omar")
    # A state that differs shows the end.
    episodes[1].state[0, 0] += 1
    prepare(source, episodes, spec)
    export_prepared(source, tmp_path / "out", "omar")
    assert read_omar(tmp_path / "out").rows.lengths.tolist() == [3, 2, 2]


@pytest.mark.parametrize("form", ["npz", "minari", "omar"])
def test_padding_that_is_not_zero(tmp_path: Path, form: ExportFormat) -> None:
    spec = replace(make_spec(), obs_dims=(4, 3))
    source = prepare(tmp_path / "prepared", make_episodes(spec, [3]), spec)
    with pytest.raises(DataError, match="observations must be 0 beyond the 3 features of `agent_1`"):
        export_prepared(source, tmp_path / "out", form)
    assert [path.name for path in tmp_path.iterdir()] == ["prepared"]


def test_a_folder_that_is_not_prepared(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="prepared dataset not found"):
        export_prepared(tmp_path / "nowhere", tmp_path / "out", "npz")
    assert list(tmp_path.iterdir()) == []


def test_an_import_that_fails_validation_writes_nothing(tmp_path: Path) -> None:
    spec = make_spec()
    episodes = make_episodes(spec, [3, 2])
    episodes[1].actions[1, 0, 0] = 7
    found = Imported(stack_episodes(episodes, spec), spec, "a/bb-v0", {}, named=True)
    with pytest.raises(DataError, match=r"actions_in_bounds: .* \(1, 1\)"):
        write_imported(tmp_path / "to", "mine", found)
    assert list(tmp_path.iterdir()) == []
