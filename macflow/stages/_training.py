"""What the training stages share: torch's settings, checkpoints, manifests, arguments."""

from __future__ import annotations

import argparse
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from macflow.config import TrainingParams, load_section
from macflow.files import digest
from macflow.training.checkpoint import CheckpointFile
from macflow.training.reproducible import code_digest, prepare_torch
from macflow.types import ConfigError

CHECKPOINTS = Path(".macflow/checkpoints")


@dataclass(frozen=True)
class TrainingStage:
    """The frame of one training stage: where it computes, from what, and what resumes it."""

    params: TrainingParams
    device: torch.device
    generator: torch.Generator
    initializer: torch.Generator
    checkpoint: CheckpointFile
    manifest: dict[str, Any]


def begin_training(
    stage: str, params_file: Path, sections: Mapping[str, Mapping[str, Any]], inputs: Mapping[str, Path]
) -> TrainingStage:
    """Set torch up for reproducible arithmetic and describe the run.

    Args:
        sections: the parameter sections that matter to the result, by name.
        inputs: the artifacts that it is made from, by their path in the pipeline.

    Raises:
        ConfigError: where `training.device` is not there.
        DataError: where an input is not there.
    """
    params = load_section(params_file, "training", TrainingParams)
    if params.device == "cuda" and not torch.cuda.is_available():
        raise ConfigError(
            f"{params_file}: `training.device` is 'cuda', but torch finds no GPU here; use 'cpu'"
        )
    prepare_torch(params.threads)
    device = torch.device(params.device)
    manifest = {
        "params": {"training": params.model_dump(mode="json")}
        | {name: dict(section) for name, section in sections.items()},
        "made_from": {str(path): digest(path) for path in inputs.values()},
    }
    fingerprint = {"stage": stage, "torch": torch.__version__, "code": code_digest()} | manifest
    checkpoint = CheckpointFile(
        CHECKPOINTS / f"{stage}.safetensors",
        hashlib.sha256(json.dumps(fingerprint, sort_keys=True).encode()).hexdigest(),
    )
    return TrainingStage(
        params=params,
        device=device,
        generator=torch.Generator(device).manual_seed(params.seed),
        initializer=torch.Generator().manual_seed(params.seed),
        checkpoint=checkpoint,
        manifest=manifest,
    )


def add_artifact_arguments(parser: argparse.ArgumentParser, *inputs: str) -> None:
    """Add `--INPUT` for each input artifact, and --out, --metrics and --plots."""
    for name in inputs:
        parser.add_argument(f"--{name}", type=Path, required=True, help=f"folder of the {name} artifact")
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--metrics", type=Path, required=True, help="JSON file to write")
    parser.add_argument("--plots", type=Path, required=True, help="folder of curves to write")
