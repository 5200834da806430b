"""A lock on a file that the kernel releases when its holder dies; never shared with a forked child.

A signal handler may fork while another method is under way, and that method goes on in the child. So each looks at
the descriptor and uses it in one step, without a call of a Python function between, in which a handler could come:
the number may be another file's by then.
"""

from __future__ import annotations

import errno
import os
import sys
from _weakrefset import WeakSet

from outtray import forking
from outtray.outbox.files import open_descriptor

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType

if sys.platform == "win32":
    import msvcrt

    _TAKE, _GIVE_BACK = msvcrt.LK_NBLCK, msvcrt.LK_UNLCK
    _FAR_AWAY = 1 << 30  # msvcrt locks bytes against reading too, so the locked one lies behind all content

    def _lock(descriptor: int, operation: int) -> None:
        os.lseek(descriptor, _FAR_AWAY, os.SEEK_SET)
        msvcrt.locking(descriptor, operation, 1)

    def _read(descriptor: int, size: int, offset: int) -> bytes:
        os.lseek(descriptor, offset, os.SEEK_SET)
        return os.read(descriptor, size)

    def write(descriptor: int, data: bytes, offset: int) -> int:
        """Write *data* at *offset* and return how many bytes of it."""
        os.lseek(descriptor, offset, os.SEEK_SET)
        return os.write(descriptor, data)
else:
    import fcntl

    _TAKE, _GIVE_BACK = fcntl.LOCK_EX | fcntl.LOCK_NB, fcntl.LOCK_UN
    _lock, _read, write = fcntl.flock, os.pread, os.pwrite


_all: WeakSet[FileLock] = WeakSet()


class FileLock:
    """An exclusive lock on the file *path*, which also holds a few bytes of content.

    Threads of one process that use the same object are not parted by it: they need a lock of their own. *is_open* tells
    whether the file is open in this process. One that *is_inherited* was made before this process was forked, and is
    closed for good.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self.is_inherited = False
        self.is_open = False
        self._descriptor = -1
        self._identity = (0, 0)  # device and inode
        _all.add(self)

    def open(self, *, create: bool) -> None:
        """Open the file, made with mode 0600 whatever the umask if *create*. Raises OSError."""
        flags = os.O_RDWR | getattr(os, "O_NOFOLLOW", 0) | (os.O_CREAT if create else 0)
        self._descriptor = open_descriptor(self.path, flags)
        self.is_open = True
        if self.is_inherited:  # perhaps by a fork just now: then the descriptor shares the parent's lock
            self.close()
            raise _inherited()
        found = os.fstat(self._descriptor)
        self._identity = (found.st_dev, found.st_ino)
        if create and sys.platform != "win32" and found.st_mode & 0o777 != 0o600:
            os.fchmod(self._descriptor, 0o600)

    def __del__(self, close: Callable[[int], None] = os.close) -> None:
        # Of a call that an exception of a signal handler tore, wherever it was: nobody else could give the lock back.
        if self._descriptor >= 0:
            close(self._descriptor)

    def try_acquire(self) -> bool:
        """Take the lock and return True, or False at once if somebody has it. Raises OSError."""
        try:
            if self.is_inherited:
                raise _inherited()
            _lock(self._descriptor, _TAKE)
        except (BlockingIOError, PermissionError):  # the second is what Windows says
            return False
        return True

    def release(self) -> None:
        """Give the lock back if the file is open, which it stays."""
        if self._descriptor >= 0:
            _lock(self._descriptor, _GIVE_BACK)

    def close(self) -> None:
        """Close the file, which gives the lock back if no forked process shares it."""
        self.is_open = False
        if self._descriptor >= 0:
            descriptor, self._descriptor = self._descriptor, -1
            os.close(descriptor)

    def read(self, size: int) -> bytes:
        """Return the first *size* bytes of the content, fewer if there are fewer."""
        return _read(self._descriptor, size, 0)

    def write(self, data: bytes) -> None:
        """Put *data* at the start of the content."""
        write(self._descriptor, data, 0)

    def sync(self) -> None:
        """Have the content on the disk before returning."""
        os.fsync(self._descriptor)

    def is_at_path(self) -> bool:
        """Tell whether *path* still names the open file (and not a new one, or nothing)."""
        if not self.is_open:
            return False
        try:
            there = os.stat(self.path)
        except OSError:
            return False
        return (there.st_dev, there.st_ino) == self._identity


def _inherited() -> OSError:
    return OSError(errno.EBADF, "this process was forked in the middle of a call, which goes on in its parent")


def _close_all_in_child(_: FrameType) -> None:
    """Close every lock file in a forked child; its descriptors share the parent's locks: unlocking would end those."""
    for lock in list(_all):
        lock.is_inherited = True
        lock.close()


forking.in_child.append(_close_all_in_child)
