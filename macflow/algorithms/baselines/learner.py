"""What the baselines share: the form of a method, of its settings and of what it learns from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeVar

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor, nn

from macflow.nets.critic import Sight
from macflow.types import Batch, ConfigError

Positive = Annotated[int, Field(gt=0)]
PositiveFloat = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Weight = Annotated[float, Field(ge=0, allow_inf_nan=False)]
# What a stochastic policy does in an environment: its mean or most likely action, or one drawn from it.
Acting = Literal["mode", "sample"]

# A loss and the parameters that it moves, which are those of no other loss of the step.
Loss = tuple[Tensor, Sequence[nn.Parameter]]


class Settings(BaseModel):
    """The hyperparameters of a method; those of a training (steps, batch size, ...) are not among them."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class CriticSettings(Settings):
    """The hyperparameters of every method that learns values by temporal differences."""

    discount: Annotated[float, Field(ge=0, lt=1)] = 0.99
    polyak_tau: Annotated[float, Field(gt=0, le=1)] = 0.005
    # C: critics in the ensemble.
    ensemble: Positive = 2
    # What critics see in training: observations, or the state.
    sees: Sight = "own"


SettingsT = TypeVar("SettingsT", bound=Settings)


def parse_settings(method: str, kind: type[SettingsT], given: Mapping[str, Any]) -> SettingsT:
    """Return the method's settings with those `given` in place of its defaults.

    Raises:
        ConfigError: naming the method, field, rule and received value.
    """
    try:
        return kind.model_validate(dict(given))
    except ValidationError as error:
        known = f"unknown; known are {', '.join(kind.model_fields)}"
        problems = "; ".join(
            f"`{'.'.join(map(str, e['loc']))}`: "
            f"{known if e['type'] == 'extra_forbidden' else e['msg']} (received {e['input']!r})"
            for e in error.errors()
        )
        raise ConfigError(f"{method}: {problems}") from None


@dataclass(frozen=True)
class RecordedBatch(Batch):
    """A batch of transitions and the joint actions that were recorded after them."""

    next_actions: Tensor  # (B, N, A)
    # 0 where the recording ends with the transition, so that `next_actions` holds nothing.
    next_known: Tensor  # (B,)


class Learner(nn.Module):
    """One method: its nets, what a training step does to them, and how they act.

    Its `state_dict` is all that training changes, apart from the optimiser.
    """

    # Joint noises that one joint action takes.
    noises: int = 1
    # Whether `act` looks at the state; as a rule only training does.
    acts_on_state: bool = False
    # Steps after which what a step does repeats.
    period: int = 1

    def losses(
        self, batch: RecordedBatch, generator: torch.Generator
    ) -> tuple[list[Loss], dict[str, Tensor]]:
        """Return the losses of one step, all at the present parameters, and scalars to log."""
        raise NotImplementedError

    def follow(self) -> None:
        """Move target nets after a step."""

    def act(self, obs: Tensor, state: Tensor, noise: Tensor, legal_actions: Tensor | None) -> Tensor:
        """Map what is seen to joint actions (B, N, A) in [-1, 1], or one-hot.

        Args:
            obs: (B, N, O) normalised.
            state: (B, S) normalised, or (B, 0) where the method does not act on it.
            noise: (B, `noises`, N, A) standard normal.
            legal_actions: (B, N, A) bool, or None for continuous actions.
        """
        raise NotImplementedError

    def trained(self) -> list[nn.Parameter]:
        """Return the parameters that an optimiser moves; targets follow by themselves."""
        return [parameter for parameter in self.parameters() if parameter.requires_grad]

    def step(
        self, batch: RecordedBatch, optimizer: torch.optim.Optimizer, generator: torch.Generator
    ) -> dict[str, Tensor]:
        """Take one optimiser step, in which each loss moves its own parameters alone."""
        losses, info = self.losses(batch, generator)
        optimizer.zero_grad(set_to_none=True)
        for loss, parameters in losses:
            for parameter, gradient in zip(parameters, torch.autograd.grad(loss, parameters), strict=True):
                parameter.grad = gradient
        optimizer.step()
        self.follow()
        return info


def parameters_of(*modules: nn.Module) -> list[nn.Parameter]:
    """Return the parameters of several modules in order."""
    return [parameter for module in modules for parameter in module.parameters()]


def team_target(batch: Batch, next_values: Tensor, discount: float) -> Tensor:
    """Return y = r + gamma * bootstrap_mask * next_values for next_values (B,)."""
    return batch.reward + discount * batch.bootstrap_mask * next_values
