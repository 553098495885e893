"""The baselines by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from macflow.algorithms.baselines.bc import BC, BCSettings
from macflow.algorithms.baselines.diffusion import Diffusion, DiffusionSettings
from macflow.algorithms.baselines.learner import Learner, Settings, parse_settings
from macflow.algorithms.baselines.ma_fql import MAFQL, MAFQLSettings
from macflow.algorithms.baselines.macql import MACQL, MACQLSettings
from macflow.algorithms.baselines.matd3_bc import MATD3BC, MATD3BCSettings
from macflow.algorithms.baselines.omiga import OMIGA, OMIGASettings
from macflow.types import ConfigError, MultiAgentSpec


@dataclass(frozen=True)
class Method:
    """What a name stands for."""

    description: str
    settings: type[Settings]
    # (spec, settings, hidden, generator) -> learner with fresh weights drawn on the CPU
    learner: Callable[[MultiAgentSpec, Any, Sequence[int], torch.Generator], Learner]


METHODS: Mapping[str, Method] = {
    "bc": Method("behaviour cloning, Gaussian or categorical, each agent on its own", BCSettings, BC),
    "matd3_bc": Method("centralised twin critics, policies held by cloning", MATD3BCSettings, MATD3BC),
    "macql": Method("conservative Q-learning on a mean of the agents' values", MACQLSettings, MACQL),
    "omiga": Method("implicit global-to-local value regularisation, weighted cloning", OMIGASettings, OMIGA),
    "ma_fql": Method("flow Q-learning for each agent on its own", MAFQLSettings, MAFQL),
    "diffusion": Method("joint diffusion policy, best of several samples", DiffusionSettings, Diffusion),
}


def find_method(name: str) -> Method:
    """Return the method of that name; another name raises `ConfigError`."""
    if name not in METHODS:
        raise ConfigError(f"`method`: must be one of {', '.join(METHODS)} (received {name!r})")
    return METHODS[name]


def settings_of(name: str, given: Mapping[str, Any]) -> Settings:
    """Return the settings of method `name` with those `given` in place of its defaults."""
    return parse_settings(name, find_method(name).settings, given)
