"""The trained flow, teacher cache and critic as folders: safetensors for numbers, JSON for meaning."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional

from macflow.actions import decode_actions
from macflow.algorithms.flow_matching import Objective, sample_flow
from macflow.data.normalizer import Normalizer
from macflow.files import read_json, write_json
from macflow.nets.critic import (
    CentralCritic,
    Critic,
    FactoredCritic,
    Mixing,
    OwnValues,
    Sight,
    aggregate_ensemble,
)
from macflow.nets.velocity import AttentionVelocityField, Field, VelocityField
from macflow.nets.weights import load_weights, save_weights
from macflow.policy import EpisodeNoise
from macflow.types import ActionArray, DataError, MultiAgentSpec, Seen

SCHEMA_VERSION = 3
# Folder inside the policy bundle; acting does without it.
FOLLOWED_CRITIC = "critic"
# Folder inside a fine-tuned bundle: the policies after the last step, which the guard may not have kept.
LAST_POLICY = "last"


@dataclass(frozen=True)
class FlowArtifact:
    """The frozen joint flow policy mu_phi(o, z)."""

    spec: MultiAgentSpec
    normalizer: Normalizer
    field: Field
    objective: Objective
    euler_steps: int

    def sample(self, obs: Tensor, noise: Tensor, legal_actions: Tensor | None) -> Tensor:
        """Map normalised obs (B, N, O) and noise (B, N, A) to joint actions (B, N, A) in flow space."""
        return sample_flow(self.field, obs, noise, self.euler_steps, legal_actions, self.objective)

    def actor(self) -> FlowActor:
        """Return the flow as an `Actor`; it needs all agents' observations at once."""
        return FlowActor(self)


class FlowActor:
    """Act by the joint flow: centralised, the teacher that the one-step policies imitate."""

    def __init__(self, flow: FlowArtifact) -> None:
        self.flow = flow
        self.noise = EpisodeNoise(flow.spec)

    def reset(self, seeds: Sequence[int]) -> None:
        """Begin one episode per seed."""
        self.noise.reset(seeds)

    def act(self, seen: Seen) -> ActionArray:
        """Map raw observations (E, N, O) to environment actions."""
        normalised = self.flow.normalizer.normalize_obs(torch.from_numpy(np.asarray(seen.obs, np.float32)))
        legal = None if seen.legal_actions is None else torch.from_numpy(seen.legal_actions)
        return decode_actions(self.flow.spec, self.flow.sample(normalised, self.noise.draw()[:, 0], legal))


@dataclass(frozen=True)
class CriticArtifact:
    """The critic, with what its units are."""

    spec: MultiAgentSpec
    critic: Critic
    aggregate: Literal["mean", "min"]
    discount: float
    reward_scale: float
    # The section `critic` that it was trained by.
    params: Mapping[str, Any]

    def q_total(self, obs: Tensor, state: Tensor, actions: Tensor) -> Tensor:
        """Map normalised obs (B, N, O), state (B, S) and actions (B, N, A) to Q_tot (B,)."""
        return aggregate_ensemble(self.critic(obs, state, actions), self.aggregate)

    def own_values(self) -> OwnValues | None:
        """Return Q_i(o_i, a_i), which agents can ask when they act; None where critics see more than that."""
        if isinstance(self.critic, CentralCritic) or self.critic.sees != "own":
            return None
        return OwnValues(self.critic.agents, self.aggregate)


