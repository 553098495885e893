"""OMAR's npy folders: published layout in, exact values out; what contradicts itself is refused."""

from __future__ import annotations

import hashlib
import json
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from data_samples import make_spec
from hypothesis import given, settings
from hypothesis import strategies as st

from macflow.data.importers.imported import match_environment, write_imported
from macflow.data.importers.omar import read_omar
from macflow.data.minari_store import read_minari
from macflow.data.rows import UNKNOWN_SEED, EpisodeRows
from macflow.types import DataError

FIXTURES = Path(__file__).resolve().parents[1] / "fixtures" / "omar"
MEDIUM = FIXTURES / "simple_spread" / "medium"
MANIFEST = json.loads((FIXTURES / "manifest.json").read_text(encoding="utf-8"))["folders"]


@pytest.mark.parametrize("seed", [0, 1])
def test_fixtures_come_out_as_the_manifest_says(seed: int) -> None:
    folder = MEDIUM / f"seed_{seed}_data"
    facts = MANIFEST[f"simple_spread/medium/seed_{seed}_data"]
    found = read_omar(folder)
    rows, spec = found.rows, found.spec
    assert rows.lengths.tolist() == [facts["episode_length"]] * facts["episodes"]
    np.testing.assert_allclose(rows.team_returns, facts["episode_returns"], rtol=1e-5)
    ends = np.arange(500) % 25 == 24
    flagged = facts["dones_flagged"]
    np.testing.assert_array_equal(rows.terminated[rows.train_rows], ends if flagged else ~ends & ends)
    np.testing.assert_array_equal(rows.truncated[rows.train_rows], ends & ~rows.terminated[rows.train_rows])
    for agent in range(3):
        steps = rows.train_rows
        for name, values in {
            "obs": rows.obs[steps, agent],
            "acs": rows.actions[steps, agent],
            "rews": rows.rewards[steps, agent],
            "next_obs": rows.obs[steps + 1, agent],
        }.items():
            field = facts["fields"][f"{name}_{agent}"]
            assert values.dtype == np.float32
            assert list(values.shape) == field["shape"]
            if field["dtype"] == "float32":
                assert hashlib.sha256(np.ascontiguousarray(values).tobytes()).hexdigest() == field["sha256"]
            else:
                whole = np.load(folder / f"{name}_{agent}.npy")
                np.testing.assert_array_equal(values, whole.astype(np.float32))
                assert values.sum(dtype=np.float64) == pytest.approx(field["sum"], abs=1e-3)
    assert (spec.agent_ids, spec.obs_dims, spec.state_size) == (
        ("agent_0", "agent_1", "agent_2"),
        (18, 18, 18),
        54,
    )
    assert (spec.action_kind, spec.action_low, spec.action_high) == ("continuous", (-1, -1), (1, 1))
    assert (rows.seeds == UNKNOWN_SEED).all()
    np.testing.assert_array_equal(rows.state, rows.obs.reshape(len(rows.obs), 54))
    marked = 20 if flagged else 0
    assert f"{marked} of 20 episode ends are marked by dones, {20 - marked} are time limits" in found.notes


def test_a_folder_of_seeds_is_all_of_them_in_order(tmp_path: Path) -> None:
    together = read_omar(MEDIUM)
    parts = [read_omar(MEDIUM / f"seed_{seed}_data").rows for seed in (0, 1)]
    for name in ("obs", "state", "actions", "rewards", "terminated", "truncated", "lengths"):
        joined = np.concatenate([getattr(part, name) for part in parts])
        np.testing.assert_array_equal(getattr(together.rows, name), joined, err_msg=name)
    write_imported(tmp_path / "raw", str(MEDIUM), together)
    episodes, spec, meta = read_minari(tmp_path / "raw")
    assert len(episodes) == 40
    assert spec == together.spec
    assert meta["dataset_id"] == "omar/simple_spread-medium-v0"
    assert meta["behaviour"]["name"] == "medium"
    assert meta["behaviour"]["folders"] == ["seed_0_data", "seed_1_data"]


def test_seed_folders_are_ordered_by_number_not_by_name(tmp_path: Path) -> None:
    for seed in (10, 9, 2):
        write(tmp_path / f"seed_{seed}_data", [[{"reward": float(seed)}]])
    assert read_omar(tmp_path).rows.rewards[::2, 0].tolist() == [2, 9, 10]


