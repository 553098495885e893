"""After a change of the environment: what offline training from nothing makes of data played there.

    python benchmarks/restart.py benchmarks/studies/change.yaml --seeds 0 1 2

The other way to recover from the change that a study's first variant makes: the offline policies, which know
nothing of it, play as many steps there as fine-tuning does after it, and the whole offline pipeline is run on
what they played, with the budget of params.yaml. Prints what the outcome returns on episodes from 50,000.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import yaml

from field import EVALUATION_SEED, spread
from macflow.data.minari_store import write_minari
from macflow.data.record import record_episodes
from macflow.envs.registry import ENVIRONMENTS, full_kwargs, make_env
from macflow.files import read_json, replace_directory
from macflow.policy import load_policy
from study import Store, params_of
from workspace import ROOT, make_workspace, run_stages

STAGES = ("prepare", "train_flow", "teacher", "train_critic", "distill", "evaluate")


def main() -> None:
    """Play, train and print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("study", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--workspace", type=Path, help="default: build/studies/NAME")
    parser.add_argument("--jobs", type=int, default=2, help="processes at the same time, one thread each")
    arguments = parser.parse_args()
    study = yaml.safe_load(arguments.study.read_text())
    workspace = (arguments.workspace or Path("build/studies") / arguments.study.stem).absolute()
    os.environ |= {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    workers = ProcessPoolExecutor(arguments.jobs, multiprocessing.get_context("spawn"))
    with workers, ThreadPoolExecutor(arguments.jobs) as pool:
        store = Store(workspace, workers)
        returns = list(pool.map(lambda seed: restarted(store, study, workspace, seed), arguments.seeds))
    print(f"restarted offline: {spread(returns)} ({', '.join(f'{value:.2f}' for value in returns)})")


def restarted(store: Store, study: dict[str, Any], workspace: Path, seed: int) -> float:
    """Return the return of policies trained offline on what the old ones play after the change."""
    variant = next(iter(study["variants"].values()))
    params = params_of(study, study["datasets"][0], variant, seed, EVALUATION_SEED)
    folder = workspace / f"restart-{seed}"
    change = params["finetune"]["change"]
    data = store.made("prepare", params) / "data/prepared"
    env = read_json(data / "dataset.json")["env"]
    if not (folder / "played").exists():
        kwargs = full_kwargs(env["id"], {**env["kwargs"], **change["kwargs"]})
        play(store.made("distill", params) / "models/policy", folder / "played", env["id"], kwargs, params)
    own = {name: params[name] for name in ("training", "evaluate")}
    make_workspace(folder, own, {"prepare": {"raw": "played"}})
    run_stages(folder, STAGES)
    found: float = read_json(folder / "metrics/evaluate.json")["policy"]["return_mean"]
    return found


def play(policy: Path, out: Path, env_id: str, kwargs: dict[str, Any], params: dict[str, Any]) -> None:
    """Record the steps that fine-tuning plays after the change, by the policies as they are."""
    tuning = params["finetune"]
    steps, played = tuning["env_steps"] - tuning["change"]["after"], []
    with closing(make_env(env_id, kwargs, tuning["n_envs"])) as env:
        actor = load_policy(policy).actor()
        while sum(episode.length for episode in played) < steps:
            played += record_episodes(env, actor, env.n_envs, tuning["seed"] + len(played))
        with replace_directory(out) as folder:
            about = {"id": env_id, "kwargs": kwargs, "version": ENVIRONMENTS[env_id].version()}
            write_minari(folder, "restart/played-v0", played, env.spec, about, {"name": "restart"})


if __name__ == "__main__":
    main()
