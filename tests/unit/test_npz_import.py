"""People's own arrays: every way to write them down gives the same rows, every slip is named."""

from __future__ import annotations

import re
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from data_samples import make_episodes, make_spec
from hypothesis import given, settings
from hypothesis import strategies as st

from macflow.data.episode import Episode
from macflow.data.importers.imported import match_environment, write_imported
from macflow.data.importers.npz import NAMES, SEEN, read_npz
from macflow.data.rows import UNKNOWN_SEED, EpisodeRows, stack_episodes
from macflow.types import ConfigError, DataError, MultiAgentSpec

Arrays = dict[str, Any]
FIELDS = {"observations": "obs", "state": "state", "legal_actions": "legal_actions"}


def arrays_of(episodes: list[Episode], *, last: str = "final", state: bool = True) -> Arrays:
    """Write episodes down as a newcomer would: one list a name, episode after episode."""
    seen = [
        name for name in SEEN if (name != "state" or state) and getattr(episodes[0], FIELDS[name]) is not None
    ]
    out: Arrays = {}
    for episode in episodes:
        for name in seen:
            values = getattr(episode, FIELDS[name])
            out.setdefault(name, []).extend(values[:-1])
            if last == "next":
                out.setdefault(f"next_{name}", []).extend(values[1:])
            if last == "final":
                out.setdefault(f"final_{name}", []).append(values[-1])
        for name, values in (
            ("actions", episode.actions),
            ("rewards", episode.rewards),
            ("terminations", episode.terminated),
            ("truncations", episode.truncated),
        ):
            out.setdefault(name, []).extend(values)
    return {name: np.array(values) for name, values in out.items()}


def save(path: Path, arrays: Arrays) -> Path:
    np.savez(path, allow_pickle=True, **arrays)
    return path


def assert_same_rows(found: EpisodeRows, expected: EpisodeRows, seeds: bool = True) -> None:
    for name in ("obs", "state", "actions", "rewards", "terminated", "truncated", "legal_actions", "lengths"):
        one, other = getattr(found, name), getattr(expected, name)
        if other is None:
            assert one is None
        else:
            assert one.dtype == other.dtype, name
            np.testing.assert_array_equal(one, other, err_msg=name)
    if seeds:
        np.testing.assert_array_equal(found.seeds, expected.seeds)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    lengths=st.lists(st.integers(1, 5), min_size=1, max_size=5),
    discrete=st.booleans(),
    agents=st.integers(1, 3),
    last=st.sampled_from(["final", "next"]),
    flags=st.sampled_from([np.bool_, np.float64, np.int8]),
    wide=st.booleans(),
    seeds=st.booleans(),
    files=st.integers(1, 3),
)
def test_whatever_the_form_the_rows_are_those_of_the_episodes(
    lengths: list[int],
    discrete: bool,
    agents: int,
    last: str,
    flags: Any,
    wide: bool,
    seeds: bool,
    files: int,
) -> None:
    spec = make_spec(discrete, agents)
    episodes = make_episodes(spec, lengths)
    with tempfile.TemporaryDirectory() as folder:
        for number in range(files):
            part = episodes[number::files]
            if not part:
                continue
            arrays = arrays_of(part, last=last)
            for name in ("terminations", "truncations"):
                arrays[name] = arrays[name].astype(flags)
            if wide:
                for name, array in arrays.items():
                    arrays[name] = array.astype(np.float64) if array.dtype == np.float32 else array
            if discrete:
                arrays["actions"] = arrays["actions"].astype(np.uint8)
            if seeds:
                arrays["seeds"] = np.array([episode.seed for episode in part])
            save(Path(folder) / f"{number}.npz", arrays)
        found = read_npz(Path(folder))
    in_order = [episode for number in range(files) for episode in episodes[number::files]]
    assert_same_rows(found.rows, stack_episodes(in_order, spec), seeds)
    if not seeds:
        assert (found.rows.seeds == UNKNOWN_SEED).all()
    assert found.spec == spec
    assert found.notes == ()


