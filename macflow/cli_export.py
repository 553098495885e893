"""`macflow export policy` and `macflow bench act`: policies for other runtimes, and how fast they act."""

from __future__ import annotations

import importlib.util
import logging
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from macflow.cli_common import AsJson, print_json
from macflow.types import ConfigError, DataError

export_app = typer.Typer(no_args_is_help=True, help="Policies for other runtimes.")
bench_app = typer.Typer(no_args_is_help=True, help="Measure what was trained.")

# What each format needs beyond macflow's own dependencies.
NEEDED = {"onnx": ("onnx", "onnxscript"), "torch": ()}


class FormatName(StrEnum):
    """What an export is written for."""

    onnx = "onnx"
    torch = "torch"


@export_app.command("policy")
def export(
    path: Annotated[Path, typer.Argument(help="Policy bundle: a folder with policy.json.")],
    form: Annotated[
        FormatName, typer.Option("--format", help="onnx; or torch, a program of torch.export.")
    ] = FormatName.onnx,
    out: Annotated[Path, typer.Option(help="Folder to write; must be new or empty.")] = Path("exported"),
    as_json: AsJson = False,
) -> None:
    """Write a graph of all agents, and one of each agent, that need neither macflow nor the bundle."""
    missing = [name for name in NEEDED[form.value] if importlib.util.find_spec(name) is None]
    if missing:
        raise ConfigError(
            f"`--format {form.value}`: {', '.join(missing)} is not installed; "
            "install it with: pip install 'macflow[export]'"
        )
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise DataError(f"{out}: holds something already; name a new folder with --out")
    from macflow.export import export_policy
    from macflow.files import replace_directory
    from macflow.policy import load_policy

    # It warns of operators of torchvision, which nothing here has.
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    policy = load_policy(path)
    with replace_directory(out) as folder:
        names = [file.name for file in export_policy(path, policy, folder, form.value)]
    if as_json:
        print_json({"policy": str(path), "format": form.value, "out": str(out), "files": names})
        return
    print(f"{len(names)} graphs in {out}: {names[0]} of all agents, and one of each")


@bench_app.command("act")
def act(
    path: Annotated[Path, typer.Argument(help="Policy bundle: a folder with policy.json.")],
    exported: Annotated[
        Path | None, typer.Option(help="Folder of `macflow export policy --format onnx`, to time as well.")
    ] = None,
    repeats: Annotated[int, typer.Option(min=100, help="Joint actions to time.")] = 5000,
    as_json: AsJson = False,
) -> None:
    """Time joint actions, numpy in and out, on one thread: the bundle's, and an export's."""
    import torch

    from macflow.deploy.timing import acting_times
    from macflow.policy import load_policy

    torch.set_num_threads(1)
    policy = load_policy(path)
    ways: dict[str, Any] = {"bundle": policy}
    if exported is not None:
        if importlib.util.find_spec("onnxruntime") is None:
            raise ConfigError(
                "`--exported`: onnxruntime is not installed; install it with: pip install 'macflow[export]'"
            )
        from macflow.deploy.onnx_policy import OnnxPolicy

        try:
            ways["export"] = OnnxPolicy(exported)
        except (OSError, ValueError, KeyError) as error:
            raise DataError(f"{exported}: not an export in the format onnx: {error}") from None
    found = {name: acting_times(way, policy.spec, repeats) for name, way in ways.items()}
    if as_json:
        print_json({"policy": str(path), "agents": policy.spec.n_agents, "joint_action_us": found})
        return
    print(f"a joint action of {policy.spec.n_agents} agents, microseconds ({repeats} times, one thread)")
    for name, times in found.items():
        print(f"{name:8}" + "".join(f"  {share} {value:8.1f}" for share, value in times.items()))