def test_a_done_at_the_time_limit_can_be_read_as_truncation() -> None:
    rows = read_omar(MEDIUM / "seed_1_data", time_limit=25).rows
    assert not rows.terminated.any()
    assert int(rows.truncated.sum()) == 20
    assert int(read_omar(MEDIUM / "seed_1_data", time_limit=26).rows.terminated.sum()) == 20


# --- against a plain loop --------------------------------------------------------------------------------

Step = dict[str, Any]


def write(
    folder: Path,
    episodes: list[list[Step]],
    *,
    sizes: tuple[int, ...] = (3, 2),
    states: str = "none",
    dtype: str = "float32",
    column: bool = False,
) -> Path:
    """Write episodes of steps in OMAR's layout, step by step; unnamed values are distinct numbers.

    A step may set `reward` and `done`; the observation after a step is the one before the next step of
    the same episode.
    """
    folder.mkdir(parents=True)
    counter = iter(range(1, 1 << 20))
    files: dict[str, list[Any]] = {}

    def put(name: str, agent: int, value: Any) -> None:
        files.setdefault(f"{name}_{agent}", []).append(value)

    for steps in episodes:
        seen = [[[next(counter) / 8 for _ in range(size)] for size in sizes] for _ in range(len(steps) + 1)]
        state = [[next(counter) / 8 for _ in range(4)] for _ in range(len(steps) + 1)]
        for t, step in enumerate(steps):
            for agent in range(len(sizes)):
                put("obs", agent, seen[t][agent])
                put("next_obs", agent, seen[t + 1][agent])
                put("acs", agent, [(next(counter) % 17) / 8 - 1, 0.5])
                put("rews", agent, step.get("reward", next(counter) / 4))
                put("dones", agent, step.get("done", 0))
                if states != "none":
                    own = [0] if states == "shared" else [agent]
                    put("states", agent, state[t] + own)
                    put("next_states", agent, state[t + 1] + own)
    for name, values in files.items():
        array = np.array(values, dtype)
        np.save(folder / f"{name}.npy", array[:, None] if column and array.ndim == 1 else array)
    return folder


def plain_rows(folder: Path, lengths: list[int], sizes: tuple[int, ...]) -> dict[str, list[Any]]:
    """Read the files again by a plain loop over known episodes: the rows that must come out."""
    n, padded = len(sizes), max(sizes)
    files = {path.stem: np.load(path).astype(np.float32) for path in folder.iterdir()}
    out: dict[str, list[Any]] = {"obs": [], "actions": [], "rewards": [], "terminated": [], "truncated": []}

    def see(name: str, row: int) -> None:
        out["obs"].append(
            [[*files[f"{name}_{i}"][row].tolist(), *[0.0] * (padded - sizes[i])] for i in range(n)]
        )

    row = 0
    for length in lengths:
        for t in range(length):
            see("obs", row)
            done = bool(files["dones_0"].reshape(-1)[row])
            out["actions"].append([files[f"acs_{i}"][row].tolist() for i in range(n)])
            out["rewards"].append([float(files[f"rews_{i}"].reshape(-1)[row]) for i in range(n)])
            out["terminated"].append(done)
            out["truncated"].append(t == length - 1 and not done)
            row += 1
        see("next_obs", row - 1)
        out["actions"].append([[0.0, 0.0]] * n)
        out["rewards"].append([0.0] * n)
        out["terminated"].append(False)
        out["truncated"].append(False)
    return out


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    lengths=st.lists(st.integers(1, 5), min_size=1, max_size=5),
    dones=st.lists(st.booleans(), min_size=5, max_size=5),
    sizes=st.lists(st.integers(1, 4), min_size=1, max_size=3).map(tuple),
    states=st.sampled_from(["none", "shared", "own"]),
    dtype=st.sampled_from(["float32", "float64"]),
    column=st.booleans(),
)
def test_rows_are_those_of_a_plain_loop(
    lengths: list[int], dones: list[bool], sizes: tuple[int, ...], states: str, dtype: str, column: bool
) -> None:
    episodes: list[list[Step]] = [[{} for _ in range(length)] for length in lengths]
    for steps, done in zip(episodes, dones, strict=False):
        steps[-1]["done"] = int(done)
    with tempfile.TemporaryDirectory() as root:
        folder = write(
            Path(root) / "seed_0_data", episodes, sizes=sizes, states=states, dtype=dtype, column=column
        )
        found = read_omar(folder)
        expected = plain_rows(folder, lengths, sizes)
        files = {path.stem: np.load(path).astype(np.float32) for path in folder.iterdir()}
    assert found.rows.lengths.tolist() == lengths
    for name, values in expected.items():
        np.testing.assert_array_equal(getattr(found.rows, name), np.array(values), err_msg=name)
    assert found.spec.obs_dims == sizes
    check_state(found.rows, files, len(sizes), states)


