"""Stage I: fit the joint flow policy to the dataset's joint actions (Eq. 4)."""

from __future__ import annotations

import argparse
from pathlib import Path

from torch import Tensor

from macflow.algorithms.flow_matching import flow_matching_loss
from macflow.config import FlowParams, load_section
from macflow.data.normalizer import Normalizer
from macflow.data.prepared import load_prepared
from macflow.data.sampler import TransitionSampler
from macflow.files import read_json, replace_directory, write_json
from macflow.nets.velocity import Field
from macflow.stages._common import run_stage
from macflow.stages._training import add_artifact_arguments, begin_training
from macflow.training.artifacts import FlowArtifact, build_field, load_flow, save_flow
from macflow.training.checkpoint import TrainingState
from macflow.training.loop import adam, descend, learning_rate_of, train, write_curve
from macflow.types import ConfigError, DataError, MultiAgentSpec


def main(arguments: argparse.Namespace) -> None:
    """Train the joint flow policy."""
    params = load_section(arguments.params, "flow", FlowParams)
    inputs = {"data": arguments.data} | ({} if params.init is None else {"init": Path(params.init)})
    run = begin_training("train_flow", arguments.params, {"flow": params.model_dump(mode="json")}, inputs)
    dataset = load_prepared(arguments.data)
    if params.objective == "endpoint" and not dataset.spec.discrete:
        raise ConfigError(
            f"{arguments.params}: `flow.objective`: `endpoint` names a discrete action, and those of "
            f"{arguments.data} are continuous; use `velocity` (received 'endpoint')"
        )
    sampler = TransitionSampler(dataset, run.device)
    field = build_field(dataset.spec, params.scope, params.arch, params.hidden, run.initializer).to(
        run.device
    )
    if params.init is not None:
        begin_from(field, Path(params.init), dataset.spec, params)
    optimizer = adam(list(field.parameters()))
    state = TrainingState({"field": field}, optimizer, run.generator)

    def step() -> dict[str, Tensor]:
        batch = sampler.sample(params.batch_size, run.generator)
        loss, info = flow_matching_loss(
            field, batch.obs, batch.actions, batch.legal_actions, params.objective, run.generator
        )
        descend(optimizer, loss)
        return info

    train(
        "train_flow",
        state,
        params.steps,
        step,
        learning_rate_of(params.schedule, params.learning_rate, params.steps),
        run.checkpoint,
        run.params.checkpoint_every,
        run.params.log_every,
    )

    curve = state.curves["curve"]
    flow = FlowArtifact(
        dataset.spec,
        Normalizer.from_dict(dataset.meta["normalizer"]),
        field.cpu(),
        params.objective,
        params.euler_steps,
    )
    with replace_directory(arguments.out) as folder:
        save_flow(folder, flow, run.manifest)
    with replace_directory(arguments.plots) as folder:
        write_curve(folder / "curve.csv", curve)
    write_json(
        arguments.metrics,
        {"loss_first": curve[0]["loss"], "loss_last": curve[-1]["loss"], "steps": params.steps},
    )
    run.checkpoint.remove()


def begin_from(field: Field, folder: Path, spec: MultiAgentSpec, params: FlowParams) -> None:
    """Give `field` the weights of an earlier flow, whose normaliser stays behind with its data.

    Raises:
        DataError: where that flow is not there, or is of other agents, actions or layers.
    """
    earlier = load_flow(folder)
    same = {
        name: (getattr(earlier.spec, name), getattr(spec, name))
        for name in ("n_agents", "obs_size", "action_size", "action_kind")
    }
    made_with = read_json(folder / "flow.json")["params"]["flow"]
    wanted = params.model_dump(mode="json")
    same |= {name: (made_with[name], wanted[name]) for name in ("scope", "arch", "objective", "hidden")}
    differing = [f"{name} {old} (needed: {new})" for name, (old, new) in same.items() if old != new]
    if differing:
        raise DataError(f"`flow.init`: the flow in {folder} does not fit, it has {', '.join(differing)}")
    field.load_state_dict(earlier.field.state_dict())


if __name__ == "__main__":
    run_stage("train_flow", main, lambda parser: add_artifact_arguments(parser, "data"))