def without_last_observations(episodes: list[Episode]) -> list[Episode]:
    """What is left of episodes whose last observation is not known, by a plain loop."""
    left = []
    for episode in episodes:
        terminated, length = bool(episode.terminated[-1]), episode.length
        kept = length if terminated else length - 1
        if kept == 0:
            continue

        def seen(values: Any, kept: int = kept, terminated: bool = terminated) -> Any:
            return (
                None
                if values is None
                else np.concatenate([values[:kept], values[kept - terminated : kept + 1 - terminated]])
            )

        ends = np.zeros(kept, np.bool_)
        ends[-1] = True
        left.append(
            Episode(
                obs=seen(episode.obs),
                state=seen(episode.state),
                actions=episode.actions[:kept],
                rewards=episode.rewards[:kept],
                terminated=ends & terminated,
                truncated=ends & (not terminated),
                legal_actions=seen(episode.legal_actions),
                seed=episode.seed,
            )
        )
    return left


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    lengths=st.lists(st.integers(1, 4), min_size=2, max_size=6),
    discrete=st.booleans(),
)
def test_without_last_observations_truncated_episodes_lose_a_step(lengths: list[int], discrete: bool) -> None:
    spec = make_spec(discrete)
    episodes = make_episodes(spec, lengths)
    expected = without_last_observations(episodes)
    with tempfile.TemporaryDirectory() as folder:
        arrays = arrays_of(episodes, last="none") | {"seeds": [episode.seed for episode in episodes]}
        found = read_npz(save(Path(folder) / "a.npz", arrays))
    assert_same_rows(found.rows, stack_episodes(expected, spec))
    cut = sum(bool(episode.truncated[-1]) for episode in episodes)
    gone = len(episodes) - len(expected)
    text = f"no last observations: {cut} truncated episodes are one step shorter"
    assert found.notes == (text + (f", of {gone} nothing was left" if gone else ""),)


def test_what_is_left_out_has_the_documented_meaning(tmp_path: Path) -> None:
    arrays = arrays_of(make_episodes(make_spec(obs=3), [4]), state=False)
    arrays["rewards"] = np.array([1, 2, 3, 4])
    del arrays["terminations"]
    found = read_npz(save(tmp_path / "walks.npz", arrays))
    rows, spec = found.rows, found.spec
    assert rows.rewards.tolist() == [[1, 1], [2, 2], [3, 3], [4, 4], [0, 0]]
    np.testing.assert_array_equal(rows.state, rows.obs.reshape(5, 6))
    assert (spec.agent_ids, spec.obs_dims, spec.action_low, spec.action_high) == (
        ("agent_0", "agent_1"),
        (3, 3),
        (-1, -1, -1),
        (1, 1, 1),
    )
    assert found.dataset_id == "npz/walks-v0"
    assert found.notes == ("no `state`: the state is all observations in a row",)


def test_what_is_given_is_taken(tmp_path: Path) -> None:
    arrays = arrays_of(make_episodes(make_spec(obs=4), [2, 3]), state=False)
    for name in ("observations", "final_observations"):
        arrays[name][:, 1, 2:] = 0
    arrays |= {
        "obs_dims": [4, 2],
        "agent_ids": ["north", "süd"],
        "action_low": -2,
        "action_high": [1.0, 2.0, 3.0],
    }
    found = read_npz(save(tmp_path / "a.npz", arrays))
    assert found.spec == MultiAgentSpec(
        ("north", "süd"), (4, 2), 6, "continuous", 3, (-2.0, -2.0, -2.0), (1.0, 2.0, 3.0)
    )
    np.testing.assert_array_equal(found.rows.state[:, 4:], found.rows.obs[:, 1, :2])


