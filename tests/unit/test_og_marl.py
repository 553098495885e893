"""OG-MARL vaults: the catalogue, reading, conversion to episodes, import from every kind of source."""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from bench_import import write_vault
from macflow.data.expectations import Validation
from macflow.data.importers.imported import Imported, write_imported
from macflow.data.importers.og_marl import NO_OPTIONS, VaultOptions, list_uids, read_og_marl
from macflow.data.importers.og_marl_rows import convert
from macflow.data.importers.og_marl_sources import SOURCES, source_named
from macflow.data.importers.og_marl_vault import VaultArrays
from macflow.data.minari_store import read_minari_rows
from macflow.data.rows import EpisodeRows
from macflow.files import digest
from macflow.types import ConfigError, DataError, MultiAgentSpec

FIXTURES = Path(__file__).resolve().parents[1] / "fixtures/vaults"
MANIFEST: dict[str, dict[str, Any]] = json.loads((FIXTURES / "manifest.json").read_text())["vaults"]
MEDIUM, EXPERT = "synthetic/mpe/spread_toy.vlt/Medium", "synthetic/mpe/spread_toy.vlt/Expert"
GOOD, POOR = "synthetic/smac_v1/3m_toy.vlt/Good", "synthetic/smac_v1/3m_toy.vlt/Poor"

Arrays = dict[str, NDArray[Any]]


def import_vault(
    source: str | Path, uid: str | None, target: Path, options: VaultOptions = NO_OPTIONS, **more: Any
) -> tuple[Imported, Validation]:
    """Read and write as the command and the record stage do."""
    imported = read_og_marl(source, uid, target, options, **more)
    return imported, write_imported(target, str(source), imported)


# --- the catalogue -----------------------------------------------------------------------------------


def test_catalogue_has_the_published_sources_at_their_addresses() -> None:
    assert len(SOURCES) == 39
    files = "https://huggingface.co/datasets/InstaDeepAI/og-marl/resolve/main"
    assert SOURCES["og-marl/og_marl/smac_v1/3m"].url == f"{files}/core/smac_v1/3m.zip"
    assert SOURCES["og-marl/omar/mpe/simple_tag"].url == f"{files}/prior_work/omar/mpe/simple_tag.zip"
    assert len({source.url for source in SOURCES.values()}) == 39
    assert all(name == source.name for name, source in SOURCES.items())


def test_every_source_names_an_environment_or_says_why_there_is_none() -> None:
    for source in SOURCES.values():
        assert (source.env_id is None) == bool(source.no_env), source.name
    kinds = dict.fromkeys(("mpe", "mamujoco", "gymnasium_mamujoco"), "continuous")
    for source in SOURCES.values():
        assert source.action_kind == kinds.get(source.name.split("/")[2], "discrete"), source.name


def test_observation_sizes_of_robots_are_those_of_their_environments() -> None:
    pytest.importorskip("gymnasium_robotics")
    from macflow.envs.base import spec_of
    from macflow.envs.registry import make_parallel

    for scenario in ("3hopper", "6halfcheetah"):
        source = SOURCES[f"og-marl/og_marl/gymnasium_mamujoco/{scenario}"]
        assert source.env_id is not None
        env = make_parallel(source.env_id, {})
        assert source.obs_dims == spec_of(env).obs_dims
        env.close()


@pytest.mark.parametrize(
    ("name", "suggested"),
    [
        ("3m", "og-marl/og_marl/smac_v1/3m"),
        ("og-marl/og_marl/smac_v1/3s5z_vs_3s6", "og-marl/og_marl/smac_v1/3s5z_vs_3s6z"),
        ("5m_vs_6m", "og-marl/cfcql/smac_v1/5m_vs_6m"),
        ("nothing like it", "names are like og-marl/"),
    ],
)
def test_unknown_name_suggests_near_ones(name: str, suggested: str) -> None:
    with pytest.raises(ConfigError, match=suggested):
        source_named(name)


