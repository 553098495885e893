"""Train a central controller of a multi-agent robot, whose levels of skill datasets are recorded with.

    python tools/train_controller.py mamujoco/halfcheetah-6x1 --steps 600000 --out controllers

Soft actor-critic (Haarnoja et al. 2018, the SBX library of Stable-Baselines3's maintainers) on the whole
state, with all agents' actions as one. Every `--every` steps the actor is written to `OUT/STEP.safetensors`
and its mean return without exploration to `OUT/progress.jsonl`. Needs `pip install 'macflow[behaviours]'`.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

# One core each: several trainings fit on a machine, and results do not depend on how many cores it has.
os.environ["XLA_FLAGS"] = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
os.environ.setdefault("OMP_NUM_THREADS", "1")

import gymnasium
import numpy as np
from gymnasium import spaces
from safetensors.numpy import save_file
from sbx import SAC

from macflow.envs.base import JointEnv, spec_of
from macflow.envs.registry import make_parallel
from macflow.types import FloatArray

# Apart from the seeds of recording (from 0), evaluation (from 1000) and references (from 1,000,000).
TEST_SEEDS = range(500_000, 500_010)
ACTOR_LAYERS, CRITIC_LAYERS = [128, 128], [256, 256]


class Whole(gymnasium.Env[FloatArray, FloatArray]):
    """One agent that sees the state and acts for all."""

    def __init__(self, env: JointEnv) -> None:
        self._env = env
        self._spec = spec_of(env)
        self.observation_space = env.state_space
        low = np.tile(np.array(self._spec.action_low, np.float32), self._spec.n_agents)
        high = np.tile(np.array(self._spec.action_high, np.float32), self._spec.n_agents)
        self.action_space = spaces.Box(low, high)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[FloatArray, dict[str, Any]]:
        self._env.reset(seed=seed)
        return self._env.state(), {}

    def step(self, action: FloatArray) -> tuple[FloatArray, float, bool, bool, dict[str, Any]]:
        joint = action.reshape(self._spec.n_agents, self._spec.action_size)
        actions = dict(zip(self._spec.agent_ids, joint, strict=True))
        _, rewards, terminations, truncations, _ = self._env.step(actions)
        reward = float(np.mean(list(rewards.values())))
        return self._env.state(), reward, all(terminations.values()), all(truncations.values()), {}


class Levels:
    """Keep the actor and its return at regular steps; called by the training after each."""

    def __init__(self, out: Path, every: int, env: Whole) -> None:
        self._out, self._every, self._env = out, every, env

    def __call__(self, local: Mapping[str, Any], _: Mapping[str, Any]) -> bool:
        model = local["self"]
        if model.num_timesteps % self._every == 0:
            returns = [self._episode(model, seed) for seed in TEST_SEEDS]
            row = {
                "steps": model.num_timesteps,
                "return_mean": round(float(np.mean(returns)), 1),
                "return_std": round(float(np.std(returns)), 1),
            }
            save_file(layers(model), self._out / f"{model.num_timesteps}.safetensors")
            with (self._out / "progress.jsonl").open("a") as file:
                file.write(json.dumps(row) + "\n")
            print(json.dumps(row), flush=True)
        return True

    def _episode(self, model: Any, seed: int) -> float:
        state, _ = self._env.reset(seed=seed)
        total, ended = 0.0, False
        while not ended:
            action, _ = model.predict(state, deterministic=True)
            state, reward, terminated, truncated, _ = self._env.step(action)
            total += reward
            ended = terminated or truncated
        return total


def layers(model: Any) -> dict[str, FloatArray]:
    """Return the weights of a SAC model's actor as `macflow.envs.controllers` reads them: w0, b0, w1, ..."""
    dense: Mapping[str, Any] = model.policy.actor_state.params["params"]
    # Flax numbers layers in the order of their definition: hidden ones, mean, log standard deviation.
    names = [f"Dense_{i}" for i in range(len(ACTOR_LAYERS) + 1)]
    arrays: dict[str, FloatArray] = {}
    for index, name in enumerate(names):
        arrays[f"w{index}"] = np.asarray(dense[name]["kernel"], np.float32)
        arrays[f"b{index}"] = np.asarray(dense[name]["bias"], np.float32)
    return arrays


def main() -> None:
    """Train and write the levels."""
    parser = argparse.ArgumentParser(description="Train a central controller of a multi-agent robot.")
    parser.add_argument("env_id")
    parser.add_argument("--steps", type=int, default=600_000)
    parser.add_argument("--every", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True, help="folder of the levels")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    model = SAC(
        "MlpPolicy",
        Whole(make_parallel(arguments.env_id, {})),
        learning_rate=3e-4,
        learning_starts=10_000,
        batch_size=256,
        # As many updates as steps; eight at a time are one call of compiled code.
        train_freq=8,
        gradient_steps=8,
        policy_kwargs={"net_arch": {"pi": ACTOR_LAYERS, "qf": CRITIC_LAYERS}},
        seed=arguments.seed,
    )
    tester = Whole(make_parallel(arguments.env_id, {}))
    model.learn(arguments.steps, callback=Levels(arguments.out, arguments.every, tester))


if __name__ == "__main__":
    main()
