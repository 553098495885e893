"""Messages between a batch and its worker processes: plain array bytes in a fixed order, no pickle."""

from __future__ import annotations

import json
import traceback
from collections.abc import Sequence
from multiprocessing.connection import Connection
from typing import Any

import numpy as np

from macflow.envs.base import BatchStep, Frame
from macflow.types import ActionArray, BatchObs, ConfigError, DataError, MacflowError, MultiAgentSpec

RESET, STEP, RENDER = b"r", b"s", b"f"
_OK, _ERROR = b"+", b"!"
_ERRORS: dict[str, type[MacflowError]] = {"ConfigError": ConfigError, "DataError": DataError}


class WorkerError(RuntimeError):
    """A worker process failed or vanished."""


def send(pipe: Connection, command: bytes, payload: bytes) -> None:
    """Ask a worker; one that has gone raises `WorkerError`."""
    try:
        pipe.send_bytes(command + payload)
    except OSError as error:
        raise WorkerError(f"an environment worker ended unexpectedly: {error}") from None


def receive(pipe: Connection) -> bytes:
    """Return a worker's answer, or raise the error that it reports."""
    try:
        answer = pipe.recv_bytes()
    except (EOFError, OSError) as error:
        raise WorkerError(f"an environment worker ended unexpectedly: {error!r}") from None
    if answer[:1] == _OK:
        return answer[1:]
    report = json.loads(answer[1:])
    if report["kind"] in _ERRORS:
        raise _ERRORS[report["kind"]](report["message"])
    raise WorkerError(f"an environment worker failed:\n{report['traceback']}")


def answer(pipe: Connection, payload: bytes) -> None:
    """Report success to the batch."""
    pipe.send_bytes(_OK + payload)


def answer_error(pipe: Connection, error: Exception) -> None:
    """Report an exception to the batch, which raises it there."""
    report = {
        "kind": type(error).__name__,
        "message": str(error),
        "traceback": "".join(traceback.format_exception(error)),
    }
    pipe.send_bytes(_ERROR + json.dumps(report).encode())


Arrays = list[tuple[type[np.generic], tuple[int, ...]]]


class Layout:
    """Order and shapes of the arrays of one worker's share."""

    def __init__(self, spec: MultiAgentSpec, n_envs: int) -> None:
        n = spec.n_agents
        legal = (n_envs, n, spec.action_size) if spec.discrete else (0,)
        self._obs: Arrays = [
            (np.float32, (n_envs, n, spec.obs_size)),
            (np.float32, (n_envs, spec.state_size)),
            (np.bool_, legal),
        ]
        self._step: Arrays = [
            *self._obs,
            (np.float32, (n_envs, n)),
            (np.bool_, (n_envs,)),
            (np.bool_, (n_envs,)),
        ]
        self._discrete = spec.discrete
        self._actions: tuple[type[np.generic], tuple[int, ...]] = (
            (np.int64, (n_envs, n)) if spec.discrete else (np.float32, (n_envs, n, spec.action_size))
        )

    def read_actions(self, payload: bytes) -> ActionArray:
        actions: ActionArray = _read(payload, [self._actions])[0]
        return actions

    def read_obs(self, payload: bytes) -> BatchObs:
        obs, state, legal = _read(payload, self._obs)
        return BatchObs(obs, state, legal if self._discrete else None)

    def read_step(self, payload: bytes) -> BatchStep:
        obs, state, legal, *rest = _read(payload, self._step)
        return BatchStep(obs, state, legal if self._discrete else None, *rest)


def obs_bytes(batch: BatchObs) -> bytes:
    """Lay out a batch of observations."""
    return _bytes(batch.obs, batch.state, batch.legal_actions)


def step_bytes(step: BatchStep) -> bytes:
    """Lay out the result of a step."""
    return _bytes(step.obs, step.state, step.legal_actions, step.rewards, step.terminated, step.truncated)


def frame_bytes(frame: Frame) -> bytes:
    """Lay out a picture: height and width, then its pixels."""
    return np.asarray(frame.shape[:2], np.int64).tobytes() + np.ascontiguousarray(frame).tobytes()


def read_frame(payload: bytes) -> Frame:
    """Read what `frame_bytes` wrote."""
    height, width = np.frombuffer(payload, np.int64, 2)
    return np.frombuffer(payload, np.uint8, offset=16).reshape(height, width, 3).copy()


def join_obs(parts: Sequence[BatchObs]) -> BatchObs:
    """Put the workers' shares together, in order."""
    return BatchObs(
        *(_join([getattr(part, name) for part in parts]) for name in ("obs", "state", "legal_actions"))
    )


def join_steps(parts: Sequence[BatchStep]) -> BatchStep:
    """Put the workers' shares together, in order."""
    names = ("obs", "state", "legal_actions", "rewards", "terminated", "truncated")
    return BatchStep(*(_join([getattr(part, name) for part in parts]) for name in names))


def _bytes(*arrays: np.ndarray[Any, Any] | None) -> bytes:
    return b"".join(array.tobytes() for array in arrays if array is not None)


def _read(payload: bytes, layout: Arrays) -> list[Any]:
    arrays, offset = [], 0
    for kind, shape in layout:
        count = int(np.prod(shape))
        arrays.append(np.frombuffer(payload, kind, count, offset).reshape(shape).copy())
        offset += arrays[-1].nbytes
    return arrays


def _join(arrays: Sequence[Any]) -> Any:
    return None if arrays[0] is None else np.concatenate(arrays)
