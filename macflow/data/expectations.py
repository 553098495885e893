"""What a dataset must fulfil before anything is trained on it.

Polars computes one boolean column per expectation (true marks a row that breaks it), Great
Expectations asserts them. Its own numeric checks are not used: they let NaN pass, and take minutes
where flags take a second.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import jinja2
import numpy as np
import polars as pl
from numpy.typing import NDArray

from macflow.data.duplicates import transition_copies, transition_hashes
from macflow.data.rows import EpisodeRows
from macflow.files import replace_directory, write_json, write_text
from macflow.types import MultiAgentSpec

if TYPE_CHECKING:
    import pandas as pd

# Offenders that a report lists for each expectation.
MAX_OFFENDERS = 10
# Actions may leave their bounds by the rounding of single precision.
BOUND_TOLERANCE = 1e-5
# Rows whose elements are looked at together: bounds the memory of intermediate arrays.
CHUNK_ROWS = 1 << 16
# Table: one row per time step (an episode's last, which has no action, included), or one in all.
Table = Literal["steps", "dataset"]


@dataclass(frozen=True)
class Limits:
    """What is believed of a dataset; the `prepare` section of params.yaml."""

    max_abs_reward: float
    max_abs_observation: float
    max_duplicate_fraction: float


@dataclass(frozen=True)
class Expectation:
    """Name one flag column and say what holds where the flag is false."""

    name: str
    meaning: str
    table: Table


@dataclass(frozen=True)
class Outcome:
    """Tell how one expectation came out."""

    name: str
    meaning: str
    success: bool
    # False if the check itself did not run; it counts as failed.
    evaluated: bool
    failures: int
    # The first offenders as (episode, step), in order; empty where the dataset as a whole offends.
    first_failures: tuple[tuple[int, int], ...]
    note: str = ""


@dataclass(frozen=True)
class Validation:
    """Hold all outcomes for one dataset."""

    dataset: str
    episodes: int
    transitions: int
    outcomes: tuple[Outcome, ...]

    @property
    def success(self) -> bool:
        return all(outcome.success for outcome in self.outcomes)

    @property
    def failed(self) -> tuple[Outcome, ...]:
        return tuple(outcome for outcome in self.outcomes if not outcome.success)

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON types, the same for the same dataset."""
        return {
            "success": self.success,
            "dataset": self.dataset,
            "episodes": self.episodes,
            "transitions": self.transitions,
            "expectations": [
                {
                    "name": outcome.name,
                    "meaning": outcome.meaning,
                    "success": outcome.success,
                    "evaluated": outcome.evaluated,
                    "failures": outcome.failures,
                    "first_failures": [list(pair) for pair in outcome.first_failures],
                    "note": outcome.note,
                }
                for outcome in self.outcomes
            ],
        }

    def message(self) -> str:
        """Return the failed expectations with their first offenders, one a line."""
        lines = [f"{self.dataset}: {len(self.failed)} of {len(self.outcomes)} expectations failed"]
        for outcome in self.failed:
            pairs = ", ".join(f"({episode}, {step})" for episode, step in outcome.first_failures)
            lines.append(
                f"  {outcome.name}: {outcome.meaning}: "
                + (f"{outcome.failures} failure(s)" if outcome.evaluated else "not evaluated")
                + (f"; first (episode, step): {pairs}" if pairs else "")
                + (f"; {outcome.note}" if outcome.note else "")
            )
        return "\n".join(lines)