def test_the_environment_fills_in_what_is_not_given(tmp_path: Path) -> None:
    env_spec = MultiAgentSpec(("left", "right"), (4, 3), 7, "discrete", 9, (-1.0,) * 9, (1.0,) * 9)
    arrays = arrays_of(make_episodes(make_spec(discrete=True), [2, 3]), state=False)
    for name in ("legal_actions", "final_legal_actions"):
        del arrays[name]
    for name in ("observations", "final_observations"):
        arrays[name][:, 1, 3:] = 0
    path = save(tmp_path / "a.npz", arrays)
    found = read_npz(path, env_spec)
    assert match_environment(found, "mine", env_spec).spec == env_spec
    assert found.rows.legal_actions is not None
    assert found.rows.legal_actions.all()
    with pytest.raises(DataError, match=r"`n_actions` is missing: .* or name the environment"):
        read_npz(path)
    save(path, arrays | {"n_actions": 3, "agent_ids": ["a", "b"]})
    assert read_npz(path, env_spec).spec.action_size == 3
    named = read_npz(path, env_spec)
    assert named.spec.agent_ids == ("a", "b")
    # What a source names is compared, not replaced.
    with pytest.raises(ConfigError, match="agent ids: left, right there, a, b in the data"):
        match_environment(named, "mine", env_spec)


def test_a_number_too_large_for_single_precision_fails_the_validation(tmp_path: Path) -> None:
    arrays = arrays_of(make_episodes(make_spec(), [3]))
    arrays["rewards"] = np.array([0.0, 1e300, 0.0])
    with pytest.raises(DataError, match=r"rewards_finite: .*first \(episode, step\): \(0, 1\)"):
        write_imported(tmp_path / "to", "here", read_npz(save(tmp_path / "a.npz", arrays)))
    assert [path.name for path in tmp_path.iterdir()] == ["a.npz"]


# --- refused ---------------------------------------------------------------------------------------------

