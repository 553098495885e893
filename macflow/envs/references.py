"""Measure the mean team returns of behaviours: `python -m macflow.envs.references mpe/spread`.

The figures of `registry.py` and docs/datasets.md come from this command; they are recorded, not
measured anew, so that normalised returns of different days compare.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from macflow.envs.base import BatchStep
from macflow.envs.registry import ENVIRONMENTS, copies, full_kwargs, make_behaviour, make_env
from macflow.types import BatchObs, MacflowError

# Far from the seeds that datasets are recorded with.
FIRST_SEED = 1_000_000
BATCH = 100


def team_returns(
    env_id: str, kwargs: Mapping[str, Any], behaviour: str, episodes: int, workers: int
) -> NDArray[np.float64]:
    """Return the undiscounted team return (mean over agents) of each episode."""
    n_envs = copies(env_id, min(BATCH, episodes))
    env = make_env(env_id, kwargs, n_envs, workers)
    actor = make_behaviour(env_id, kwargs, behaviour)
    returns: list[NDArray[np.float64]] = []
    try:
        for first in range(FIRST_SEED, FIRST_SEED + episodes, n_envs):
            seeds = range(first, first + n_envs)
            actor.reset(seeds)
            batch: BatchObs | BatchStep = env.reset(seeds)
            total = np.zeros(n_envs)
            finished = np.zeros(n_envs, np.bool_)
            while not finished.all():
                step = env.step(actor.act(batch))
                total += step.rewards.mean(axis=1)
                batch, finished = step, step.finished
            returns.append(total)
    finally:
        env.close()
    return np.concatenate(returns)[:episodes]


def main() -> None:
    """Print one JSON line per behaviour: mean team return, its standard error, quartiles."""
    parser = argparse.ArgumentParser(prog="python -m macflow.envs.references", description=main.__doc__)
    parser.add_argument("env_id", choices=list(ENVIRONMENTS))
    parser.add_argument("--kwargs", type=json.loads, default={}, help='JSON, for example {"n_agents": 5}')
    parser.add_argument("--behaviours", nargs="+", help="all of the environment's if not given")
    parser.add_argument("--episodes", type=int, default=1000)
    parser.add_argument("--workers", type=int, default=2)
    arguments = parser.parse_args()
    try:
        for behaviour in arguments.behaviours or ENVIRONMENTS[arguments.env_id].behaviours:
            returns = team_returns(
                arguments.env_id, arguments.kwargs, behaviour, arguments.episodes, arguments.workers
            )
            q25, median, q75 = np.quantile(returns, [0.25, 0.5, 0.75]).round(3).tolist()
            line = {
                "env": arguments.env_id,
                "kwargs": full_kwargs(arguments.env_id, arguments.kwargs),
                "behaviour": behaviour,
                "episodes": len(returns),
                "return_mean": round(float(returns.mean()), 3),
                "standard_error": round(float(returns.std(ddof=1) / np.sqrt(len(returns))), 3),
                "q25": q25,
                "median": median,
                "q75": q75,
            }
            print(json.dumps(line), flush=True)
    except MacflowError as error:
        print(f"references: {error}", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
