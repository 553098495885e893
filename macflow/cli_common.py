"""What the command's parts share: options, and how things are printed."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from macflow.types import ConfigError

if TYPE_CHECKING:
    from macflow.types import MultiAgentSpec

EnvKwargs = Annotated[
    list[str],
    typer.Option("--env-kwarg", metavar="NAME=VALUE", help="Environment keyword, repeatable: n_agents=5."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for programs instead of text.")]


def parse_kwargs(pairs: Sequence[str]) -> dict[str, Any]:
    """Read `NAME=VALUE` options; a value that is not JSON is text."""
    kwargs = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not name or not equals:
            raise ConfigError(f"`--env-kwarg`: must be NAME=VALUE (received {pair!r})")
        try:
            kwargs[name] = json.loads(value)
        except json.JSONDecodeError:
            kwargs[name] = value
    return kwargs


def describe_agents(spec: MultiAgentSpec) -> str:
    """Say in a few words what agents these are."""
    return (
        f"{spec.n_agents} agents, {_shortened(sorted(set(spec.obs_dims)))} observations, "
        f"{spec.action_kind} actions of size {spec.action_size}"
    )


def _shortened(values: Sequence[Any], shown: int = 6) -> str:
    text = ", ".join(str(value) for value in values[:shown])
    return text if len(values) <= shown else f"{text}, ... {values[-1]}"


def print_json(content: Any) -> None:
    """Print JSON on stdout; NaN is refused."""
    print(json.dumps(content, indent=2, allow_nan=False))
