"""Having the write-ahead log on the disk: one fsync for all who wait, through one descriptor that stays open.

It stays open because the kernel tells of a failed write-back once for each descriptor: who opens the file
afterwards hears nothing of it. SQLite keeps no locks on the log, so opening and closing it harms nobody.
"""

from __future__ import annotations

import os
import sys
import threading
from queue import Empty, SimpleQueue

from outtray import journal
from outtray.outbox.filelock import write
from outtray.outbox.files import open_descriptor

if sys.platform == "darwin":
    import fcntl

    def _fsync(descriptor: int) -> None:
        fcntl.fcntl(descriptor, fcntl.F_FULLFSYNC)  # fsync there leaves the data in the disk's cache
elif hasattr(os, "fdatasync"):
    _fsync = os.fdatasync  # all but the moment of the change, which would cost another write for each sync
else:
    _fsync = os.fsync


LOOK_AGAIN = 0.05
"""Seconds after which a waiting thread looks for itself whether somebody syncs, at most: its call may be lost."""

LOG_AHEAD = 256 * 1024
"""Bytes by which the log is made longer at once: a sync of what lies within it has no size and no blocks to write."""


class Waiter:
    """One append that waits for the disk; *is_settled* once it is known how that went, with *error* if it failed.

    *calls* wakes its thread, to go on or to sync for all; a queue, as a signal handler may put into it at any moment.
    """

    __slots__ = ("calls", "error", "is_settled")

    def __init__(self) -> None:
        self.is_settled = False
        self.error: OSError | None = None
        self.calls: SimpleQueue[None] = SimpleQueue()

    def sleep(self) -> None:
        """Return when called, or after `LOOK_AGAIN`."""
        try:
            self.calls.get(timeout=LOOK_AGAIN)
        except Empty:
            return


class Sync:
    """The write-ahead log of the database that is open, if one is."""

    def __init__(self) -> None:
        self._turn = threading.RLock()
        self._waiting: list[Waiter] = []
        self._descriptor = -1
        self._path = ""
        self._is_entry_synced = False
        self._size = 0
        self._is_growing = False

    def open(self, path: str) -> None:
        """Begin with the log at *path*, which a connection has open. Raises OSError."""
        with self._turn:
            self.close()
            self._descriptor = open_descriptor(path, os.O_RDWR)
            self._path = path
            self._is_entry_synced = self._is_growing = False
            self._size = 0

    def close(self) -> None:
        """Settle those who wait, and let go of the log."""
        with self._turn:
            if self._waiting:
                self._settle_all()
            if self._descriptor >= 0:
                descriptor, self._descriptor = self._descriptor, -1
                os.close(descriptor)

    def before_fork(self) -> None:
        """Wait until no other thread syncs: a call that waits for that thread may go on in the child."""
        self._turn.acquire()

    def after_fork_in_parent(self) -> None:
        """Let the other threads go on."""
        self._turn.release()

    def after_fork_in_child(self) -> None:
        """Let go of the log: what the parent's threads wait for is the parent's to sync."""
        self._waiting = []
        self.close()
        self._turn.release()

    def join(self) -> Waiter:
        """Return a waiter for what was committed just now; only inside the gate."""
        if self._is_growing:
            self._lengthen()
        waiter = Waiter()
        self._waiting.append(waiter)
        return waiter

    def wait(self, waiter: Waiter) -> None:
        """Return when what *waiter* stands for is on the disk. Raises OSError if that is not known.

        One of the waiting threads syncs for all that have committed by then; a failure is theirs for good. Then it
        calls the next one of those that came meanwhile.
        """
        while not waiter.is_settled:
            if not self._turn.acquire(blocking=False):
                waiter.sleep()
                continue
            try:
                if not waiter.is_settled:
                    self._settle_all(waiter)
            finally:
                self._turn.release()
                self._call_next()
        if waiter.error is not None:
            raise waiter.error

    def all(self) -> None:
        """Have everything on the disk that was committed before. Raises OSError."""
        waiter = Waiter()
        try:
            with self._turn:
                self._settle_all(waiter)
        finally:
            self._call_next()
        if waiter.error is not None:
            raise waiter.error

    def _settle_all(self, *also: Waiter) -> None:
        waiting, self._waiting = self._waiting, []
        error: OSError | None = None
        try:
            self._sync()
        except OSError as failure:
            error = failure
        for waiter in (*waiting, *also):
            waiter.error, waiter.is_settled = error, True
            waiter.calls.put(None)

    def _call_next(self) -> None:
        """Have one of those that wait by now sync for all of them."""
        for waiter in self._waiting[:1]:
            waiter.calls.put(None)

    def _lengthen(self) -> None:
        """Write zeros behind the log, which SQLite takes for its end; only inside the gate."""
        self._is_growing = False
        try:
            end = os.fstat(self._descriptor).st_size
            self._size = end + write(self._descriptor, bytes(LOG_AHEAD), end)
        except OSError as error:  # no room, perhaps: then the log grows as it needs to
            journal.failed("making the log longer", error)

    def _sync(self) -> None:
        descriptor = self._descriptor
        if descriptor < 0:
            self._sync_closed()
            return
        _fsync(descriptor)
        if not self._is_entry_synced:
            sync_directory(os.path.dirname(self._path))
            self._is_entry_synced = True
        found = os.fstat(descriptor)
        self._is_growing = found.st_size > self._size > 0
        self._size = found.st_size
        if found.st_nlink == 0:
            raise FileNotFoundError(f"{self._path} was deleted while it was in use")

    def _sync_closed(self) -> None:
        """Sync the log of a database that is closed: it is still there if another process has it open."""
        if not self._path or not os.path.exists(self._path):
            return  # it was checkpointed, and with that synced, by whoever closed last
        descriptor = os.open(self._path, os.O_RDWR)
        try:
            _fsync(descriptor)
        finally:
            os.close(descriptor)
        sync_directory(os.path.dirname(self._path))


def sync_directory(path: str) -> None:
    """Have the directory's entries on the disk; nothing to do where directories cannot be opened (Windows)."""
    if os.name == "nt":
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
