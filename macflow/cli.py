"""The `macflow` command: environments and evaluation here, the rest in `cli_*`.

What a command needs is imported when it runs, so that `macflow --help` answers at once.
"""

from __future__ import annotations

import importlib.metadata
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from macflow import (
    cli_baseline,
    cli_cards,
    cli_dataset,
    cli_export,
    cli_lineage,
    cli_promote,
    cli_run,
    cli_signing,
    cli_sweep,
    cli_tune,
)
from macflow.cli_common import AsJson, EnvKwargs, check_fit, chosen_env, parse_kwargs, print_json
from macflow.types import MacflowError

EVALUATED_TOGETHER = 50
# Fewer episodes are played before a second process has started.
EPISODES_WORTH_A_WORKER = 200

# The mark keeps the lines as they are.
EXAMPLES = """\b
Examples:
  macflow envs
  macflow dataset show data/prepared
  macflow evaluate models/policy --episodes 200
  macflow run models/policy --episodes 10
  macflow tune alpha --trials 20 --jobs 2
  macflow lineage models/policy
  macflow dataset list --available
  macflow dataset record mpe-spread/expert --out my-data

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
app.add_typer(cli_dataset.app, name="dataset")
app.add_typer(cli_baseline.app, name="baseline")
app.add_typer(cli_export.export_app, name="export")
app.add_typer(cli_export.bench_app, name="bench")
app.add_typer(cli_cards.policy_app, name="policy")
cli_signing.register(cli_lineage.lineage_app)
app.add_typer(cli_lineage.lineage_app, name="lineage")
app.command()(cli_run.run)
app.command()(cli_tune.tune)
app.add_typer(cli_sweep.app, name="sweep")
app.command()(cli_promote.promote)


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
            # None where it cannot be made to be counted.
            "agents": None if (missing := entry.missing()) else _agent_count(env_id, kwargs),
            "actions": entry.action_kind,
            "behaviours": list(entry.behaviours),
            "reference": reference_returns(env_id, {}),
            "missing": missing,
        }
        for env_id, entry in ENVIRONMENTS.items()
    ]
    if as_json:
        print_json(entries)
        return
    for entry in entries:
        reference = entry["reference"]
        print(f"{entry['id']}\n    {entry['description']}")
        _print_fields(
            {
                "agents": entry["agents"] or "counted once it is installed",
                "actions": entry["actions"],
                "keywords": ", ".join(f"{k}={v}" for k, v in entry["kwargs"].items()) or "none",
                "behaviours": ", ".join(entry["behaviours"]),
                "mean return": "no references for these keywords"
                if reference is None
                else f"random {reference['random']:.2f} (0), expert {reference['expert']:.2f} (100)",
            }
            | ({"missing": entry["missing"]} if entry["missing"] else {}),
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

    from macflow.envs.registry import copies, make_env, normalized_return, reference_returns
    from macflow.evaluation.returns import summarise_returns
    from macflow.evaluation.rollout import rollout
    from macflow.policy import load_policy

    # A batch this small gains nothing from more threads, and waits for them where cores are busy.
    torch.set_num_threads(1)
    policy = load_policy(path)
    env_id, kwargs = chosen_env(policy.manifest.get("env"), env, parse_kwargs(env_kwarg), path)
    reference = reference_returns(env_id, kwargs)
    workers = 2 if episodes >= EPISODES_WORTH_A_WORKER and (os.cpu_count() or 1) > 1 else 1
    environment = make_env(env_id, kwargs, copies(env_id, min(EVALUATED_TOGETHER, episodes)), workers)
    try:
        check_fit(path, policy.spec, env_id, environment.spec)
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
        print_json(about | {"episodes": episodes, "seed": seed} | found)
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


def _with_kwargs(env_id: str, kwargs: Mapping[str, Any]) -> str:
    return env_id + (f" ({', '.join(f'{k}={v}' for k, v in kwargs.items())})" if kwargs else "")


def _print_fields(fields: Mapping[str, Any], indent: int = 0) -> None:
    width = max(len(name) for name in fields)
    for name, value in fields.items():
        print(f"{' ' * indent}{name:<{width}}  {value}")


if __name__ == "__main__":
    main()
