"""Agents in processes of their own: they act as they would together, and say what is wrong."""

from __future__ import annotations

import io
import json
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from data_samples import make_episodes, make_spec
from typer.testing import CliRunner

from macflow.cli import app
from macflow.data.minari_store import read_minari
from macflow.data.normalizer import Normalizer
from macflow.data.rows import stack_episodes
from macflow.deploy import agent as program
from macflow.deploy.processes import AgentProcesses
from macflow.envs.registry import env_spec, make_env
from macflow.nets.policy import Noise
from macflow.policy import Acting, build_policy, load_policy, save_policy
from macflow.types import DataError, MultiAgentSpec

SPREAD = {"id": "mpe/spread", "kwargs": {"n_agents": 2}, "version": "1"}


def write_bundle(folder: Path, spec: MultiAgentSpec, noise: Noise = "individual", env: Any = None) -> Path:
    rows = stack_episodes(make_episodes(spec, [5, 5]), spec)
    normalizer = Normalizer.fit(rows.obs, rows.state, rows.rewards, rows.train_rows)
    net = build_policy(spec, "shared", noise, (8,), torch.Generator().manual_seed(0))
    folder.mkdir()
    manifest = {"params": {"distill": {"sharing": "shared", "hidden": [8]}}, "env": env}
    save_policy(folder, spec, normalizer, net, Acting(1.0, 1), None, manifest)
    return folder


def spread_bundle(folder: Path, noise: Noise = "individual") -> Path:
    return write_bundle(folder, env_spec("mpe/spread", SPREAD["kwargs"]), noise, SPREAD)


def played_together(bundle: Path, env_id: str, kwargs: dict[str, Any], seed: int, steps: int) -> Any:
    """Return the actions of an episode in which one policy acts for all agents."""
    policy, env = load_policy(bundle), make_env(env_id, kwargs, 1)
    policy.seed(seed)
    seen, actions = env.reset([seed]), []
    for _ in range(steps):
        legal = None
        if seen.legal_actions is not None:
            legal = dict(zip(env.spec.agent_ids, seen.legal_actions[0], strict=True))
        chosen = policy.act(dict(zip(env.spec.agent_ids, seen.obs[0], strict=True)), legal)
        actions.append([chosen[agent] for agent in env.spec.agent_ids])
        seen = env.step(np.array([actions[-1]]))
    return np.array(actions)


@pytest.mark.parametrize("noise", ["individual", "common"])
def test_agents_apart_act_as_they_do_together(tmp_path: Path, noise: Noise) -> None:
    bundle = spread_bundle(tmp_path / "policy", noise)
    env = make_env("mpe/spread", SPREAD["kwargs"], 1)
    with AgentProcesses(bundle, env.spec.agent_ids, 30) as agents:
        for seed in (3, 4):
            agents.reset([seed])
            seen, actions = env.reset([seed]), []
            for _ in range(6):
                actions.append(agents.act(seen)[0])
                seen = env.step(actions[-1][None])
            together = played_together(bundle, "mpe/spread", SPREAD["kwargs"], seed, 6)
            np.testing.assert_array_equal(np.array(actions), together)


def test_an_agent_answers_line_by_line_and_says_what_it_cannot(tmp_path: Path) -> None:
    spec = make_spec(discrete=True)
    policy = load_policy(write_bundle(tmp_path / "policy", spec))
    lines = [
        {"seed": 5},
        {"obs": [0.0] * 4, "legal_actions": [0, 1, 0]},
        {"obs": [0.0] * 3},
        {"legal_actions": [1, 1, 1]},
        {"seed": -1},
        [1],
    ]
    text = "".join(json.dumps(line) + "\n" for line in lines) + "no json\n" + json.dumps({"obs": [0.0] * 4})
    answers = io.StringIO()
    program.serve(policy, "agent_1", io.StringIO(text), answers)
    hello, action, short, nothing, seed, array, garbage, last = map(
        json.loads, answers.getvalue().splitlines()
    )
    assert hello == {"agent": "agent_1", "spec": spec.to_dict()}
    assert action == {"action": 1}
    assert "must have shape (4,), received (3,)" in short["error"]
    assert "must have `seed` or `obs`, received ['legal_actions']" in nothing["error"]
    assert "`seed` must be 0 or more, received -1" in seed["error"]
    assert "must hold a JSON object" in array["error"]
    assert "agent_1: " in garbage["error"]
    assert last["action"] in (0, 1, 2)


def test_an_agent_that_ends_is_named(tmp_path: Path) -> None:
    bundle = spread_bundle(tmp_path / "policy")
    env = make_env("mpe/spread", SPREAD["kwargs"], 1)
    with AgentProcesses(bundle, env.spec.agent_ids, 30) as agents:
        agents.reset([0])
        victim = agents._agents[1].process
        os.kill(victim.pid, signal.SIGKILL)
        victim.wait()
        with pytest.raises(DataError, match=r"the process of agent_1 ended with code -9"):
            agents.act(env.reset([0]))


def test_an_agent_that_is_late_is_named_and_nobody_is_left_behind(tmp_path: Path) -> None:
    bundle = spread_bundle(tmp_path / "policy")
    env = make_env("mpe/spread", SPREAD["kwargs"], 1)
    agents = AgentProcesses(bundle, env.spec.agent_ids, 0.5)
    processes = [one.process for one in agents._agents]
    agents.reset([0])
    os.kill(processes[0].pid, signal.SIGSTOP)
    with pytest.raises(DataError, match=r"agent_0 did not answer within 0.5 seconds"):
        agents.act(env.reset([0]))
    os.kill(processes[0].pid, signal.SIGCONT)
    agents.close()
    assert [process.poll() is not None for process in processes] == [True, True]


def test_a_broken_bundle_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"policy.json: file not found"):
        AgentProcesses(tmp_path / "nothing", ["agent_0"], 30)


def test_run_keeps_what_was_played(tmp_path: Path) -> None:
    bundle = spread_bundle(tmp_path / "policy", "common")
    out = tmp_path / "played"
    command = ["run", str(bundle), "--episodes", "2", "--seed", "7", "--out", str(out), "--json"]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0, done.output
    said = json.loads(done.output)
    episodes, spec, meta = read_minari(out)
    assert [episode.seed for episode in episodes] == [7, 8]
    assert spec == env_spec("mpe/spread", SPREAD["kwargs"])
    assert meta["env"]["kwargs"]["n_agents"] == 2
    assert said["returns"] == pytest.approx([episode.team_return for episode in episodes])
    together = played_together(bundle, "mpe/spread", SPREAD["kwargs"], 8, 25)
    np.testing.assert_array_equal(episodes[1].actions, together)


def test_run_refuses_a_folder_that_holds_something(tmp_path: Path) -> None:
    bundle = spread_bundle(tmp_path / "policy")
    kept = tmp_path / "kept"
    kept.mkdir()
    (kept / "mine.txt").write_text("mine")
    done = CliRunner().invoke(app, ["run", str(bundle), "--out", str(kept)])
    assert isinstance(done.exception, DataError)
    assert "holds something already; name a new folder with --out" in str(done.exception)
    assert [file.name for file in kept.iterdir()] == ["mine.txt"]


def test_run_refuses_an_environment_of_other_agents(tmp_path: Path) -> None:
    bundle = spread_bundle(tmp_path / "policy")
    command = ["run", str(bundle), "--env-kwarg", "n_agents=3", "--out", str(tmp_path / "played")]
    done = CliRunner().invoke(app, command)
    assert isinstance(done.exception, DataError)
    assert "the policy is for 2 agents" in str(done.exception)
    assert not (tmp_path / "played").exists()