def check_state(rows: EpisodeRows, files: dict[str, np.ndarray], agents: int, states: str) -> None:
    now, following = ("obs", "next_obs") if states == "none" else ("states", "next_states")
    # One agent's own state is the state.
    kept = 1 if states == "shared" else agents
    for name, at in ((now, rows.train_rows), (following, rows.train_rows + 1)):
        whole = np.concatenate([files[f"{name}_{i}"] for i in range(kept)], axis=1)
        np.testing.assert_array_equal(rows.state[at], whole)


def test_a_state_that_jumps_ends_an_episode_whose_observations_do_not(tmp_path: Path) -> None:
    folder = write(tmp_path / "seed_0_data", [[{}, {}], [{}]], sizes=(1,), states="shared")
    for name in ("obs_0", "next_obs_0"):
        np.save(folder / f"{name}.npy", np.zeros((3, 1)))
    assert read_omar(folder).rows.lengths.tolist() == [2, 1]


def test_episodes_of_a_given_length_may_end_cut_short(tmp_path: Path) -> None:
    folder = write(tmp_path / "seed_0_data", [[{}, {}, {}], [{}, {}, {}], [{}]])
    found = read_omar(folder, episode_length=3)
    assert found.rows.lengths.tolist() == [3, 3, 1]
    assert int(found.rows.truncated.sum()) == 3


def test_a_given_length_splits_what_continues(tmp_path: Path) -> None:
    """Environments that start again where they stopped show no jump."""
    folder = write(tmp_path / "seed_0_data", [[{}] * 6])
    assert read_omar(folder).rows.lengths.tolist() == [6]
    rows = read_omar(folder, episode_length=2).rows
    assert rows.lengths.tolist() == [2, 2, 2]
    np.testing.assert_array_equal(rows.obs[2], rows.obs[3])


def test_shuffled_rows_are_noticed(tmp_path: Path) -> None:
    folder = write(tmp_path / "seed_0_data", [[{}] for _ in range(5)])
    assert any("were the rows shuffled?" in note for note in read_omar(folder).notes)


def test_bounds_and_names_come_from_the_environment_or_are_given(tmp_path: Path) -> None:
    folder = write(tmp_path / "seed_0_data", [[{}]])
    env_spec = make_spec(agents=2, obs=3, actions=2)
    env_spec = type(env_spec).from_dict(
        env_spec.to_dict()
        | {"agent_ids": ["left", "right"], "action_low": [-3.0, -2.0], "action_high": [3.0, 2.0]}
    )
    read = read_omar(folder, env_spec=env_spec)
    assert read.spec.agent_ids == ("agent_0", "agent_1")
    spec = match_environment(read, "mine", replace(env_spec, obs_dims=read.spec.obs_dims)).spec
    assert (spec.agent_ids, spec.action_low, spec.action_high) == (("left", "right"), (-3, -2), (3, 2))
    assert spec.obs_dims == (3, 2)
    spec = read_omar(folder, env_spec=env_spec, action_bounds=(-0.5, 4)).spec
    assert (spec.action_low, spec.action_high) == ((-0.5, -0.5), (4, 4))


def test_a_number_too_large_for_single_precision_fails_the_validation(tmp_path: Path) -> None:
    folder = write(tmp_path / "seed_0_data", [[{}, {"reward": 1e300}]], dtype="float64")
    found = read_omar(folder)
    with pytest.raises(DataError, match=r"rewards_finite: .*first \(episode, step\): \(0, 1\)"):
        write_imported(tmp_path / "to", "here", found)
    assert not (tmp_path / "to").exists()


# --- refused ---------------------------------------------------------------------------------------------


