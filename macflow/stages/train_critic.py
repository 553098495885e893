"""Train the IGM critics on the dataset (Eq. 1), next actions from the flow: no one-step policy yet."""

from __future__ import annotations

import argparse
import copy

import torch
from torch import Tensor

from macflow.algorithms.igm_critic import critic_loss, polyak_update, td_target
from macflow.config import CriticParams, load_section
from macflow.data.prepared import load_prepared
from macflow.data.sampler import TransitionSampler
from macflow.files import replace_directory, write_json
from macflow.stages._common import run_stage
from macflow.stages._training import add_artifact_arguments, begin_training
from macflow.training.artifacts import (
    CriticArtifact,
    TeacherArtifact,
    build_critic,
    load_teacher,
    save_critic,
)
from macflow.training.checkpoint import TrainingState
from macflow.training.loop import adam, descend, learning_rate_of, train, write_curve
from macflow.types import Batch


def main(arguments: argparse.Namespace) -> None:
    """Train the critics."""
    params = load_section(arguments.params, "critic", CriticParams)
    run = begin_training(
        "train_critic",
        arguments.params,
        {"critic": params.model_dump(mode="json")},
        {"data": arguments.data, "teacher": arguments.teacher},
    )
    dataset = load_prepared(arguments.data)
    sampler = TransitionSampler(dataset, run.device)
    next_actions = _NextActions(params.next_action, load_teacher(arguments.teacher).to(run.device), sampler)
    critic = build_critic(
        dataset.spec, params.mixer, params.sees, params.ensemble, params.hidden, run.initializer
    ).to(run.device)
    target = copy.deepcopy(critic).requires_grad_(False)
    optimizer = adam(list(critic.parameters()))
    state = TrainingState({"critic": critic, "target": target}, optimizer, run.generator)

    def step() -> dict[str, Tensor]:
        batch = sampler.sample(params.batch_size, run.generator)
        y = td_target(target, batch, next_actions(batch, run.generator), params.discount, params.aggregate)
        loss, info = critic_loss(critic, batch, y)
        descend(optimizer, loss)
        polyak_update(target, critic, params.polyak_tau)
        return info

    train(
        "train_critic",
        state,
        params.steps,
        step,
        learning_rate_of(params.schedule, params.learning_rate, params.steps),
        run.checkpoint,
        run.params.checkpoint_every,
        run.params.log_every,
    )

    curve = state.curves["curve"]
    artifact = CriticArtifact(
        dataset.spec,
        critic.cpu(),
        params.aggregate,
        params.discount,
        dataset.meta["normalizer"]["reward_scale"],
        run.manifest["params"]["critic"],
    )
    with replace_directory(arguments.out) as folder:
        save_critic(folder, artifact, run.manifest)
    with replace_directory(arguments.plots) as folder:
        write_curve(folder / "curve.csv", curve)
    last = curve[-1]
    write_json(
        arguments.metrics,
        {
            "td_loss_last": last["td_loss"],
            "q_mean": last["q_mean"],
            "q_abs_max": max(row["q_abs_max"] for row in curve),
            "steps": params.steps,
        },
    )
    run.checkpoint.remove()


class _NextActions:
    """Candidates for the target's next action, (B, K, N, A): see docs/adr/0001."""

    def __init__(self, how: str, teacher: TeacherArtifact, sampler: TransitionSampler) -> None:
        self.how = how
        self.teacher = teacher
        self.recorded = sampler.actions
        self.has_action = torch.zeros(len(sampler.obs), dtype=torch.bool, device=sampler.obs.device)
        self.has_action[sampler.train_rows] = True

    def __call__(self, batch: Batch, generator: torch.Generator) -> Tensor:
        if self.how == "flow_best_of":
            return self.teacher.candidates(batch.next_rows)
        _, flow_action = self.teacher.draw(batch.next_rows, generator)  # (B, N, A)
        if self.how == "flow":
            return flow_action.unsqueeze(1)
        # The recording ends before the last observation's action: the flow stands in for it there.
        known = self.has_action.index_select(0, batch.next_rows)[:, None, None]
        return torch.where(known, self.recorded.index_select(0, batch.next_rows), flow_action).unsqueeze(1)


if __name__ == "__main__":
    run_stage("train_critic", main, lambda parser: add_artifact_arguments(parser, "data", "teacher"))
