"""Optuna's journal in a file that can be written again after its writer was killed at any moment."""

from __future__ import annotations

from pathlib import Path

from filelock import FileLock
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock


class ProcessLock(JournalFileOpenLock):
    """A lock that ends with its process, however that ends; Optuna's own is a file that stays behind."""

    def __init__(self, file: Path) -> None:
        super().__init__(str(file))
        self._lock = FileLock(file)

    def acquire(self) -> bool:
        self._lock.acquire()
        return True

    def release(self) -> None:
        self._lock.release()


def open_journal(file: Path) -> JournalStorage:
    """Open or begin the journal `file`; an entry that was not written to its end is taken out."""
    lock = ProcessLock(file.with_name(f"{file.name}.guard"))
    if file.exists():
        lock.acquire()
        try:
            content = file.read_bytes()
            whole = content.rfind(b"\n") + 1
            if whole < len(content):
                with file.open("r+b") as journal:
                    journal.truncate(whole)
        finally:
            lock.release()
    return JournalStorage(JournalFileBackend(str(file), lock))
