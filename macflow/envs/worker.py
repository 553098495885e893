"""The program of one worker process: steps its share of a batch until its pipe closes."""

from __future__ import annotations

import json
import signal
import sys
from multiprocessing.connection import Connection

import numpy as np

from macflow.envs import wire
from macflow.envs.batched import LocalBatch
from macflow.envs.registry import make_parallel


def serve(pipe: Connection, task: str) -> None:
    """Answer each command of the batch; every exception is reported there, none is lost."""
    try:
        wanted = json.loads(task)
        batch = LocalBatch(lambda: make_parallel(wanted["env_id"], wanted["kwargs"]), wanted["n_envs"])
    except Exception as error:
        wire.answer_error(pipe, error)
        return
    layout = wire.Layout(batch.spec, batch.n_envs)
    wire.answer(pipe, json.dumps({"spec": batch.spec.to_dict(), "max_steps": batch.max_steps}).encode())
    while True:
        message = pipe.recv_bytes()
        command, payload = message[:1], message[1:]
        try:
            if command == wire.RESET:
                result = wire.obs_bytes(batch.reset(np.frombuffer(payload, np.int64).tolist()))
            elif command == wire.STEP:
                result = wire.step_bytes(batch.step(layout.read_actions(payload)))
            else:
                result = wire.frame_bytes(batch.render(int(payload)))
        except Exception as error:
            wire.answer_error(pipe, error)
        else:
            wire.answer(pipe, result)


if __name__ == "__main__":
    # Ctrl-C reaches the whole process group; the batch's owner decides when to close.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        serve(Connection(int(sys.argv[1])), sys.argv[2])
    except (EOFError, OSError):
        sys.exit(0)
