"""Step many environments together, in this process or split over spawned ones."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from multiprocessing.connection import Connection, Pipe
from typing import Any

import numpy as np

from macflow.envs import wire
from macflow.envs.base import BatchStep, Frame, JointEnv, action_masks, check_actions, check_seeds, spec_of
from macflow.types import ActionArray, BatchObs, ConfigError, DataError, MultiAgentSpec

# How long a worker may take to leave after it was asked to.
CLOSE_SECONDS = 5.0


class LocalBatch:
    """Hold E parallel environments in this process."""

    def __init__(self, make: Callable[[], JointEnv], n_envs: int) -> None:
        if n_envs < 1:
            raise ConfigError(f"`n_envs`: at least 1 (received {n_envs})")
        self._envs = [make() for _ in range(n_envs)]
        self.spec = spec_of(self._envs[0])
        self.n_envs = n_envs
        self.max_steps = self._envs[0].max_cycles
        n, e = self.spec.n_agents, n_envs
        self._obs = np.zeros((e, n, self.spec.obs_size), np.float32)
        self._state = np.zeros((e, self.spec.state_size), np.float32)
        self._legal = np.ones((e, n, self.spec.action_size), np.bool_) if self.spec.discrete else None
        self._terminated = np.zeros(e, np.bool_)
        self._truncated = np.zeros(e, np.bool_)
        self._started = False

    def reset(self, seeds: Sequence[int]) -> BatchObs:
        check_seeds(seeds, self.n_envs)
        self._terminated[:] = False
        self._truncated[:] = False
        self._started = True
        for i, (env, seed) in enumerate(zip(self._envs, seeds, strict=True)):
            obs, infos = env.reset(seed=int(seed))
            self._observe(i, env, obs, infos)
        return BatchObs(*self._copies())

    def step(self, actions: ActionArray) -> BatchStep:
        if not self._started:
            raise DataError("`step` needs a `reset` before it")
        actions = check_actions(actions, self.spec, self.n_envs)
        rewards = np.zeros((self.n_envs, self.spec.n_agents), np.float32)
        agents = self.spec.agent_ids
        for i, env in enumerate(self._envs):
            if self._terminated[i] or self._truncated[i]:
                continue
            obs, reward, terminations, truncations, infos = env.step(
                dict(zip(agents, actions[i], strict=True))
            )
            self._observe(i, env, obs, infos)
            rewards[i] = [reward[agent] for agent in agents]
            self._terminated[i] = all(terminations.values())
            self._truncated[i] = all(truncations.values())
        return BatchStep(*self._copies(), rewards, self._terminated.copy(), self._truncated.copy())

    def render(self, index: int) -> Frame:
        frame: Frame = self._envs[index].render()
        return frame

    def close(self) -> None:
        for env in self._envs:
            env.close()
        self._envs = []

    def _observe(
        self, i: int, env: JointEnv, obs: Mapping[str, Any], infos: Mapping[str, Mapping[str, Any]]
    ) -> None:
        for row, (agent, size) in enumerate(zip(self.spec.agent_ids, self.spec.obs_dims, strict=True)):
            self._obs[i, row, :size] = obs[agent]
        self._state[i] = env.state()
        if self._legal is not None:
            self._legal[i] = action_masks(self.spec, infos)

    def _copies(self) -> tuple[Any, Any, Any]:
        return self._obs.copy(), self._state.copy(), None if self._legal is None else self._legal.copy()


class WorkerBatch:
    """Split E environments over processes; results are those of a `LocalBatch`, bit by bit.

    Workers are started as programs of their own, not by `multiprocessing`, which would import the
    caller's main module (and with it torch) into each. They end when this object is closed, and
    when this process ends in whatever way, because their pipe then does.
    """

    def __init__(self, env_id: str, kwargs: Mapping[str, Any], n_envs: int, workers: int) -> None:
        if workers < 1:
            raise ConfigError(f"`workers`: at least 1 (received {workers})")
        if n_envs < 1:
            raise ConfigError(f"`n_envs`: at least 1 (received {n_envs})")
        workers = min(workers, n_envs)
        self.n_envs = n_envs
        bounds = [n_envs * w // workers for w in range(workers + 1)]
        self._slices = [slice(a, b) for a, b in itertools.pairwise(bounds)]
        self._pipes: list[Connection] = []
        self._processes: list[subprocess.Popen[bytes]] = []
        try:
            for part in self._slices:
                self._start({"env_id": env_id, "kwargs": dict(kwargs), "n_envs": part.stop - part.start})
            hello = json.loads(self._answers()[0])
        except BaseException:
            self.close()
            raise
        self.spec = MultiAgentSpec.from_dict(hello["spec"])
        self.max_steps = int(hello["max_steps"])
        self._layouts = [wire.Layout(self.spec, part.stop - part.start) for part in self._slices]

    def reset(self, seeds: Sequence[int]) -> BatchObs:
        check_seeds(seeds, self.n_envs)
        for pipe, part in zip(self._pipes, self._slices, strict=True):
            wire.send(pipe, wire.RESET, np.asarray(seeds[part], np.int64).tobytes())
        answers = zip(self._layouts, self._answers(), strict=True)
        return wire.join_obs([layout.read_obs(payload) for layout, payload in answers])

    def step(self, actions: ActionArray) -> BatchStep:
        actions = check_actions(actions, self.spec, self.n_envs)
        for pipe, part in zip(self._pipes, self._slices, strict=True):
            wire.send(pipe, wire.STEP, actions[part].tobytes())
        answers = zip(self._layouts, self._answers(), strict=True)
        return wire.join_steps([layout.read_step(payload) for layout, payload in answers])

    def render(self, index: int) -> Frame:
        worker = next(w for w, part in enumerate(self._slices) if index < part.stop)
        wire.send(self._pipes[worker], wire.RENDER, str(index - self._slices[worker].start).encode())
        return wire.read_frame(wire.receive(self._pipes[worker]))

    def close(self) -> None:
        for pipe in self._pipes:
            pipe.close()
        for process in self._processes:
            try:
                process.wait(CLOSE_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self._pipes, self._processes = [], []

    def __del__(self) -> None:
        with suppress(Exception):
            self.close()

    def _answers(self) -> list[bytes]:
        """Hear every worker, then raise the first error: an unread answer would meet the next question."""
        answers, errors = [], []
        for pipe in self._pipes:
            try:
                answers.append(wire.receive(pipe))
            except Exception as error:
                errors.append(error)
        if errors:
            raise errors[0]
        return answers

    def _start(self, task: dict[str, Any]) -> None:
        ours, theirs = Pipe()
        self._pipes.append(ours)
        with theirs:
            self._processes.append(
                subprocess.Popen(
                    [sys.executable, "-m", "macflow.envs.worker", str(theirs.fileno()), json.dumps(task)],
                    pass_fds=[theirs.fileno()],
                    stdin=subprocess.DEVNULL,
                    # One numeric thread each: a batch already has a process per core.
                    env={**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
                )
            )
