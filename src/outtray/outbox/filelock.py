"""A lock on a file that the kernel releases when its holder dies; never shared with a forked child."""

from __future__ import annotations

import os
import sys
from _weakrefset import WeakSet

from outtray import forking

if sys.platform == "win32":
    import msvcrt

    _FAR_AWAY = 1 << 30  # msvcrt locks bytes against reading too, so the locked one lies behind all content

    def _lock(descriptor: int) -> None:
        os.lseek(descriptor, _FAR_AWAY, os.SEEK_SET)
        msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)

    def _unlock(descriptor: int) -> None:
        os.lseek(descriptor, _FAR_AWAY, os.SEEK_SET)
        msvcrt.locking(descriptor, msvcrt.LK_UNLCK, 1)

    def _read(descriptor: int, size: int) -> bytes:
        os.lseek(descriptor, 0, os.SEEK_SET)
        return os.read(descriptor, size)

    def _write(descriptor: int, data: bytes) -> None:
        os.lseek(descriptor, 0, os.SEEK_SET)
        os.write(descriptor, data)
else:
    import fcntl

    def _lock(descriptor: int) -> None:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def _unlock(descriptor: int) -> None:
        fcntl.flock(descriptor, fcntl.LOCK_UN)

    def _read(descriptor: int, size: int) -> bytes:
        return os.pread(descriptor, size, 0)

    def _write(descriptor: int, data: bytes) -> None:
        os.pwrite(descriptor, data, 0)


_all: WeakSet[FileLock] = WeakSet()


class FileLock:
    """An exclusive lock on the file *path*, which also holds a few bytes of content.

    Threads of one process that use the same object are not parted by it: they need a lock of their own.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self._descriptor = -1
        _all.add(self)

    @property
    def is_open(self) -> bool:
        """Whether the file is open in this process."""
        return self._descriptor >= 0

    def open(self, *, create: bool) -> None:
        """Open the file, made with mode 0600 whatever the umask if *create*. Raises OSError."""
        flags = os.O_RDWR | getattr(os, "O_BINARY", 0) | getattr(os, "O_NOFOLLOW", 0)
        self._descriptor = os.open(self.path, flags | (os.O_CREAT if create else 0), 0o600)
        if create and sys.platform != "win32" and os.fstat(self._descriptor).st_mode & 0o777 != 0o600:
            os.fchmod(self._descriptor, 0o600)

    def try_acquire(self) -> bool:
        """Take the lock and return True, or False at once if somebody has it. Raises OSError."""
        try:
            _lock(self._descriptor)
        except (BlockingIOError, PermissionError):  # the second is what Windows says
            return False
        return True

    def release(self) -> None:
        """Give the lock back; the file stays open."""
        _unlock(self._descriptor)

    def close(self) -> None:
        """Close the file, which gives the lock back if no forked process shares it."""
        if self._descriptor >= 0:
            descriptor, self._descriptor = self._descriptor, -1
            os.close(descriptor)

    def read(self, size: int) -> bytes:
        """Return the first *size* bytes of the content, fewer if there are fewer."""
        return _read(self._descriptor, size)

    def write(self, data: bytes) -> None:
        """Put *data* at the start of the content."""
        _write(self._descriptor, data)

    def sync(self) -> None:
        """Have the content on the disk before returning."""
        os.fsync(self._descriptor)

    def is_at_path(self) -> bool:
        """Tell whether *path* still names the open file (and not a new one, or nothing)."""
        try:
            there, here = os.stat(self.path), os.fstat(self._descriptor)
        except OSError:
            return False
        return (there.st_dev, there.st_ino) == (here.st_dev, here.st_ino)


def _close_all_in_child() -> None:
    """Close every lock file in a forked child; its descriptors share the parent's locks: unlocking would end those."""
    for lock in list(_all):
        lock.close()


forking.in_child.append(_close_all_in_child)
