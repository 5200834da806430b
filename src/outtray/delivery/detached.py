"""A flush in a process of its own, started when the program ends."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from typing import TYPE_CHECKING

from outtray.delivery.lock import DrainLock
from outtray.outbox import sql

if TYPE_CHECKING:
    from outtray.outbox.store import Outbox
    from outtray.settings import Settings

STARTED_AT = "detached_at"


class _Detached(subprocess.Popen[bytes]):
    """A process that may outlive this one, which `subprocess` would warn of."""

    def __del__(self) -> None:
        """Say nothing."""


_left_behind: list[_Detached] = []


def launch(outbox: Outbox, settings: Settings) -> bool:
    """Start `python -m outtray flush` for *outbox* and return True; it outlives this process.

    Returns False where it must not be: in a frozen executable (whose "python" is the program itself), in CI,
    while another drainer is at work, or less than `exit_interval` after the last one. Raises OutboxError, OSError.
    """
    if (
        getattr(sys, "frozen", False)
        or not sys.executable
        or os.environ.get("CI", "").lower() not in ("", "0", "false")
    ):
        return False
    lock = DrainLock(outbox.directory)
    try:
        if not lock.try_acquire() or not _is_time(outbox, settings.exit_interval):
            return False
    finally:
        lock.release()
    environment = {**os.environ, "OUTTRAY_DIR": settings.dir, "PYTHONPATH": _absolute_path()}
    if settings.write_key is not None:
        environment["OUTTRAY_WRITE_KEY"] = settings.write_key
    if settings.url is not None:
        environment["OUTTRAY_URL"] = settings.url  # with its credentials, which the outbox does not have
    if settings.sources["consent"] == "argument":
        environment["OUTTRAY_CONSENT"] = settings.consent  # the host's word, which comes before DO_NOT_TRACK
    creation = {"creationflags": 0x00000008 | 0x00000200} if os.name == "nt" else {"start_new_session": True}
    _left_behind[:] = [process for process in _left_behind if process.poll() is None]  # which also ends zombies
    process = _Detached(
        [sys.executable, "-m", "outtray", "flush", "--app", settings.app],
        cwd=outbox.directory,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        **creation,
    )
    _left_behind.append(process)
    return True


def _is_time(outbox: Outbox, interval: float) -> bool:
    """Note a start and return True, unless there was one within *interval*; a moment in the future does not count."""
    now = time.time()
    with outbox.writing() as transaction:
        row = transaction.execute(sql.META, (STARTED_AT,)).fetchone()
        if row is not None and now - interval < float(row[0]) <= now:
            return False
        transaction.execute(sql.SET_META, (STARTED_AT, repr(now)))
    return True


def _absolute_path() -> str:
    """Return PYTHONPATH for another working directory."""
    given = os.environ.get("PYTHONPATH", "")
    return os.pathsep.join(os.path.abspath(entry) for entry in given.split(os.pathsep) if entry)