def expectations_for(spec: MultiAgentSpec, limits: Limits) -> list[Expectation]:
    """List what a dataset of these agents is checked for."""
    actions = (
        [
            Expectation("actions_in_range", f"actions are numbers from 0 to {spec.action_size - 1}", "steps"),
            Expectation("actions_legal", "every agent takes an action that is legal for it", "steps"),
        ]
        if spec.discrete
        else [
            Expectation("actions_finite", "actions are finite numbers", "steps"),
            Expectation("actions_in_bounds", "actions lie within the environment's bounds", "steps"),
        ]
    )
    return [
        Expectation("not_empty", "the dataset has at least one transition", "dataset"),
        Expectation(
            "constant_shapes", "every episode has the same agents, sizes and types of arrays", "dataset"
        ),
        Expectation("episodes_have_steps", "every episode has at least one transition", "steps"),
        Expectation("episodes_in_order", "episodes count 0, 1, 2, ... and so do the steps of each", "steps"),
        Expectation(
            "end_flags",
            "the last transition of an episode, and no other, is terminated or truncated",
            "steps",
        ),
        Expectation("rewards_finite", "rewards are finite numbers", "steps"),
        Expectation("observations_finite", "observations are finite numbers", "steps"),
        Expectation("states_finite", "states are finite numbers", "steps"),
        Expectation(
            "rewards_believable", f"no reward is larger than {limits.max_abs_reward:g} in size", "steps"
        ),
        Expectation(
            "observations_believable",
            f"no observation or state is larger than {limits.max_abs_observation:g} in size",
            "steps",
        ),
        *actions,
        Expectation(
            "few_duplicates",
            f"at most {limits.max_duplicate_fraction:.1%} of the transitions are copies of an earlier one",
            "dataset",
        ),
    ]


def validate(dataset: str, rows: EpisodeRows, spec: MultiAgentSpec, limits: Limits) -> Validation:
    """Check all expectations on the rows of a dataset named `dataset`."""
    steps = step_flags(rows, spec, limits)
    copies = transition_copies(rows, transition_hashes(rows))
    share = float(copies.mean()) if len(copies) else 0.0
    too_many = share > limits.max_duplicate_fraction
    whole = pl.DataFrame(
        {
            "not_empty": [len(rows.train_rows) == 0],
            # Rows of other shapes would not have become arrays.
            "constant_shapes": [False],
            "few_duplicates": [too_many],
        }
    )
    outcomes = evaluate(expectations_for(spec, limits), {"steps": steps, "dataset": whole})
    if too_many:
        copied = rows.train_rows[copies]
        outcomes = [
            _with(
                outcome,
                failures=len(copied),
                first_failures=_pairs(rows, copied[:MAX_OFFENDERS]),
                note=f"{share:.1%} are copies",
            )
            if outcome.name == "few_duplicates"
            else outcome
            for outcome in outcomes
        ]
    return Validation(dataset, rows.n_episodes, len(rows.train_rows), tuple(outcomes))


def refuse_structure(
    dataset: str, problems: Sequence[tuple[int, str]], spec: MultiAgentSpec, limits: Limits
) -> Validation:
    """Return the validation of a dataset that could not become arrays: shapes failed, the rest not run."""
    outcomes = []
    for expectation in expectations_for(spec, limits):
        shapes = expectation.name == "constant_shapes"
        first = tuple((episode, 0) for episode, _ in problems[:MAX_OFFENDERS]) if shapes else ()
        note = "; ".join(f"episode {episode}: {text}" for episode, text in problems[:3]) if shapes else ""
        outcomes.append(
            Outcome(
                name=expectation.name,
                meaning=expectation.meaning,
                success=False,
                evaluated=shapes,
                failures=len(problems) if shapes else 0,
                first_failures=first,
                note=note,
            )
        )
    return Validation(dataset, 0, 0, tuple(outcomes))


# --- flags -------------------------------------------------------------------------------------------


