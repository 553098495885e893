"""What recording costs per environment step, on top of it: `python benchmarks/bench_recorder.py`.

Plays the same joint actions three ways, in turns, in one process: mpe2's own parallel environment,
ours (the bare environment), and the recorder (behaviour, batch, stacking, Minari file). Prints one
JSON line and ends with code 1 where the recorder adds 200 microseconds per step or more.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from mpe2 import simple_spread_v3

from macflow.data.episode import Episode
from macflow.data.minari_store import write_minari
from macflow.data.record import record_episodes
from macflow.envs.particle import five_way
from macflow.envs.registry import make_behaviour, make_env, make_parallel

ENV_ID, BEHAVIOUR, EPISODES, N_ENVS, ROUNDS = "mpe/spread", "medium", 128, 64, 5
LIMIT_US = 200.0


def main() -> None:
    """Measure and print."""
    env = make_env(ENV_ID, {}, N_ENVS)
    actor = make_behaviour(ENV_ID, {}, BEHAVIOUR)
    episodes = record_episodes(env, actor, EPISODES, seed=0)
    steps = sum(episode.length for episode in episodes)
    ours = make_parallel(ENV_ID, {})
    theirs = simple_spread_v3.parallel_env(N=3, continuous_actions=True)

    def replay(parallel: Any, to_action: Callable[[Any], Any]) -> Callable[[], None]:
        joint = [
            [dict(zip(parallel.possible_agents, to_action(a), strict=True)) for a in e.actions]
            for e in episodes
        ]

        def run() -> None:
            for episode, actions in zip(episodes, joint, strict=True):
                parallel.reset(seed=episode.seed)
                for action in actions:
                    parallel.step(action)

        return run

    def record() -> None:
        recorded: list[Episode] = record_episodes(env, actor, EPISODES, seed=0)
        with tempfile.TemporaryDirectory() as folder:
            write_minari(
                Path(folder) / "raw", "macflow/bench-v0", recorded, env.spec, None, {"name": BEHAVIOUR}
            )

    ways = {"mpe2": replay(theirs, five_way), "bare": replay(ours, list), "recorder": record}
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(ROUNDS):
        for name, run in ways.items():
            started = time.perf_counter()
            run()
            times[name].append(1e6 * (time.perf_counter() - started) / steps)
    added = [with_it - bare for with_it, bare in zip(times["recorder"], times["bare"], strict=True)]
    result = {
        "env": ENV_ID,
        "steps": steps,
        "rounds": ROUNDS,
        "mpe2_us_per_step": round(median(times["mpe2"]), 1),
        "bare_us_per_step": round(median(times["bare"]), 1),
        "recorder_us_per_step": round(median(times["recorder"]), 1),
        "added_us_per_step": round(median(added), 1),
        "added_us_per_step_worst": round(float(np.max(added)), 1),
        "limit_us_per_step": LIMIT_US,
    }
    print(json.dumps(result))
    sys.exit(result["added_us_per_step"] >= LIMIT_US)


if __name__ == "__main__":
    main()
