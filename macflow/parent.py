"""Processes that end with the one that started them."""

from __future__ import annotations

import ctypes
import os
import signal
import sys


def die_with_parent() -> None:
    """Ask Linux to end this process when its parent ends, however it ends."""
    if sys.platform == "linux":
        # A starter that ignores SIGTERM hands that down, and the request would then do nothing.
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        parent = os.getppid()
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)
        if os.getppid() != parent:  # the parent ended before the request was made
            sys.exit(1)