F = np.float32


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"observations": None, "final_observations": None}, "`observations` is missing"),
        ({"rewards": None}, "`rewards` is missing"),
        ({"terminations": None, "truncations": None}, "`terminations` or `truncations` must tell where"),
        ({"terminals": [0]}, "`terminals` is not an array of this layout; is `terminations` meant?"),
        ({"xyz": [0]}, "`xyz` is not an array of this layout; known are observations, "),
        ({"next_observations": np.zeros((5, 2, 4), F)}, "exclude each other"),
        ({"final_state": None}, "`final_state` is missing; whatever agents see needs its `final_` array"),
        ({"state": None}, r"`state` is missing; .* \(received `final_observations`, `final_state`"),
        ({"observations": np.zeros((5, 8), F)}, r"`observations` must have shape .* \(received \(5, 8"),
        ({"observations": np.zeros((4, 2, 4), F)}, r"`state` must have shape \(4, 8\) \(received \(5, 8"),
        ({"observations": np.full((5, 2, 4), "a")}, r"`observations` must be real numbers \(received <U1"),
        ({"state": np.zeros(5, F)}, r"`state` must have shape \(steps, size\) \(received \(5,\)"),
        ({"actions": np.zeros((5, 2), F)}, r"`actions` must be .* \(received float32 of shape \(5, 2"),
        ({"actions": np.zeros((5, 2, 1), int)}, r"`actions` must be .* \(received int64 of shape \(5, 2, 1"),
        ({"actions": np.zeros((5, 3, 3), F)}, r"`actions` must be .*\(steps, 2, dimensions\)"),
        ({"actions": np.zeros((6, 2, 3), F)}, r"`actions` must have shape \(5, 2, 3\) \(received \(6, 2, 3"),
        ({"rewards": np.zeros((5, 3))}, r"`rewards` must have shape \(5, 2\) \(received \(5, 3"),
        ({"rewards": np.zeros(5, complex)}, r"`rewards` must be real numbers \(received complex128"),
        ({"truncations": np.zeros((5, 1))}, r"`truncations` must have shape \(5,\) \(received \(5, 1"),
        ({"truncations": np.array([0, 0, 3, 0, 0])}, r"`truncations` must be 0 or 1 \(received 3 at \[2\]"),
        ({"terminations": ["no"] * 5}, r"`terminations` must be booleans or 0 and 1 \(received <U2"),
        ({"terminations": np.zeros(5), "truncations": np.zeros(5)}, "must end at least one episode"),
        ({"terminations": np.zeros(5)}, r"the last step must end its episode; set `truncations\[4\]`"),
        ({"final_observations": np.zeros((3, 2, 4), F)}, r"`final_observations` must have shape \(2, 2, 4\)"),
        ({"final_state": np.zeros((2, 9), F)}, r"`final_state` must have shape \(2, 8\)"),
        ({"legal_actions": np.ones((5, 2, 3), bool), "final_legal_actions": np.ones((2, 2, 3), bool)},
         "`legal_actions` belongs to discrete actions"),
        ({"n_actions": 4}, "`n_actions` belongs to discrete actions"),
        ({"seeds": [1, 2, 3]}, r"`seeds` must have shape \(2,\)"),
        ({"seeds": [1.5, 2]}, "`seeds` must be whole numbers"),
        ({"obs_dims": [4, 3, 4]}, r"`obs_dims` must be 2 whole numbers >= 1, .* \(received \[4, 3, 4\]"),
        ({"obs_dims": [3, 3]}, "`obs_dims` must be 2 whole numbers >= 1, the largest 4"),
        ({"obs_dims": [4, 3]}, r"observations must be 0 beyond the 3 features of `agent_1` .* in feature 3"),
        ({"agent_ids": ["a", "a"]}, r"`agent_ids` must be 2 different names \(received \['a', 'a'\]"),
        ({"agent_ids": [1, 2]}, "`agent_ids` must be 2 different names"),
        ({"action_low": [0.0, 0.0]}, "`action_low` must be one finite number or 3"),
        ({"action_high": np.inf}, r"`action_high` must be one finite number or 3, .* \(received inf"),
        ({"action_low": 2.0}, "`action_low` must be below `action_high`"),
        ({"rewards": np.array([{}] * 5)}, "`rewards` cannot be read: it holds Python objects, not numbers"),
    ],
)  # fmt: skip
def test_broken_rules_are_named(tmp_path: Path, changes: Arrays, message: str) -> None:
    arrays = arrays_of(make_episodes(make_spec(), [2, 3])) | changes
    path = save(tmp_path / "mine.npz", {name: value for name, value in arrays.items() if value is not None})
    with pytest.raises(DataError, match=message) as raised:
        read_npz(path)
    assert str(raised.value).startswith(f"{path}: ")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"n_actions": 4}, r"`n_actions` must be the last size of `legal_actions`, 3 \(received 4"),
        ({"n_actions": 0}, "`n_actions` must be one whole number >= 1"),
        ({"n_actions": 3.0}, "`n_actions` must be one whole number >= 1"),
        ({"action_low": -1}, "`action_low` belongs to continuous actions"),
        (
            {"legal_actions": np.full((5, 2, 3), 2)},
            r"`legal_actions` must be 0 or 1 \(received 2 at \[0, 0, 0\]",
        ),
        ({"legal_actions": np.ones((5, 3, 3), bool)}, r"`legal_actions` must have shape \(5, 2, 3\)"),
        ({"final_legal_actions": None}, "`final_legal_actions` is missing"),
    ],
)
def test_broken_rules_of_discrete_actions(tmp_path: Path, changes: Arrays, message: str) -> None:
    arrays = arrays_of(make_episodes(make_spec(discrete=True), [2, 3])) | changes
    path = save(tmp_path / "mine.npz", {name: value for name, value in arrays.items() if value is not None})
    with pytest.raises(DataError, match=message):
        read_npz(path)


def test_next_observations_that_are_not_the_next(tmp_path: Path) -> None:
    arrays = arrays_of(make_episodes(make_spec(), [2, 3]), last="next")
    arrays["next_observations"][3, 1, 2] += 1
    with pytest.raises(
        DataError, match=r"`next_observations\[t\]` must be `observations\[t \+ 1\]` .* first t = 3"
    ):
        read_npz(save(tmp_path / "mine.npz", arrays))


