"""Sweeps: what a file may say, what cells have in common, and what their outcomes say of methods."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import yaml

from macflow.files import write_json
from macflow.runs.pipeline import Pipeline
from macflow.sweeps.cell import failure_file, outcome_file
from macflow.sweeps.local import LocalEngine, unfinished
from macflow.sweeps.plan import Cell, cells_of, read_sweep
from macflow.sweeps.results import (
    DRAWS,
    aggregates_of,
    improvement_of,
    mean_ranks,
    profiles_of,
    scores_of,
    table_of,
)
from macflow.sweeps.summary import markdown_of, write_summary
from macflow.types import ConfigError

ROOT = Path(__file__).resolve().parents[2]
FILE: dict[str, Any] = {
    "datasets": ["game-xor/mixed", "game-payoff/mixed"],
    "seeds": [0, 1],
    "methods": {
        "MAC-Flow": {},
        "alpha 1": {"params": {"distill": {"alpha": 1.0}}},
        "bc": {"baseline": "bc"},
    },
}


def written(folder: Path, **changes: Any) -> Path:
    file = folder / "s.yaml"
    file.write_text(yaml.safe_dump(FILE | changes))
    return file


def cells(folder: Path, **changes: Any) -> list[Cell]:
    base = yaml.safe_load((ROOT / "params.yaml").read_text())
    return cells_of(written(folder, **changes), base, Pipeline(ROOT), lambda *_: None)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seeds": []}, r"s.yaml: `seeds`: .*at least 1 item.*\(received \[\]\)"),
        ({"seeds": [1, 1]}, r"`seeds`: .*must be different numbers"),
        ({"seeds": [-1]}, r"`seeds.0`: .*greater than or equal to 0 \(received -1\)"),
        ({"methods": {"a": {"settings": {"alpha": 1}}}}, r"`methods.a`: .*are a baseline's"),
        ({"methods": {"a": {"baseline": "bc", "params": {"x": 1}}}}, r"`methods.a`: .*are MAC-Flow's"),
        ({"peers": {"hidden": []}}, r"`peers.hidden`: .*at least 1 item"),
        ({"cluster": 1}, r"`cluster`: Extra inputs are not permitted"),
    ],
)
def test_a_wrong_file_is_refused_by_field_rule_and_value(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        read_sweep(written(tmp_path, **changes))


def test_what_the_check_refuses_is_told_with_its_cell(tmp_path: Path) -> None:
    def check(dataset: str, params: Any, baseline: Any) -> None:
        if baseline:
            raise ConfigError("`alpha`: no such setting")

    base = yaml.safe_load((ROOT / "params.yaml").read_text())
    with pytest.raises(ConfigError, match=r"s.yaml: `methods.bc` on `game-xor/mixed`: `alpha`: no such"):
        cells_of(written(tmp_path), base, Pipeline(ROOT), check)


def test_the_matrix_has_every_cell_once_with_its_own_parameters(tmp_path: Path) -> None:
    every = cells(tmp_path, params={"evaluate": {"episodes": 7}})
    assert [(c.dataset, c.method, c.seed) for c in every] == list(
        itertools.product(FILE["datasets"], FILE["methods"], FILE["seeds"])
    )
    assert len({cell.key for cell in every}) == len(every)
    for cell in every:
        assert cell.params["dataset"] == cell.dataset
        assert cell.params["training"]["seed"] == cell.seed
        assert cell.params["evaluate"]["episodes"] == 7
        assert (cell.params["distill"]["alpha"] == 1.0) == (cell.method == "alpha 1")
        assert (cell.baseline is not None) == (cell.method == "bc")


def test_settings_of_a_dataset_are_its_alone(tmp_path: Path) -> None:
    every = cells(tmp_path, datasets={"game-xor/mixed": {"flow": {"steps": 3}}, "game-payoff/mixed": {}})
    assert {cell.dataset for cell in every if cell.params["flow"]["steps"] == 3} == {"game-xor/mixed"}


def test_baselines_see_as_many_transitions(tmp_path: Path) -> None:
    cell = next(c for c in cells(tmp_path, peers={"batch_size": 100}) if c.baseline)
    assert cell.baseline is not None
    transitions = sum(
        cell.params[s]["steps"] * cell.params[s]["batch_size"] for s in ("flow", "critic", "distill")
    )
    steps = cell.baseline["training"]["steps"]
    assert (steps - 1) * 100 < transitions <= steps * 100


def test_keys_are_of_what_a_cell_depends_on(tmp_path: Path) -> None:
    before = {(c.dataset, c.method, c.seed): c.key for c in cells(tmp_path)}
    renamed = {"other name": {}, "bc": {"baseline": "bc"}}
    after = {(c.dataset, c.method, c.seed): c.key for c in cells(tmp_path, methods=renamed)}
    assert after["game-xor/mixed", "other name", 1] == before["game-xor/mixed", "MAC-Flow", 1]
    longer = {
        (c.dataset, c.method, c.seed): c.key for c in cells(tmp_path, params={"distill": {"steps": 11}})
    }
    # A baseline's budget follows.
    assert not set(longer.values()) & set(before.values())
    unseen = {
        (c.dataset, c.method, c.seed): c.key for c in cells(tmp_path, params={"report": {"title": "x"}})
    }
    assert unseen == before


def outcome(value: float, normalized: float | None) -> dict[str, Any]:
    return {
        "return_mean": value,
        "return_ci95_low": value - 1,
        "return_ci95_high": value + 1,
        "normalized_return": normalized,
        "data_return": 0.0,
        "run": "r",
        "artifact": "a",
    }


def test_the_table_says_of_every_cell_what_became_of_it(tmp_path: Path) -> None:
    every = cells(tmp_path)
    write_json(outcome_file(tmp_path, every[0]), outcome(1.5, 40.0))
    write_json(failure_file(tmp_path, every[1]), {"error": "flow ended with code 1: boom"})
    table = table_of(every, tmp_path)
    assert table["status"].to_list() == ["done", "failed", *["missing"] * (len(every) - 2)]
    assert table["return_mean"][0] == 1.5
    assert table["error"][1] == "flow ended with code 1: boom"
    assert [cell.key for cell in unfinished(every, tmp_path)] == [cell.key for cell in every[1:]]
    text = markdown_of(table)
    assert text.startswith(f"1 done, 1 failed, {len(every) - 2} missing")
    assert "- game-xor/mixed, MAC-Flow, seed 1: flow ended with code 1: boom" in text


@pytest.fixture
def whole(tmp_path: Path) -> pl.DataFrame:
    every = cells(tmp_path, seeds=[0, 1, 2])
    random = np.random.default_rng(0)
    for cell in every:
        value = {"MAC-Flow": 80, "alpha 1": 70, "bc": 50}[cell.method] + 10 * random.standard_normal()
        write_json(outcome_file(tmp_path, cell), outcome(value / 10, value))
    return table_of(every, tmp_path)


def test_aggregates_are_those_of_numpy(whole: pl.DataFrame) -> None:
    scores = scores_of(whole)
    assert {name: values.shape for name, values in scores.items()} == dict.fromkeys(FILE["methods"], (2, 3))
    for method, found in aggregates_of(scores).items():
        part = whole.filter(pl.col("method") == method)
        values = part["normalized_return"].to_numpy().reshape(2, 3) / 100
        assert found["IQM"].value == pytest.approx(np.sort(values.ravel())[1:5].mean())
        assert found["mean"].value == pytest.approx(values.mean())
        assert found["median"].value == pytest.approx(np.mean(values.mean(axis=1)))
        assert found["optimality gap"].value == pytest.approx(np.maximum(1 - values, 0).mean())
        # Seeds are drawn within a dataset: all draws of the mean, exactly.
        means = [
            np.mean([values[0, list(a)], values[1, list(b)]])
            for a in itertools.product(range(3), repeat=3)
            for b in itertools.product(range(3), repeat=3)
        ]
        exact = np.percentile(means, (2.5, 97.5))
        assert (found["mean"].low, found["mean"].high) == pytest.approx(exact, abs=0.02)


def test_probabilities_of_improvement_count_pairs_of_runs(whole: pl.DataFrame) -> None:
    scores = scores_of(whole)
    found = improvement_of(scores)
    for one, other in itertools.permutations(scores, 2):
        wins = [a > b for d in range(2) for a in scores[one][d] for b in scores[other][d]]
        assert found[one, other].value == pytest.approx(np.mean(wins))
        assert found[one, other].low <= found[one, other].value <= found[one, other].high


def test_profiles_are_shares_of_runs_above(whole: pl.DataFrame) -> None:
    scores = scores_of(whole)
    profile = profiles_of(scores, np.array([0.0, 0.6, 2.0])).filter(pl.col("method") == "bc")
    assert profile["share"].to_list() == [1.0, float((scores["bc"] > 0.6).mean()), 0.0]
    assert (profile["low"] <= profile["share"]).all()
    assert DRAWS >= 1000


def test_ranks_share_ties_and_leave_out_what_is_incomplete(whole: pl.DataFrame) -> None:
    assert mean_ranks(whole) == {"MAC-Flow": 1.0, "alpha 1": 2.0, "bc": 3.0}
    tied = whole.with_columns(pl.when(pl.col("method") == "bc").then(8.0).otherwise(7.0).alias("return_mean"))
    assert mean_ranks(tied) == {"MAC-Flow": 2.5, "alpha 1": 2.5, "bc": 1.0}
    lacking = (pl.col("method") == "alpha 1") & (pl.col("dataset") == "game-xor/mixed")
    status = pl.when(lacking).then(pl.lit("failed")).otherwise(pl.col("status"))
    assert mean_ranks(tied.with_columns(status.alias("status"))) == {"MAC-Flow": 2.0, "bc": 1.0}


def test_a_summary_is_the_same_bytes_again(whole: pl.DataFrame, tmp_path: Path) -> None:
    names = ("results.parquet", "summary.md", "returns.svg", "profiles.svg")
    first, again = tmp_path / "first", tmp_path / "again"
    write_summary(whole, first)
    write_summary(whole, again)
    assert sorted(file.name for file in first.iterdir()) == sorted(names)
    for name in ("results.parquet", "summary.md"):
        assert (first / name).read_bytes() == (again / name).read_bytes()
    assert pl.read_parquet(first / "results.parquet").equals(whole)


def test_datasets_without_references_have_no_scores(tmp_path: Path) -> None:
    every = cells(tmp_path)
    for cell in every:
        write_json(outcome_file(tmp_path, cell), outcome(1.0, None))
    table = table_of(every, tmp_path)
    assert scores_of(table) == {}
    assert "Normalised" not in markdown_of(table)


def test_a_cell_whose_process_cannot_begin_is_named_and_the_next_goes_on(tmp_path: Path) -> None:
    project = tmp_path / "project"
    project.mkdir()
    every = cells(tmp_path)[:2]
    ended: list[str] = []
    # No macflow is there, and no dvc.yaml: the process finds the installed package, and no pipeline.
    LocalEngine(project, tmp_path / "store", 2).run(every, lambda cell: ended.append(cell.key))
    assert sorted(ended) == sorted(cell.key for cell in every)
    table = table_of(every, tmp_path / "store")
    assert table["status"].to_list() == ["failed", "failed"]
    assert all("dvc.yaml: file not found" in error for error in table["error"])
