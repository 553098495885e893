"""Train a baseline on a prepared dataset into a folder, and load it to act.

`baseline.safetensors` holds the weights, `baseline.json` everything needed to act and to know what
the weights were made from.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from macflow.actions import decode_actions
from macflow.algorithms.baselines.learner import Learner, RecordedBatch
from macflow.algorithms.baselines.registry import METHODS, find_method, settings_of
from macflow.data.normalizer import Normalizer
from macflow.data.prepared import load_prepared
from macflow.data.sampler import TransitionSampler
from macflow.files import digest, read_json, replace_directory, write_json
from macflow.nets.weights import load_weights, save_weights
from macflow.policy import EpisodeNoise
from macflow.training.checkpoint import CheckpointFile, TrainingState
from macflow.training.loop import adam, learning_rate_of, train, write_curve
from macflow.training.reproducible import code_digest, prepare_torch
from macflow.types import ActionArray, Batch, ConfigError, DataError, MultiAgentSpec, Seen

SCHEMA_VERSION = 1
MANIFEST_FILE = "baseline.json"
WEIGHTS_FILE = "baseline.safetensors"
CURVE_FILE = "curve.csv"
CHECKPOINT_EVERY = 1000
LOG_EVERY = 100


@dataclass(frozen=True)
class TrainingSettings:
    """What a training takes beside the method's own settings; the same for every method.

    The gradient budget is `steps` batches of `batch_size` transitions.
    """

    steps: int
    batch_size: int
    learning_rate: float
    hidden: tuple[int, ...]
    seed: int
    device: Literal["cpu", "cuda"]
    threads: int = 1

    def __post_init__(self) -> None:
        """Raise `ConfigError` naming the first setting that breaks its rule."""
        for name in ("steps", "batch_size", "learning_rate", "threads"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"`{name}`: must be > 0 (received {getattr(self, name)})")
        if self.seed < 0:
            raise ConfigError(f"`seed`: must be 0 or more (received {self.seed})")
        if not self.hidden or min(self.hidden) < 1:
            raise ConfigError(f"`hidden`: must be widths > 0 (received {list(self.hidden)})")
        if self.device == "cuda" and not torch.cuda.is_available():
            raise ConfigError("`device`: is 'cuda', but torch finds no GPU here; use 'cpu'")


class RecordedSampler:
    """Random batches of transitions with the joint actions that were recorded after them."""

    def __init__(self, sampler: TransitionSampler) -> None:
        self.sampler = sampler
        self.known = torch.zeros(len(sampler.obs), device=sampler.obs.device)  # (R,)
        self.known[sampler.train_rows] = 1.0

    def sample(self, size: int, generator: torch.Generator) -> RecordedBatch:
        """Draw `size` transitions uniformly with replacement."""
        batch: Batch = self.sampler.sample(size, generator)
        return RecordedBatch(
            **vars(batch),
            next_actions=self.sampler.actions.index_select(0, batch.next_rows),
            next_known=self.known.index_select(0, batch.next_rows),
        )


@dataclass(frozen=True)
class Baseline:
    """A trained baseline, acting on raw observations."""

    spec: MultiAgentSpec
    normalizer: Normalizer
    learner: Learner
    manifest: Mapping[str, Any]

    def actor(self) -> BaselineActor:
        """Return it as an `Actor` for batches of environments."""
        return BaselineActor(self)


class BaselineActor:
    """Act by a baseline in a batch of environments."""

    def __init__(self, baseline: Baseline) -> None:
        self.baseline = baseline
        self.noise = EpisodeNoise(baseline.spec, baseline.learner.noises)

    def reset(self, seeds: Sequence[int]) -> None:
        """Begin one episode per seed."""
        self.noise.reset(seeds)

    @torch.no_grad()
    def act(self, seen: Seen) -> ActionArray:
        """Map what is seen, in raw units, to environment actions (E, N, A) or (E, N)."""
        baseline = self.baseline
        obs = baseline.normalizer.normalize_obs(torch.from_numpy(np.asarray(seen.obs, np.float32)))
        state = torch.zeros(len(obs), 0)
        if baseline.learner.acts_on_state:
            state = baseline.normalizer.normalize_state(torch.from_numpy(np.asarray(seen.state, np.float32)))
        legal = None if seen.legal_actions is None else torch.from_numpy(seen.legal_actions)
        return decode_actions(baseline.spec, baseline.learner.act(obs, state, self.noise.draw(), legal))


def train_baseline(
    method: str,
    data: Path,
    out: Path,
    settings: TrainingSettings,
    given: Mapping[str, Any],
) -> None:
    """Train `method` on the prepared dataset `data` and replace the folder `out` by the result.

    An interrupted training goes on where its last checkpoint, beside `out`, has left it, and ends
    with the same bytes.

    Args:
        given: the method's settings that differ from its defaults.

    Raises:
        ConfigError: naming a setting that is unknown or breaks its rule.
        DataError: naming a file of the dataset that is missing or malformed, or `out` where it
            holds something else than a baseline.
    """
    own = settings_of(method, given)
    _check_replaceable(out)
    prepare_torch(settings.threads)
    dataset = load_prepared(data)
    device = torch.device(settings.device)
    learner = find_method(method).learner(
        dataset.spec, own, settings.hidden, torch.Generator().manual_seed(settings.seed)
    )
    learner.to(device)
    manifest = {
        "method": method,
        "settings": own.model_dump(mode="json"),
        "training": asdict(settings) | {"hidden": list(settings.hidden)},
        "made_from": {str(data): digest(data)},
    }
    sampler = RecordedSampler(TransitionSampler(dataset, device))
    generator = torch.Generator(device).manual_seed(settings.seed)
    optimizer = adam(learner.trained())
    state = TrainingState({"learner": learner}, optimizer, generator)
    checkpoint = CheckpointFile(out.parent / f".{out.name}.checkpoint.safetensors", _fingerprint(manifest))

    def step() -> dict[str, Tensor]:
        return learner.step(sampler.sample(settings.batch_size, generator), optimizer, generator)

    train(
        method,
        state,
        settings.steps,
        step,
        learning_rate_of("constant", settings.learning_rate, settings.steps),
        checkpoint,
        CHECKPOINT_EVERY,
        LOG_EVERY,
        period=learner.period,
    )
    manifest |= {"env": dataset.meta["env"], "source": dataset.meta["source"]}
    baseline = Baseline(dataset.spec, dataset.normalizer, learner.cpu(), manifest)
    with replace_directory(out) as folder:
        save_baseline(folder, baseline)
        write_curve(folder / CURVE_FILE, state.curves["curve"])
    checkpoint.remove()


def save_baseline(folder: Path, baseline: Baseline) -> None:
    """Write baseline.safetensors and baseline.json."""
    save_weights(folder / WEIGHTS_FILE, baseline.learner)
    content = {"spec": baseline.spec.to_dict(), "normalizer": baseline.normalizer.to_dict()}
    write_json(folder / MANIFEST_FILE, {"schema_version": SCHEMA_VERSION} | content | dict(baseline.manifest))


def load_baseline(folder: Path) -> Baseline:
    """Read what `train_baseline` wrote, onto the CPU.

    Raises:
        DataError: naming the file that is missing, malformed or of another schema version.
    """
    file = folder / MANIFEST_FILE
    manifest = read_json(file)
    try:
        if manifest["schema_version"] != SCHEMA_VERSION:
            raise DataError(
                f"{file}: `schema_version` must be {SCHEMA_VERSION}, received {manifest['schema_version']!r}"
            )
        spec = MultiAgentSpec.from_dict(manifest["spec"])
        normalizer = Normalizer.from_dict(manifest["normalizer"])
        method = METHODS[manifest["method"]]
        own = settings_of(manifest["method"], manifest["settings"])
        learner = method.learner(spec, own, tuple(manifest["training"]["hidden"]), torch.Generator())
    except (AttributeError, KeyError, TypeError, ValueError, ConfigError) as error:
        raise DataError(f"{file}: not a baseline manifest: {error!r}") from None
    load_weights(folder / WEIGHTS_FILE, learner)
    return Baseline(spec, normalizer, learner, manifest)


def _check_replaceable(out: Path) -> None:
    if out.exists() and not (out / MANIFEST_FILE).exists() and (not out.is_dir() or any(out.iterdir())):
        raise DataError(f"{out}: already there, and not a baseline; choose a new folder")


def _fingerprint(manifest: Mapping[str, Any]) -> str:
    # A checkpoint made by other code, data or settings must not be continued.
    whole = {"torch": torch.__version__, "code": code_digest()} | dict(manifest)
    return hashlib.sha256(json.dumps(whole, sort_keys=True).encode()).hexdigest()
