"""The reserve: a file whose room is given back when the disk is full, so that what was delivered can be written down.

Settling writes to the write-ahead log, and the log shrinks only by a checkpoint that needs room itself.
"""

from __future__ import annotations

import os

from outtray.outbox.files import reserve_path
from outtray.paths import without_waiting

SIZE = 8 * 1024 * 1024
"""Bytes: as much as the write-ahead log grows to, with its cap of `LOG_PAGES` and the last transaction."""

LOG_PAGES = 1_500
"""Pages of 4 KiB after which the log is moved into the database, on a disk on which the reserve has its whole size."""

LEAST_SIZE = 256 * 1024
"""Bytes on a small disk, of which the reserve takes an eighth at most; measured: enough for thousands of settles."""


def has_room(directory: str) -> bool:
    """Tell whether the disk has so much room that the reserve can stand beside new messages. Raises OSError."""
    free, wanted = free_and_wanted(directory)
    return free > 2 * wanted


def log_pages(directory: str) -> int:
    """Return after how many pages the log is to be moved into the database, so that the reserve can hold it.

    Raises OSError.
    """
    _, wanted = free_and_wanted(directory)
    return LOG_PAGES * wanted // SIZE


def fill(directory: str) -> bool:
    """Make the reserve, or what is missing of it, if there is room; returns whether it is whole. Raises OSError."""
    path = reserve_path(directory)
    free, wanted = free_and_wanted(directory)
    size = os.stat(path).st_size if os.path.exists(path) else 0
    if size >= wanted:
        return True
    if free <= 2 * wanted:
        return False
    descriptor = without_waiting(path, os.O_WRONLY | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0))
    try:
        if hasattr(os, "fchmod"):
            os.fchmod(descriptor, 0o600)
        _allocate(descriptor, wanted)
    finally:
        os.close(descriptor)
    return True


def give_back(directory: str) -> bool:
    """Delete the reserve and return True, False if there is none. Raises OSError."""
    path = reserve_path(directory)
    if not os.path.lexists(path):
        return False
    os.unlink(path)
    return True


def free_and_wanted(directory: str) -> tuple[int, int]:
    """Return the bytes that are free on the disk, and the size that the reserve should have on it. Raises OSError."""
    if hasattr(os, "statvfs"):
        found = os.statvfs(directory)
        free, total = found.f_bavail * found.f_frsize, found.f_blocks * found.f_frsize
    else:
        import shutil

        usage = shutil.disk_usage(directory)
        free, total = usage.free, usage.total
    return free, min(SIZE, max(total // 8, LEAST_SIZE))


def _allocate(descriptor: int, size: int) -> None:
    """Have the file take *size* bytes of the disk: a hole would give nothing back, and written data slow every sync."""
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(descriptor, 0, size)
        return
    for offset in range(0, size, LEAST_SIZE):
        os.lseek(descriptor, offset, os.SEEK_SET)
        os.write(descriptor, os.urandom(min(LEAST_SIZE, size - offset)))  # random: no file system stores less of it