def step_flags(rows: EpisodeRows, spec: MultiAgentSpec, limits: Limits) -> pl.DataFrame:
    """Return `episode`, `step` and one boolean column per expectation of the table "steps", R rows."""
    recorded_episode = (
        rows.episode_of_row if rows.recorded_ids is None else rows.recorded_ids[rows.episode_of_row]
    )
    has_action = np.ones(rows.n_rows, np.bool_)
    has_action[rows.final_rows] = False
    columns: dict[str, NDArray[Any]] = {
        "episode": rows.episode_of_row,
        "step": rows.step_of_row,
        "recorded_episode": recorded_episode,
        "recorded_step": rows.step_of_row if rows.recorded_steps is None else rows.recorded_steps,
        "has_action": has_action,
        "ended": rows.terminated | rows.truncated,
        "reward_size": _per_row(rows.rewards, _size),
        "observation_size": _per_row(rows.obs, _size),
        "state_size": _per_row(rows.state, _size),
    }
    action_flags = {}
    if rows.legal_actions is not None:
        columns["action_low"] = _per_row(rows.actions, lambda a: a.min(axis=1))
        columns["action_high"] = _per_row(rows.actions, lambda a: a.max(axis=1))
        columns["illegal"] = _illegal(rows.actions, rows.legal_actions)
        in_range = (pl.col("action_low") >= 0) & (pl.col("action_high") < spec.action_size)
        action_flags = {"actions_in_range": ~in_range, "actions_legal": pl.col("illegal")}
    else:
        low, high = np.array(spec.action_low, np.float32), np.array(spec.action_high, np.float32)
        columns["action_size"] = _per_row(rows.actions, _size)
        columns["out_of_bounds"] = _per_row(rows.actions, lambda a: _excess(a, low, high))
        within = pl.col("out_of_bounds") <= BOUND_TOLERANCE
        action_flags = {
            "actions_finite": ~_finite("action_size"),
            "actions_in_bounds": _finite("action_size") & ~within,
        }
    new = pl.col("recorded_episode") != pl.col("recorded_episode").shift(1, fill_value=-1)
    follows = pl.col("recorded_episode") == pl.col("recorded_episode").shift(1, fill_value=-1) + 1
    step = pl.col("recorded_step")
    last = pl.col("has_action") & ~pl.col("has_action").shift(-1, fill_value=False)
    return pl.DataFrame(columns).select(
        "episode",
        "step",
        episodes_have_steps=(pl.col("step") == 0) & ~pl.col("has_action"),
        episodes_in_order=pl.when(new)
        .then(~follows | (step != 0))
        .otherwise(step != step.shift(1, fill_value=-1) + 1),
        end_flags=pl.col("ended") != last,
        rewards_finite=~_finite("reward_size"),
        observations_finite=~_finite("observation_size"),
        states_finite=~_finite("state_size"),
        rewards_believable=_finite("reward_size") & (pl.col("reward_size") > limits.max_abs_reward),
        observations_believable=(
            _finite("observation_size") & (pl.col("observation_size") > limits.max_abs_observation)
        )
        | (_finite("state_size") & (pl.col("state_size") > limits.max_abs_observation)),
        **{name: pl.col("has_action") & flag for name, flag in action_flags.items()},
    )


def _finite(column: str) -> pl.Expr:
    return pl.col(column).is_finite()


def _per_row(array: NDArray[Any], function: Callable[[NDArray[Any]], NDArray[Any]]) -> NDArray[Any]:
    """Apply `function` to chunks (B, F) of the array's rows, flattened except (R, N, A) actions."""
    pieces = [function(array[start : start + CHUNK_ROWS]) for start in range(0, len(array), CHUNK_ROWS)]
    return np.concatenate(pieces) if pieces else np.empty(0)


def _size(chunk: NDArray[Any]) -> NDArray[Any]:
    """Return the largest absolute value of each row; NaN if the row has one."""
    flat = chunk.reshape(len(chunk), -1)
    size: NDArray[Any] = np.maximum(flat.max(axis=1), -flat.min(axis=1)).astype(np.float64)
    return size


def _excess(chunk: NDArray[Any], low: NDArray[Any], high: NDArray[Any]) -> NDArray[Any]:
    """Return by how much each row's actions (B, N, A) leave the bounds (A,) at most."""
    excess: NDArray[Any] = np.maximum(low - chunk, chunk - high).max(axis=(1, 2)).astype(np.float64)
    return excess


def _illegal(actions: NDArray[Any], legal: NDArray[Any]) -> NDArray[np.bool_]:
    """Mark rows where an agent's action is in range and not legal; range is checked by itself."""
    in_range = (actions >= 0) & (actions < legal.shape[2])
    picked = np.where(in_range, actions, 0)
    taken_is_legal = np.take_along_axis(legal, picked[:, :, None], axis=2)[:, :, 0]
    marked: NDArray[np.bool_] = (in_range & ~taken_is_legal).any(axis=1)
    return marked


# --- assertion ---------------------------------------------------------------------------------------


