"""Play a workspace's policies with less noise than they were trained with, or choosing among several actions.

    python benchmarks/field.py mamujoco-hopper-3x1/medium-expert --seeds 0 1 2
    python benchmarks/acting.py build/field/mamujoco-hopper-3x1-medium-expert --seeds 0 1 2

`--best-of 2 4` adds rows in which each agent draws so many actions, with full noise, and plays the one that
its own critic values most (`distill.best_of`).
"""

from __future__ import annotations

import argparse
from contextlib import closing
from pathlib import Path

import torch

from field import EVALUATION_SEED, interval
from macflow.envs.registry import copies, make_env
from macflow.evaluation.rollout import rollout
from macflow.policy import Acting, load_policy
from macflow.training.artifacts import followed_critic, load_critic

SCALES = (0.0, 0.5, 1.0)


def main() -> None:
    """Play and print the mean return over training seeds for each scale of the noise."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("workspace", type=Path, help="folder of one dataset, with seed-0, seed-1, ...")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--episodes", type=int, default=50)
    parser.add_argument("--evaluation-seed", type=int, default=EVALUATION_SEED)
    parser.add_argument("--best-of", type=int, nargs="*", default=[])
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print("| acting | mean return | 95% interval over seeds | seeds |\n|---|---|---|---|")
    ways = {f"noise {scale}": Acting(scale, 1) for scale in SCALES}
    ways |= {f"best of {count}": Acting(1.0, count) for count in arguments.best_of}
    for name, acting in ways.items():
        returns = []
        for seed in arguments.seeds:
            models = arguments.workspace / f"seed-{seed}/models"
            policy = load_policy(models / "policy")
            policy.acting = acting
            if acting.best_of > 1:
                critic = followed_critic(models / "policy", models / "critic")
                policy.values = load_critic(critic).own_values()
                if policy.values is None:
                    raise SystemExit(f"{critic}: sees more than an agent does, so agents cannot ask it")
            arena = policy.manifest["env"]
            n_envs = copies(arena["id"], 25)
            with closing(make_env(arena["id"], arena["kwargs"], n_envs, 1)) as env:
                played = rollout(env, policy.actor(), arguments.episodes, arguments.evaluation_seed)
            returns.append(float(played.returns.mean()))
        found = interval(returns)
        spread = "" if found["ci95_low"] is None else f"{found['ci95_low']:.2f} to {found['ci95_high']:.2f}"
        each = ", ".join(f"{value:.2f}" for value in returns)
        print(f"| {name} | {found['mean']:.2f} | {spread} | {each} |", flush=True)


if __name__ == "__main__":
    main()
