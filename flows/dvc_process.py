"""Run `dvc`, or another program, as a child: live lines, readable failures, no orphans. Knows no Prefect."""

from __future__ import annotations

import io
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import psutil
from dvc.lock import LockError, make_lock
from dvc.rwlock import RWLOCK_FILE, RWLOCK_LOCK

from flows import tied

# Progress bars redraw their line several times a second: pass on one drawing per this many seconds.
REDRAW_SECONDS = 5.0
# Between asking a process to end and ending it.
GRACE_SECONDS = 5.0
TAIL_LINES = 200
MESSAGE_CHARACTERS = 2000

# What DVC says where another DVC process is in the way: the only failures that waiting can cure.
BUSY = re.compile(r"Unable to acquire lock|is busy, it is being blocked by|database is locked")
UP_TO_DATE = re.compile(r"^Stage '.*' (didn't change, skipping|is cached - skipping run)")
DVC_FAILURE = re.compile(r"^ERROR: failed to reproduce ")

# Nothing reports to anybody; DVC's state of file hashes stays inside the project.
PRIVACY = {"DO_NOT_TRACK": "1", "DVC_NO_ANALYTICS": "1", "GX_ANALYTICS_ENABLED": "false"}

Outcome = Literal["ran", "up to date"]


class StageError(Exception):
    """A stage failed; the text is its own last message."""


class BusyError(StageError):
    """The stage did not run, or was not recorded, because another DVC process held a lock."""


class StoppedError(StageError):
    """The stage was ended by `stop_all`."""


@dataclass(frozen=True)
class StageResult:
    stage: str
    outcome: Outcome
    seconds: float


