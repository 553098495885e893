"""Play the policies of a workspace of field.py with less noise than they were trained with; print a table.

python benchmarks/field.py mamujoco-hopper-3x1/medium-expert --seeds 0 1 2
python benchmarks/acting_noise.py build/field/mamujoco-hopper-3x1-medium-expert --seeds 0 1 2
"""

from __future__ import annotations

import argparse
from contextlib import closing
from pathlib import Path

import torch

from field import EVALUATION_SEED, interval
from macflow.envs.registry import copies, make_env
from macflow.evaluation.rollout import rollout
from macflow.policy import load_policy

SCALES = (0.0, 0.5, 1.0)


def main() -> None:
    """Play and print the mean return over training seeds for each scale of the noise."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("workspace", type=Path, help="folder of one dataset, with seed-0, seed-1, ...")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--episodes", type=int, default=50)
    parser.add_argument("--evaluation-seed", type=int, default=EVALUATION_SEED)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print("| acting noise | mean return | 95% interval over seeds | seeds |\n|---|---|---|---|")
    for scale in SCALES:
        returns = []
        for seed in arguments.seeds:
            policy = load_policy(arguments.workspace / f"seed-{seed}/models/policy")
            policy.acting_noise = scale
            arena = policy.manifest["env"]
            n_envs = copies(arena["id"], 25)
            with closing(make_env(arena["id"], arena["kwargs"], n_envs, 1)) as env:
                played = rollout(env, policy.actor(), arguments.episodes, arguments.evaluation_seed)
            returns.append(float(played.returns.mean()))
        found = interval(returns)
        spread = "" if found["ci95_low"] is None else f"{found['ci95_low']:.2f} to {found['ci95_high']:.2f}"
        each = ", ".join(f"{value:.2f}" for value in returns)
        print(f"| {scale} | {found['mean']:.2f} | {spread} | {each} |", flush=True)


if __name__ == "__main__":
    main()
