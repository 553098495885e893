"""Make the dataset that `dataset` names: record a behaviour in its environment, or download it."""

from __future__ import annotations

import argparse
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from macflow.catalogue import PublishedDataset, RecordedDataset, dataset_named
from macflow.config import DatasetName, RecordParams, load_section
from macflow.data.episode import Episode
from macflow.data.importers.imported import Imported, match_environment, write_imported
from macflow.data.importers.og_marl import read_og_marl
from macflow.data.minari_store import write_minari
from macflow.data.record import record_episodes
from macflow.envs.registry import (
    ENVIRONMENTS,
    copies,
    env_spec,
    full_kwargs,
    make_behaviour,
    make_env,
    normalized_return,
    reference_returns,
)
from macflow.evaluation.returns import bootstrap_mean
from macflow.files import replace_directory, write_json
from macflow.stages._common import run_stage
from macflow.types import ConfigError, DataError

# How the work is split; episodes do not depend on it.
MAX_ENVS = 64
MAX_WORKERS = 2
# Below this many episodes per process, starting one takes longer than it saves.
EPISODES_WORTH_A_WORKER = 200


def main(arguments: argparse.Namespace) -> None:
    """Record the dataset that `dataset` names, or download it, as a Minari dataset."""
    dataset = dataset_named(load_section(arguments.params, "dataset", DatasetName).root)
    params = load_section(arguments.params, "record", RecordParams)
    if isinstance(dataset, PublishedDataset):
        _check_taken_whole(arguments.params, dataset, params)
        episodes = import_published(arguments.out, dataset)
    else:
        episodes = record_dataset(arguments.out, dataset, params.kwargs, params.episodes, params.seed)
    returns = np.array([episode.team_return for episode in episodes])
    interval = bootstrap_mean(returns, params.seed)
    known = dataset.env_id in ENVIRONMENTS
    reference = reference_returns(str(dataset.env_id), params.kwargs) if known else None
    normalized = None if reference is None else normalized_return(interval.mean, reference)
    write_json(
        arguments.metrics,
        {
            "episodes": len(episodes),
            "transitions": sum(episode.length for episode in episodes),
            "return_mean": interval.mean,
            "return_ci95_low": interval.low,
            "return_ci95_high": interval.high,
            "normalized_return": normalized,
        },
    )
    scale = "" if normalized is None else f", {normalized:.1f} on the scale from random (0) to expert (100)"
    print(
        f"record: {len(episodes)} episodes of {dataset.name}, mean return {interval.mean:.3f}{scale}",
        flush=True,
    )


def record_dataset(
    out: Path, dataset: RecordedDataset, kwargs: Mapping[str, Any], episodes: int | None, seed: int
) -> list[Episode]:
    """Play `episodes` of a behaviour, episode i from seed `seed + i`, and write them to the folder `out`.

    `kwargs` are the environment's; without a number of episodes it is the catalogue's.

    Raises:
        ConfigError: on an unknown keyword, a value that breaks its rule, or what is not installed.
    """
    env_id = dataset.env_id
    kwargs = full_kwargs(env_id, kwargs)
    episodes = episodes or dataset.episodes
    actor = make_behaviour(env_id, kwargs, dataset.behaviour)
    # Equal waves, so that the last one plays few episodes that nobody asked for.
    n_envs = math.ceil(episodes / math.ceil(episodes / copies(env_id, MAX_ENVS)))
    workers = max(1, min(MAX_WORKERS, episodes // EPISODES_WORTH_A_WORKER))
    env = make_env(env_id, kwargs, n_envs, workers)
    try:
        with tqdm(total=episodes, desc="record", unit="episode", disable=None) as bar:
            recorded = record_episodes(env, actor, episodes, seed, bar.update)
    finally:
        env.close()
    with replace_directory(out) as folder:
        write_minari(
            folder,
            f"{dataset.name}-v0",
            recorded,
            env.spec,
            {"id": env_id, "kwargs": kwargs, "version": ENVIRONMENTS[env_id].version()},
            {"name": dataset.behaviour, "seed": seed, "episodes": episodes},
        )
    return recorded


def import_published(out: Path, dataset: PublishedDataset) -> list[Episode]:
    """Download a published dataset, unless it is here already, and write it to the folder `out`.

    Raises:
        ConfigError: where what reads it is not installed.
        DataError: naming what is wrong with the download or the data; `out` is as it was then.
    """
    if dataset.missing is not None:
        raise ConfigError(f"{dataset.name}: {dataset.missing}")
    imported = _fitted(read_og_marl(dataset.source.name, dataset.uid, out), dataset)
    write_imported(out, dataset.name, imported)
    for note in imported.notes:
        print(f"record: {note}", flush=True)
    return imported.rows.episodes()


def _check_taken_whole(file: Path, dataset: PublishedDataset, params: RecordParams) -> None:
    for name, value in (("kwargs", params.kwargs), ("episodes", params.episodes)):
        if value:
            empty = "{}" if name == "kwargs" else "null"
            raise ConfigError(
                f"{file}: `record.{name}`: must be {empty}, since {dataset.name} is published and taken as "
                f"it is (received {value!r})"
            )


def _fitted(imported: Imported, dataset: PublishedDataset) -> Imported:
    """Name the agents as the environment does, and compare the data with it, where it can be made here."""
    env_id = dataset.env_id
    if env_id is None or env_id not in ENVIRONMENTS or ENVIRONMENTS[env_id].missing() is not None:
        return imported
    wanted = env_spec(env_id, {})
    try:
        return match_environment(imported, env_id, wanted)
    except ConfigError as error:
        raise DataError(f"{dataset.name}: {error}") from None


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the stage's paths."""
    parser.add_argument("--out", type=Path, required=True, help="folder of the Minari dataset")
    parser.add_argument("--metrics", type=Path, required=True, help="JSON file")


if __name__ == "__main__":
    run_stage("record", main, add_arguments)
