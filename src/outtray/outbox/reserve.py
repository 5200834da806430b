"""The reserve: a file whose room is given back when the disk is full, so that what was delivered can be written down.

Settling writes to the write-ahead log, and the log shrinks only by a checkpoint that needs room itself.
"""

from __future__ import annotations

import os

from outtray.outbox.files import reserve_path

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

SIZE = 8 * 1024 * 1024
"""Bytes: as much as the write-ahead log grows to, with its cap of 1,500 pages and the last transaction."""

_AT_ONCE = 256 * 1024


def has_room(directory: str) -> bool:
    """Tell whether the disk has so much room that the reserve can stand beside new messages. Raises OSError."""
    if not hasattr(os, "statvfs"):
        import shutil

        return shutil.disk_usage(directory).free > 2 * SIZE
    found = os.statvfs(directory)
    return found.f_bavail * found.f_frsize > 2 * SIZE


def fill(directory: str, go_on: Callable[[], bool]) -> bool:
    """Write the reserve as far as it is missing, while *go_on* says so, and return whether it is whole.

    Raises OSError.
    The content is random, so that no file system stores less of it. Two that do it at a time do it together.
    """
    path = reserve_path(directory)
    if os.path.exists(path) and os.stat(path).st_size >= SIZE:
        return True
    if not has_room(directory):
        return False
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | getattr(os, "O_BINARY", 0) | getattr(os, "O_NOFOLLOW", 0)
    descriptor = os.open(path, flags, 0o600)
    try:
        if hasattr(os, "fchmod"):
            os.fchmod(descriptor, 0o600)
        while (is_missing := os.fstat(descriptor).st_size < SIZE) and go_on():
            os.write(descriptor, os.urandom(_AT_ONCE))
    finally:
        os.close(descriptor)
    return not is_missing


def give_back(directory: str) -> bool:
    """Delete the reserve and return True, False if there is none. Raises OSError."""
    path = reserve_path(directory)
    if not os.path.lexists(path):
        return False
    os.unlink(path)
    return True