def test_only_truncated_episodes_of_one_step(tmp_path: Path) -> None:
    arrays = arrays_of(make_episodes(make_spec(), [1]), last="none")
    with pytest.raises(DataError, match="only truncated episodes of one step and no `final_observations`"):
        read_npz(save(tmp_path / "mine.npz", arrays))


@pytest.mark.parametrize("content", [b"", b"hello", b"PK\x03\x04 not a zip", "cut", "npy"])
def test_files_that_are_something_else(tmp_path: Path, content: bytes | str) -> None:
    path = tmp_path / "mine.npz"
    if content == "cut":
        save(path, arrays_of(make_episodes(make_spec(), [2, 3])))
        path.write_bytes(path.read_bytes()[:-300])
    elif content == "npy":
        with path.open("wb") as file:
            np.save(file, np.zeros(3))
    else:
        assert isinstance(content, bytes)
        path.write_bytes(content)
    with pytest.raises(
        DataError, match=r"mine\.npz: (not a readable \.npz file|must be an \.npz archive)"
    ) as raised:
        read_npz(path)
    assert "allow_pickle" not in str(raised.value)


def test_an_array_damaged_inside_its_archive(tmp_path: Path) -> None:
    path = save(tmp_path / "mine.npz", arrays_of(make_episodes(make_spec(), [2, 3])))
    raw = bytearray(path.read_bytes())
    raw[raw.index(b"rewards.npy") + 200] ^= 0xFF
    path.write_bytes(bytes(raw))
    with pytest.raises(DataError, match=r"mine\.npz: `\w+` cannot be read: "):
        read_npz(path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"agent_ids": ["a", "b"]}, r"b\.npz: all files must have the same agents; agent_ids is \['agent_"),
        ({"action_high": 3.0}, r"b\.npz: all files must have the same agents; action_high is \[1\.0"),
        ({"state": None, "final_state": None}, r"b\.npz: `state` must be in all files of a folder"),
    ],
)  # fmt: skip
def test_files_that_do_not_fit_together(tmp_path: Path, changes: Arrays, message: str) -> None:
    arrays = arrays_of(make_episodes(make_spec(), [2, 3]))
    save(tmp_path / "a.npz", arrays)
    save(tmp_path / "b.npz", {k: v for k, v in (arrays | changes).items() if v is not None})
    with pytest.raises(DataError, match=message):
        read_npz(tmp_path)


def test_files_of_other_actions_do_not_fit_together(tmp_path: Path) -> None:
    save(tmp_path / "a.npz", arrays_of(make_episodes(make_spec(), [2])))
    save(tmp_path / "b.npz", arrays_of(make_episodes(make_spec(discrete=True), [2])))
    with pytest.raises(
        DataError, match=r"b\.npz: all files must have the same agents; action_kind is continuous"
    ):
        read_npz(tmp_path)


def test_nothing_to_read(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"holds no \.npz file"):
        read_npz(tmp_path)
    with pytest.raises(DataError, match=r"nowhere: not found; it must be an \.npz file or a folder"):
        read_npz(tmp_path / "nowhere")


def test_the_documentation_names_every_array_and_its_example_works(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = (Path(__file__).resolve().parents[2] / "docs" / "bring-your-data.md").read_text(encoding="utf-8")
    assert [name for name in NAMES if f"`{name}`" not in text] == []
    example = next(block for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL) if "savez" in block)
    monkeypatch.chdir(tmp_path)
    exec(example, {})  # noqa: S102
    found = read_npz(tmp_path / "mine.npz")
    assert found.rows.lengths.tolist() == [30] * 20
    assert int(found.rows.truncated.sum()) == 20
    with np.load("mine.npz") as file:
        arrays = dict(file)
    save(tmp_path / "mine.npz", arrays | {"final_observations": arrays["final_observations"][1:]})
    with pytest.raises(DataError) as raised:
        read_npz(Path("mine.npz"))
    assert f"macflow: {raised.value}\n" in text
