"""Play the evaluation's episodes with the policies before and after fine-tuning."""

from __future__ import annotations

import argparse
from contextlib import closing
from pathlib import Path

import torch

from macflow.config import EvaluateParams, TrainingParams, load_section
from macflow.data.prepared import load_prepared
from macflow.envs.registry import copies, make_env, reference_returns
from macflow.evaluation.rollout import record_gif, returns_table, rollout
from macflow.files import replace_directory, write_json
from macflow.policy import load_policy
from macflow.stages._common import run_stage
from macflow.stages._environment import EnvironmentId, check_spec, environment_of
from macflow.stages._returns import summarise_results
from macflow.training.artifacts import LAST_POLICY


def main(arguments: argparse.Namespace) -> None:
    """Play with the offline policy, with that after the last step and with that which the guard kept.

    They play where fine-tuning ended: after a change of the environment, in the changed one. The scale from
    random to expert is that of the environment of the data.
    """
    params = load_section(arguments.params, "evaluate", EvaluateParams)
    torch.set_num_threads(load_section(arguments.params, "training", TrainingParams).threads)
    torch.set_flush_denormal(True)
    home = environment_of(arguments.data, load_prepared(arguments.data))
    policies = {
        "offline": load_policy(arguments.policy),
        "last": load_policy(arguments.finetuned / LAST_POLICY),
        "kept": load_policy(arguments.finetuned),
    }
    ended = policies["kept"].manifest["env"]
    where = EnvironmentId(ended["id"], ended["kwargs"])
    results = {}
    with closing(
        make_env(
            where.id, where.kwargs, copies(where.id, min(params.n_envs, params.episodes)), params.workers
        )
    ) as env:
        for name, policy in policies.items():
            check_spec(where, env.spec, name, policy.spec)
            results[name] = rollout(env, policy.actor(), params.episodes, params.seed)
            print(f"evaluate_finetuned: {name}: mean return {results[name].returns.mean():.2f}", flush=True)
    measured = summarise_results(results, reference_returns(home.id, home.kwargs), params.seed)
    with replace_directory(arguments.out) as folder:
        with closing(make_env(where.id, where.kwargs, 1)) as env:
            record_gif(env, policies["kept"].actor(), params.seed, folder / "episode.gif")
        returns_table(results).write_csv(folder / "returns.csv")
    write_json(
        arguments.metrics,
        measured
        | {
            "env": where.id,
            "env_kwargs": where.kwargs,
            "episodes": params.episodes,
            "seed": params.seed,
        },
    )


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the inputs and outputs."""
    for name in ("data", "policy", "finetuned"):
        parser.add_argument(f"--{name}", type=Path, required=True, help=f"folder of the {name} artifact")
    parser.add_argument("--metrics", type=Path, required=True, help="JSON file to write")
    parser.add_argument("--out", type=Path, required=True, help="folder for episode.gif and returns.csv")


if __name__ == "__main__":
    run_stage("evaluate_finetuned", main, add_arguments)
