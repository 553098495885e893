"""Shared vocabulary: what a multi-agent problem looks like, and the tensors that travel.

Shape legend, used in every comment and docstring:

    B  batch                      E  parallel environments
    N  agents                     O  observation size, padded to the largest agent's
    A  action size (continuous: dimensions; discrete: number of actions)
    S  global state size          K  cached teacher samples per state
    C  critics in the ensemble    R  rows of a dataset (L + 1 for an episode of L transitions)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    # Environment workers import this module too, and have no use for torch.
    import torch

# Of a transformer over agents: its width is a multiple of them.
ATTENTION_HEADS = 4

ActionKind = Literal["continuous", "discrete"]
FloatArray = NDArray[np.float32]
BoolArray = NDArray[np.bool_]
# Continuous: float32 (E, N, A) in the environment's own bounds. Discrete: int64 (E, N).
ActionArray = NDArray[Any]


class MacflowError(Exception):
    """Base of the errors that are told to a user as one message, without a traceback."""


class ConfigError(MacflowError):
    """A parameter or option breaks its rule."""


class DataError(MacflowError):
    """A dataset or artifact is missing, malformed or fails validation."""


@dataclass(frozen=True)
class MultiAgentSpec:
    """Describe the agents' spaces: all that nets, data and environments must agree on."""

    agent_ids: tuple[str, ...]
    # True observation sizes; arrays are zero-padded to the largest.
    obs_dims: tuple[int, ...]
    state_size: int
    action_kind: ActionKind
    action_size: int
    # Bounds per action dimension, shared by all agents; (-1, ...) and (1, ...) where discrete.
    action_low: tuple[float, ...]
    action_high: tuple[float, ...]

    @property
    def n_agents(self) -> int:
        return len(self.agent_ids)

    @property
    def obs_size(self) -> int:
        return max(self.obs_dims)

    @property
    def discrete(self) -> bool:
        return self.action_kind == "discrete"

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON types."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}

    @classmethod
    def from_dict(cls, raw: dict[str, Any]) -> MultiAgentSpec:
        """Build from `to_dict`'s result; a missing or unknown key raises `DataError`."""
        try:
            fields: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in raw.items()}
            return cls(**fields)
        except TypeError as error:
            raise DataError(f"agent specification has wrong keys: {error}") from None


@dataclass(frozen=True)
class Batch:
    """One batch of transitions, normalised, actions scaled to [-1, 1] or one-hot.

    `bootstrap_mask` is 0 only where the episode terminated: truncation bootstraps.
    """

    rows: torch.Tensor  # (B,) int64: row of the dataset, also the teacher cache's index
    next_rows: torch.Tensor  # (B,) int64
    obs: torch.Tensor  # (B, N, O)
    actions: torch.Tensor  # (B, N, A)
    reward: torch.Tensor  # (B,) team reward, scaled
    bootstrap_mask: torch.Tensor  # (B,)
    next_obs: torch.Tensor  # (B, N, O)
    state: torch.Tensor  # (B, S)
    next_state: torch.Tensor  # (B, S)
    legal_actions: torch.Tensor | None  # (B, N, A) bool, discrete only
    next_legal_actions: torch.Tensor | None  # (B, N, A) bool, discrete only


class Actor(Protocol):
    """Anything that acts in a batch of environments: policies, flows, scripted behaviours."""

    def reset(self, seeds: Sequence[int]) -> None:
        """Begin one episode per seed; all randomness of the episode comes from its seed."""

    def act(self, seen: Seen) -> ActionArray:
        """Map what is seen, in raw units, to environment actions (E, N, A) or (E, N).

        Decentralised actors look at each agent's own observation only; scripted ones may use the state.
        """


class Seen(Protocol):
    """What there is to see before an action, in a batch of environments."""

    @property
    def obs(self) -> FloatArray: ...  # (E, N, O) raw units

    @property
    def state(self) -> FloatArray: ...  # (E, S)

    @property
    def legal_actions(self) -> BoolArray | None: ...  # (E, N, A), discrete only


@dataclass(frozen=True)
class BatchObs:
    """What the agents see before they act."""

    obs: FloatArray  # (E, N, O) raw units, zero-padded to the largest agent's size
    state: FloatArray  # (E, S)
    legal_actions: BoolArray | None  # (E, N, A), discrete only


class Stepped(Seen, Protocol):
    """What a joint action led to."""

    @property
    def rewards(self) -> FloatArray: ...  # (E, N)

    @property
    def terminated(self) -> BoolArray: ...  # (E,) stays set

    @property
    def truncated(self) -> BoolArray: ...  # (E,) stays set


class Environment(Protocol):
    """E copies of an environment stepped together, none of which starts again by itself."""

    @property
    def n_envs(self) -> int: ...

    @property
    def max_steps(self) -> int: ...

    def reset(self, seeds: Sequence[int], /) -> Seen: ...

    def step(self, actions: ActionArray, /) -> Stepped: ...

    def render(self, index: int, /) -> NDArray[np.uint8]: ...  # (height, width, 3) RGB