def change(folder: Path, name: str, value: Any) -> None:
    if value is None:
        (folder / name).unlink()
    elif isinstance(value, bytes):
        (folder / name).write_bytes(value)
    else:
        np.save(folder / name, value, allow_pickle=True)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("acs_1.npy", None, r"acs_1\.npy: file not found; files of 2 agents are there"),
        ("obs_0.npy", None, r"obs_0\.npy: file not found"),
        ("next_obs_1.npy", np.zeros((3, 3)), r"next_obs_1\.npy: must have the shape of obs_1\.npy, \(3, 2\)"),
        ("obs_0.npy", np.zeros(3), r"obs_0\.npy: must have shape \(3, size\) \(received \(3,\)"),
        ("obs_0.npy", np.zeros((0, 3)), r"obs_0\.npy: "),
        ("rews_1.npy", np.zeros((3, 2)), r"rews_1\.npy: must have shape \(3,\) \(received \(3, 2\)"),
        ("rews_1.npy", np.zeros(4), r"rews_1\.npy: must have shape \(3,\) \(received \(4,\)"),
        ("acs_0.npy", np.zeros(3, int), r"acs_0\.npy: .*discrete actions are imported from npz"),
        (
            "acs_0.npy",
            np.zeros((3, 2), int),
            r"acs_0\.npy: must hold floating point numbers \(received int64",
        ),
        ("acs_0.npy", np.zeros((3, 5)), r"all agents must have actions of one size \(received .*\[5, 2\]"),
        ("obs_0.npy", np.zeros((3, 3), complex), r"obs_0\.npy: must hold real numbers \(received complex128"),
        ("dones_0.npy", np.array([0, 2.5, 1]), r"dones_0\.npy: must hold 0 and 1 \(received 2\.5 in row 1"),
        (
            "dones_1.npy",
            np.array([0, 1, 0]),
            r"dones_1\.npy: all agents must be done at the same time \(row 1",
        ),
        ("rews_0.npy", np.array([{}] * 3), r"rews_0\.npy: not a readable \.npy file"),
        ("rews_0.npy", b"\x93NUMPY", r"rews_0\.npy: not a readable \.npy file"),
        ("obs_1.npy", b"", r"obs_1\.npy: not a readable \.npy file"),
        ("states_0.npy", np.zeros((3, 2)), r"states_1\.npy: file not found"),
    ],
)
def test_broken_folders(tmp_path: Path, name: str, value: Any, message: str) -> None:
    folder = write(tmp_path / "seed_0_data", [[{}, {}, {}]])
    change(folder, name, value)
    with pytest.raises(DataError, match=message):
        read_omar(tmp_path)


def test_a_file_cut_short(tmp_path: Path) -> None:
    folder = write(tmp_path / "seed_0_data", [[{}, {}, {}]])
    whole = (folder / "obs_0.npy").read_bytes()
    (folder / "obs_0.npy").write_bytes(whole[:-5])
    with pytest.raises(DataError, match=r"obs_0\.npy: not a readable"):
        read_omar(folder)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"episode_length": 2}, "the next observation is not the one of the next row in row 2, step 0"),
        ({"episode_length": 6}, "episodes of 6 steps contradict the data: .* in row 2, step 2"),
        ({"time_limit": 2}, "episode 0 has 3 steps, more than the time limit of 2"),
    ],
)
def test_lengths_that_contradict_the_data(tmp_path: Path, options: dict[str, int], message: str) -> None:
    folder = write(tmp_path / "seed_0_data", [[{}, {}, {}], [{}, {}, {}]])
    with pytest.raises(DataError, match=message):
        read_omar(folder, **options)


def test_a_done_within_a_given_length(tmp_path: Path) -> None:
    folder = write(tmp_path / "seed_0_data", [[{}, {"done": 1}], [{}, {}]])
    with pytest.raises(DataError, match="dones is set in row 1, step 1 of its episode"):
        read_omar(folder, episode_length=4)


def test_seeds_of_different_agents(tmp_path: Path) -> None:
    write(tmp_path / "seed_0_data", [[{}]])
    write(tmp_path / "seed_1_data", [[{}]], sizes=(3, 2, 1))
    with pytest.raises(DataError, match=r"seed_1_data: agents must be those of seed_0_data, 2 \(received 3"):
        read_omar(tmp_path)


@pytest.mark.parametrize(
    ("inside", "message"),
    [([], "received nothing"), (["medium", "expert"], "received expert, medium"), (None, "folder not found")],
)
def test_folders_of_something_else(tmp_path: Path, inside: list[str] | None, message: str) -> None:
    for name in inside or []:
        (tmp_path / "spread" / name).mkdir(parents=True)
    if inside == []:
        (tmp_path / "spread").mkdir()
    with pytest.raises(DataError, match=message):
        read_omar(tmp_path / "spread")