# --- fixtures: exact values --------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(MANIFEST))
def test_reader_returns_the_fields_of_the_manifest(name: str) -> None:
    arrays, facts = VaultArrays(FIXTURES / name), MANIFEST[name]
    assert arrays.rows == facts["vault_index"]
    assert set(arrays) == set(facts["fields"])
    for field, wanted in facts["fields"].items():
        array = arrays[field]
        assert (list(array.shape), array.dtype.name) == (wanted["shape"], wanted["dtype"])
        assert hashlib.sha256(array.tobytes()).hexdigest() == wanted["sha256"]
        assert array.astype(np.float64).sum() == pytest.approx(wanted["sum"], abs=1e-9)


@pytest.mark.parametrize(
    ("name", "time_limit"), [(MEDIUM, None), (EXPERT, None), (EXPERT, 25), (GOOD, None), (POOR, None)]
)
def test_every_fixture_episode_is_imported_exactly(name: str, time_limit: int | None, tmp_path: Path) -> None:
    options = VaultOptions(time_limit=time_limit)
    imported, validation = import_vault(FIXTURES / name, None, tmp_path / "raw", options)
    assert validation.success
    rows, spec, meta = read_minari_rows(tmp_path / "raw")
    assert spec == imported.spec
    assert meta["behaviour"] == {
        "kind": "og-marl",
        "name": name.split("/")[2],
        "uid": name.split("/")[3],
        "sha256": digest(FIXTURES / name),
    } | ({"time_limit": 25} if time_limit else {})
    raw = dict(VaultArrays(FIXTURES / name).items())
    episodes, expected = rows.episodes(), MANIFEST[name]["episodes"]
    assert len(episodes) == len(expected)
    for episode, facts in zip(episodes, expected, strict=True):
        length = facts["length"]
        took = {
            k: array[facts["batch"], facts["start"] : facts["start"] + length] for k, array in raw.items()
        }
        assert took["rewards"].astype(np.float64).mean(axis=1).sum() == pytest.approx(facts["ret"], rel=1e-12)
        terminal = facts["terminal"] and length != time_limit
        if terminal:
            took = {k: np.concatenate([array, array[-1:]]) for k, array in took.items()}
        steps = length if terminal else length - 1
        assert episode.length == steps
        np.testing.assert_array_equal(episode.obs, took["observations"])
        np.testing.assert_array_equal(episode.state, took["infos.state"])
        np.testing.assert_array_equal(episode.actions, took["actions"][:steps])
        np.testing.assert_array_equal(episode.rewards, took["rewards"][:steps])
        ends = [False] * (steps - 1) + [True]
        assert episode.terminated.tolist() == (ends if terminal else [False] * steps)
        assert episode.truncated.tolist() == ([False] * steps if terminal else ends)
        if spec.discrete:
            assert episode.actions.dtype == np.int64
            np.testing.assert_array_equal(episode.legal_actions, took["infos.legals"].astype(bool))


def test_notes_tell_what_was_found() -> None:
    assert notes_of(MEDIUM) == [
        "20 episodes ended by a time limit: the last row of each is its final observation"
    ]
    assert notes_of(EXPERT) == [
        "20 of 20 terminal episodes have the greatest length, 25 rows; if that is a time limit, import with "
        "a time limit of 25"
    ]
    assert notes_of(EXPERT, time_limit=25)[0] == "20 terminals at 25 rows are read as time limits"
    assert notes_of(GOOD) == []
    assert notes_of(POOR) == [
        "2 episodes ended by a time limit: the last row of each is its final observation",
        "1 episodes cut off where a recording ends, taken as truncated likewise",
    ]


def notes_of(name: str, **options: Any) -> list[str]:
    return list(convert(VaultArrays(FIXTURES / name), VaultOptions(**options), name)[2])


# --- conversion against a plain loop -----------------------------------------------------------------


