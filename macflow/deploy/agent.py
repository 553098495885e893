"""The program of one deployed agent: its own observations in, its own actions out, a JSON object per line.

    python -m macflow.deploy.agent models/policy agent_0

It first says who it is: {"agent": "agent_0", "spec": {...}}. Then, line by line:

    {"seed": 7}                                       begin an episode; no answer
    {"obs": [0.1, ...]}                               {"action": [0.4, -1.0]}, or {"action": 3}
    {"obs": [0.1, ...], "legal_actions": [1, 0, 1]}   the same, where not every action is legal

What cannot be answered is answered by {"error": "..."}. With common noise the seed is what agents share:
all begin an episode with the same one and answer every step of it.
"""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Mapping
from typing import Any, TextIO

import numpy as np
import torch

from macflow.policy import AgentPolicy, Policy, load_policy
from macflow.types import MacflowError


def serve(policy: Policy, agent_id: str, lines: TextIO, answers: TextIO) -> None:
    """Answer each line until there is none."""
    agent = policy.agent(agent_id)
    _say(answers, {"agent": agent_id, "spec": policy.spec.to_dict()})
    for line in lines:
        try:
            asked = json.loads(line)
            if not isinstance(asked, dict):
                raise ValueError(f"a line must hold a JSON object, received {line.strip()!r}")
            if "seed" in asked:
                policy.seed(asked["seed"])
            else:
                _say(answers, {"action": _action(agent, asked)})
        except (ValueError, TypeError, KeyError) as error:
            _say(answers, {"error": f"{agent_id}: {error}"})


def _action(agent: AgentPolicy, asked: Mapping[str, Any]) -> Any:
    if "obs" not in asked:
        raise ValueError(f"a line must have `seed` or `obs`, received {sorted(asked)}")
    action = agent.act(asked["obs"], asked.get("legal_actions"))
    return action.tolist() if isinstance(action, np.ndarray) else action


def _say(answers: TextIO, content: Mapping[str, Any]) -> None:
    print(json.dumps(content), file=answers, flush=True)


def main() -> None:
    """Serve the agent named on the command line."""
    # Ctrl-C reaches all of a terminal's processes; whoever started this one ends it by closing its input.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    path, agent_id = sys.argv[1:]
    try:
        serve(load_policy(path), agent_id, sys.stdin, sys.stdout)
    except (MacflowError, ValueError) as error:
        _say(sys.stdout, {"error": str(error)})
        sys.exit(1)


if __name__ == "__main__":
    main()