def evaluate(expectations: Sequence[Expectation], tables: Mapping[str, pl.DataFrame]) -> list[Outcome]:
    """Assert with Great Expectations that each expectation's flag is false in all rows of its table."""
    outcomes: dict[str, Outcome] = {}
    for table, frame in tables.items():
        chosen = [expectation for expectation in expectations if expectation.table == table]
        results = _assert_false(table, frame, [expectation.name for expectation in chosen])
        for expectation in chosen:
            success, error = results.get(expectation.name, (False, "no result"))
            bad = (
                frame.filter(pl.col(expectation.name)) if expectation.name in frame.columns else frame.clear()
            )
            outcomes[expectation.name] = Outcome(
                name=expectation.name,
                meaning=expectation.meaning,
                # Both must agree: neither a flag that was lost nor a check that erred may pass.
                success=success and not error and bad.height == 0,
                evaluated=not error,
                failures=bad.height,
                first_failures=tuple(
                    (int(episode), int(step))
                    for episode, step in bad.select("episode", "step").head(MAX_OFFENDERS).rows()
                )
                if "step" in frame.columns
                else (),
                note=error,
            )
    return [outcomes[expectation.name] for expectation in expectations]


def _assert_false(table: str, frame: pl.DataFrame, columns: Sequence[str]) -> dict[str, tuple[bool, str]]:
    """Return for each column whether it is false throughout, and the error if that was not evaluated."""
    flags = frame.select([column for column in columns if column in frame.columns]).to_pandas()
    with warnings.catch_warnings():
        # The library's own use of deprecated modules is nothing that a user could act on.
        warnings.simplefilter("ignore")
        results = _run_suite(table, flags, columns)
    outcomes = {}
    for single in results:
        config = single.expectation_config
        if config is not None:
            error = "" if single.result else _exception(single.exception_info)
            outcomes[str(config.kwargs["column"])] = (bool(single.success), error)
    return outcomes


def _run_suite(table: str, flags: pd.DataFrame, columns: Sequence[str]) -> Sequence[Any]:
    os.environ["GX_ANALYTICS_ENABLED"] = "false"
    # Imported here: it takes seconds, and only validation needs it.
    import great_expectations as gx
    from great_expectations.data_context.types.base import ProgressBarsConfig
    from great_expectations.expectations.core.expect_column_values_to_be_in_set import (
        ExpectColumnValuesToBeInSet,
    )

    context = gx.get_context(mode="ephemeral")
    context.variables.progress_bars = ProgressBarsConfig(globally=False)
    suite = context.suites.add(gx.ExpectationSuite(name=table))
    for column in columns:
        suite.add_expectation(ExpectColumnValuesToBeInSet(column=column, value_set=[False]))
    asset = context.data_sources.add_pandas("memory").add_dataframe_asset(table)
    batch = asset.add_batch_definition_whole_dataframe("all")
    definition = context.validation_definitions.add(
        gx.ValidationDefinition(name=table, data=batch, suite=suite)
    )
    result = definition.run(batch_parameters={"dataframe": flags}, result_format={"result_format": "BASIC"})
    return list(result.results)


def _exception(info: Any) -> str:
    """Find the message in Great Expectations' exception record, which nests by metric or does not."""
    if isinstance(info, Mapping):
        if isinstance(info.get("exception_message"), str):
            return str(info["exception_message"]).splitlines()[0]
        for value in info.values():
            if isinstance(value, Mapping):
                return _exception(value)
    return "the check gave no result"


# --- reports -----------------------------------------------------------------------------------------


def write_reports(folder: Path, validation: Validation) -> None:
    """Replace `folder` by `validation.json` and `index.html`, which needs no network."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("macflow.data", "."),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    html = environment.get_template("validation.html.j2").render(validation=validation)
    with replace_directory(folder) as fresh:
        write_json(fresh / "validation.json", validation.to_dict())
        write_text(fresh / "index.html", html)


def _with(outcome: Outcome, **changes: Any) -> Outcome:
    return Outcome(**{**outcome.__dict__, **changes})


def _pairs(rows: EpisodeRows, which: NDArray[np.int64]) -> tuple[tuple[int, int], ...]:
    return tuple((int(rows.episode_of_row[row]), int(rows.step_of_row[row])) for row in which)
