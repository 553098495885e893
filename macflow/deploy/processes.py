"""All agents of a policy, each in a process of its own that is told its own observation and nothing else."""

from __future__ import annotations

import json
import os
import selectors
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from macflow.types import ActionArray, DataError, MultiAgentSpec, Seen

# Loading torch takes seconds, many times that where all agents do so at once on few cores.
START_SECONDS = 300.0
CLOSE_SECONDS = 5.0
CHUNK_BYTES = 1 << 16


class AgentProcesses:
    """Act in one environment by a process per agent, as an `Actor`; leave it as a context to end them."""

    def __init__(self, policy: Path, agent_ids: Sequence[str], timeout: float) -> None:
        """Start the agents of the bundle `policy`.

        Args:
            timeout: seconds that an agent may take to answer.

        Raises:
            DataError: what an agent says is wrong with the bundle, or that it ended.
        """
        self._agents: list[_Agent] = []
        self._timeout = timeout
        try:
            self._agents += [_Agent(policy, agent_id) for agent_id in agent_ids]
            hello = [agent.answer(START_SECONDS) for agent in self._agents]
        except BaseException:
            self.close()
            raise
        self.spec = MultiAgentSpec.from_dict(hello[0]["spec"])

    def reset(self, seeds: Sequence[int]) -> None:
        """Begin an episode; `seeds` has one, which all agents are told."""
        for agent in self._agents:
            agent.tell({"seed": int(seeds[0])})

    def act(self, seen: Seen) -> ActionArray:
        """Tell each agent its own part of obs (1, N, O) and return their actions (1, N, A) or (1, N)."""
        legal = seen.legal_actions
        for i, agent in enumerate(self._agents):
            message: dict[str, Any] = {"obs": seen.obs[0, i, : self.spec.obs_dims[i]].tolist()}
            if legal is not None:
                message["legal_actions"] = legal[0, i].tolist()
            agent.tell(message)
        answers = [agent.answer(self._timeout)["action"] for agent in self._agents]
        actions: ActionArray = np.array([answers], np.int64 if self.spec.discrete else np.float32)
        return actions

    def close(self) -> None:
        """End the processes; closing twice is allowed."""
        for agent in self._agents:
            agent.hang_up()
        for agent in self._agents:
            agent.wait()
        self._agents = []

    def __enter__(self) -> AgentProcesses:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class _Agent:
    """One process, asked and answering by lines."""

    def __init__(self, policy: Path, agent_id: str) -> None:
        self.agent_id = agent_id
        self.process = subprocess.Popen(
            [sys.executable, "-m", "macflow.deploy.agent", str(policy), agent_id],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        self.buffer = b""

    def tell(self, message: Mapping[str, Any]) -> None:
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(json.dumps(message).encode() + b"\n")
            self.process.stdin.flush()
        except OSError:
            raise self._ended() from None

    def answer(self, timeout: float) -> dict[str, Any]:
        answer = json.loads(self._line(timeout))
        if "error" in answer:
            raise DataError(answer["error"])
        found: dict[str, Any] = answer
        return found

    def hang_up(self) -> None:
        if self.process.stdin is not None:
            with suppress(OSError):
                self.process.stdin.close()

    def wait(self) -> None:
        try:
            self.process.wait(CLOSE_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        if self.process.stdout is not None:
            self.process.stdout.close()

    def _line(self, timeout: float) -> bytes:
        assert self.process.stdout is not None
        deadline = time.monotonic() + timeout
        with selectors.DefaultSelector() as waiting:
            waiting.register(self.process.stdout, selectors.EVENT_READ)
            while b"\n" not in self.buffer:
                if not waiting.select(max(0.0, deadline - time.monotonic())):
                    raise DataError(f"{self.agent_id} did not answer within {timeout:g} seconds")
                chunk = os.read(self.process.stdout.fileno(), CHUNK_BYTES)
                if not chunk:
                    raise self._ended()
                self.buffer += chunk
        line, _, self.buffer = self.buffer.partition(b"\n")
        return line

    def _ended(self) -> DataError:
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(CLOSE_SECONDS)
        return DataError(f"the process of {self.agent_id} ended with code {self.process.returncode}")
