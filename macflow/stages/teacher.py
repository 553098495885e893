"""Sample the frozen flow once for every dataset row, so that no training loop solves its ODE again."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from torch import Tensor

from macflow.config import TeacherParams, load_section
from macflow.data.prepared import load_prepared
from macflow.data.sampler import TransitionSampler
from macflow.files import replace_directory
from macflow.stages._common import run_stage
from macflow.stages._training import begin_training
from macflow.training.artifacts import FlowArtifact, TeacherArtifact, load_flow, save_teacher

ROWS_AT_ONCE = 1024


def main(arguments: argparse.Namespace) -> None:
    """Cache K noises and flow samples per dataset row."""
    params = load_section(arguments.params, "teacher", TeacherParams)
    run = begin_training(
        "teacher",
        arguments.params,
        {"teacher": params.model_dump(mode="json")},
        {"data": arguments.data, "flow": arguments.flow},
    )
    dataset = load_prepared(arguments.data)
    sampler = TransitionSampler(dataset, run.device)
    flow = load_flow(arguments.flow)
    flow.field.to(run.device)
    generator = torch.Generator(run.device).manual_seed(params.seed)
    parts = []
    for first in range(0, len(sampler.obs), ROWS_AT_ONCE):
        rows = slice(first, first + ROWS_AT_ONCE)
        legal = None if sampler.legal_actions is None else sampler.legal_actions[rows]
        parts.append(_sample(flow, sampler.obs[rows], legal, params.samples, generator))
    teacher = TeacherArtifact(
        torch.cat([noise for noise, _ in parts]).cpu(), torch.cat([actions for _, actions in parts]).cpu()
    )
    with replace_directory(arguments.out) as folder:
        save_teacher(folder, teacher, run.manifest, dataset.spec.discrete)
    print(f"teacher: {params.samples} samples of the flow for each of {len(sampler.obs)} rows", flush=True)


def _sample(
    flow: FlowArtifact, obs: Tensor, legal: Tensor | None, samples: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    shape = (len(obs), samples, flow.spec.n_agents, flow.spec.action_size)
    noise = torch.randn(shape, generator=generator, device=obs.device)
    actions = flow.sample(
        obs.repeat_interleave(samples, dim=0),
        noise.flatten(0, 1),
        None if legal is None else legal.repeat_interleave(samples, dim=0),
    )
    return noise, actions.reshape(shape)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the stage's inputs and output."""
    for name in ("data", "flow", "out"):
        parser.add_argument(f"--{name}", type=Path, required=True)


if __name__ == "__main__":
    run_stage("teacher", main, add_arguments)
