"""What the command's parts share: options, and how things are printed."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from macflow.types import ConfigError, DataError

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


def chosen_env(
    stored: Mapping[str, Any] | None, env: str | None, kwargs: dict[str, Any], path: Path
) -> tuple[str, dict[str, Any]]:
    """Take the environment from the bundle unless another is named; keywords given here win."""
    if stored is not None and env in (None, stored["id"]):
        return str(stored["id"]), {**stored["kwargs"], **kwargs}
    if env is None:
        raise ConfigError(f"{path}: names no environment; choose one with --env (see `macflow envs`)")
    return env, kwargs


def check_fit(path: Path, policy: MultiAgentSpec, env_id: str, env: MultiAgentSpec) -> None:
    """Raise `DataError` where the policy at `path` is for other agents than the environment's."""
    # Policies act without the state, which imported data may have in another form.
    if replace(env, state_size=policy.state_size) != policy:
        raise DataError(
            f"{path}: the policy is for {describe_agents(policy)}; {env_id} has {describe_agents(env)}. "
            "Choose another with --env and --env-kwarg"
        )


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