@st.composite
def vaults(draw: st.DrawFn) -> tuple[Arrays, int | None]:
    """Return arrays of a small vault and a time limit that no episode exceeds, or None."""
    streams, total, n = draw(st.integers(1, 3)), draw(st.integers(2, 12)), draw(st.integers(1, 3))
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    kinds = draw(
        st.lists(st.sampled_from("....tlb"), min_size=streams * total, max_size=streams * total).map(
            lambda letters: np.array(letters).reshape(streams, total)
        )
    )
    flag_type = draw(st.sampled_from([np.bool_, np.float32, np.float64, np.int8]))
    terminals = np.repeat(np.isin(kinds, ["t", "b"])[..., None], n, axis=2)
    truncations = np.repeat(np.isin(kinds, ["l", "b"])[..., None], n, axis=2)
    number_type = draw(st.sampled_from([np.float32, np.float64]))
    discrete, trailing = draw(st.booleans()), draw(st.booleans())
    size = draw(st.integers(1, 3))
    actions: NDArray[Any]
    if discrete:
        actions = random.integers(0, size, (streams, total, n)).astype(
            draw(st.sampled_from(["i4", "u1", "i8"]))
        )
        actions = actions[..., None] if trailing else actions
    else:
        actions = random.uniform(-1, 1, (streams, total, n, size)).astype(number_type)
    arrays = {
        "observations": random.standard_normal((streams, total, n, 4)).astype(number_type),
        "actions": actions,
        "rewards": random.standard_normal((streams, total, n)).astype(number_type),
        "terminals": terminals.astype(flag_type),
        "truncations": truncations.astype(flag_type),
        "infos.legals": (random.random((streams, total, n, size)) < 0.7).astype(np.float32),
    }
    if draw(st.booleans()):
        arrays["infos.state"] = random.standard_normal((streams, total, 5)).astype(number_type)
    longest = max((len(rows) for _, rows, _ in split(terminals[..., 0], truncations[..., 0])), default=0)
    return arrays, draw(st.sampled_from([None, longest, longest + 1]))


def split(terminals: NDArray[Any], truncations: NDArray[Any]) -> list[tuple[int, list[int], str]]:
    """Return (stream, rows, how it ended) of each episode, by a plain loop."""
    found = []
    for stream in range(len(terminals)):
        rows: list[int] = []
        for t in range(len(terminals[stream])):
            rows.append(t)
            how = "t" * int(terminals[stream, t]) + "l" * int(truncations[stream, t])
            if how:
                found.append((stream, rows, how))
                rows = []
        if rows:
            found.append((stream, rows, "cut"))
    return found


@settings(max_examples=150, deadline=None)
@given(vaults())
def test_conversion_equals_a_plain_loop(vault: tuple[Arrays, int | None]) -> None:
    arrays, time_limit = vault
    before = {name: array.copy() for name, array in arrays.items()}
    expected: dict[str, list[Any]] = {
        name: []
        for name in ("obs", "state", "actions", "rewards", "terminated", "truncated", "legal", "lengths")
    }
    ends = split(arrays["terminals"][..., 0] != 0, arrays["truncations"][..., 0] != 0)
    for stream, taken, how in ends:
        if time_limit is not None and how == "t" and len(taken) == time_limit:
            how = "l"
        if time_limit is not None and how == "tl" and len(taken) == time_limit:
            how = "l"
        steps = len(taken) if "t" in how and how != "cut" else len(taken) - 1
        if steps == 0:
            continue
        expected["lengths"].append(steps)
        for i in range(steps + 1):
            t = taken[min(i, len(taken) - 1)]
            final = i == steps
            obs = arrays["observations"][stream, t]
            expected["obs"].append(obs)
            expected["state"].append(
                arrays["infos.state"][stream, t] if "infos.state" in arrays else obs.ravel()
            )
            action = arrays["actions"][stream, t]
            if action.dtype.kind in "iu":
                action = action.reshape(len(obs))
            expected["actions"].append(action * 0 if final else action)
            expected["rewards"].append(arrays["rewards"][stream, t] * (not final))
            expected["legal"].append(arrays["infos.legals"][stream, t] != 0)
            last = i == steps - 1
            expected["terminated"].append(last and "t" in how and how != "cut")
            expected["truncated"].append(last and ("l" in how or how == "cut"))
    options = VaultOptions(time_limit=time_limit)
    if not expected["lengths"]:
        with pytest.raises(DataError, match="no episode has a transition"):
            convert(arrays, options, "vault")
        return
    rows, spec, _ = convert(arrays, options, "vault")
    assert_types(rows, spec)
    for name, wanted in expected.items():
        if name == "legal" and rows.legal_actions is None:
            continue
        got = getattr(rows, {"legal": "legal_actions"}.get(name, name))
        np.testing.assert_array_equal(got, np.array(wanted).astype(got.dtype), err_msg=name)
    for name, array in arrays.items():
        np.testing.assert_array_equal(array, before[name], err_msg=f"input `{name}` was changed")


