"""Every expectation fires on data that break it, and on no others."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from data_samples import make_episodes, make_spec

from macflow.data.expectations import (
    Expectation,
    Limits,
    evaluate,
    expectations_for,
    refuse_structure,
    validate,
    write_reports,
)
from macflow.data.rows import EpisodeRows, stack_episodes
from macflow.files import digest

LIMITS = Limits(max_abs_reward=100.0, max_abs_observation=1000.0, max_duplicate_fraction=0.2)
# Rows 0-4 and 5-8 and 9-11; the last of each has no transition.
LENGTHS = [4, 3, 2]
Change = Callable[[EpisodeRows], dict[str, Any]]


def make_rows(discrete: bool = False) -> EpisodeRows:
    spec = make_spec(discrete)
    return stack_episodes(make_episodes(spec, LENGTHS), spec)


def put(name: str, index: Any, value: Any) -> Change:
    """Change one entry of an array."""

    def change(rows: EpisodeRows) -> dict[str, Any]:
        array = getattr(rows, name).copy()
        array[index] = value
        return {name: array}

    return change


def copy_first_episode_rows(rows: EpisodeRows) -> dict[str, Any]:
    """Make the transitions of steps 1 and 2 equal to that of step 0."""
    arrays = {}
    for name in ("obs", "state", "actions", "rewards"):
        arrays[name] = getattr(rows, name).copy()
        arrays[name][1:4] = arrays[name][0]
    return arrays


@pytest.mark.parametrize("discrete", [False, True])
def test_good_data_meet_every_expectation(discrete: bool) -> None:
    found = validate("good", make_rows(discrete), make_spec(discrete), LIMITS)
    assert found.success, found.message()
    assert all(outcome.evaluated for outcome in found.outcomes)
    assert (found.episodes, found.transitions) == (3, 9)


@pytest.mark.parametrize(
    ("discrete", "change", "name", "first"),
    [
        (False, put("terminated", 1, True), "end_flags", [(0, 1)]),
        (False, put("truncated", 3, False), "end_flags", [(0, 3)]),
        (False, put("terminated", 4, True), "end_flags", [(0, 4)]),
        (False, put("rewards", (2, 1), np.nan), "rewards_finite", [(0, 2)]),
        (False, put("rewards", (2, 1), -np.inf), "rewards_finite", [(0, 2)]),
        (False, put("rewards", ([2, 7], 0), -101.0), "rewards_believable", [(0, 2), (1, 2)]),
        (False, put("obs", (8, 1, 3), np.nan), "observations_finite", [(1, 3)]),
        (False, put("obs", (8, 1, 3), np.inf), "observations_finite", [(1, 3)]),
        (False, put("state", (11, 0), np.nan), "states_finite", [(2, 2)]),
        (False, put("obs", (0, 0, 0), -1001.0), "observations_believable", [(0, 0)]),
        (False, put("state", (1, 2), 1001.0), "observations_believable", [(0, 1)]),
        (False, put("actions", (6, 0, 1), np.nan), "actions_finite", [(1, 1)]),
        (False, put("actions", (6, 0, 1), 1.01), "actions_in_bounds", [(1, 1)]),
        (False, put("actions", (6, 1, 2), -1.01), "actions_in_bounds", [(1, 1)]),
        (True, put("actions", (6, 0), 3), "actions_in_range", [(1, 1)]),
        (True, put("actions", (6, 0), -1), "actions_in_range", [(1, 1)]),
        (True, put("legal_actions", (6, 1), False), "actions_legal", [(1, 1)]),
        (False, put("recorded_ids", 1, 2), "episodes_in_order", [(1, 0), (2, 0)]),
        (False, put("recorded_ids", slice(None), [1, 0, 2]), "episodes_in_order", [(0, 0), (1, 0), (2, 0)]),
        (False, put("recorded_steps", [1, 2], [2, 1]), "episodes_in_order", [(0, 1), (0, 2), (0, 3)]),
        (False, put("recorded_steps", 5, 1), "episodes_in_order", [(1, 0)]),
        (False, copy_first_episode_rows, "few_duplicates", [(0, 1), (0, 2)]),
    ],
)
def test_each_expectation_fires_alone_and_names_the_first_offenders(
    discrete: bool, change: Change, name: str, first: list[tuple[int, int]]
) -> None:
    rows = make_rows(discrete)
    rows = replace(rows, recorded_ids=np.arange(3), recorded_steps=rows.step_of_row)
    found = validate("bad", replace(rows, **change(rows)), make_spec(discrete), LIMITS)
    assert [outcome.name for outcome in found.failed] == [name]
    (outcome,) = found.failed
    assert outcome.evaluated
    assert list(outcome.first_failures)[: len(first)] == first
    assert outcome.failures >= len(first)
    assert name in found.message()
    assert str(first[0]) in found.message()


def test_rounding_at_a_bound_is_no_offence() -> None:
    rows = make_rows()
    rounded = replace(rows, **put("actions", (6, 0, 1), 1 + 1e-6)(rows))
    assert validate("good", rounded, make_spec(), LIMITS).success


def test_an_illegal_action_does_not_matter_where_there_is_none() -> None:
    rows = make_rows(discrete=True)
    final = replace(rows, **put("legal_actions", rows.final_rows, False)(rows))
    assert validate("good", final, make_spec(discrete=True), LIMITS).success


def test_an_empty_dataset_and_an_empty_episode() -> None:
    spec = make_spec()
    found = validate("empty", stack_episodes([], spec), spec, LIMITS)
    assert [outcome.name for outcome in found.failed] == ["not_empty"]
    hollow = stack_episodes(make_episodes(spec, [2, 0, 3]), spec)
    found = validate("hollow", hollow, spec, LIMITS)
    assert [outcome.name for outcome in found.failed] == ["episodes_have_steps"]
    assert found.failed[0].first_failures == ((1, 0),)


def test_many_failures_are_counted_and_few_listed() -> None:
    spec = make_spec()
    rows = stack_episodes(make_episodes(spec, [50]), spec)
    found = validate("bad", replace(rows, rewards=np.full_like(rows.rewards, np.nan)), spec, LIMITS)
    (outcome,) = found.failed
    assert outcome.failures == 51
    assert outcome.first_failures == tuple((0, step) for step in range(10))


def test_a_check_that_errs_is_not_evaluated_and_fails() -> None:
    frame = pl.DataFrame({"episode": [0], "step": [0], "present": [False]})
    expectations = [Expectation("present", "it is there", "steps"), Expectation("lost", "it is not", "steps")]
    present, lost = evaluate(expectations, {"steps": frame})
    assert present.success
    assert present.evaluated
    assert not lost.success
    assert not lost.evaluated
    assert "lost" in lost.note


def test_structure_that_is_refused_leaves_the_rest_unevaluated() -> None:
    spec = make_spec()
    found = refuse_structure("odd", [(4, "`obs` is missing")], spec, LIMITS)
    assert not found.success
    by_name = {outcome.name: outcome for outcome in found.outcomes}
    assert list(by_name) == [expectation.name for expectation in expectations_for(spec, LIMITS)]
    assert by_name.pop("constant_shapes").first_failures == ((4, 0),)
    assert not any(outcome.evaluated or outcome.success for outcome in by_name.values())
    assert "episode 4: `obs` is missing" in found.message()


def test_reports_are_deterministic_self_contained_and_escaped(tmp_path: Path) -> None:
    rows = make_rows()
    bad = replace(rows, **put("rewards", (2, 1), np.nan)(rows))
    for folder in ("one", "two"):
        found = validate("<script>alert(1)</script>", bad, make_spec(), LIMITS)
        write_reports(tmp_path / folder, found)
    assert digest(tmp_path / "one") == digest(tmp_path / "two")
    written = json.loads((tmp_path / "one/validation.json").read_text())
    assert written == json.loads(json.dumps(found.to_dict()))
    (failed,) = [entry for entry in written["expectations"] if not entry["success"]]
    assert failed["name"] == "rewards_finite"
    assert failed["first_failures"] == [[0, 2]]
    html = (tmp_path / "one/index.html").read_text()
    assert "<script" not in html
    assert "&lt;script&gt;" in html
    assert "(0, 2)" in html
    for network in ("http:", "https:", "//", "@import", "url("):
        assert network not in html.replace("<!doctype html>", "")


def test_analytics_are_off() -> None:
    validate("good", make_rows(), make_spec(), LIMITS)
    assert os.environ["GX_ANALYTICS_ENABLED"] == "false"