class _Children:
    """The DVC processes of this process, so that a cancelled run can end them all."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._live: set[subprocess.Popen[bytes]] = set()
        self._stopped = False

    def reset(self) -> None:
        with self._lock:
            self._stopped = False

    def start(self, command: list[str], root: Path) -> subprocess.Popen[bytes]:
        # Started under the lock: after `stop` no child can appear that it did not see.
        with self._lock:
            if self._stopped:
                raise StoppedError("stopped before it began")
            child = subprocess.Popen(
                command,
                cwd=root,
                env=environment(root),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
            )
            self._live.add(child)
            return child

    def forget(self, child: subprocess.Popen[bytes]) -> None:
        with self._lock:
            self._live.discard(child)

    def stop(self) -> None:
        with self._lock:
            self._stopped = True
            live = list(self._live)
        _end_trees([child.pid for child in live])

    @property
    def stopped(self) -> bool:
        return self._stopped


_children = _Children()


def begin_run(root: Path) -> list[str]:
    """Make ready for a run; return what had to be repaired."""
    _children.reset()
    return clear_stale_locks(root)


def stop_all() -> None:
    """End every DVC process started here, with its stage; later starts raise `StoppedError`."""
    _children.stop()


def environment(root: Path) -> dict[str, str]:
    """Return the environment of a stage: this interpreter is `python`, and nothing phones home."""
    scripts = os.path.dirname(sys.executable)
    return {
        "DVC_SITE_CACHE_DIR": str(root / ".dvc" / "tmp" / "site"),
        **os.environ,
        **PRIVACY,
        "PATH": os.pathsep.join([scripts, os.environ.get("PATH", os.defpath)]),
        "PYTHONUNBUFFERED": "1",
    }


def run_module(root: Path, *arguments: str, on_line: Callable[[str], None]) -> tuple[int, list[str]]:
    """Run `python -m ARGUMENTS`, hand on each line as it comes; return the exit status and the last lines."""
    child = _children.start(tied.command("-m", *arguments), root)
    tail: deque[str] = deque(maxlen=TAIL_LINES)
    try:
        assert child.stdout is not None  # a pipe was asked for
        for line in _lines(io.TextIOWrapper(child.stdout, encoding="utf-8", errors="replace", newline="")):
            tail.append(line)
            on_line(line)
        return child.wait(), list(tail)
    finally:
        if child.poll() is None:
            _end_trees([child.pid])
        child.wait()
        _children.forget(child)


def run_dvc(root: Path, *arguments: str, on_line: Callable[[str], None]) -> tuple[int, list[str]]:
    """Run `dvc ARGUMENTS` as `run_module` does."""
    return run_module(root, "dvc", *arguments, on_line=on_line)


def run_stage(root: Path, stage: str, force: bool, on_line: Callable[[str], None]) -> StageResult:
    """Bring one stage up to date, without those before or after it.

    Raises:
        BusyError: another DVC process was in the way; trying again can help.
        StoppedError: `stop_all` was called.
        StageError: anything else, with the stage's own last message.
    """
    started = time.monotonic()
    # The flag belongs to `dvc`, not to `repro`. Without it a stage that ends while another one is
    # hashing its outputs is lost: DVC gives up after 3 s and the finished work is not recorded.
    options = ["--single-item", *(["--force"] if force else [])]
    status, tail = run_dvc(root, "--wait-for-lock", "repro", *options, stage, on_line=on_line)
    if _children.stopped:
        raise StoppedError(f"{stage}: stopped")
    if status:
        message = failure_message(stage, status, tail)
        raise (BusyError if any(BUSY.search(line) for line in tail) else StageError)(message)
    skipped = any(UP_TO_DATE.match(line) for line in tail)
    return StageResult(stage, "up to date" if skipped else "ran", round(time.monotonic() - started, 2))


def failure_message(stage: str, status: int, tail: list[str]) -> str:
    """Return what the stage itself said last, or else what DVC said, or how it ended.

    A stage reports its errors as `STAGE: text`, perhaps over several lines; other programs are taken by
    their last line, which is where Python prints the exception.
    """
    end = next((i for i, line in enumerate(tail) if DVC_FAILURE.match(line)), len(tail))
    own = [line for line in tail[:end] if line.strip() and not line.startswith("> ")]
    if own and end < len(tail):
        start = next((i for i in reversed(range(len(own))) if own[i].startswith(f"{stage}: ")), None)
        said = "\n".join(own[start:]) if start is not None else own[-1]
        if not said.startswith(("Running stage ", "WARNING: ")):
            return said[:MESSAGE_CHARACTERS]
    errors = [line.removeprefix("ERROR: ") for line in tail if line.startswith("ERROR: ")]
    if status < 0:
        return f"{stage}: dvc was ended by {signal.Signals(-status).name}"
    return f"{stage}: {' '.join(errors) or f'dvc exited with {status} and said nothing'}"[:MESSAGE_CHARACTERS]


def clear_stale_locks(root: Path) -> list[str]:
    """Repair DVC's table of busy paths after a DVC process was killed; return what was done.

    Killed while writing, it leaves a table that is no JSON, and every later command fails. Killed later,
    it leaves entries under its process id, which DVC respects as soon as any new process has that id.
    The guard file is held meanwhile, as by DVC itself, so no other process can be half-way through.
    """
    folder = root / ".dvc" / "tmp"
    table = folder / RWLOCK_FILE
    if not table.exists():
        return []
    try:
        with make_lock(str(folder / RWLOCK_LOCK)):
            try:
                busy = json.loads(table.read_text(encoding="utf-8"))
            except ValueError:
                table.unlink()
                return [f"removed {table}: a DVC process was killed while writing it"]
            holders = {info["pid"] for paths in busy.values() for x in paths.values() for info in _as_list(x)}
            gone = {pid for pid in holders if not _is_dvc(pid)}
            if not gone:
                return []
            for mode, paths in busy.items():
                for path, infos in list(paths.items()):
                    kept = [info for info in _as_list(infos) if info["pid"] not in gone]
                    if not kept:
                        del paths[path]
                    elif mode == "read":
                        paths[path] = kept
            table.write_text(json.dumps(busy), encoding="utf-8")
            return [f"released what process {pid} of a killed run held" for pid in sorted(gone)]
    except (LockError, FileNotFoundError):
        return []  # a DVC process is at work on the table right now, so it is not left over


def _as_list(infos: Any) -> list[dict[str, Any]]:
    return infos if isinstance(infos, list) else [infos]  # readers are many, a writer is one


def _is_dvc(pid: int) -> bool:
    try:
        # `dvc ...`, `python -m dvc ...` or `python .../dvc/__main__.py ...`
        words = [Path(word) for word in psutil.Process(pid).cmdline()]
        return any(word.stem == "dvc" or word.parts[-2:] == ("dvc", "__main__.py") for word in words)
    except psutil.NoSuchProcess:
        return False
    except psutil.AccessDenied:
        return True


def _lines(stream: io.TextIOWrapper) -> Iterator[str]:
    """Yield non-empty lines without their ends; of a redrawn line, one drawing now and then."""
    last_drawn = 0.0
    for raw in stream:
        if not (line := raw.rstrip()):
            continue
        if raw.endswith("\r"):
            if time.monotonic() - last_drawn < REDRAW_SECONDS:
                continue
            last_drawn = time.monotonic()
        yield line


def _end_trees(pids: list[int]) -> None:
    """End processes and their descendants, DVC before its stage.

    The other way round DVC would see its stage fail and be killed while it writes its lock table.
    """
    roots = [process for pid in pids if (process := _process(pid))]
    descendants = [child for process in roots for child in _descendants(process)]
    for generation in (roots, descendants):
        for process in generation:
            _signal(process, signal.SIGTERM)
        _, alive = psutil.wait_procs(generation, timeout=GRACE_SECONDS)
        for process in alive:
            _signal(process, signal.SIGKILL)


def _process(pid: int) -> psutil.Process | None:
    try:
        return psutil.Process(pid)
    except psutil.NoSuchProcess:
        return None


def _descendants(process: psutil.Process) -> list[psutil.Process]:
    try:
        children: list[psutil.Process] = process.children(recursive=True)
        return children
    except psutil.NoSuchProcess:
        return []


def _signal(process: psutil.Process, number: signal.Signals) -> None:
    try:
        process.send_signal(number)
    except psutil.NoSuchProcess:
        pass