def assert_types(rows: EpisodeRows, spec: MultiAgentSpec) -> None:
    types = {
        "obs": "f4",
        "state": "f4",
        "rewards": "f4",
        "terminated": "?",
        "truncated": "?",
        "lengths": "i8",
    }
    for name, kind in types.items():
        assert getattr(rows, name).dtype == np.dtype(kind), name
    assert rows.actions.dtype == np.dtype("i8" if spec.discrete else "f4")
    assert spec.state_size == rows.state.shape[1]
    assert rows.seeds.tolist() == [-1] * rows.n_episodes


# --- traps -------------------------------------------------------------------------------------------


def plain(rows: int = 6, *, discrete: bool = False, ends: tuple[int, ...] = (5,), n: int = 2) -> Arrays:
    """Return the arrays of a one-stream vault with terminals in the rows `ends`."""
    random = np.random.default_rng(3)
    flags = np.zeros((1, rows, n), np.bool_)
    flags[:, list(ends)] = True
    arrays: Arrays = {
        "observations": random.standard_normal((1, rows, n, 3), np.float32),
        "actions": random.integers(0, 2, (1, rows, n))
        if discrete
        else random.uniform(-1, 1, (1, rows, n, 2)).astype(np.float32),
        "rewards": random.standard_normal((1, rows, n), np.float32),
        "terminals": flags,
        "truncations": np.zeros_like(flags),
        "infos.state": random.standard_normal((1, rows, 4), np.float32),
    }
    if discrete:
        arrays["infos.legals"] = np.ones((1, rows, n, 2), np.float32)
    return arrays


def test_state_per_agent_is_taken_once_where_equal_and_laid_out_where_not() -> None:
    arrays = plain()
    state = arrays["infos.state"]
    rows, spec, notes = convert(
        arrays | {"infos.state": np.stack([state, state], axis=2)}, VaultOptions(), "v"
    )
    assert spec.state_size == 4
    np.testing.assert_array_equal(rows.state[:6], state[0])
    assert "the same for all and taken once" in notes[0]
    rows, spec, notes = convert(
        arrays | {"infos.state": np.stack([state, -state], axis=2)}, VaultOptions(), "v"
    )
    assert spec.state_size == 8
    np.testing.assert_array_equal(rows.state[:6], np.concatenate([state[0], -state[0]], axis=1))
    assert "laid out in a row" in notes[0]


def test_masks_of_continuous_actions_are_left_out() -> None:
    rows, _, notes = convert(plain() | {"infos.legals": np.ones((1, 6, 2, 2))}, VaultOptions(), "v")
    assert rows.legal_actions is None
    assert notes == ("`infos.legals` is left out, as actions are continuous",)


def test_episodes_of_1001_rows_make_1000_transitions() -> None:
    arrays = plain(2002, ends=(1000, 2001))
    rows, _, notes = convert(arrays, VaultOptions(time_limit=1001), "v")
    assert rows.lengths.tolist() == [1000, 1000]
    assert rows.truncated.sum() == 2
    assert not rows.terminated.any()
    assert notes[0] == "2 terminals at 1001 rows are read as time limits"
    with pytest.raises(DataError, match=r"`time_limit` is 1000, but 2 episodes have more rows; .* 1001"):
        convert(arrays, VaultOptions(time_limit=1000), "v")


def test_state_that_is_never_refreshed_is_refused_unless_told_otherwise() -> None:
    arrays = plain(12, ends=(5, 11))
    arrays["infos.state"] = np.repeat(np.arange(2.0).reshape(1, 2, 1), 6, axis=1) + np.zeros((1, 12, 4))
    with pytest.raises(DataError, match="never changes in 2 of 2 episodes"):
        convert(arrays, VaultOptions(), "v")
    rows, spec, _ = convert(arrays, VaultOptions(infos="keep"), "v")
    assert spec.state_size == 4
    assert rows.state[:, 0].tolist() == [0] * 7 + [1] * 7
    rows, spec, notes = convert(arrays, VaultOptions(infos="ignore"), "v")
    assert spec.state_size == 6
    np.testing.assert_array_equal(rows.state, rows.obs.reshape(14, 6))
    assert "not stored or ignored" in notes[-1]
    arrays["infos.state"][0, 2] = 9
    assert "never changes in 1 of 2 episodes" in convert(arrays, VaultOptions(), "v")[2][-1]


