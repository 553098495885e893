"""An Optuna study over the pipeline: a trial is a set of parameters, its value the return that they train."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import optuna
from filelock import FileLock, Timeout
from optuna.storages import BaseStorage
from optuna.study import MaxTrialsCallback
from optuna.trial import FrozenTrial, TrialState

from macflow.config import check_params
from macflow.files import digest, read_json
from macflow.runs.store import RunStore
from macflow.tuning.database import answering, open_database
from macflow.tuning.journal import open_journal
from macflow.tuning.space import Searched, named, with_values
from macflow.types import ConfigError, DataError, MacflowError

Objective = Literal["return", "latency"]
DIRECTIONS: Mapping[Objective, Literal["maximize", "minimize"]] = {
    "return": "maximize",
    "latency": "minimize",
}
JOURNAL = "journal.log"
FINISHED = (TrialState.COMPLETE, TrialState.PRUNED)


@dataclass(frozen=True)
class TuningSettings:
    """How a study is run, beside what it searches."""

    trials: int
    jobs: int
    # Training seeds of each trial, one after the other: after each, a trial that lags may be given up.
    seeds: tuple[int, ...]
    # First of the episodes that trials are judged on, apart from those that the pipeline reports.
    episode_seed: int
    objectives: tuple[Objective, ...]
    sampler_seed: int


class Tuning:
    """A study in a folder: what Optuna keeps, and the runs of its trials."""

    def __init__(
        self,
        folder: Path,
        name: str,
        storage: str | None,
        base: Mapping[str, Any],
        searched: Sequence[Searched],
        store: RunStore,
        settings: TuningSettings,
    ) -> None:
        """Open or create the study `name`; `storage` is a database's URL, None for a journal in the folder.

        Raises:
            ConfigError: a parameter is unknown, the database cannot be opened, or the study is there with
                other objectives.
        """
        self.folder, self.base, self.searched, self.store = folder, base, searched, store
        self.settings = settings
        with_values(base, dict.fromkeys(named(searched)))
        # Shared with other processes, perhaps on other machines; a journal belongs to this folder alone.
        self.database = open_database(storage) if storage else None
        folder.mkdir(parents=True, exist_ok=True)
        kept: BaseStorage = self.database or open_journal(folder / JOURNAL)
        # It would tell of a failed trial by a traceback.
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        directions = [DIRECTIONS[objective] for objective in settings.objectives]
        self.study = optuna.create_study(
            storage=kept,
            study_name=name,
            directions=directions,
            load_if_exists=True,
            pruner=optuna.pruners.MedianPruner(n_startup_trials=5),
        )
        if [direction.name.lower() for direction in self.study.directions] != directions:
            raise ConfigError(
                f"`--objective`: the study {name!r} has {len(self.study.directions)} other ones; "
                f"name another study (received {', '.join(settings.objectives)})"
            )
        # A study that goes on must not draw again what it drew before, nor what another process draws now.
        drawn = len(self.study.get_trials(deepcopy=False))
        self.study.sampler = optuna.samplers.TPESampler(
            seed=None if self.database else settings.sampler_seed + drawn
        )

    def run(self) -> None:
        """Run trials until there are as many as asked for, those of earlier calls included.

        Trials that were under way when an earlier call was killed are run again; in a database, which others
        may be using, once they have not been heard of for a minute.

        Raises:
            ConfigError: another process is running this study's folder.
            DataError: the database no longer answers.
        """
        try:
            held = FileLock(self.folder / "running.lock").acquire(timeout=0)
        except Timeout:
            raise ConfigError(f"{self.folder}: is being tuned by another process; see `--jobs`") from None
        with held, answering(self.database) if self.database else nullcontext():
            if self.database is None:
                self._repeat_unfinished()
            left = self.settings.trials - len(self.finished())
            if left > 0:
                self.study.optimize(
                    self._trial,
                    n_trials=left,
                    n_jobs=self.settings.jobs,
                    catch=(MacflowError,),
                    # Others who work on the same study bring it to its end sooner.
                    callbacks=[MaxTrialsCallback(self.settings.trials, states=FINISHED)],
                )

    def _repeat_unfinished(self) -> None:
        for trial in self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            self.study.tell(trial.number, state=TrialState.FAIL)
            if trial.params:
                self.study.enqueue_trial(trial.params)

    def finished(self) -> list[FrozenTrial]:
        """Return the trials that were judged, wholly or as far as it was worth it."""
        return self.study.get_trials(deepcopy=False, states=FINISHED)

    def best(self) -> FrozenTrial:
        """Return the trial with the best first objective.

        Raises:
            DataError: no trial was judged to its end.
        """
        whole = self.study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        if not whole:
            raise DataError(f"{self.folder}: no trial has been judged to its end; see the runs' logs there")
        maximise = self.settings.objectives[0] == "return"
        return max(whole, key=lambda trial: trial.values[0] if maximise else -trial.values[0])

    def _trial(self, trial: optuna.Trial) -> tuple[float, ...]:
        try:
            return self._judged(trial)
        except MacflowError as error:
            print(f"tune: trial {trial.number} failed: {error}", file=sys.stderr, flush=True)
            raise

    def _judged(self, trial: optuna.Trial) -> tuple[float, ...]:
        values = {one.name: one.suggest(trial) for one in self.searched}
        found: list[dict[str, float]] = []
        runs = []
        for number, seed in enumerate(self.settings.seeds):
            params = with_values(
                self.base, {"training.seed": seed, "evaluate.seed": self.settings.episode_seed} | values
            )
            check_params(Path("params.yaml"), params)
            folder = self.store.made("evaluate", params)
            found.append(_measured(folder))
            runs.append(
                {"seed": seed, "run": folder.name, "policy": digest(folder / "models/policy")} | found[-1]
            )
            # Before a decision to give up, so that what was done is on record.
            trial.set_user_attr("runs", runs)
            if len(self.settings.objectives) == 1:
                trial.report(_mean(found, self.settings.objectives[0]), number)
                if number + 1 < len(self.settings.seeds) and trial.should_prune():
                    raise optuna.TrialPruned
        return tuple(_mean(found, objective) for objective in self.settings.objectives)


def _measured(folder: Path) -> dict[str, float]:
    played = read_json(folder / "metrics/evaluate.json")["policy"]
    timed = read_json(folder / "metrics/timings/evaluate.json")["policy"]
    return {
        "return": played["return_mean"],
        "return_ci95_low": played["return_ci95_low"],
        "return_ci95_high": played["return_ci95_high"],
        "latency": timed["latency_us_p50"],
    }


def _mean(found: Sequence[Mapping[str, float]], objective: Objective) -> float:
    return sum(run[objective] for run in found) / len(found)
