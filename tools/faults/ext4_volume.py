"""A small ext4 file system of its own whose power can be cut: a file behind a loop device, as root on Linux."""

from __future__ import annotations

import fcntl
import os
import shutil
import struct
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Self

SIZE = 96 * 1024 * 1024  # bytes

EXT4_IOC_SHUTDOWN = 0x8004587D  # _IOR('X', 125, __u32)
NO_LOG_FLUSH = struct.pack("I", 2)  # EXT4_GOING_FLAGS_NOLOGFLUSH: what is in memory alone is gone, the journal's too


class Unavailable(Exception):
    """There can be no such volume here; the text says why."""


class Volume:
    """An ext4 file system mounted at *path*, made in *folder* and a context manager. Raises Unavailable."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "volume"
        self._image = folder / "volume.img"
        if not sys.platform.startswith("linux") or os.geteuid() != 0:
            raise Unavailable("needs root on Linux, to mount a file system")
        missing = [tool for tool in ("mkfs.ext4", "mount", "umount") if shutil.which(tool) is None]
        if missing:
            raise Unavailable(f"needs {', '.join(missing)}")
        with open(self._image, "wb") as file:
            file.truncate(SIZE)
        _run("mkfs.ext4", "-q", "-F", str(self._image))
        self.path.mkdir()
        self.mount()

    def mount(self) -> None:
        """Mount it; after a cut the journal is replayed, as when a machine starts again."""
        _run("mount", "-t", "ext4", "-o", "loop", str(self._image), str(self.path))

    def unmount(self) -> None:
        """Unmount it; nobody may have a file open."""
        _run("umount", str(self.path))

    def cut_power(self) -> tuple[float, float]:
        """Stop all writing at once; what was not synced is lost. Returns monotonic times just before and after."""
        descriptor = os.open(self.path, os.O_RDONLY)
        try:
            before = time.monotonic()
            fcntl.ioctl(descriptor, EXT4_IOC_SHUTDOWN, NO_LOG_FLUSH)
            return before, time.monotonic()
        except OSError as error:
            raise Unavailable(f"this kernel cannot shut ext4 down: {error}") from error
        finally:
            os.close(descriptor)

    def require_loss(self) -> None:
        """See that a cut loses what was not synced, and only that: without it a harness would prove nothing.

        Raises Unavailable if this one does not.
        """
        (self.path / "synced").write_bytes(b"1" * 5_000)
        descriptor = os.open(self.path / "synced", os.O_RDWR | os.O_APPEND)
        os.fsync(descriptor)
        os.write(descriptor, b"2" * 5_000)
        os.close(descriptor)
        (self.path / "unsynced").write_bytes(b"1" * 5_000)
        self.cut_power()
        self.unmount()
        self.mount()
        kept = (self.path / "synced").read_bytes() if (self.path / "synced").exists() else b""
        if kept != b"1" * 5_000 or (self.path / "unsynced").exists():
            raise Unavailable("a forced shutdown of ext4 does not lose here what a power cut would")
        (self.path / "synced").unlink()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Unmount it, whatever still uses it; the loop device goes with the mount."""
        if os.path.ismount(self.path):
            _run("umount", "--lazy", str(self.path))


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    if done.returncode != 0:
        raise Unavailable(f"`{command[0]}` fails: {done.stderr.strip() or done.returncode}")
