"""Keep learning in the live environment, from the offline policies and critics on."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from macflow.config import FinetuneParams, load_section
from macflow.data.minari_store import write_minari
from macflow.data.prepared import load_prepared
from macflow.data.record import record_episodes
from macflow.data.sampler import TransitionSampler
from macflow.envs.base import BatchedEnv
from macflow.envs.entry import Reference
from macflow.envs.registry import (
    ENVIRONMENTS,
    copies,
    full_kwargs,
    make_env,
    normalized_return,
    reference_returns,
)
from macflow.evaluation.returns import bootstrap_mean
from macflow.evaluation.rollout import rollout
from macflow.files import read_json, replace_directory, write_json
from macflow.policy import Policy, build_policy, load_policy, save_policy
from macflow.stages._common import run_stage
from macflow.stages._environment import EnvironmentId, check_spec, environment_of
from macflow.stages._training import CHECKPOINTS, add_artifact_arguments, begin_training
from macflow.training.artifacts import (
    FOLLOWED_CRITIC,
    LAST_POLICY,
    CriticArtifact,
    build_critic,
    followed_critic,
    load_critic,
    load_flow,
    load_teacher,
    save_critic,
    save_flow,
)
from macflow.training.checkpoint import TrainingState
from macflow.training.finetuning import Arena, Change, FineTuner, FinetuneSettings, Waves, fine_tune
from macflow.training.loop import write_curve
from macflow.types import MultiAgentSpec

# Share of the normalised return before a change that counts as regained.
REGAINED = 0.8
# Episodes that the guard's evaluations play together.
JUDGED_TOGETHER = 50


def main(arguments: argparse.Namespace) -> None:
    """Fine-tune the policies in the environment that their data come from."""
    params = load_section(arguments.params, "finetune", FinetuneParams)
    inputs = {name: getattr(arguments, name) for name in ("data", "flow", "teacher", "critic", "policy")}
    run = begin_training("finetune", arguments.params, {"finetune": params.model_dump(mode="json")}, inputs)
    dataset = load_prepared(arguments.data)
    where = environment_of(arguments.data, dataset)
    flow = load_flow(arguments.flow)
    policy = load_policy(arguments.policy)
    critic = load_critic(followed_critic(arguments.policy, arguments.critic))
    if params.start == "scratch":
        policy, critic = _fresh(policy, critic, run.initializer)
    for module in (flow.field, critic.critic):
        module.to(run.device)
    settings = FinetuneSettings(
        **{name: getattr(params, name) for name in FinetuneSettings.__dataclass_fields__}
    )
    with ExitStack() as stack:
        places = [where]
        if params.change is not None:
            places.append(EnvironmentId(where.id, {**where.kwargs, **params.change.kwargs}))
        arenas = [_arena(stack, place, dataset.spec, params) for place in places]
        change = None
        if params.change is not None:
            change = Change(params.change.after, arenas[1], params.change.forget)
        tuner = FineTuner(
            policy,
            critic,
            flow,
            TransitionSampler(dataset, run.device),
            load_teacher(arguments.teacher).to(run.device),
            settings,
            run.generator,
        )
        waves = Waves(CHECKPOINTS / "finetune", dataset.spec)
        fine_tune(
            "finetune",
            tuner,
            arenas[0],
            change,
            waves,
            run.checkpoint,
            run.params.checkpoint_every,
            run.params.log_every,
        )

    played = places[-1] if "changed_at" in tuner.state.counters else where
    env_entry = {
        "id": played.id,
        "kwargs": full_kwargs(played.id, played.kwargs),
        "version": ENVIRONMENTS[played.id].version(),
    }
    with replace_directory(arguments.online) as folder:
        write_minari(
            folder,
            "finetune/online-v0",
            waves.episodes(),
            dataset.spec,
            env_entry,
            {"name": "finetune", "params": params.model_dump(mode="json")},
        )
    # `load_policy` and `load_critic` build the nets by the sections that they were trained with.
    manifest = run.manifest | {
        "params": dict(policy.manifest["params"]) | run.manifest["params"] | {"critic": dict(critic.params)},
        "env": env_entry,
        "source": dataset.meta["source"],
    }
    with replace_directory(arguments.out) as folder:
        last = folder / LAST_POLICY
        (last / FOLLOWED_CRITIC).mkdir(parents=True)
        for target, learnt in ((folder, tuner.best), (last, tuner.acting)):
            net = learnt()
            save_policy(target, net.spec, net.normalizer, net.net, net.acting, net.values, manifest)
        critic.critic.cpu()
        save_critic(last / FOLLOWED_CRITIC, critic, manifest)
        if params.flow == "refreshed":
            flow.field.cpu()
            trained_by = read_json(arguments.flow / "flow.json")["params"]["flow"]
            (last / "flow").mkdir()
            save_flow(last / "flow", flow, manifest | {"params": manifest["params"] | {"flow": trained_by}})
    with replace_directory(arguments.plots) as folder:
        write_curve(folder / "curve.csv", tuner.state.curves["curve"])
        write_curve(folder / "evaluations.csv", tuner.state.curves["evaluations"])
    write_json(arguments.metrics, _metrics(tuner.state, where))
    run.checkpoint.remove()
    waves.remove()


def _fresh(
    policy: Policy, critic: CriticArtifact, generator: torch.Generator
) -> tuple[Policy, CriticArtifact]:
    """Return policies and critics of the same shapes with random weights."""
    made = policy.manifest["params"]["distill"]
    net = build_policy(policy.spec, made["sharing"], policy.net.noise, made["hidden"], generator)
    shape = critic.params
    fresh = build_critic(
        critic.spec, shape["mixer"], shape["sees"], shape["ensemble"], shape["hidden"], generator
    )
    critic = replace(critic, critic=fresh)
    values = None if policy.values is None else critic.own_values()
    fresh_policy = Policy(policy.spec, policy.normalizer, net, policy.acting, values, policy.manifest)
    return fresh_policy, critic


def _arena(stack: ExitStack, where: EnvironmentId, spec: MultiAgentSpec, params: FinetuneParams) -> Arena:
    """Make the environments to play and to be judged in; `stack` closes them.

    Raises:
        DataError: their agents are not those of `spec`.
    """

    def made(together: int) -> BatchedEnv:
        env = make_env(where.id, where.kwargs, copies(where.id, together))
        return stack.enter_context(closing(env))

    played = made(params.n_envs)
    judged = made(min(JUDGED_TOGETHER, params.evaluate_episodes))
    check_spec(where, played.spec, "dataset", spec, state=True)

    def judge(policy: Policy) -> dict[str, float]:
        found = rollout(judged, policy.actor(), params.evaluate_episodes, params.evaluate_seed)
        interval = bootstrap_mean(found.returns, params.evaluate_seed)
        if interval.low is None or interval.high is None:
            raise ValueError("one episode has no interval")
        return {
            "return_mean": interval.mean,
            "return_ci95_low": interval.low,
            "return_ci95_high": interval.high,
        }

    return Arena(lambda actor, seed: record_episodes(played, actor, played.n_envs, seed), judge)


def _metrics(state: TrainingState, where: EnvironmentId) -> dict[str, Any]:
    """Return the guard's evaluations in short, and how the agents came through the change."""
    reference = reference_returns(where.id, where.kwargs)

    def normalised(value: float) -> float | None:
        return None if reference is None else normalized_return(value, reference)

    rows = state.curves["evaluations"]
    first, last = rows[0], rows[-1]
    counts = {name: state.counters[name] for name in ("env_steps", "episodes")} | {"updates": state.step}
    metrics: dict[str, Any] = counts | {
        "return_first": first["return_mean"],
        "return_last": last["return_mean"],
        "return_kept": last["kept_return"],
        "normalized_return_first": normalised(first["return_mean"]),
        "normalized_return_last": normalised(last["return_mean"]),
        "normalized_return_kept": normalised(last["kept_return"]),
        "kept_env_steps": last["kept_env_steps"],
    }
    if last["changed"]:
        before = [row for row in rows if not row["changed"]][-1]
        after = [row for row in rows if row["changed"]]
        metrics["change"] = {
            "env_steps": after[0]["env_steps"],
            "return_before": before["return_mean"],
            "return_after": after[0]["return_mean"],
            "regained_after_steps": None
            if reference is None
            else _regained(after, normalized_return(before["return_mean"], reference), reference),
        }
    return metrics


def _regained(after: Sequence[Mapping[str, float]], before: float, reference: Reference) -> float | None:
    """Return the steps from the change to `REGAINED` of the normalised return before it; None: never."""
    for row in after:
        if normalized_return(row["return_mean"], reference) >= REGAINED * before:
            return row["env_steps"] - after[0]["env_steps"]
    return None


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the inputs and outputs."""
    add_artifact_arguments(parser, "data", "flow", "teacher", "critic", "policy")
    parser.add_argument("--online", type=Path, required=True, help="folder for the episodes played online")


if __name__ == "__main__":
    run_stage("finetune", main, add_arguments)
