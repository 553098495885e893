"""Record a registered behaviour in its environment as a Minari dataset."""

from __future__ import annotations

import argparse
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from macflow.config import EnvParams, RecordParams, load_section
from macflow.data.episode import Episode
from macflow.data.minari_store import write_minari
from macflow.data.record import record_episodes
from macflow.envs.registry import (
    ENVIRONMENTS,
    full_kwargs,
    make_behaviour,
    make_env,
    normalized_return,
    reference_returns,
)
from macflow.evaluation.returns import bootstrap_mean
from macflow.files import replace_directory, write_json
from macflow.stages._common import run_stage

# How the work is split; episodes do not depend on it.
MAX_ENVS = 64
MAX_WORKERS = 2
# Below this many episodes per process, starting one takes longer than it saves.
EPISODES_WORTH_A_WORKER = 200


def main(arguments: argparse.Namespace) -> None:
    """Play `record.behaviour` in the environment and write the episodes as a Minari dataset."""
    env_params = load_section(arguments.params, "env", EnvParams)
    params = load_section(arguments.params, "record", RecordParams)
    episodes = record_dataset(
        arguments.out, env_params.id, env_params.kwargs, params.behaviour, params.episodes, params.seed
    )
    kwargs = full_kwargs(env_params.id, env_params.kwargs)
    returns = np.array([episode.team_return for episode in episodes])
    interval = bootstrap_mean(returns, params.seed)
    reference = reference_returns(env_params.id, kwargs)
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
        f"record: {len(episodes)} episodes of {env_params.id} by `{params.behaviour}`, "
        f"mean return {interval.mean:.3f}{scale}",
        flush=True,
    )


def record_dataset(
    out: Path, env_id: str, kwargs: Mapping[str, Any], behaviour: str, episodes: int, seed: int
) -> list[Episode]:
    """Play `episodes` of a behaviour, episode i from seed `seed + i`, and write them to the folder `out`.

    Raises:
        ConfigError: on an unknown environment, keyword or behaviour.
    """
    kwargs = full_kwargs(env_id, kwargs)
    actor = make_behaviour(env_id, kwargs, behaviour)
    # Equal waves, so that the last one plays few episodes that nobody asked for.
    n_envs = math.ceil(episodes / math.ceil(episodes / MAX_ENVS))
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
            f"macflow/{env_id.replace('/', '-')}-{behaviour}-v0",
            recorded,
            env.spec,
            {"id": env_id, "kwargs": kwargs, "version": ENVIRONMENTS[env_id].version()},
            {"name": behaviour, "seed": seed, "episodes": episodes},
        )
    return recorded


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the stage's paths."""
    parser.add_argument("--out", type=Path, required=True, help="folder of the Minari dataset")
    parser.add_argument("--metrics", type=Path, required=True, help="JSON file")


if __name__ == "__main__":
    run_stage("record", main, add_arguments)