def test_ignored_masks_make_all_actions_legal() -> None:
    arrays = plain(discrete=True) | {"infos.legals": np.zeros((1, 6, 2, 2))}
    rows, _, _ = convert(arrays, VaultOptions(infos="ignore"), "v")
    assert rows.legal_actions is not None
    assert rows.legal_actions.all()
    assert rows.legal_actions.shape == (7, 2, 2)


def test_vault_without_truncations_or_masks() -> None:
    arrays = plain(discrete=True)
    del arrays["truncations"], arrays["infos.legals"], arrays["infos.state"]
    rows, spec, notes = convert(arrays, VaultOptions(n_actions=5), "v")
    assert spec.action_size == 5
    assert rows.legal_actions is not None
    assert rows.legal_actions.all()
    assert len(notes) == 3


def test_whole_floats_are_discrete_where_the_source_says_so() -> None:
    arrays = plain(discrete=True)
    rows, spec, _ = convert(
        arrays | {"actions": arrays["actions"].astype(np.float32)[..., None]},
        VaultOptions(action_kind="discrete"),
        "v",
    )
    assert spec.discrete
    np.testing.assert_array_equal(rows.actions[:6], arrays["actions"][0])


def test_padded_observations_keep_their_sizes() -> None:
    arrays = plain()
    arrays["observations"][:, :, 1, 2] = 0
    assert convert(arrays, VaultOptions(obs_dims=(3, 2)), "v")[1].obs_dims == (3, 2)
    arrays["observations"][0, 4, 1, 2] = 1
    with pytest.raises(DataError, match="`observations` of agent 1 must be zero beyond the 2 features"):
        convert(arrays, VaultOptions(obs_dims=(3, 2)), "v")
    with pytest.raises(DataError, match="`obs_dims` must be the sizes of 2 agents, the largest 3"):
        convert(arrays, VaultOptions(obs_dims=(2, 2)), "v")


def broken(name: str, array: NDArray[Any] | None, *, discrete: bool = False) -> Arrays:
    arrays = plain(discrete=discrete)
    if array is None:
        del arrays[name]
    else:
        arrays[name] = array
    return arrays


ONE_AGENT = np.eye(2)[None, [0, 0, 0, 0, 0, 0]]
FAULTS: dict[str, tuple[Arrays, str]] = {
    "missing": (broken("rewards", None), "`rewards` is missing; there are actions, infos.state"),
    "flag value": (
        broken("terminals", np.full((1, 6, 2), 2.0)),
        "`terminals` must hold 0 and 1, received 2.0",
    ),
    "flag nan": (
        broken("truncations", np.full((1, 6, 2), np.nan)),
        "`truncations` must hold 0 and 1, received nan",
    ),
    "flag text": (broken("terminals", np.full((1, 6, 2), "x")), "`terminals` must hold flags"),
    "flags differ": (
        broken("terminals", ONE_AGENT),
        r"the same for all agents, received \[1.0, 0.0\] in row 0",
    ),
    "flag rows": (broken("truncations", np.zeros((1, 5, 2))), "`truncations` must be"),
    "rows": (broken("rewards", np.zeros((1, 5, 2))), r"`rewards` must have \(1, 6\) rows"),
    "agents": (broken("rewards", np.zeros((1, 6, 3))), "`rewards` must have 2 agents"),
    "obs dims": (
        broken("observations", np.zeros((1, 6, 2))),
        "`observations` must hold numbers in 4 dimensions",
    ),
    "obs objects": (broken("observations", np.full((1, 6, 2, 3), "x")), "`observations` must hold numbers"),
    "vague actions": (broken("actions", np.zeros((1, 6, 2))), "`action_kind` must say"),
    "one-hot": (
        broken("actions", np.zeros((1, 6, 2, 2), int)),
        "discrete `actions` must be .batch, rows, agents.",
    ),
    "no masks": (broken("infos.legals", None, discrete=True), "`n_actions` must say how many"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_faults_are_named(name: str) -> None:
    arrays, message = FAULTS[name]
    with pytest.raises(DataError, match=f"^v: .*{message}"):
        convert(arrays, VaultOptions(), "v")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"time_limit": 0}, "`time_limit`: must be at least 1"),
        ({"n_actions": -1}, "`n_actions`: must be at least 1"),
        ({"action_bounds": (1.0, 1.0)}, "`action_bounds`: must be low, high"),
        ({"infos": "maybe"}, "`infos`: must be one of check, keep, ignore"),
        ({"action_kind": "vague"}, "`action_kind`: must be one of continuous, discrete"),
    ],
)
def test_bad_options_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        VaultOptions(**options)


