"""Run variants of the pipeline, and baselines, on datasets with several seeds; print tables, draw a picture.

    python benchmarks/study.py benchmarks/studies/ablations.yaml --seeds 0 1 2 --jobs 2

A study is a YAML file. `variants` maps names to overrides of params.yaml (those of a dataset, as in
`benchmarks/field.py`, and the study's own `params` come before) or to a `baseline` with its settings;
`datasets` names what they run on; the first variant is what the others are compared with. A baseline gets as
many transitions as MAC-Flow's three trainings of the same dataset see; `peers` says in which nets, batches.
Everything is judged by the last checkpoint on the same episodes, which chose no setting: of a variant's
`grid`, a list of changes, that which does best on other episodes with the first seed is taken for all seeds.
A study with `measures: finetuning` goes on to fine-tuning (`benchmarks/finetuning.py`).

Stages run in folders named by their parameters, code and inputs, so variants share what they have in common
and finished stages are not repeated.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import itertools
import json
import math
import multiprocessing
import os
import runpy
import sys
import traceback
from collections.abc import Mapping, Sequence
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock
from typing import Any

import altair as alt
import numpy as np
import pandas as pd
import yaml
from scipy import stats

import finetuning
from field import EVALUATION_SEED, parameters, spread
from macflow.algorithms.baselines.registry import find_method, settings_of
from macflow.catalogue import dataset_named
from macflow.config import check_params
from macflow.files import read_json, write_json
from macflow.runs.pipeline import Pipeline
from macflow.runs.store import link
from macflow.types import ConfigError, MacflowError
from workspace import ROOT, merged

MEASURED = ("evaluate", "distill", "diagnose")
TRAININGS = ("flow", "critic", "distill")
# What a study says under `measures` that is about fine-tuning: variants are judged by its last policies.
FINETUNING = "finetuning"
# First evaluation episodes of the runs that choose a setting.
CHOICE_SEED = 1_000
# More than any fine-tuning plays.
ONLINE_EPISODES = 100_000
PIPELINE = Pipeline(ROOT)
# Games of one step have a handful of distinct transitions.
GAMES = "game-"
REPETITIVE = {"prepare": {"max_duplicate_fraction": 1.0}}


def main() -> None:
    """Run, tabulate and draw."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("study", type=Path, help="a file such as those of benchmarks/studies")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--datasets", nargs="*", help="default: all of the study; none: print what there is")
    parser.add_argument("--variants", nargs="+", help="default: all of the study")
    parser.add_argument("--set", default="{}", metavar="YAML", help="further overrides of params.yaml")
    parser.add_argument("--workspace", type=Path, help="default: build/studies/NAME")
    parser.add_argument(
        "--results", type=Path, help="JSON file that runs are added to (WORKSPACE/results.json)"
    )
    parser.add_argument("--picture", type=Path, help="PNG file to draw")
    parser.add_argument("--jobs", type=int, default=2, help="processes at the same time, one thread each")
    arguments = parser.parse_args()
    study = yaml.safe_load(arguments.study.read_text())
    study["params"] = merged(study.get("params", {}), yaml.safe_load(arguments.set))
    workspace = (arguments.workspace or Path("build/studies") / arguments.study.stem).absolute()
    out = arguments.results or workspace / "results.json"
    results: dict[str, Any] = read_json(out) if out.exists() else {}
    datasets = study["datasets"] if arguments.datasets is None else arguments.datasets
    names = arguments.variants or list(study["variants"])
    first = arguments.seeds[0]
    try:
        check(study, datasets, names, arguments.seeds)
    except MacflowError as error:
        parser.error(str(error))
    # For the processes that run stages: the project's own sources, whatever is installed.
    paths = [str(ROOT), os.environ.get("PYTHONPATH", "")]
    os.environ |= {"PYTHONPATH": os.pathsep.join(filter(None, paths)), "OMP_NUM_THREADS": "1"}
    workers = ProcessPoolExecutor(arguments.jobs, multiprocessing.get_context("spawn"))
    failed = []
    with workers, ThreadPoolExecutor(2 * arguments.jobs) as pool:
        store = Store(workspace, workers)

        def run(dataset: str, name: str, change: Mapping[str, Any], seed: int) -> None:
            found = measured(store, study, dataset, change, seed, EVALUATION_SEED)
            with store.lock:
                results.setdefault(dataset, {}).setdefault(name, {})[str(seed)] = found | {"change": change}
                write_json(out, results)

        for dataset in datasets:
            tried = {
                name: [
                    (change, pool.submit(measured, store, study, dataset, change, first, CHOICE_SEED))
                    for change in (changes if len(changes) > 1 else [])
                ]
                for name, changes in ((name, changes_of(study["variants"][name])) for name in names)
            }
            runs = {}
            for name in names:
                try:
                    best = chosen(tried[name]) if tried[name] else changes_of(study["variants"][name])[0]
                except RuntimeError as error:
                    failed.append(f"{dataset}, {name}: {error}")
                    continue
                runs |= {
                    pool.submit(run, dataset, name, best, seed): (name, seed) for seed in arguments.seeds
                }
            for future, what in runs.items():
                if (error := future.exception()) is not None:
                    failed.append(f"{dataset}, {what}: {error}")
    tuning = study.get("measures") == FINETUNING
    (finetuning.print_tables if tuning else print_tables)(results, list(study["variants"]))
    if arguments.picture:
        (finetuning.draw if tuning else draw)(results, list(study["variants"]), arguments.picture)
    if failed:
        sys.exit("\n".join(failed))


