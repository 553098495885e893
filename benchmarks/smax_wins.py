"""How good SMAX's behaviours are: `python benchmarks/smax_wins.py [IDS] [--episodes 512]`.

Prints a JSON line per environment and behaviour: mean team return and share of victories, each with
its standard error, mean length, share of episodes that the time limit cut.
"""

from __future__ import annotations

import argparse
import json

import numpy as np

from macflow.envs.registry import ENVIRONMENTS, make_behaviour, make_env
from macflow.envs.smax import SmaxBatch
from macflow.types import Actor, Seen

N_ENVS = 64
# Far from the seeds of datasets and references.
FIRST_SEED = 2_000_000


def measure(env: SmaxBatch, actor: Actor, episodes: int) -> dict[str, float]:
    """Play whole waves and summarise the first `episodes` episodes."""
    returns, won, lengths, cut = [], [], [], []
    for first in range(FIRST_SEED, FIRST_SEED + episodes, env.n_envs):
        seeds = range(first, first + env.n_envs)
        actor.reset(seeds)
        seen: Seen = env.reset(seeds)
        total, length = np.zeros(env.n_envs), np.zeros(env.n_envs)
        running = np.ones(env.n_envs, np.bool_)
        while running.any():
            step = env.step(actor.act(seen))
            total += step.rewards.mean(axis=1)
            length += running
            running = ~step.finished
            seen = step
        returns.append(total)
        won.append(env.won)
        lengths.append(length)
        cut.append(step.truncated)
    result = np.concatenate(returns)[:episodes]
    wins = np.concatenate(won)[:episodes].astype(np.float64)
    root = np.sqrt(episodes)
    return {
        "return_mean": round(float(result.mean()), 3),
        "return_standard_error": round(float(result.std(ddof=1) / root), 3),
        "win_rate": round(float(wins.mean()), 3),
        "win_rate_standard_error": round(float(wins.std(ddof=1) / root), 3),
        "length_mean": round(float(np.concatenate(lengths)[:episodes].mean()), 1),
        "cut_by_time_limit": round(float(np.concatenate(cut)[:episodes].mean()), 3),
    }


def main() -> None:
    """Measure and print."""
    known = [env_id for env_id in ENVIRONMENTS if env_id.startswith("smax/")]
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument(
        "ids", nargs="*", default=known, metavar="IDS", help=f"of {', '.join(known)}; all if none"
    )
    parser.add_argument("--episodes", type=int, default=512)
    arguments = parser.parse_args()
    for env_id in arguments.ids:
        env = make_env(env_id, {}, N_ENVS)
        assert isinstance(env, SmaxBatch)
        for name in ENVIRONMENTS[env_id].behaviours:
            measured = measure(env, make_behaviour(env_id, {}, name), arguments.episodes)
            print(
                json.dumps({"env": env_id, "behaviour": name, "episodes": arguments.episodes, **measured}),
                flush=True,
            )


if __name__ == "__main__":
    main()