def test_fractional_discrete_actions_are_refused() -> None:
    arrays = plain(discrete=True) | {"actions": np.full((1, 6, 2), 0.5)}
    with pytest.raises(DataError, match="must be whole numbers"):
        convert(arrays, VaultOptions(action_kind="discrete"), "v")


# --- damaged vaults ----------------------------------------------------------------------------------


@pytest.fixture
def vault(tmp_path: Path) -> Path:
    """Return a copy of a fixture's UID folder."""
    folder = tmp_path / "3m_toy.vlt/Good"
    shutil.copytree(FIXTURES / GOOD, folder)
    return folder


def test_uids_are_listed(vault: Path) -> None:
    assert list_uids(FIXTURES / "synthetic/smac_v1/3m_toy.vlt") == ("Good", "Poor")
    (vault.parent / "notes").mkdir()
    assert list_uids(vault.parent) == ("Good",)


def test_written_vault_reads_back(tmp_path: Path) -> None:
    arrays = plain(discrete=True)
    write_vault(tmp_path / "x.vlt/Made", arrays)
    back = VaultArrays(tmp_path / "x.vlt/Made")
    assert set(back) == set(arrays)
    for name, array in arrays.items():
        np.testing.assert_array_equal(back[name], array)


def test_missing_database_is_named(vault: Path) -> None:
    (vault / "manifest.ocdbt").unlink()
    with pytest.raises(DataError, match=r"Good: holds no manifest.ocdbt"):
        VaultArrays(vault)


def test_lost_data_file_is_named(vault: Path) -> None:
    for file in (vault / "d").iterdir():
        file.unlink()
    with pytest.raises(DataError, match="array `vault_index` cannot be read"):
        VaultArrays(vault)


def test_damaged_data_is_named(vault: Path) -> None:
    for file in (vault / "d").iterdir():
        content = bytearray(file.read_bytes())
        middle = len(content) // 2
        content[middle : middle + 8] = b"\xff" * 8
        file.write_bytes(content)
    with pytest.raises(DataError, match=r"Good: array `.*` cannot be read: "):
        dict(VaultArrays(vault).items())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"version": 2.0}, "`version` must be 1.x, received 2.0"),
        ({"structure_shape": None}, "structure must be an object"),
        ({"structure_shape": {"rewards": "(1, 8, 3)"}}, "name other arrays"),
        ({"structure_shape": {"a": "exit()"}, "structure_dtype": {"a": "f4"}}, "`a` is not described"),
        ({"structure_shape": {"a": "(1, 8)"}, "structure_dtype": {"a": "nonsense"}}, "`a` is not described"),
        ({"structure_shape": {"a": "(1,)"}, "structure_dtype": {"a": "f4"}}, "`a` must have a shape"),
        (
            {"structure_shape": {"a": "(1, 8)"}, "structure_dtype": {"a": "f4"}},
            "array `a.` cannot be read: NOT_FOUND",
        ),
        (
            {"structure_shape": {"rewards": "(1, 8, 4)"}, "structure_dtype": {"rewards": "float32"}},
            r"`rewards` must have shape \(1, 380, 4\)",
        ),
    ],
)
def test_metadata_faults_are_named(vault: Path, changes: dict[str, Any], message: str) -> None:
    path = vault / "metadata.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    with pytest.raises(DataError, match=message):
        dict(VaultArrays(vault).items())


