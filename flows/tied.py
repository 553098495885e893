"""Run a Python command that ends when the process that started it ends.

    python flows/tied.py PARENT_PID PYTHON_ARGUMENT...

Linux only; elsewhere the command runs untied. A launcher instead of `Popen(preexec_fn=...)`, which can
deadlock in a process with threads, and Prefect's task runner is nothing but threads.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1
# Tells a tied process and what it starts the id of that process, which stays true after its end.
TIED_PID = "MACFLOW_TIED_PID"


def end_with_parent(parent: int) -> None:
    """Ask Linux for SIGTERM once `parent` has ended; exit at once if it already has."""
    if sys.platform != "linux":
        return
    if ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGTERM):
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG) failed")
    if os.getppid() != parent:  # it ended before the request was made
        sys.exit(1)


def command(*arguments: str) -> list[str]:
    """Return the command that runs `python ARGUMENTS` tied to the calling process."""
    return [sys.executable, os.path.abspath(__file__), str(os.getpid()), *arguments]


if __name__ == "__main__":
    # A starter that ignores SIGTERM hands that down, and the request would then do nothing.
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    end_with_parent(int(sys.argv[1]))
    os.environ[TIED_PID] = str(os.getpid())
    # The request survives the exec, and the process keeps the id that its starter knows.
    os.execv(sys.executable, [sys.executable, *sys.argv[2:]])
