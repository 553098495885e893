"""`macflow baseline`: train, evaluate and list the offline multi-agent methods to compare with."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from macflow.cli_common import AsJson, describe_agents, print_json
from macflow.types import ConfigError, DataError

EVALUATED_TOGETHER = 50

app = typer.Typer(no_args_is_help=True, help="Offline multi-agent methods to compare MAC-Flow with.")


class Device(StrEnum):
    """Where nets are trained."""

    cpu = "cpu"
    cuda = "cuda"


@app.command("list")
def list_baselines(as_json: AsJson = False) -> None:
    """List the methods and their settings, as `--set` takes them."""
    from macflow.algorithms.baselines.registry import METHODS

    found: dict[str, dict[str, Any]] = {
        name: {"description": method.description, "settings": method.settings().model_dump(mode="json")}
        for name, method in METHODS.items()
    }
    if as_json:
        print_json(found)
        return
    for name, entry in found.items():
        settings = " ".join(f"{key}={value}" for key, value in entry["settings"].items())
        print(f"{name}\n    {entry['description']}\n    {settings}\n")


@app.command()
def train(
    method: Annotated[str, typer.Argument(help="A name of `macflow baseline list`.")],
    data: Annotated[Path, typer.Option(help="Prepared dataset.")] = Path("data/prepared"),
    out: Annotated[
        Path | None, typer.Option(help="Folder to write; models/baselines/METHOD if not given.")
    ] = None,
    steps: Annotated[int, typer.Option(min=1, help="Gradient steps.")] = 10_000,
    batch_size: Annotated[int, typer.Option(min=1, help="Transitions per step.")] = 256,
    learning_rate: Annotated[float, typer.Option(help="Of Adam, constant.")] = 3e-4,
    hidden: Annotated[str, typer.Option(help="Widths of the hidden layers of every net.")] = "256,256",
    seed: Annotated[int, typer.Option(min=0, help="Of initial weights and batches.")] = 0,
    device: Annotated[Device, typer.Option(help="Where to train.")] = Device.cpu,
    threads: Annotated[int, typer.Option(min=1, help="Torch threads; part of the result's bytes.")] = 1,
    settings: Annotated[
        list[str], typer.Option("--set", metavar="NAME=VALUE", help="A setting, repeatable: alpha=1.0.")
    ] = [],  # noqa: B006
) -> None:
    """Train a method; an interrupted training goes on when it is started again."""
    from macflow.algorithms.baselines.registry import find_method
    from macflow.training.baselines import TrainingSettings, train_baseline

    find_method(method)
    target = Path("models/baselines") / method if out is None else out
    training = TrainingSettings(
        steps, batch_size, learning_rate, _widths(hidden), seed, device.value, threads
    )
    train_baseline(method, data, target, training, _settings(settings))
    print(f"{target}: {method}, {steps} steps of {batch_size} transitions from {data}")


@app.command()
def evaluate(
    path: Annotated[Path, typer.Argument(help="Trained baseline: a folder with baseline.json.")],
    episodes: Annotated[int, typer.Option(min=1, help="Episodes to play.")] = 100,
    seed: Annotated[int, typer.Option(min=0, help="Episode i has seed SEED + i.")] = 1000,
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Also write what was measured as JSON.")
    ] = None,
) -> None:
    """Measure a trained baseline's mean return in the environment that its data come from."""
    from macflow.files import write_json

    found = _measure(path, episodes, seed)
    if json_file is not None:
        write_json(json_file, found)
    low, high = found["return_ci95_low"], found["return_ci95_high"]
    interval = "one episode has no interval" if low is None else f"95% interval {low:.2f} to {high:.2f}"
    print(
        f"{path}: {found['method']} in {found['env']}, {episodes} episodes from seed {seed}: "
        f"mean return {found['return_mean']:.2f} ({interval})"
    )


def _measure(path: Path, episodes: int, seed: int) -> dict[str, Any]:
    import torch

    from macflow.envs.registry import copies, make_env, normalized_return, reference_returns
    from macflow.evaluation.returns import summarise_returns
    from macflow.evaluation.rollout import rollout
    from macflow.training.baselines import load_baseline

    # A batch this small gains nothing from more threads, and waits for them where cores are busy.
    torch.set_num_threads(1)
    baseline = load_baseline(path)
    env = baseline.manifest.get("env")
    if env is None:
        raise DataError(f"{path}: its data name no environment to play in")
    env_id, kwargs = env["id"], env["kwargs"]
    reference = reference_returns(env_id, kwargs)
    with closing(make_env(env_id, kwargs, copies(env_id, min(EVALUATED_TOGETHER, episodes)), 1)) as played:
        # Most methods act without the state, which imported data may have in another form.
        size = baseline.spec.state_size if not baseline.learner.acts_on_state else played.spec.state_size
        if replace(played.spec, state_size=size) != baseline.spec:
            raise DataError(
                f"{path}: the baseline is for {describe_agents(baseline.spec)} and a state of size "
                f"{baseline.spec.state_size}; {env_id} has {describe_agents(played.spec)} and a state of "
                f"size {played.spec.state_size}"
            )
        result = rollout(played, baseline.actor(), episodes, seed)
    normalise = None if reference is None else lambda value: normalized_return(value, reference)
    about = {
        "baseline": str(path),
        "method": baseline.manifest["method"],
        "settings": baseline.manifest["settings"],
        "training": baseline.manifest["training"],
        "env": env_id,
        "env_kwargs": kwargs,
        "episodes": episodes,
        "seed": seed,
    }
    return about | summarise_returns(result.returns, result.lengths, normalise, seed)


def _settings(pairs: Sequence[str]) -> dict[str, Any]:
    """Read `NAME=VALUE`; the method's rules turn the text into what they want."""
    found = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not name or not equals:
            raise ConfigError(f"`--set`: must be NAME=VALUE (received {pair!r})")
        found[name] = value
    return found


def _widths(text: str) -> tuple[int, ...]:
    parts = text.split(",")
    if not all(part.strip().isdecimal() for part in parts):
        raise ConfigError(f"`--hidden`: must be whole numbers with commas between (received {text!r})")
    return tuple(int(part) for part in parts)