def test_missing_library_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorstore", None)
    with pytest.raises(ConfigError, match=r"install it with: pip install 'macflow\[vaults\]'"):
        VaultArrays(FIXTURES / GOOD)


def test_empty_vault_is_refused(tmp_path: Path) -> None:
    write_vault(tmp_path / "Made", {"rewards": np.zeros((1, 0, 2), np.float32)})
    with pytest.raises(DataError, match="`vault_index` says that 0 rows were written"):
        VaultArrays(tmp_path / "Made")


# --- sources -----------------------------------------------------------------------------------------


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    """Return a zip of the two-dataset SMAC vault, as the published ones are laid out."""
    return zipped(FIXTURES / "synthetic/smac_v1", tmp_path / "made/3m_toy.zip")


def zipped(folder: Path, target: Path) -> Path:
    target.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as file:
        for path in sorted(folder.rglob("*")):
            file.write(path, path.relative_to(folder))
    return target


def leftovers(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_archive_and_its_address_give_what_the_folder_gives(archive: Path, tmp_path: Path) -> None:
    kwargs: dict[str, Any] = {"downloads": tmp_path / "cache"}
    (tmp_path / "out").mkdir()
    sources = {"a": str(archive), "b": archive.as_uri(), "c": str(FIXTURES / GOOD)}
    for name, source in sources.items():
        import_vault(source, "Good", tmp_path / "out" / name, **kwargs)
    assert leftovers(tmp_path / "out") == ["a", "b", "c"]
    data = {name: read_minari_rows(tmp_path / "out" / name) for name in sources}
    for name in "ab":
        for field in ("obs", "state", "actions", "rewards", "terminated", "truncated", "legal_actions"):
            np.testing.assert_array_equal(getattr(data[name][0], field), getattr(data["c"][0], field))
    assert data["a"][2]["behaviour"] == {
        "kind": "og-marl",
        "name": "3m_toy.zip",
        "uid": "Good",
        "sha256": digest(archive),
    }
    assert data["b"][2]["behaviour"] == data["a"][2]["behaviour"] | {"url": archive.as_uri()}
    assert data["a"][2]["dataset_id"] == "og-marl/3m_toy-Good-v0"


def test_catalogue_name_finds_its_archive_in_the_downloads_and_records_the_environment(
    archive: Path, tmp_path: Path
) -> None:
    name = "og-marl/og_marl/smac_v1/3m"
    kept = tmp_path / f"cache/{name}.zip"
    kept.parent.mkdir(parents=True)
    shutil.copy(archive, kept)
    imported, _ = import_vault(name, "Poor", tmp_path / "raw", downloads=tmp_path / "cache")
    assert imported.env == {"id": "smac/3m", "kwargs": {}, "version": None}
    _, _, meta = read_minari_rows(tmp_path / "raw")
    assert meta["env"] == imported.env
    assert meta["dataset_id"] == "og-marl/og_marl-smac_v1-3m-Poor-v0"
    assert meta["behaviour"] == {
        "kind": "og-marl",
        "name": name,
        "uid": "Poor",
        "url": SOURCES[name].url,
        "sha256": digest(kept),
    }


def test_source_without_an_environment_says_why(tmp_path: Path) -> None:
    name = "og-marl/omar/mpe/simple_spread"
    zipped(FIXTURES / "synthetic/mpe", tmp_path / f"cache/{name}.zip")
    imported = read_og_marl(name, "Expert", tmp_path / "raw", downloads=tmp_path / "cache")
    assert imported.env is None
    assert imported.notes[-1].startswith("no environment to evaluate in: OMAR's own variant")


def test_copies_are_told(tmp_path: Path) -> None:
    arrays = {name: np.concatenate([array] * 4, axis=1) for name, array in plain(discrete=True).items()}
    write_vault(tmp_path / "x.vlt/Made", arrays)
    imported, validation = import_vault(tmp_path / "x.vlt", None, tmp_path / "raw")
    assert validation.success
    assert imported.notes[-1] == "75.0% of the transitions are copies of earlier ones"


@pytest.mark.parametrize(
    ("source", "uid", "error", "message"),
    [
        (
            "og-marl/og_marl/smac_v1/3m",
            None,
            ConfigError,
            "`uid`: must name one of .* has Good, Medium, Poor",
        ),
        ("og-marl/og_marl/smac_v1/3m", "goof", ConfigError, r"no 'goof'; .*meant: Good\?"),
        (
            "og-marl/og_marl/smac_v1/4m",
            "Good",
            ConfigError,
            "no such file or folder, and .* near names: .*/3m",
        ),
        ("ftp://host/x.zip", None, ConfigError, "scheme must be one of http, https, file"),
        (str(FIXTURES / "synthetic/smac_v1/3m_toy.vlt"), None, ConfigError, "has Good, Poor"),
        (str(FIXTURES / "synthetic/smac_v1/3m_toy.vlt"), "Best", ConfigError, "there is no 'Best'"),
        (str(FIXTURES / GOOD), "Poor", ConfigError, "is the dataset Good .received 'Poor'"),
        (str(FIXTURES), None, DataError, "holds no dataset of a vault"),
        (str(FIXTURES / "README.md"), None, DataError, "not a readable zip archive"),
    ],
)
def test_sources_that_do_not_fit_are_named(
    source: str, uid: str | None, error: type[Exception], message: str, tmp_path: Path
) -> None:
    with pytest.raises(error, match=message):
        import_vault(source, uid, tmp_path / "raw", downloads=tmp_path / "cache")
    assert leftovers(tmp_path) == []


def test_checksums_are_for_archives_and_hold(archive: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="`sha256`: is for archives"):
        import_vault(FIXTURES / GOOD, None, tmp_path / "raw", sha256="0" * 64)
    with pytest.raises(DataError, match=f"SHA-256 is {digest(archive)}, not {'0' * 64}"):
        import_vault(archive, "Good", tmp_path / "raw", sha256="0" * 64)
    import_vault(archive, "Good", tmp_path / "raw", sha256=digest(archive).upper())


def test_archive_must_hold_one_vault(tmp_path: Path) -> None:
    two = zipped(FIXTURES / "synthetic", tmp_path / "two.zip")
    with pytest.raises(DataError, match=r"holds 2 \(mpe/spread_toy.vlt, smac_v1/3m_toy.vlt\)"):
        import_vault(two, "Good", tmp_path / "raw")
    none = tmp_path / "none.zip"
    with zipfile.ZipFile(none, "w") as file:
        file.writestr("readme.txt", "nothing")
    with pytest.raises(DataError, match="it holds 0"):
        import_vault(none, "Good", tmp_path / "raw")


def test_archive_that_leaves_its_folder_is_refused(archive: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(archive, "a") as file:
        file.writestr("../../escaped.txt", "out")
    (tmp_path / "out").mkdir()
    with pytest.raises(DataError, match=r"'\.\./\.\./escaped.txt' leads out of the folder"):
        import_vault(archive, "Good", tmp_path / "out/raw")
    assert leftovers(tmp_path / "out") == []
    assert not list(tmp_path.rglob("escaped.txt"))


def test_dataset_that_fails_validation_leaves_nothing(tmp_path: Path) -> None:
    arrays = plain() | {"rewards": np.full((1, 6, 2), 1e300)}
    write_vault(tmp_path / "in/x.vlt/Made", arrays)
    (tmp_path / "out").mkdir()
    with pytest.raises(DataError, match="rewards_finite"):
        import_vault(tmp_path / "in/x.vlt", "Made", tmp_path / "out/raw")
    assert leftovers(tmp_path / "out") == []


def test_bounds_of_continuous_actions_are_checked(tmp_path: Path) -> None:
    arrays = plain()
    arrays["actions"] = arrays["actions"] * 3
    write_vault(tmp_path / "x.vlt/Made", arrays)
    with pytest.raises(DataError, match="actions_in_bounds"):
        import_vault(tmp_path / "x.vlt", None, tmp_path / "raw")
    options = VaultOptions(action_bounds=(-3.0, 3.0))
    imported, _ = import_vault(tmp_path / "x.vlt", None, tmp_path / "raw", options)
    assert imported.spec.action_high == (3.0, 3.0)
