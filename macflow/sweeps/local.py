"""Run cells on this machine, each in a process of its own with all that it starts."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from macflow.files import write_json
from macflow.sweeps.cell import failure_file, outcome_file
from macflow.sweeps.plan import Cell

# Between asking a cell to end and ending it.
GRACE_SECONDS = 5.0
# Times that a cell is tried whose process was ended by something else.
ATTEMPTS = 2


class LocalEngine:
    """Cells as processes, a number of them at a time, that end with whoever runs them."""

    def __init__(self, project: Path, store: Path, jobs: int) -> None:
        self._project, self._store, self._jobs = project.absolute(), store.absolute(), jobs
        self._lock = threading.Lock()
        self._live: set[subprocess.Popen[str]] = set()
        self._stopped = False

    def run(self, cells: Sequence[Cell], on_end: Callable[[Cell], None]) -> None:
        """Run `cells`; `on_end` is told of each that has come to an end, well or not.

        Interrupted, it ends what is running, and what was finished stays.
        """
        previous = signal.signal(signal.SIGTERM, _interrupt)
        try:
            with ThreadPoolExecutor(self._jobs) as pool:
                futures = [pool.submit(self._one, cell, on_end) for cell in cells]
                try:
                    for future in futures:
                        future.result()
                except BaseException:
                    self._stop()
                    pool.shutdown(cancel_futures=True)
                    raise
        finally:
            signal.signal(signal.SIGTERM, previous)

    def _one(self, cell: Cell, on_end: Callable[[Cell], None]) -> None:
        code, said = 0, ""
        for _ in range(ATTEMPTS):
            code, said = self._try(cell)
            if self._stopped:
                return
            if code == 0:
                break
        else:
            words = said.strip().splitlines()
            reason = f"its process ended with code {code}: {words[-1] if words else 'no word'}"
            write_json(failure_file(self._store, cell), {"error": reason})
        on_end(cell)

    def _try(self, cell: Cell) -> tuple[int, str]:
        # Started under the lock: after `_stop` no process can appear that it did not see.
        with self._lock:
            if self._stopped:
                return 0, ""
            child = subprocess.Popen(
                [sys.executable, "-m", "macflow.sweeps.cell", str(self._project), str(self._store)],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
                env={**os.environ, "PYTHONPATH": str(self._project)},
                # A group of its own, with all its stages: Ctrl-C reaches this process alone, which ends them.
                start_new_session=True,
            )
            self._live.add(child)
        try:
            _, said = child.communicate(json.dumps(cell.to_dict()))
        finally:
            with self._lock:
                self._live.discard(child)
        return child.returncode, said

    def _stop(self) -> None:
        with self._lock:
            self._stopped = True
            live = list(self._live)
        for child in live:
            _signal(child, signal.SIGTERM)
        for child in live:
            try:
                child.wait(GRACE_SECONDS)
            except subprocess.TimeoutExpired:
                pass
            # Stages that outlived their cell, too.
            _signal(child, signal.SIGKILL)


def unfinished(cells: Sequence[Cell], store: Path) -> list[Cell]:
    """Return the cells that no outcome is there of, each once."""
    return list({cell.key: cell for cell in cells if not outcome_file(store, cell).exists()}.values())


def _signal(child: subprocess.Popen[str], number: signal.Signals) -> None:
    try:
        os.killpg(child.pid, number)
    except ProcessLookupError:
        pass


def _interrupt(number: int, frame: object) -> None:
    raise KeyboardInterrupt
