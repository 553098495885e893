"""Trained controllers to record: one net that sees the whole state and moves all agents.

Their weights lie in `weights/ROBOT/LEVEL.safetensors` beside this module, a few tens of kilobytes
each; `tools/train_controller.py` made them, and docs/datasets.md says how good they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.random import Generator
from safetensors.numpy import load_file

from macflow.envs.behaviours import episode_generator
from macflow.types import ActionArray, DataError, FloatArray, MultiAgentSpec, Seen

FOLDER = Path(__file__).parent / "weights"


@dataclass(frozen=True)
class Level:
    """One snapshot of a training, and the exploration it is played with."""

    # Name of the weights' file.
    weights: str
    # Standard deviation of the Gaussian noise on each action dimension.
    noise: float


class Controller:
    """Play each episode with one of several levels, drawn evenly from the episode's own seed."""

    def __init__(self, spec: MultiAgentSpec, robot: str, levels: Sequence[Level]) -> None:
        self._spec = spec
        self._levels = levels
        sizes = (spec.state_size, spec.n_agents * spec.action_size)
        self._nets = [
            load_layers(FOLDER / robot / f"{level.weights}.safetensors", sizes, "tools/train_controller.py")
            for level in levels
        ]
        self._episodes: list[Generator] = []
        self._chosen: list[int] = []

    def reset(self, seeds: Sequence[int]) -> None:
        self._episodes = [episode_generator(seed) for seed in seeds]
        self._chosen = [int(rng.integers(len(self._levels))) for rng in self._episodes]

    def act(self, seen: Seen) -> ActionArray:
        n, size = self._spec.n_agents, self._spec.action_size
        actions = np.empty((len(self._episodes), n, size), np.float32)
        # One episode at a time: a product of matrices rounds differently for another number of rows, and
        # a robot's motion soon shows it.
        for row, (rng, level, state) in enumerate(zip(self._episodes, self._chosen, seen.state, strict=True)):
            mean = np.tanh(hidden_and_head(self._nets[level], state)).reshape(n, size)
            noise = self._levels[level].noise * rng.standard_normal((n, size), np.float32)
            actions[row] = np.clip(mean + noise, -1.0, 1.0)
        return actions


def replay_levels(robot: str) -> list[str]:
    """Return the names of a robot's levels below `medium`, from the weakest."""
    return sorted(file.stem for file in (FOLDER / robot).glob("replay-*.safetensors"))


Layers = list[tuple[FloatArray, FloatArray]]


def load_layers(file: Path, sizes: tuple[int, int], maker: str) -> Layers:
    """Read the layers w0, b0, w1, b1, ... of a net.

    Args:
        sizes: numbers in and out that the environment needs.
        maker: what makes the file, for the message where it is not there.

    Raises:
        DataError: naming the file that is missing or of other sizes.
    """
    if not file.is_file():
        raise DataError(f"{file}: file not found; {maker} makes it")
    arrays = load_file(file)
    layers = [(arrays[f"w{index}"], arrays[f"b{index}"]) for index in range(len(arrays) // 2)]
    found = (layers[0][0].shape[0], layers[-1][0].shape[1])
    if found != sizes:
        raise DataError(
            f"{file}: maps {found[0]} to {found[1]} numbers, the environment needs {sizes[0]} to {sizes[1]}"
        )
    return layers


def hidden_and_head(layers: Layers, x: FloatArray) -> FloatArray:
    """Return a net's outputs (..., outputs) at x (..., inputs): hidden layers with ReLU, a linear head."""
    for weight, bias in layers[:-1]:
        x = np.maximum(x @ weight + bias, 0.0)
    weight, bias = layers[-1]
    out: FloatArray = x @ weight + bias
    return out
