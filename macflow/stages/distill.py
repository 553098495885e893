"""Stage II: distil the flow into decentralised one-step policies that maximise Q_tot (Eq. 9)."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import asdict

import torch
from torch import Tensor, nn

from macflow.algorithms.distillation import distillation_loss
from macflow.config import DiagnoseParams, DistillParams, load_section
from macflow.data.normalizer import Normalizer
from macflow.data.prepared import load_prepared
from macflow.data.sampler import TransitionSampler
from macflow.evaluation.diagnostics import policy_diagnostics
from macflow.files import replace_directory, write_json
from macflow.nets.policy import OneStepPolicy
from macflow.policy import Acting, build_policy, save_policy
from macflow.stages._common import run_stage
from macflow.stages._training import add_artifact_arguments, begin_training
from macflow.training.actor_critic import CriticLearner, one_step_actions
from macflow.training.artifacts import (
    FOLLOWED_CRITIC,
    CriticArtifact,
    FlowArtifact,
    load_critic,
    load_flow,
    load_teacher,
    save_critic,
)
from macflow.training.checkpoint import TrainingState
from macflow.training.loop import adam, descend, learning_rate_of, train, write_curve
from macflow.types import ConfigError


def main(arguments: argparse.Namespace) -> None:
    """Distil the flow into one-step policies."""
    params = load_section(arguments.params, "distill", DistillParams)
    diagnose = load_section(arguments.params, "diagnose", DiagnoseParams)
    inputs = {name: getattr(arguments, name) for name in ("data", "flow", "teacher", "critic")}
    sections = {
        "distill": params.model_dump(mode="json"),
        # What is measured along the way, and thus in the curves; not the checks' thresholds.
        "diagnose": diagnose.model_dump(mode="json", include={"states", "samples", "seed"}),
    }
    run = begin_training("distill", arguments.params, sections, inputs)
    dataset = load_prepared(arguments.data)
    sampler = TransitionSampler(dataset, run.device)
    teacher = load_teacher(arguments.teacher).to(run.device)
    flow, critic = load_flow(arguments.flow), load_critic(arguments.critic)
    flow.field.to(run.device)
    critic.critic.to(run.device)
    acting = Acting(params.acting_noise, params.best_of)
    values = critic.own_values() if acting.best_of > 1 else None
    if acting.best_of > 1 and values is None:
        raise ConfigError(
            f"{arguments.params}: `distill.best_of`: agents choose by critics of their own observations, and "
            f"those in {arguments.critic} see more; train critics with `sees: own` and a mixer other than "
            f"`central`, or set 1 (received {acting.best_of})"
        )
    policy = build_policy(dataset.spec, params.sharing, params.noise, params.hidden, run.initializer).to(
        run.device
    )
    learner = CriticLearner(critic, policy) if params.critic == "policy" else None
    modules: dict[str, nn.Module] = {"policy": policy}
    trained = list(policy.parameters())
    if learner:
        modules |= {"critic": learner.critic, "target": learner.target}
        # Adam's moments are each parameter's own: one optimiser serves both losses in turn.
        trained += learner.critic.parameters()
    optimizer = adam(trained)
    state = TrainingState(modules, optimizer, run.generator)

    def step() -> dict[str, Tensor]:
        batch = sampler.sample(params.batch_size, run.generator)
        learnt = learner.step(batch, optimizer, run.generator) if learner else {}
        noise, flow_actions = teacher.draw(batch.rows, run.generator)
        loss, info = distillation_loss(
            policy,
            critic.critic if params.q_term else None,
            batch.obs,
            batch.state,
            noise,
            flow_actions,
            batch.legal_actions,
            params.alpha,
            critic.aggregate,
        )
        descend(optimizer, loss)
        return info | learnt

    train(
        "distill",
        state,
        params.steps,
        step,
        learning_rate_of(params.schedule, params.learning_rate, params.steps),
        run.checkpoint,
        run.params.checkpoint_every,
        run.params.log_every,
        observe=_observer(policy, flow, critic, sampler, diagnose),
        observe_every=params.diagnose_every,
    )

    curve, bounds = state.curves["curve"], state.curves["diagnostics"]
    manifest = run.manifest | {"env": dataset.meta["env"], "source": dataset.meta["source"]}
    normalizer = Normalizer.from_dict(dataset.meta["normalizer"])
    with replace_directory(arguments.out) as folder:
        save_policy(folder, dataset.spec, normalizer, policy.cpu(), acting, values, manifest)
        if learner:
            settings = run.manifest["params"] | {"critic": dict(critic.params)}
            (folder / FOLLOWED_CRITIC).mkdir()
            save_critic(folder / FOLLOWED_CRITIC, critic, run.manifest | {"params": settings})
    with replace_directory(arguments.plots) as folder:
        write_curve(folder / "curve.csv", curve)
        write_curve(folder / "diagnostics.csv", bounds)
    write_json(
        arguments.metrics,
        {
            "distill_loss_first": curve[0]["distill_loss"],
            "distill_loss_last": curve[-1]["distill_loss"],
            "w2_first": bounds[0]["w2"],
            "w2_last": bounds[-1]["w2"],
            "q_mean": bounds[-1]["q_policy"],
            "steps": params.steps,
        },
    )
    run.checkpoint.remove()


def _observer(
    policy: OneStepPolicy,
    flow: FlowArtifact,
    critic: CriticArtifact,
    sampler: TransitionSampler,
    params: DiagnoseParams,
) -> Callable[[], dict[str, float]]:
    """Return a function that measures Props. 4.2 and 4.3 on fixed states and noises.

    Its random numbers are its own: measuring must not change what training draws.
    """
    device = sampler.obs.device
    generator = torch.Generator(device).manual_seed(params.seed)
    batch = sampler.sample(params.states, generator)
    m = params.samples
    obs = batch.obs.repeat_interleave(m, dim=0)  # (B * M, N, O)
    legal = None if batch.legal_actions is None else batch.legal_actions.repeat_interleave(m, dim=0)
    n, a = flow.spec.n_agents, flow.spec.action_size
    noise = torch.randn((len(obs), n, a), generator=generator, device=device)
    flow_actions = flow.sample(obs, noise, legal)

    def q_total(index: Tensor, actions: Tensor) -> Tensor:
        return critic.q_total(batch.obs[index], batch.state[index], actions)

    def observe() -> dict[str, float]:
        actions = one_step_actions(policy, obs, noise, legal)
        shape = (params.states, m, n, a)
        return asdict(
            policy_diagnostics(
                actions.reshape(shape), flow_actions.reshape(shape), q_total, batch.legal_actions
            )
        )

    return observe


if __name__ == "__main__":
    run_stage(
        "distill", main, lambda parser: add_artifact_arguments(parser, "data", "flow", "teacher", "critic")
    )
