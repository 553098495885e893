"""The `macflow` command: look at data and environments, record, import, evaluate.

What a command needs is imported when it runs, so that `macflow --help` answers at once.
"""

from __future__ import annotations

import importlib.metadata
import json
import math
import os
import sys
from collections.abc import Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from macflow.types import ConfigError, DataError, MacflowError

if TYPE_CHECKING:
    from macflow.types import MultiAgentSpec

EVALUATED_TOGETHER = 50
# Fewer episodes are played before a second process has started.
EPISODES_WORTH_A_WORKER = 200

# The mark keeps the lines as they are.
EXAMPLES = """\b
Examples:
  macflow envs
  macflow dataset show data/prepared
  macflow evaluate models/policy --episodes 200
  macflow dataset record --env mpe/spread --behaviour expert --out my-data

The pipeline itself is run by `dvc repro`; params.yaml holds its parameters.
"""

app = typer.Typer(
    name="macflow",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="From logged data of several cooperating agents to fast policies that each agent runs alone.",
    epilog=EXAMPLES,
)
dataset_app = typer.Typer(no_args_is_help=True, help="Look at, record and import multi-agent data.")
app.add_typer(dataset_app, name="dataset")


class Format(StrEnum):
    """Formats that datasets are imported from."""

    minari = "minari"


