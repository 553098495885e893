"""What is tuned: parameters of params.yaml by name, and where their values are looked for."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any, Literal

import yaml
from optuna.trial import BaseTrial

from macflow.types import ConfigError

Kind = Literal["log", "float", "int", "choice"]
FORM = "SECTION.NAME=log:LOW:HIGH, float:LOW:HIGH, int:LOW:HIGH or choice:A,B,..."


@dataclass(frozen=True)
class Searched:
    """One parameter and its range; `values` are low and high, or the choices."""

    name: str
    kind: Kind
    values: tuple[Any, ...]

    def suggest(self, trial: BaseTrial) -> Any:
        """Let a trial choose a value."""
        if self.kind == "choice":
            return trial.suggest_categorical(self.name, self.values)
        low, high = self.values
        if self.kind == "int":
            return trial.suggest_int(self.name, low, high)
        return trial.suggest_float(self.name, low, high, log=self.kind == "log")


def parse_searched(text: str) -> Searched:
    """Read `distill.alpha=log:0.01:10` and the like.

    Raises:
        ConfigError: naming the rule and the received text.
    """
    name, equals, spec = text.partition("=")
    kind, colon, rest = spec.partition(":")
    if not equals or not colon or name.count(".") != 1:
        raise ConfigError(f"`--param`: must be {FORM} (received {text!r})")
    if kind == "choice":
        # YAML's reading of words and numbers; the safe loader makes no objects.
        return Searched(name, "choice", tuple(yaml.safe_load(part) for part in rest.split(",")))
    try:
        match kind:
            case "log" | "float":
                low, high = (float(part) for part in rest.split(":"))
            case "int":
                low, high = (int(part) for part in rest.split(":"))
            case _:
                raise ValueError
    except ValueError:
        raise ConfigError(f"`--param`: must be {FORM} (received {text!r})") from None
    if not (math.isfinite(low) and math.isfinite(high) and low < high and (kind != "log" or low > 0)):
        rule = "0 < LOW < HIGH" if kind == "log" else "LOW < HIGH"
        raise ConfigError(f"`--param`: `{name}` needs {rule}, finite numbers (received {text!r})")
    return Searched(name, kind, (low, high))


def with_values(params: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """Return `params` with the values of dotted names in place of their own.

    Raises:
        ConfigError: a name that params.yaml does not have.
    """
    changed: dict[str, Any] = deepcopy(dict(params))
    for name, value in values.items():
        section, _, key = name.partition(".")
        if not isinstance(changed.get(section), dict) or key not in changed[section]:
            raise ConfigError(f"`{name}`: there is no such parameter (received {value!r})")
        changed[section][key] = value
    return changed


def changes(values: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return values of dotted names as sections."""
    sections: dict[str, dict[str, Any]] = {}
    for name, value in values.items():
        section, _, key = name.partition(".")
        sections.setdefault(section, {})[key] = value
    return sections


def named(searched: Sequence[Searched]) -> list[str]:
    """Return the names in their order.

    Raises:
        ConfigError: one is there twice.
    """
    names = [one.name for one in searched]
    if doubled := sorted({name for name in names if names.count(name) > 1}):
        raise ConfigError(f"`--param`: each parameter once (received {', '.join(doubled)} again)")
    return names
