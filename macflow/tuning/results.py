"""What a tuning study came to, as a table and as the content of its page."""

from __future__ import annotations

import warnings
from typing import Any

import polars as pl
from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances
from optuna.trial import FrozenTrial, TrialState

from macflow.report.tuned import TunedContent
from macflow.tuning.study import Tuning

# Fewer trials judged to their end say nothing of which parameter matters.
ENOUGH_TO_TELL = 10


def table_of(tuning: Tuning) -> pl.DataFrame:
    """Return a row per training run: trial, state, parameters, seed, folder, policy's digest, measures."""
    rows = [
        {"trial": trial.number, "state": trial.state.name.lower()} | trial.params | run
        for trial in _shown(tuning)
        for run in trial.user_attrs.get("runs", [{}])
    ]
    return pl.DataFrame(rows, infer_schema_length=None)


def content_of(tuning: Tuning) -> TunedContent:
    """Return what the page shows."""
    return TunedContent(
        trials=[_facts(trial) for trial in _shown(tuning)],
        best=_facts(tuning.best()),
        objectives=tuning.settings.objectives,
        searched=[one.name for one in tuning.searched],
        importances=_importances(tuning),
        episodes=tuning.base["evaluate"]["episodes"],
        episode_seed=tuning.settings.episode_seed,
    )


def _shown(tuning: Tuning) -> list[FrozenTrial]:
    trials = tuning.study.get_trials(deepcopy=False)
    return [trial for trial in trials if trial.state.is_finished()]


def _facts(trial: FrozenTrial) -> dict[str, Any]:
    return {
        "number": trial.number,
        "state": trial.state.name.lower(),
        "params": trial.params,
        # A trial that was given up has the value of its last report, which is no judgement.
        "values": list(trial.values) if trial.state == TrialState.COMPLETE else None,
        "runs": trial.user_attrs.get("runs", []),
    }


def _importances(tuning: Tuning) -> dict[str, float]:
    judged = tuning.study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    if len(judged) < ENOUGH_TO_TELL:
        return {}
    # The evaluator asks which parameters lead to low values, and says so each time.
    sign = -1.0 if tuning.settings.objectives[0] == "return" else 1.0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return get_param_importances(
            tuning.study,
            evaluator=PedAnovaImportanceEvaluator(),
            target=lambda trial: sign * trial.values[0],
        )