EnvKwargs = Annotated[
    list[str],
    typer.Option("--env-kwarg", metavar="NAME=VALUE", help="Environment keyword, repeatable: n_agents=5."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for programs instead of text.")]


def main() -> None:
    """Run the command line; end with code 1 and one message on errors that are the user's to mend."""
    try:
        app()
    except MacflowError as error:
        print(f"macflow: {error}", file=sys.stderr)
        sys.exit(1)


def _version(wanted: bool) -> None:
    if wanted:
        print(f"macflow {importlib.metadata.version('macflow')}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    # Holds the options of `macflow` itself; its help text is `app`'s.
    pass


@app.command("envs")
def list_environments(as_json: AsJson = False) -> None:
    """List the environments and who can play them."""
    from macflow.envs.registry import ENVIRONMENTS, full_kwargs, reference_returns

    entries: list[dict[str, Any]] = [
        {
            "id": env_id,
            "description": entry.description,
            "kwargs": (kwargs := full_kwargs(env_id, {})),
            "agents": _agent_count(env_id, kwargs),
            "actions": entry.action_kind,
            "behaviours": list(entry.behaviours),
            "reference": reference_returns(env_id, {}),
        }
        for env_id, entry in ENVIRONMENTS.items()
    ]
    if as_json:
        _print_json(entries)
        return
    for entry in entries:
        reference = entry["reference"]
        print(f"{entry['id']}\n    {entry['description']}")
        _print_fields(
            {
                "agents": entry["agents"],
                "actions": entry["actions"],
                "keywords": ", ".join(f"{k}={v}" for k, v in entry["kwargs"].items()) or "none",
                "behaviours": ", ".join(entry["behaviours"]),
                "mean return": "no references for these keywords"
                if reference is None
                else f"random {reference['random']:.2f} (0), expert {reference['expert']:.2f} (100)",
            },
            indent=4,
        )
        print()


@app.command()
def evaluate(
    path: Annotated[Path, typer.Argument(help="Policy bundle: a folder with policy.json.")],
    env: Annotated[
        str | None, typer.Option(help="Environment id; as stored in the bundle if not given.")
    ] = None,
    episodes: Annotated[int, typer.Option(min=1, help="Episodes to play.")] = 100,
    seed: Annotated[int, typer.Option(min=0, help="Episode i has seed SEED + i.")] = 1000,
    env_kwarg: EnvKwargs = [],  # noqa: B006
    as_json: AsJson = False,
) -> None:
    """Measure a trained policy's mean return."""
    import torch

    from macflow.envs.registry import make_env, normalized_return, reference_returns
    from macflow.evaluation.returns import summarise_returns
    from macflow.evaluation.rollout import rollout
    from macflow.policy import load_policy

    # A batch this small gains nothing from more threads, and waits for them where cores are busy.
    torch.set_num_threads(1)
    policy = load_policy(path)
    env_id, kwargs = _chosen_env(policy.manifest.get("env"), env, _parse_kwargs(env_kwarg), path)
    reference = reference_returns(env_id, kwargs)
    workers = 2 if episodes >= EPISODES_WORTH_A_WORKER and (os.cpu_count() or 1) > 1 else 1
    environment = make_env(env_id, kwargs, min(EVALUATED_TOGETHER, episodes), workers)
    try:
        if environment.spec != policy.spec:
            raise DataError(
                f"{path}: the policy is for {_agents(policy.spec)}; {env_id} has "
                f"{_agents(environment.spec)}. Choose another with --env and --env-kwarg"
            )
        result = rollout(environment, policy.actor(), episodes, seed)
    finally:
        environment.close()
    found = summarise_returns(
        result.returns,
        result.lengths,
        None if reference is None else lambda value: normalized_return(value, reference),
        seed,
    )
    if as_json:
        about = {"policy": str(path), "env": env_id, "env_kwargs": kwargs, "reference": reference}
        _print_json(about | {"episodes": episodes, "seed": seed} | found)
        return
    _print_fields(
        {
            "policy": path,
            "environment": _with_kwargs(env_id, kwargs),
            "episodes": f"{episodes}, seeds {seed} to {seed + episodes - 1}",
            "mean return": _interval(found, "return_mean", "return"),
            "normalised": _interval(found, "normalized_return", "normalized_return")
            + (" (0 random, 100 expert)" if reference else ""),
            "mean length": f"{found['length_mean']:.1f} steps",
        }
    )


@dataset_app.command("show")
def show_dataset(
    path: Annotated[Path, typer.Argument(help="A prepared dataset, or a folder with a Minari dataset.")],
) -> None:
    """Say what a dataset holds: agents, episodes, returns, quality, validation."""
    from macflow.data.show import describe_text

    if not path.is_dir():
        raise DataError(f"{path}: folder not found")
    print(describe_text(path))


@dataset_app.command("record")
def record(
    env: Annotated[str, typer.Option(help="Environment id: see `macflow envs`.")],
    behaviour: Annotated[str, typer.Option(help="Who plays: see `macflow envs`.")],
    out: Annotated[Path, typer.Option(help="New folder for the dataset.")],
    episodes: Annotated[int, typer.Option(min=1, help="Episodes to record.")] = 1000,
    seed: Annotated[int, typer.Option(min=0, help="Episode i has seed SEED + i.")] = 0,
    env_kwarg: EnvKwargs = [],  # noqa: B006
) -> None:
    """Record a scripted behaviour as a dataset."""
    from macflow.stages.record import record_dataset

    _check_new(out)
    recorded = record_dataset(out, env, _parse_kwargs(env_kwarg), behaviour, episodes, seed)
    mean = sum(episode.team_return for episode in recorded) / len(recorded)
    print(f"{out}: {episodes} episodes of {env} by {behaviour}, mean return {mean:.2f}")


@dataset_app.command("import")
def import_dataset(
    source: Annotated[Path, typer.Argument(help="Folder of the dataset to import.")],
    source_format: Annotated[Format, typer.Option("--from", help="Its format.")],
    target: Annotated[Path, typer.Option("--to", help="New folder for the copy.")],
) -> None:
    """Copy a dataset for the pipeline to use.

    A dataset that breaks a rule of the validation is refused. Name the copy as `prepare.raw`
    in params.yaml to train on it.
    """
    from macflow.data.expectations import Limits, validate
    from macflow.data.minari_store import read_minari_rows, write_minari
    from macflow.files import digest, replace_directory

    _check_new(target)
    rows, spec, meta = read_minari_rows(source)
    # How large values may be, and how many may repeat, params.yaml says to the prepare stage.
    validation = validate(str(source), rows, spec, Limits(math.inf, math.inf, 1.0))
    if not validation.success:
        raise DataError(validation.message())
    behaviour = meta["behaviour"] or {"imported_from": source_format.value, "sha256": digest(source)}
    with replace_directory(target) as folder:
        write_minari(folder, meta["dataset_id"], rows.episodes(), spec, meta["env"], behaviour)
    print(
        f"{target}: {rows.n_episodes} episodes of {_agents(spec)}, {len(rows.train_rows)} transitions; "
        f"all {len(validation.outcomes)} expectations met"
    )


def _check_new(path: Path) -> None:
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise DataError(f"{path}: already there, and nothing is overwritten; choose a new folder")


def _parse_kwargs(pairs: Sequence[str]) -> dict[str, Any]:
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


def _chosen_env(
    stored: Mapping[str, Any] | None, env: str | None, kwargs: dict[str, Any], path: Path
) -> tuple[str, dict[str, Any]]:
    """Take the environment from the bundle unless another is named; keywords given here win."""
    if stored is not None and env in (None, stored["id"]):
        return str(stored["id"]), {**stored["kwargs"], **kwargs}
    if env is None:
        raise ConfigError(f"{path}: names no environment; choose one with --env (see `macflow envs`)")
    return env, kwargs


def _agent_count(env_id: str, kwargs: Mapping[str, Any]) -> int:
    from macflow.envs.registry import make_parallel

    if "n_agents" in kwargs:
        return int(kwargs["n_agents"])
    env = make_parallel(env_id, kwargs)
    try:
        return len(env.possible_agents)
    finally:
        env.close()


def _interval(found: Mapping[str, Any], mean: str, prefix: str) -> str:
    if found[mean] is None:
        return "no reference returns for this environment"
    low, high = found[f"{prefix}_ci95_low"], found[f"{prefix}_ci95_high"]
    if low is None:
        return f"{found[mean]:.2f} (one episode has no interval)"
    return f"{found[mean]:.2f} (95% interval {low:.2f} to {high:.2f})"


def _agents(spec: MultiAgentSpec) -> str:
    return (
        f"{spec.n_agents} agents, {_shortened(sorted(set(spec.obs_dims)))} observations, "
        f"{spec.action_kind} actions of size {spec.action_size}"
    )


def _bounds(spec: MultiAgentSpec) -> str:
    ranges = [f"[{a:g}, {b:g}]" for a, b in zip(spec.action_low, spec.action_high, strict=True)]
    return ranges[0] if len(set(ranges)) == 1 else " x ".join(ranges)


def _range(values: Mapping[str, Any]) -> str:
    low, high = values["min"], values["max"]
    return str(low) if low == high else f"{low} to {high}"


def _behaviour(behaviour: Any) -> str:
    if isinstance(behaviour, Mapping):
        rest = ", ".join(f"{key} {value}" for key, value in sorted(behaviour.items()) if key != "name")
        return f"{behaviour['name']} ({rest})" if "name" in behaviour else rest
    return "not recorded" if behaviour is None else str(behaviour)


def _shortened(values: Sequence[Any], shown: int = 6) -> str:
    text = ", ".join(str(value) for value in values[:shown])
    return text if len(values) <= shown else f"{text}, ... {values[-1]}"


def _with_kwargs(env_id: str, kwargs: Mapping[str, Any]) -> str:
    return env_id + (f" ({', '.join(f'{k}={v}' for k, v in kwargs.items())})" if kwargs else "")


def _print_fields(fields: Mapping[str, Any], indent: int = 0) -> None:
    width = max(len(name) for name in fields)
    for name, value in fields.items():
        print(f"{' ' * indent}{name:<{width}}  {value}")


def _print_json(content: Any) -> None:
    print(json.dumps(content, indent=2, allow_nan=False))


if __name__ == "__main__":
    main()