def check(
    study: Mapping[str, Any], datasets: Sequence[str], variants: Sequence[str], seeds: Sequence[int]
) -> None:
    """Raise `ConfigError` where a run has an unknown dataset, variant, setting or value."""
    known = study["variants"]
    if "seed" in study.get("params", {}).get("evaluate", {}) and any("grid" in known[name] for name in known):
        raise ConfigError(
            "`params.evaluate.seed`: would judge a `grid` on the episodes that choose from it; leave it out "
            f"(received {study['params']['evaluate']['seed']})"
        )
    for variant in variants:
        if variant not in known:
            raise ConfigError(f"`--variants`: must be of {', '.join(known)} (received {variant!r})")
    for dataset, variant, seed in itertools.product(datasets, variants, seeds):
        dataset_named(dataset)
        for change in changes_of(known[variant]):
            params = params_of(study, dataset, change, seed, EVALUATION_SEED)
            check_params(ROOT / "params.yaml", params)
            if peer := change.get("baseline"):
                settings_of(peer["method"], peer_arguments(study["peers"], peer, params)["settings"])


def changes_of(variant: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the changes that a variant stands for: itself, or one for each point of its `grid`."""
    change = {name: value for name, value in variant.items() if name != "grid"}
    return [merged(change, point) for point in variant.get("grid", [{}])]


def chosen(tried: Sequence[tuple[dict[str, Any], Future[dict[str, Any]]]]) -> dict[str, Any]:
    """Return the change whose run returned most; raises `RuntimeError` where a run failed."""
    returns = [future.result()["return"] for _, future in tried]
    return tried[int(np.argmax(returns))][0]


def measured(
    store: Store, study: Mapping[str, Any], dataset: str, change: Mapping[str, Any], seed: int, episodes: int
) -> dict[str, Any]:
    """Run one change with one seed, as far as it has not run before, and return what was measured.

    Args:
        episodes: seed of the first evaluation episode.
    """
    params = params_of(study, dataset, change, seed, episodes)
    peer = change.get("baseline")
    if study.get("measures") == FINETUNING:
        return finetuning.summary_of(store.made("finetune", params), store.made("evaluate_finetuned", params))
    if peer is None:
        return summary_of({stage: store.made(stage, params) / f"metrics/{stage}.json" for stage in MEASURED})
    data = store.made("prepare", params) / "data/prepared"
    folder = store.peer(data, peer_arguments(study["peers"], peer, params))
    played = read_json(folder / "evaluation.json")
    return {
        "return": played["return_mean"],
        "normalized": played.get("normalized_return"),
        "data_return": read_json(data / "dataset.json")["returns"]["mean"],
    }


def params_of(
    study: Mapping[str, Any], dataset: str, change: Mapping[str, Any], seed: int, episodes: int
) -> dict[str, Any]:
    """Return the whole of a run's parameters; those of a baseline are MAC-Flow's of its dataset."""
    params: dict[str, Any] = yaml.safe_load((ROOT / "params.yaml").read_text())
    change = {name: value for name, value in change.items() if name != "baseline"}
    own = {
        "training": {"seed": seed, "threads": 1},
        "evaluate": {"workers": 1, "seed": episodes},
        # Each seed learns from episodes of its own.
        "finetune": {"seed": params["finetune"]["seed"] + ONLINE_EPISODES * seed},
    }
    game = REPETITIVE if dataset.startswith(GAMES) else {}
    for override in (parameters(dataset), game, own, study.get("params", {}), change):
        params = merged(params, override)
    return params


def peer_arguments(
    peers: Mapping[str, Any], peer: Mapping[str, Any], params: Mapping[str, Any]
) -> dict[str, Any]:
    """Return how a baseline is trained and judged beside the MAC-Flow of `params`.

    Args:
        peers: `batch_size`, `learning_rate` and `hidden` of every baseline.
        peer: `method`, and `settings` that differ from its own.
    """
    transitions = sum(params[stage]["steps"] * params[stage]["batch_size"] for stage in TRAININGS)
    known = find_method(peer["method"]).settings.model_fields
    critic = {name: params["critic"][name] for name in ("discount", "polyak_tau") if name in known}
    return {
        "method": peer["method"],
        "settings": critic | peer.get("settings", {}),
        "training": {
            **peers,
            "steps": math.ceil(transitions / peers["batch_size"]),
            **{name: params["training"][name] for name in ("seed", "device", "threads")},
        },
        "evaluation": {name: params["evaluate"][name] for name in ("episodes", "seed")},
    }


@dataclass(frozen=True)
class Store:
    """Finished work, each piece in a folder named by what it was made from."""

    root: Path
    workers: Executor
    lock: Any = field(default_factory=Lock)
    running: dict[str, Any] = field(default_factory=dict)

    def made(self, stage: str, params: Mapping[str, Any]) -> Path:
        """Return the folder in which `stage` has run with `params`, running it and what it needs if need be.

        Raises:
            RuntimeError: a stage failed; the message names its log.
        """
        folder = self.root / f"{stage}-{PIPELINE.key(stage, params)}"
        with self._mine(folder):
            if not (folder / "done").exists():
                inputs = PIPELINE.inputs(stage, params).items()
                sources = {path: self.made(maker, params) / path for path, maker in inputs}
                folder.mkdir(parents=True, exist_ok=True)
                (folder / "params.yaml").write_text(yaml.safe_dump(dict(params), sort_keys=False))
                for path, source in sources.items():
                    link(source, folder / path)
                self.workers.submit(work, folder, PIPELINE.command(stage, params)[2:]).result()
            return folder

    def peer(self, data: Path, how: Mapping[str, Any]) -> Path:
        """Return the folder where a baseline was trained on `data` and evaluated; raises as `made` does."""
        trained = {name: value for name, value in how.items() if name != "evaluation"}
        options = [f"--{key.replace('_', '-')}={value}" for key, value in how["training"].items()]
        options += [f"--set={key}={value}" for key, value in how["settings"].items()]
        folder = self._baseline(
            f"{how['method']}-{digest_of([data.parent.parent.name, trained])}",
            ["train", how["method"], f"--data={data}", "--out=baseline", *options],
        )
        played = [f"--{key}={value}" for key, value in how["evaluation"].items()]
        return self._baseline(
            f"play-{digest_of([folder.name, played])}",
            ["evaluate", str(folder / "baseline"), *played, "--json=evaluation.json"],
        )

    def _baseline(self, name: str, command: Sequence[str]) -> Path:
        folder = self.root / name
        with self._mine(folder):
            if not (folder / "done").exists():
                folder.mkdir(parents=True, exist_ok=True)
                self.workers.submit(work, folder, ["macflow.cli", "baseline", *command]).result()
            return folder

    def _mine(self, folder: Path) -> Any:
        with self.lock:
            return self.running.setdefault(folder.name, Lock())


def work(folder: Path, command: Sequence[str]) -> None:
    """Run a module with its arguments in this process inside `folder`, and mark that done.

    Raises:
        RuntimeError: it failed; its output is in `log.txt`.
    """
    print(f"== {folder.name}", flush=True)
    log, module = folder / "log.txt", command[0]
    sys.argv = list(command)
    with (
        log.open("w") as file,
        contextlib.chdir(folder),
        contextlib.redirect_stdout(file),
        contextlib.redirect_stderr(file),
    ):
        try:
            runpy.run_module(module, run_name="__main__", alter_sys=True)
        except SystemExit as end:
            if end.code:
                raise RuntimeError(f"{log}: {module} ended with {end.code}") from None
        except Exception:
            traceback.print_exc()
            raise RuntimeError(f"{log}: {module} failed") from None
    (folder / "done").touch()


def digest_of(value: Any) -> str:
    """Return a short name for a JSON value."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:12]


def summary_of(files: Mapping[str, Path]) -> dict[str, Any]:
    """Return what a study keeps of one run's metrics."""
    found = {stage: read_json(file) for stage, file in files.items()}
    played, checked = found["evaluate"], found["diagnose"]
    return {
        "return": played["policy"]["return_mean"],
        "normalized": played["policy"].get("normalized_return"),
        "data_return": played["dataset"]["return_mean"],
        "flow_return": played["flow"]["return_mean"],
        "distill_loss": found["distill"]["distill_loss_last"],
        "w2": checked["w2"],
        "value_gap": checked["value_gap"],
        "value_gap_bound": checked["value_gap_bound"],
        "bounds_hold": checked["value_gap_bound_holds"] and checked["w2_bound_holds"],
        "raised": [name for name, check in checked["checks"].items() if check["raised"]],
    }


def print_tables(results: Mapping[str, Any], order: Sequence[str]) -> None:
    """Print a Markdown table per dataset, and the mean ranks where all datasets have the same variants."""
    for dataset, variants in results.items():
        names = [name for name in order if name in variants]
        base = variants[names[0]]
        print(f"\n`{dataset}` (data: {next(iter(base.values()))['data_return']:.2f})\n")
        print(
            f"| variant | return | against {names[0]} | joint flow | W2 | raised |\n|---|---|---|---|---|---|"
        )
        for name in names:
            runs = variants[name]
            paired = [runs[seed]["return"] - base[seed]["return"] for seed in runs if seed in base]
            against = spread(paired) if name != names[0] and paired else ""
            raised = sorted({check for run in runs.values() for check in run.get("raised", [])})
            print(
                f"| {name} | {spread([run['return'] for run in runs.values()])} | {against} "
                f"| {mean_of(runs, 'flow_return')} | {mean_of(runs, 'w2')} | {', '.join(raised)} |",
                flush=True,
            )
    ranks = mean_ranks(results, order)
    if len(results) > 1 and ranks:
        print("\n| variant | mean rank |\n|---|---|")
        for name, rank in sorted(ranks.items(), key=lambda item: item[1]):
            print(f"| {name} | {rank:.2f} |", flush=True)


def mean_ranks(results: Mapping[str, Any], order: Sequence[str]) -> dict[str, float]:
    """Return each variant's rank by mean return, 1 the best and ties shared, averaged over datasets.

    Only variants that every dataset has are ranked.
    """
    names = [name for name in order if all(name in variants for variants in results.values())]
    if not results or not names:
        return {}
    ranks = [
        stats.rankdata([-np.mean([run["return"] for run in variants[name].values()]) for name in names])
        for variants in results.values()
    ]
    return dict(zip(names, np.mean(ranks, axis=0).tolist(), strict=True))


def mean_of(runs: Mapping[str, Any], name: str) -> str:
    """Return the mean of a measure over seeds, as text; nothing where runs do not have it."""
    values = [run[name] for run in runs.values() if name in run]
    return f"{np.mean(values):.2f}" if values else ""


def draw(results: Mapping[str, Any], order: Sequence[str], out: Path) -> None:
    """Draw each run's return and the means, the data's mean as a rule, one panel per dataset."""
    panels = []
    for dataset, variants in results.items():
        rows = [
            {"variant": name, "return": run["return"], "data": run["data_return"]}
            for name in order
            for run in variants.get(name, {}).values()
        ]
        base = alt.Chart(pd.DataFrame(rows), title=dataset, width=320).encode(
            y=alt.Y("variant:N", sort=list(order), title=None)
        )
        shown = alt.X("return:Q", title="return", scale=alt.Scale(zero=False))
        means = base.mark_tick(thickness=3).encode(x=alt.X("mean(return):Q", title="return"))
        rule = base.mark_rule(strokeDash=[4, 4]).encode(
            x="mean(data):Q", y=alt.value(0), y2=alt.value("height")
        )
        panels.append(base.mark_point().encode(x=shown) + means + rule)
    out.parent.mkdir(parents=True, exist_ok=True)
    alt.hconcat(*panels).save(str(out), scale_factor=2)


if __name__ == "__main__":
    main()
