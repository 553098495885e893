"""`macflow run`: play with every agent in a process of its own, and keep what was played."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Annotated, Any

import typer

from macflow.cli_common import AsJson, EnvKwargs, check_fit, chosen_env, parse_kwargs, print_json
from macflow.types import DataError, MultiAgentSpec


def run(
    path: Annotated[Path, typer.Argument(help="Policy bundle: a folder with policy.json.")],
    env: Annotated[
        str | None, typer.Option(help="Environment id; as stored in the bundle if not given.")
    ] = None,
    episodes: Annotated[int, typer.Option(min=1, help="Episodes to play; Ctrl-C ends sooner.")] = 10,
    seed: Annotated[
        int, typer.Option(min=0, help="Episode i has seed SEED + i, which all agents are told.")
    ] = 0,
    out: Annotated[
        Path, typer.Option(help="Folder for the episodes, a Minari dataset; must be new or empty.")
    ] = Path("data/played"),
    timeout: Annotated[float, typer.Option(min=0.001, help="Seconds that an agent may take to act.")] = 10.0,
    env_kwarg: EnvKwargs = [],  # noqa: B006
    as_json: AsJson = False,
) -> None:
    """Play with each agent in its own process, told its own observation alone, and keep the episodes.

    The folder written is data for the pipeline: name it in params.yaml as `prepare.raw`.
    """
    from macflow.data.minari_store import write_minari
    from macflow.data.record import record_episodes
    from macflow.deploy.processes import AgentProcesses
    from macflow.envs.registry import ENVIRONMENTS, full_kwargs, make_env
    from macflow.files import digest, read_json, replace_directory

    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise DataError(f"{out}: holds something already; name a new folder with --out")
    manifest: Mapping[str, Any] = read_json(path / "policy.json")
    env_id, kwargs = chosen_env(manifest.get("env"), env, parse_kwargs(env_kwarg), path)
    played = []
    with closing(make_env(env_id, kwargs, 1)) as environment:
        check_fit(path, MultiAgentSpec.from_dict(manifest["spec"]), env_id, environment.spec)
        with AgentProcesses(path, environment.spec.agent_ids, timeout) as agents:
            try:
                for number in range(episodes):
                    played += record_episodes(environment, agents, 1, seed + number)
                    if not as_json:
                        print(f"episode {number}: return {played[-1].team_return:.3f}", flush=True)
            except KeyboardInterrupt:
                if not played:
                    raise
        with replace_directory(out) as folder:
            write_minari(
                folder,
                f"{env_id.replace('/', '-')}/played-v0",
                played,
                environment.spec,
                {
                    "id": env_id,
                    "kwargs": full_kwargs(env_id, kwargs),
                    "version": ENVIRONMENTS[env_id].version(),
                },
                {"name": "macflow", "policy": str(path), "policy_digest": digest(path), "seed": seed},
            )
    returns = [episode.team_return for episode in played]
    mean, steps = sum(returns) / len(returns), sum(episode.length for episode in played)
    if as_json:
        about = {"policy": str(path), "env": env_id, "env_kwargs": kwargs, "out": str(out), "seed": seed}
        print_json(about | {"episodes": len(played), "steps": steps, "returns": returns, "return_mean": mean})
        return
    print(f"{len(played)} episodes, {steps} steps, mean return {mean:.3f}; kept in {out}")
