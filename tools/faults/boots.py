"""Starts of the system that are none: programs for which `boot_id` is what the harness says, as root on Linux."""

from __future__ import annotations

import shutil
import subprocess
import uuid
from pathlib import Path

from faults.ext4_volume import Unavailable

BOOT_ID = Path("/proc/sys/kernel/random/boot_id")

SET_AND_BECOME = f'mount --bind "$0" {BOOT_ID} && exec "$@"'


class Boots:
    """The starts of one machine, kept in *folder*. Raises Unavailable where programs cannot be made to believe them."""

    def __init__(self, folder: Path) -> None:
        self._file = folder / "boot_id"
        if shutil.which("unshare") is None:
            raise Unavailable("needs unshare, to give programs a boot_id of their own")
        self.start()
        command = self.command("cat", str(BOOT_ID))
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        if done.stdout != self._file.read_text():
            raise Unavailable(f"programs cannot be given a boot_id of their own: {done.stderr.strip() or done.stdout}")

    def start(self) -> None:
        """Start again: programs from now on have another boot_id."""
        self._file.write_text(f"{uuid.uuid4()}\n")

    def command(self, *words: str) -> list[str]:
        """Return the command that becomes *words*, in the same process and in a mount namespace of its own."""
        return ["unshare", "--mount", "sh", "-c", SET_AND_BECOME, str(self._file), *words]
