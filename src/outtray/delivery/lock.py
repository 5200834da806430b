"""One drainer per outbox: a lock of its own, beside the gate."""

from __future__ import annotations

import os
import struct

from outtray import journal
from outtray.errors import DiskFull
from outtray.outbox.connection import translated
from outtray.outbox.filelock import FileLock
from outtray.outbox.files import drain_lock_path


class DrainLock:
    """The right to drain one outbox, with the holder's pid and a beat that shows that it is not stopped."""

    LAYOUT = struct.Struct("<IQ")

    def __init__(self, directory: str) -> None:
        self._file = FileLock(drain_lock_path(directory))
        self._beats = 0

    def try_acquire(self) -> bool:
        """Take the lock and return True, or False at once if another thread or process has it. Raises OSError."""
        while True:
            if not self._file.is_open:
                self._file.open(create=True)
            is_taken = self._file.try_acquire()
            if self._file.is_at_path():
                break
            self._file.close()  # the outbox was removed: who drains the one that is there now has another file
        return is_taken and self.beat()

    def beat(self) -> bool:
        """Show that the holder is alive; False if the file was removed, and with it the right to drain."""
        self._beats += 1
        if not self._file.is_at_path():
            return False
        try:
            self._file.write(self.LAYOUT.pack(os.getpid(), self._beats))
        except OSError as error:
            if not isinstance(translated(error, self._file.path), DiskFull):
                raise
            journal.failed("showing others that this process delivers", error)
        return True

    def holder(self) -> tuple[int, int]:
        """Return pid and beat of the last holder."""
        return self.read(self._file)

    @classmethod
    def read(cls, file: FileLock) -> tuple[int, int]:
        """Return pid and beat of the last holder from *file*, zeros where there was none."""
        data = file.read(cls.LAYOUT.size)
        return cls.LAYOUT.unpack(data) if len(data) == cls.LAYOUT.size else (0, 0)

    def release(self) -> None:
        """Give the right back."""
        self._file.close()
