"""`macflow tune`: look for parameters, above all alpha, by an Optuna study over the pipeline."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from macflow.tuning.study import Tuning

# What is searched where nothing is named.
ALPHA = "distill.alpha=log:0.003:10"


class ObjectiveName(StrEnum):
    """What a trial is judged by."""

    returns = "return"
    latency = "latency"


def tune(
    name: Annotated[str, typer.Argument(help="Name of the study; a study of that name goes on.")] = "alpha",
    param: Annotated[
        list[str],
        typer.Option(
            metavar="NAME=RANGE",
            help="A parameter to search, repeatable: critic.discount=float:0.8:0.99, "
            "distill.steps=int:1000:9000, critic.mixer=choice:mean,qmix.",
        ),
    ] = [ALPHA],  # noqa: B006
    trials: Annotated[int, typer.Option(min=1, help="Trials, those of earlier calls included.")] = 20,
    jobs: Annotated[int, typer.Option(min=1, help="Trials at the same time.")] = 1,
    seeds: Annotated[
        int, typer.Option(min=1, help="Training seeds of each trial; one that lags is given up after a seed.")
    ] = 1,
    episode_seed: Annotated[
        int, typer.Option(min=0, help="First of the episodes that trials are judged on.")
    ] = 2_000_000,
    objective: Annotated[
        list[ObjectiveName], typer.Option(help="Repeatable: return (more), latency (less).")
    ] = [ObjectiveName.returns],  # noqa: B006
    storage: Annotated[
        str | None,
        typer.Option(
            envvar="MACFLOW_STORAGE",
            help="URL of a database for the study; a journal file if not given. One with a password belongs "
            "into the environment: everyone can see a command.",
        ),
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder of studies.")] = Path("tuning"),
    params: Annotated[Path, typer.Option(help="What trials start from.")] = Path("params.yaml"),
    write: Annotated[bool, typer.Option("--write", help="Put the best values into params.yaml.")] = False,
) -> None:
    """Search parameters by training and evaluating; only stages that a trial changes run again.

    The folder of the study keeps Optuna's journal (`optuna-dashboard` reads it), every run with its log, a
    table of the trials and a page. Ctrl-C loses nothing that was finished: the same command goes on.
    """
    from macflow.config import check_params
    from macflow.files import write_text
    from macflow.params_file import change_params, read_plain
    from macflow.report.tuned import render_page
    from macflow.runs.pipeline import Pipeline
    from macflow.runs.store import RunStore
    from macflow.tuning.results import content_of, table_of
    from macflow.tuning.space import changes, parse_searched
    from macflow.tuning.study import Tuning, TuningSettings

    base: dict[str, Any] = read_plain(params)
    first: int = check_params(params, base).training.seed
    folder = out / name
    tuning = Tuning(
        folder,
        name,
        storage,
        base,
        [parse_searched(text) for text in param],
        RunStore(Pipeline(Path(".")), folder / "runs"),
        TuningSettings(
            trials=trials,
            jobs=jobs,
            seeds=tuple(range(first, first + seeds)),
            episode_seed=episode_seed,
            objectives=tuple(one.value for one in objective),
            sampler_seed=first,
        ),
    )
    tuning.run()
    best = tuning.best()
    table_of(tuning).write_csv(folder / "trials.csv")
    write_text(folder / "index.html", render_page(content_of(tuning), f"Tuning: {name}"))
    _tell(tuning, folder)
    if write:
        print(
            "\n".join(change_params(params, changes(best.params), str(folder)))
            or f"{params}: says so already"
        )


def _tell(tuning: Tuning, folder: Path) -> None:
    best = tuning.best()
    finished = tuning.finished()
    values = ", ".join(
        f"{name} {value:.4g}" for name, value in zip(tuning.settings.objectives, best.values, strict=True)
    )
    print(f"{len(finished)} trials; best: number {best.number}, {values}")
    for name, value in best.params.items():
        print(f"  {name}: {value:.4g}" if isinstance(value, float) else f"  {name}: {value}")
    print(f"trials: {folder / 'trials.csv'}\nreport: {(folder / 'index.html').absolute().as_uri()}")
