"""How fast SMAX is stepped and recorded: `python benchmarks/bench_smax.py`.

Compiles first, then measures three things, `ROUNDS` times each: env-steps per second of running
battles with uniform legal actions, 3m, 64 copies; the seconds to record 512 episodes of 3m by
`medium`; the seconds that a new Python needs to make the environment, reset it and take one step,
with its programs compiled before. Prints one JSON line with every value and the machine's load, and
ends with code 1 where the best of a kind misses its limit: other processes only make it slower.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time

import numpy as np

from macflow.data.record import record_episodes
from macflow.envs.base import BatchedEnv
from macflow.envs.behaviours import Uniform
from macflow.envs.registry import make_behaviour, make_env
from macflow.types import Seen

ENV_ID, N_ENVS, EPISODES, ROUNDS = "smax/3m", 64, 512, 5
MIN_STEPS_PER_S, MAX_RECORD_S, MAX_START_S = 20_000.0, 3.0, 5.0
START = """
import numpy as np
from macflow.envs.registry import make_env
env = make_env("smax/3m", {}, 64)
env.reset(range(64))
env.step(np.full((64, env.spec.n_agents), 4))
"""


def steps_per_second(env: BatchedEnv, waves: int = 10) -> float:
    """Count the steps of battles that go on, and only the time that the environment takes."""
    actor, spent, steps = Uniform(env.spec), 0.0, 0
    for wave in range(waves):
        seeds = range(wave * N_ENVS, (wave + 1) * N_ENVS)
        actor.reset(seeds)
        seen: Seen = env.reset(seeds)
        running = np.ones(N_ENVS, np.bool_)
        while running.any():
            actions = actor.act(seen)
            started = time.perf_counter()
            step = env.step(actions)
            spent += time.perf_counter() - started
            steps += int(running.sum())
            running, seen = ~step.finished, step
    return steps / spent


def main() -> None:
    """Measure and print."""
    env = make_env(ENV_ID, {}, N_ENVS)
    actor = make_behaviour(ENV_ID, {}, "medium")
    record_episodes(env, actor, N_ENVS, seed=0)
    speeds, records, starts = [], [], []
    for _ in range(ROUNDS):
        speeds.append(steps_per_second(env))
        started = time.perf_counter()
        record_episodes(env, actor, EPISODES, seed=0)
        records.append(time.perf_counter() - started)
        started = time.perf_counter()
        subprocess.run([sys.executable, "-c", START], check=True)
        starts.append(time.perf_counter() - started)
    result = {
        "env": ENV_ID,
        "n_envs": N_ENVS,
        "cores": os.cpu_count(),
        "load": [round(x, 1) for x in os.getloadavg()],
        "env_steps_per_s": [round(x) for x in speeds],
        "env_steps_per_s_limit": MIN_STEPS_PER_S,
        "record_512_s": [round(x, 2) for x in records],
        "record_512_s_limit": MAX_RECORD_S,
        "second_start_s": [round(x, 2) for x in starts],
        "second_start_s_limit": MAX_START_S,
    }
    print(json.dumps(result))
    missed = max(speeds) < MIN_STEPS_PER_S or min(records) > MAX_RECORD_S or min(starts) > MAX_START_S
    sys.exit(missed)


if __name__ == "__main__":
    main()
