"""Statistics against plain loops, and against distributions whose values are known."""

from __future__ import annotations

import argparse
import json
import math
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import polars as pl
import pytest
from data_samples import ENV, make_episodes, make_spec
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from macflow.data.duplicates import episode_copies, transition_copies, transition_hashes
from macflow.data.minari_store import write_minari
from macflow.data.prepared import write_prepared
from macflow.data.rows import EpisodeRows, stack_episodes
from macflow.data.show import describe_text
from macflow.data.statistics import (
    action_codes,
    action_histograms,
    bimodality_coefficients,
    constant_features,
    describe,
    factorisation_gap,
    histogram,
    integer_histogram,
    joint_action_coverage,
    permute_within_cells,
    state_action_coverage,
    state_cells_of,
)
from macflow.files import digest
from macflow.stages.describe import main
from macflow.types import DataError


def entropy(counts: Counter[Any]) -> float:
    total = sum(counts.values())
    return -sum(count / total * math.log(count / total) for count in counts.values())


def gap_by_loops(codes: np.ndarray, cells: np.ndarray) -> float:
    total = 0.0
    for cell in set(cells.tolist()):
        inside = [tuple(row) for row in codes[cells == cell].tolist()]
        marginals = sum(entropy(Counter(row[i] for row in inside)) for i in range(codes.shape[1]))
        total += len(inside) / len(cells) * (marginals - entropy(Counter(inside)))
    return total


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    rows=st.integers(1, 60),
    agents=st.integers(1, 4),
    codes=st.integers(1, 4),
    cells=st.integers(1, 5),
    seed=st.integers(0, 1000),
)
def test_factorisation_gap_equals_loops(rows: int, agents: int, codes: int, cells: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    drawn = random.integers(0, codes, (rows, agents))
    where = random.integers(0, cells, rows)
    assert factorisation_gap(drawn, where) == pytest.approx(gap_by_loops(drawn, where), abs=1e-9)


def test_factorisation_gap_of_coordinated_and_of_independent_agents() -> None:
    random = np.random.default_rng(0)
    cells = random.integers(0, 4, 20_000)
    first = random.integers(0, 3, 20_000)
    same = np.stack([first, first], axis=1)
    assert factorisation_gap(same, cells) == pytest.approx(math.log(3), abs=1e-3)
    assert factorisation_gap(permute_within_cells(same, cells, 0), cells) == pytest.approx(0, abs=1e-3)
    # Coordination through the state alone is none beyond it.
    by_state = np.stack([cells, cells], axis=1)
    assert factorisation_gap(by_state, cells) == 0


def test_permuting_keeps_each_agents_actions_of_each_cell() -> None:
    random = np.random.default_rng(1)
    codes, cells = random.integers(0, 9, (200, 3)), random.integers(0, 4, 200)
    permuted = permute_within_cells(codes, cells, 5)
    assert not np.array_equal(permuted, codes)
    for cell in range(4):
        inside = cells == cell
        np.testing.assert_array_equal(np.sort(permuted[inside], axis=0), np.sort(codes[inside], axis=0))


@settings(max_examples=30, deadline=None, derandomize=True)
@given(rows=st.integers(1, 80), agents=st.integers(1, 3), seed=st.integers(0, 1000), bins=st.integers(1, 4))
def test_joint_action_coverage_equals_loops(rows: int, agents: int, seed: int, bins: int) -> None:
    spec = make_spec(agents=agents, actions=2)
    actions = np.random.default_rng(seed).uniform(-1, 1, (rows, agents, 2)).astype(np.float32)
    actions[0] = 1.0  # the upper bound belongs to the last bin
    cut = [
        tuple(min(bins - 1, int((float(value) + 1) / 2 * bins)) for value in row)
        for row in actions.reshape(rows, -1)
    ]
    expected = len(set(cut)) / min(bins ** (2 * agents), rows)
    assert joint_action_coverage(action_codes(actions, spec, bins), bins**2) == pytest.approx(expected)


def test_coverage_of_many_agents_does_not_overflow() -> None:
    spec = make_spec(discrete=True, agents=40, actions=19)
    actions = np.random.default_rng(0).integers(0, 19, (500, 40))
    assert joint_action_coverage(action_codes(actions, spec, 5), 19) == 1.0
    assert np.isfinite(factorisation_gap(actions, np.zeros(500, np.int64)))


@pytest.mark.parametrize("discrete", [False, True])
def test_saco_equals_loops(discrete: bool) -> None:
    random = np.random.default_rng(2)
    state = random.integers(0, 3, (300, 2)).astype(np.float32) / 7
    actions = random.integers(0, 2, (300, 2)) if discrete else random.integers(0, 2, (300, 2, 1)) / 3
    if not discrete:
        actions = actions.astype(np.float32) + random.uniform(-1e-6, 1e-6, actions.shape).astype(np.float32)
    pairs = {
        (tuple(np.round(s, 4).tolist()), tuple((np.round(a, 4) + 0.0).ravel().tolist()))
        for s, a in zip(state, actions, strict=True)
    }
    assert state_action_coverage(state, actions) == len(pairs) / 300


def test_saco_counts_minus_zero_as_zero() -> None:
    state = np.array([[0.0], [-0.0], [-1e-9]], np.float32)
    actions = np.zeros((3, 1, 1), np.float32)
    assert state_action_coverage(state, actions) == pytest.approx(1 / 3)


def test_bimodality_equals_the_textbook_formula_per_cell() -> None:
    random = np.random.default_rng(3)
    actions = random.uniform(-1, 1, (400, 2, 2)) ** 3
    cells = random.integers(0, 3, 400)
    found = bimodality_coefficients(actions, cells, 3)
    expected = []
    for column in actions.reshape(400, -1).T:
        for cell in range(3):
            values = column[cells == cell]
            n = len(values)
            skew = stats.skew(values, bias=False)
            excess = stats.kurtosis(values, bias=False)
            expected.append((skew**2 + 1) / (excess + 3 * (n - 1) ** 2 / ((n - 2) * (n - 3))))
    np.testing.assert_allclose(found.values, expected, rtol=1e-9)
    np.testing.assert_array_equal(found.weights, np.tile(np.bincount(cells), 4))


@pytest.mark.parametrize(
    ("draw", "value"),
    [
        (lambda random: random.uniform(-1, 1, 50_000), 5 / 9),
        (lambda random: random.standard_normal(50_000), 1 / 3),
        (lambda random: random.choice([-1.0, 1.0], 50_000), 1.0),
        (lambda random: random.choice([-0.6, 0.6], 50_000) + 0.1 * random.standard_normal(50_000), 0.9036),
    ],
)
def test_bimodality_of_known_distributions(draw: Any, value: float) -> None:
    actions = draw(np.random.default_rng(4)).reshape(-1, 1, 1)
    found = bimodality_coefficients(actions, np.zeros(50_000, np.int64), 1)
    assert found.values[0] == pytest.approx(value, abs=0.02)


def test_bimodality_leaves_out_small_cells_and_constant_actions() -> None:
    actions = np.zeros((40, 1, 2))
    actions[:, 0, 1] = np.linspace(-1, 1, 40)
    cells = np.repeat([0, 1], [35, 5])
    found = bimodality_coefficients(actions, cells, 2)
    assert found.weights.tolist() == [35]


def test_state_cells_keep_equal_states_together_and_spread_different_ones() -> None:
    state = np.random.default_rng(5).standard_normal((5000, 12)).astype(np.float32)
    state[:, 5] = 3.0
    doubled = np.concatenate([state, state])
    for cells in (1, 2, 7, 64):
        found = state_cells_of(doubled, cells, 0)
        np.testing.assert_array_equal(found[:5000], found[5000:])
        assert found.min() >= 0
        assert found.max() < cells
        assert len(set(found.tolist())) > 0.9 * cells
    # Units of measurement do not matter.
    scaled = (state * np.array([1, 1000, 1, 0.01] * 3)).astype(np.float32)
    assert (state_cells_of(state, 64, 0) == state_cells_of(scaled, 64, 0)).mean() > 0.999
    assert len(set(state_cells_of(np.ones((9, 2), np.float32), 8, 0).tolist())) == 1
    assert len(set(state_cells_of(state[:, :1], 256, 0).tolist())) > 5


# --- duplicates --------------------------------------------------------------------------------------


def copies_by_loops(rows: EpisodeRows) -> tuple[list[bool], list[bool]]:
    transitions, episodes = [], []
    seen: set[bytes] = set()
    seen_episodes: set[bytes] = set()
    for episode in rows.episodes():
        keys = [
            b"|".join(
                part.tobytes()
                for part in (
                    episode.obs[t : t + 2],
                    episode.state[t],
                    episode.actions[t],
                    episode.rewards[t],
                    episode.terminated[t : t + 1],
                    episode.truncated[t : t + 1],
                )
            )
            for t in range(episode.length)
        ]
        for key in keys:
            transitions.append(key in seen)
            seen.add(key)
        episodes.append(b"#".join(keys) in seen_episodes)
        seen_episodes.add(b"#".join(keys))
    return transitions, episodes


@settings(max_examples=30, deadline=None, derandomize=True)
@given(
    repeats=st.lists(st.integers(0, 3), min_size=1, max_size=8),
    discrete=st.booleans(),
    agents=st.integers(1, 3),
)
def test_copies_equal_loops(repeats: list[int], discrete: bool, agents: int) -> None:
    spec = make_spec(discrete, agents)
    episodes = make_episodes(spec, [3, 2, 3, 1])
    rows = stack_episodes([episodes[index] for index in repeats], spec)
    hashes = transition_hashes(rows)
    transitions, whole = copies_by_loops(rows)
    assert transition_copies(rows, hashes).tolist() == transitions
    assert episode_copies(rows, hashes).tolist() == whole


def test_transitions_that_differ_only_in_what_follows_are_no_copies() -> None:
    spec = make_spec()
    (episode,) = make_episodes(spec, [1])
    other_end = episode.obs.copy()
    other_end[-1, 0, 0] += 1
    rows = stack_episodes([episode, replace(episode, obs=other_end)], spec)
    assert not transition_copies(rows, transition_hashes(rows)).any()


# --- the whole ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("discrete", [False, True])
def test_description_of_a_dataset(discrete: bool) -> None:
    spec = make_spec(discrete)
    lengths = [4, 3, 2, 5]
    episodes = make_episodes(spec, lengths)
    episodes.append(episodes[1])
    rows = stack_episodes(episodes, spec)
    rows.obs[:, 1, 2] = 7.0
    rows.state[:, 0] = -1.0
    found = describe(rows, spec, state_cells=4, action_bins=3, seed=0)
    returns = [float(episode.rewards.mean(axis=1).sum()) for episode in episodes]
    assert (found["episodes"], found["transitions"]) == (5, 17)
    assert found["return"]["mean"] == pytest.approx(np.mean(returns), abs=1e-6)
    assert found["return"]["q25"] == pytest.approx(np.quantile(returns, 0.25), abs=1e-6)
    assert found["length"]["max"] == 5
    assert found["terminated_fraction"] == pytest.approx(3 / 5)
    assert found["truncated_fraction"] == pytest.approx(2 / 5)
    assert found["constant_features"] == ["agent_1/obs/2", "state/0"]
    assert found["duplicate_transitions"] == 3
    assert found["duplicate_episodes"] == 1
    assert found["saco"] == pytest.approx(14 / 17)
    # Too few rows in any cell to speak of shapes; discrete actions have none.
    assert found["bimodality_mean"] is None
    assert found == describe(rows, spec, state_cells=4, action_bins=3, seed=0)


def test_a_bimodal_joint_behaviour_shows() -> None:
    spec = make_spec(actions=1)
    random = np.random.default_rng(0)
    mode = random.choice([-0.7, 0.7], (4000, 1, 1))
    actions = np.concatenate([mode, -mode], axis=1) + 0.05 * random.standard_normal((4000, 2, 1))
    (episode,) = make_episodes(spec, [4000])
    rows = stack_episodes([replace(episode, actions=actions.astype(np.float32))], spec)
    found = describe(rows, spec, state_cells=8, action_bins=5, seed=0)
    assert found["bimodality_mean"] > 0.9
    assert found["bimodality_share_above_uniform"] == 1.0
    gap = found["factorisation_gap_nats"] - found["factorisation_gap_baseline_nats"]
    assert gap == pytest.approx(math.log(2), abs=0.1)


def test_padding_is_no_constant_feature() -> None:
    spec = replace(make_spec(), obs_dims=(4, 2))
    rows = stack_episodes(make_episodes(spec, [3]), spec)
    rows.obs[:, 1, 2:] = 0
    assert constant_features(rows, spec) == []


@pytest.mark.parametrize("values", [[2.0], [1.5, 1.5, 1.5], [-1.0, 0.0, 5.0]])
def test_histograms_count_everything_once(values: list[float]) -> None:
    counted = histogram(np.array(values))
    assert counted.counts.sum() == len(values)
    assert counted.edges[0] <= min(values)
    assert max(values) <= counted.edges[-1]
    assert len(counted.edges) == len(counted.counts) + 1


@pytest.mark.parametrize("values", [[25] * 4, [1, 2, 3, 3], [1, 1000], list(range(1, 400))])
def test_integer_histograms_have_bins_of_whole_numbers(values: list[int]) -> None:
    counted = integer_histogram(np.array(values))
    assert counted.counts.sum() == len(values)
    assert set(np.unique(np.diff(counted.edges)).tolist()) <= set(map(float, range(1, 30)))
    for left, right, count in zip(counted.edges[:-1], counted.edges[1:], counted.counts, strict=True):
        assert sum(left < value < right for value in values) == count


def test_action_histograms() -> None:
    spec = make_spec(discrete=True)
    rows = stack_episodes(make_episodes(spec, [5, 4]), spec)
    taken = rows.actions[rows.train_rows]
    for i, (agent, dimension, counted) in enumerate(action_histograms(rows, spec)):
        assert (agent, dimension) == (f"agent_{i}", 0)
        assert counted.counts.tolist() == [int((taken[:, i] == action).sum()) for action in range(3)]
    spec = make_spec()
    rows = stack_episodes(make_episodes(spec, [5, 4]), spec)
    rows.actions[0, 0, 0] = 1 + 1e-6
    found = action_histograms(rows, spec)
    assert [(agent, dim) for agent, dim, _ in found] == [
        (f"agent_{i}", dim) for i in range(2) for dim in range(3)
    ]
    assert all(counted.counts.sum() == 9 for _, _, counted in found)
    assert all((counted.edges[0], counted.edges[-1]) == (-1, 1) for _, _, counted in found)


# --- told to people ----------------------------------------------------------------------------------


def prepare_sample(folder: Path, discrete: bool) -> EpisodeRows:
    spec = make_spec(discrete)
    episodes = make_episodes(spec, [4, 3, 2, 5])
    rows = stack_episodes(episodes, spec)
    write_minari(folder / "raw", "macflow/test-v0", episodes, spec, ENV, {"name": "medium"})
    write_prepared(
        folder / "prepared",
        rows,
        spec,
        env=ENV,
        source={"behaviour": {"name": "medium"}},
        made_from={},
        params={},
    )
    return rows


@pytest.mark.parametrize("discrete", [False, True])
def test_describe_stage_writes_metrics_and_histograms_of_everything(tmp_path: Path, discrete: bool) -> None:
    rows = prepare_sample(tmp_path, discrete)
    params = tmp_path / "params.yaml"
    params.write_text("describe: {state_cells: 4, action_bins: 3, seed: 0}\n")
    for name in ("one", "two"):
        main(
            argparse.Namespace(
                params=params,
                data=tmp_path / "prepared",
                metrics=tmp_path / name / "metrics.json",
                plots=tmp_path / name / "plots",
            )
        )
    assert digest(tmp_path / "one") == digest(tmp_path / "two")
    metrics = json.loads((tmp_path / "one/metrics.json").read_text())
    assert metrics["transitions"] == 14
    returns = pl.read_csv(tmp_path / "one/plots/returns.csv")
    assert returns.columns == ["bin_left", "bin_right", "count"]
    assert returns["count"].sum() == 4
    assert returns["bin_left"].min() == pytest.approx(rows.team_returns.min())
    assert pl.read_csv(tmp_path / "one/plots/lengths.csv")["count"].to_list() == [1, 1, 1, 1]
    actions = pl.read_csv(tmp_path / "one/plots/actions.csv")
    assert actions.columns == ["agent", "dim", "bin_left", "bin_right", "count"]
    per_dimension = actions.group_by("agent", "dim").agg(pl.col("count").sum())
    assert per_dimension.height == 2 * (1 if discrete else 3)
    assert set(per_dimension["count"]) == {14}


@pytest.mark.parametrize("discrete", [False, True])
def test_text_of_recorded_and_prepared_datasets(tmp_path: Path, discrete: bool) -> None:
    rows = prepare_sample(tmp_path, discrete)
    recorded, prepared = describe_text(tmp_path / "raw"), describe_text(tmp_path / "prepared")
    for text in (recorded, prepared):
        assert "mpe/spread {'n_agents': 2}" in text
        assert "behaviour     medium" in text
        assert "2: agent_0, agent_1" in text
        assert ("3 discrete" if discrete else "3 continuous in [-1, 1]") in text
        assert "4 episodes, 14 transitions" in text
        assert f"mean {rows.team_returns.mean():.4g}" in text
    assert "all 13 expectations met" in recorded
    assert "passed when it was prepared" in prepared
    # What is measured does not depend on the form.
    assert recorded.splitlines()[3:-1] == prepared.splitlines()[3:-1]


def test_text_of_bad_datasets_tells_what_is_wrong(tmp_path: Path) -> None:
    spec = make_spec()
    episodes = make_episodes(spec, [3, 2])
    episodes[1].rewards[0, 0] = np.nan
    write_minari(tmp_path / "nan", "macflow/test-v0", episodes, spec, None, {})
    text = describe_text(tmp_path / "nan")
    assert "rewards_finite" in text
    assert "(1, 0)" in text
    with h5py.File(tmp_path / "nan/macflow/test-v0/data/main_data.hdf5", "r+") as file:
        del file["episode_0/actions"]
    assert "failed: " in describe_text(tmp_path / "nan")
    (tmp_path / "nothing").mkdir()
    with pytest.raises(DataError, match="holds no Minari dataset"):
        describe_text(tmp_path / "nothing")
