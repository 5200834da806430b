"""Who is at an outbox: the processes behind its locks, and whether they still move."""

from __future__ import annotations

import os
import time

from outtray.delivery.lock import DrainLock
from outtray.errors import OutboxBusy
from outtray.outbox.filelock import FileLock
from outtray.outbox.files import drain_lock_path, gate_path

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

PATIENCE = 2.0
"""Seconds in which whoever moves gives the gate back, or shows a beat of the drain lock."""

PAUSE = 0.02
"""Seconds between two looks."""


class Process:
    """The process *pid*, 0 if nobody knows which; what it does is asked when it is looked at."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.state = _state(pid)

    def __str__(self) -> str:
        if not self.pid:
            return "some process"
        words = {"T": " (stopped)", "t": " (stopped by a debugger)", None: " (it has ended)"}
        return f"process {self.pid}{words.get(self.state, '')}"

    @property
    def is_stopped(self) -> bool:
        """Whether it was stopped, as with Ctrl-Z."""
        return self.state in ("T", "t")

    @property
    def advice(self) -> str:
        """What to do about it where it is in the way."""
        if self.is_stopped:
            return f"continue it (kill -CONT {self.pid}) or end it (kill {self.pid}; kill -CONT {self.pid})"
        return f"wait, or look at what process {self.pid} does" if self.pid else "see which programs use this outbox"


def holder(path: str, *, otherwise: Callable[[], int], patience: float = PATIENCE) -> Process | None:
    """Return who keeps the lock on the file *path*, None if it is free, or given back within *patience* (seconds).

    Where the system does not tell who has it, it is the pid that *otherwise* returns. Raises OSError.
    """
    end = time.monotonic() + patience
    lock = FileLock(path)
    lock.open(create=False)
    try:
        while not lock.try_acquire():
            process = Process(_owner(path) or otherwise())
            if process.is_stopped or time.monotonic() >= end:
                return process
            time.sleep(PAUSE)
    finally:
        lock.close()
    return None


def explained(error: OutboxBusy, directory: str) -> OutboxBusy:
    """Return *error* with who keeps the gate of *directory*, and what to do about that; as it is where nobody does."""
    try:
        process = holder(gate_path(directory), otherwise=lambda: 0, patience=0.0)  # the deadline has passed already
    except OSError:  # the gate is gone, or not for this user
        return error
    return error if process is None else OutboxBusy(f"{error}; {process} keeps the gate: {process.advice}")


def drainer(directory: str) -> tuple[Process, bool] | None:
    """Return who delivers, and whether it moves; None if nobody does. Raises OSError."""
    end = time.monotonic() + PATIENCE
    lock = FileLock(drain_lock_path(directory))  # not a `DrainLock`, which writes as it is taken
    lock.open(create=False)
    first = None
    try:
        while not lock.try_acquire():
            pid, beats = DrainLock.read(lock)
            first = beats if first is None else first
            process = Process(pid)
            if beats != first or process.is_stopped or time.monotonic() >= end:
                return process, beats != first
            time.sleep(PAUSE)
    finally:
        lock.close()
    return None


def _owner(path: str, table: str = "/proc/locks") -> int:
    """Return the pid that the system names for a lock on *path*, 0 where it tells none."""
    if not os.path.exists(table):
        return 0
    found = os.stat(path)
    with open(table, encoding="ascii", errors="replace") as file:
        for line in file:
            fields = line.split()
            if len(fields) > 5 and fields[1] == "FLOCK" and fields[5].endswith(f":{found.st_ino}"):
                major, minor, _ = fields[5].split(":")
                if (int(major, 16), int(minor, 16)) == (os.major(found.st_dev), os.minor(found.st_dev)):
                    return max(int(fields[4]), 0)
    return 0


def _state(pid: int) -> str | None:
    """Return the letter of the process's state, None if it has ended, and "" where that cannot be told."""
    if not os.path.isdir("/proc/self"):
        return ""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
            return file.read().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return None