@dataclass(frozen=True)
class TeacherArtifact:
    """Noises and flow samples for every dataset row: the ODE solver's work, done once."""

    noise: Tensor  # (R, K, N, A)
    actions: Tensor  # (R, K, N, A) mu_phi(o, z), one-hot where discrete

    @property
    def samples(self) -> int:
        return self.noise.shape[1]

    def to(self, device: torch.device) -> TeacherArtifact:
        """Return the cache on `device`."""
        return TeacherArtifact(self.noise.to(device), self.actions.to(device))

    def candidates(self, rows: Tensor) -> Tensor:
        """Return all K samples at `rows` (B,): (B, K, N, A)."""
        return self.actions.index_select(0, rows)

    def draw(self, rows: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Return one cached noise and its sample per row, each (B, N, A)."""
        picks = torch.randint(self.samples, rows.shape, generator=generator, device=rows.device)
        flat = rows * self.samples + picks
        return self.noise.flatten(0, 1).index_select(0, flat), self.actions.flatten(0, 1).index_select(
            0, flat
        )


def save_flow(folder: Path, flow: FlowArtifact, manifest: dict[str, Any]) -> None:
    """Write flow.safetensors and flow.json; `manifest` adds parameters and provenance."""
    save_weights(folder / "flow.safetensors", flow.field)
    content = {"spec": flow.spec.to_dict(), "normalizer": flow.normalizer.to_dict()}
    write_json(folder / "flow.json", {"schema_version": SCHEMA_VERSION} | content | manifest)


def load_flow(folder: Path) -> FlowArtifact:
    """Read what `save_flow` wrote; raise `DataError` naming the file that is missing or malformed."""
    manifest = _read_manifest(folder / "flow.json")
    spec = MultiAgentSpec.from_dict(manifest["spec"])
    params = manifest["params"]["flow"]
    field = build_field(spec, params["scope"], params["arch"], params["hidden"], torch.Generator())
    load_weights(folder / "flow.safetensors", field)
    normalizer = Normalizer.from_dict(manifest["normalizer"])
    return FlowArtifact(spec, normalizer, field, params["objective"], params["euler_steps"])


def build_field(
    spec: MultiAgentSpec,
    scope: Literal["joint", "individual"],
    arch: Literal["mlp", "transformer"],
    hidden: Sequence[int],
    generator: torch.Generator,
) -> Field:
    """Return a fresh velocity field for `spec`; a transformer is joint whatever `scope` says."""
    if arch == "transformer":
        return AttentionVelocityField(
            spec.n_agents, spec.obs_size, spec.action_size, spec.discrete, hidden, generator
        )
    return VelocityField(
        spec.n_agents, spec.obs_size, spec.action_size, spec.discrete, scope, hidden, generator
    )


def save_critic(folder: Path, artifact: CriticArtifact, manifest: dict[str, Any]) -> None:
    """Write critic.safetensors and critic.json."""
    save_weights(folder / "critic.safetensors", artifact.critic)
    content = {"spec": artifact.spec.to_dict(), "reward_scale": artifact.reward_scale}
    write_json(folder / "critic.json", {"schema_version": SCHEMA_VERSION} | content | manifest)


def load_critic(folder: Path) -> CriticArtifact:
    """Read what `save_critic` wrote; raise `DataError` naming the file that is missing or malformed."""
    manifest = _read_manifest(folder / "critic.json")
    spec = MultiAgentSpec.from_dict(manifest["spec"])
    params = manifest["params"]["critic"]
    critic = build_critic(
        spec, params["mixer"], params["sees"], params["ensemble"], params["hidden"], torch.Generator()
    )
    load_weights(folder / "critic.safetensors", critic)
    return CriticArtifact(
        spec, critic, params["aggregate"], params["discount"], manifest["reward_scale"], params
    )


def followed_critic(policy: Path, critic: Path) -> Path:
    """Return the folder of the critics that the policies in folder `policy` followed to the end.

    They lie beside the policies where they went on learning with them (`distill.critic: policy`).
    """
    beside = policy / FOLLOWED_CRITIC
    return beside if beside.is_dir() else critic


def build_critic(
    spec: MultiAgentSpec,
    mixer: Mixing,
    sees: Sight,
    ensemble: int,
    hidden: Sequence[int],
    generator: torch.Generator,
) -> Critic:
    """Return a fresh critic ensemble for `spec`."""
    sizes = (spec.n_agents, spec.obs_size, spec.action_size, spec.state_size)
    if mixer == "central":
        return CentralCritic(*sizes, sees, ensemble, hidden, generator)
    return FactoredCritic(*sizes, spec.discrete, mixer, sees, ensemble, hidden, generator)


def save_teacher(folder: Path, teacher: TeacherArtifact, manifest: dict[str, Any], discrete: bool) -> None:
    """Write teacher.safetensors and teacher.json; discrete samples are stored as action indices."""
    actions = teacher.actions.argmax(-1).to(torch.int16) if discrete else teacher.actions
    save_file({"noise": teacher.noise, "actions": actions.contiguous()}, folder / "teacher.safetensors")
    write_json(folder / "teacher.json", {"schema_version": SCHEMA_VERSION} | manifest)


def load_teacher(folder: Path) -> TeacherArtifact:
    """Read what `save_teacher` wrote; raise `DataError` naming the file that is missing or malformed."""
    _read_manifest(folder / "teacher.json")
    tensors = _load_tensors(folder / "teacher.safetensors")
    noise, actions = tensors["noise"], tensors["actions"]
    if actions.dtype == torch.int16:
        actions = functional.one_hot(actions.long(), noise.shape[-1]).to(torch.float32)
    return TeacherArtifact(noise, actions)


def _read_manifest(path: Path) -> dict[str, Any]:
    manifest: dict[str, Any] = read_json(path)
    if manifest.get("schema_version") != SCHEMA_VERSION:
        raise DataError(
            f"{path}: `schema_version` must be {SCHEMA_VERSION}, received {manifest.get('schema_version')!r}"
        )
    return manifest


def _load_tensors(path: Path) -> dict[str, Tensor]:
    try:
        # Clones leave the lazily mapped file, which would be slow to gather from.
        return {key: value.clone() for key, value in load_file(path).items()}
    except (OSError, SafetensorError) as error:
        raise DataError(f"{path}: not a readable safetensors file: {error}") from None
