"""Play episodes with the policies and their yardsticks: returns, an animated episode, time to act."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import torch

from macflow.config import EvaluateParams, TrainingParams, load_section
from macflow.data.prepared import PreparedDataset, load_prepared
from macflow.envs.registry import (
    ENVIRONMENTS,
    copies,
    make_behaviour,
    make_env,
    normalized_return,
    reference_returns,
)
from macflow.evaluation.rollout import RolloutResult, latency_us, record_gif, returns_table, rollout
from macflow.files import replace_directory, write_json
from macflow.policy import load_policy
from macflow.stages._common import run_stage
from macflow.stages._environment import EnvironmentId, check_spec, environment_of
from macflow.stages._returns import summarise_results
from macflow.training.artifacts import load_flow
from macflow.types import Actor, BatchObs, ConfigError

# Times differ between identical runs, so DVC does not hash them.
TIMINGS = Path("metrics/timings/evaluate.json")
LATENCY_ROWS = 64


def main(arguments: argparse.Namespace) -> None:
    """Play episodes with the one-step policy, the joint flow, the recorded behaviour and at random."""
    params = load_section(arguments.params, "evaluate", EvaluateParams)
    if params.episodes < 2:
        raise ConfigError(
            f"{arguments.params}: `evaluate.episodes`: at least 2, one episode has no confidence interval "
            f"(received {params.episodes})"
        )
    torch.set_num_threads(load_section(arguments.params, "training", TrainingParams).threads)
    torch.set_flush_denormal(True)
    dataset = load_prepared(arguments.data)
    arena = environment_of(arguments.data, dataset)
    policy, flow = load_policy(arguments.policy), load_flow(arguments.flow)
    actors: dict[str, Actor] = {"policy": policy.actor(), "flow": flow.actor()}
    actors |= _scripted(dataset, arena)
    n_envs = copies(arena.id, min(params.n_envs, params.episodes))
    results: dict[str, RolloutResult] = {}
    with closing(make_env(arena.id, arena.kwargs, n_envs, params.workers)) as env:
        for name, spec in (("policy", policy.spec), ("flow", flow.spec), ("dataset", dataset.spec)):
            check_spec(arena, env.spec, name, spec)
        for name, actor in actors.items():
            results[name] = rollout(env, actor, params.episodes, params.seed)
            print(f"evaluate: {name}: mean return {results[name].returns.mean():.2f}", flush=True)

    rows = dataset.train_rows[np.linspace(0, len(dataset.train_rows) - 1, LATENCY_ROWS).astype(int)]
    legal = None if dataset.legal_actions is None else dataset.legal_actions[rows].numpy()
    seen = BatchObs(dataset.obs[rows].numpy(), dataset.state[rows].numpy(), legal)
    timings = {}
    # A batch of one gains nothing from more threads, and waits for them where cores are busy.
    torch.set_num_threads(1)
    for name in ("policy", "flow"):
        latency = latency_us(actors[name], seen)
        timings[name] = {"latency_us_p50": round(latency.p50, 1), "latency_us_p95": round(latency.p95, 1)}

    with replace_directory(arguments.out) as folder:
        with closing(make_env(arena.id, arena.kwargs, 1)) as env:
            record_gif(env, actors["policy"], params.seed, folder / "episode.gif")
        returns_table(results).write_csv(folder / "returns.csv")
        reference = reference_returns(arena.id, arena.kwargs)
        write_json(
            folder / "texts.json", {} if reference is None else {"reference": {"how": reference["how"]}}
        )
    write_json(TIMINGS, timings)
    write_json(arguments.metrics, _metrics(arena, params, dataset, results))


def _scripted(dataset: PreparedDataset, arena: EnvironmentId) -> dict[str, Actor]:
    """Make the behaviour that recorded the dataset, if this environment has it, and the random one."""
    recorded = dataset.meta["source"].get("behaviour")
    name = recorded.get("name") if isinstance(recorded, Mapping) else recorded
    entry = ENVIRONMENTS.get(arena.id)
    known = entry is not None and name in entry.behaviours
    actors = {"behaviour": make_behaviour(arena.id, arena.kwargs, str(name))} if known else {}
    return actors | {"random": make_behaviour(arena.id, arena.kwargs, "random")}


def _metrics(
    arena: EnvironmentId,
    params: EvaluateParams,
    dataset: PreparedDataset,
    results: Mapping[str, RolloutResult],
) -> dict[str, Any]:
    reference = reference_returns(arena.id, arena.kwargs)
    measured = summarise_results(results, reference, params.seed)
    mean = float(dataset.returns.mean())
    normalised = None if reference is None else normalized_return(mean, reference)
    return measured | {
        "env": arena.id,
        "episodes": params.episodes,
        "seed": params.seed,
        "dataset": {"return_mean": mean, "normalized_return": normalised},
        "gain_over_dataset": (
            None if normalised is None else measured["policy"]["normalized_return"] - normalised
        ),
    }


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the inputs and outputs."""
    for name in ("data", "flow", "policy"):
        parser.add_argument(f"--{name}", type=Path, required=True, help=f"folder of the {name} artifact")
    parser.add_argument("--metrics", type=Path, required=True, help="JSON file to write")
    parser.add_argument("--out", type=Path, required=True, help="folder for episode.gif and returns.csv")


if __name__ == "__main__":
    run_stage("evaluate", main, add_arguments)
