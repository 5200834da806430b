"""What a flush has before it, found by one look: most runs of cron end there, as nothing waits or a wait is stored."""

from __future__ import annotations

import time

from outtray import destinations
from outtray.delivery import backoff
from outtray.delivery.lock import DrainLock
from outtray.delivery.report import FlushReport
from outtray.delivery.target import delivery_settings, fingerprint, required_key
from outtray.outbox import look, places
from outtray.outbox.files import exists, is_alone
from outtray.outbox.records import Cursor
from outtray.outbox.transaction import ERASING

TYPE_CHECKING = False
if TYPE_CHECKING:
    from outtray.settings import Settings


class Outlook:
    """How many messages wait, and since when, in seconds; `outlook` gives what is there, else it is nothing.

    *is_erasing* tells of an erasure that has begun and is not through.
    """

    def __init__(self, settings: Settings) -> None:
        self.pending = self.deferred = 0
        self.oldest_pending_age: float | None = None
        self.is_erasing = False
        self._settings = settings
        self._needs_key = False
        self._salt = ""
        self._cursor = Cursor()
        self._is_alone = True

    def read(self, view: look.Look) -> None:
        """Take in what *view* shows. Raises OutboxError, OSError."""
        stored = delivery_settings(view)
        self._settings = settings = self._settings.over(stored)
        self._needs_key = bool(stored.get("needs_key"))
        self._salt = view.meta("salt") or ""
        self._cursor = view.cursor(settings.destination)
        self._is_alone = is_alone(settings.directory, view.generation)
        self.is_erasing = view.meta(ERASING) is not None
        counts, oldest_at = view.counts(settings.destination), view.oldest_pending_at(settings.destination)
        self.pending, self.deferred = counts.pending, counts.deferred
        self.oldest_pending_age = None if oldest_at is None else max(0.0, time.time() - oldest_at)

    def stored_wait(self) -> FlushReport | None:
        """Return what a delivery would report that finds a stored wait and nothing else to do, None where it is to try.

        What it does beside delivering, such as to prune, is left to the one at the end of the wait. Raises OSError,
        SettingsError.
        """
        cursor, settings = self._cursor, self._settings
        wait = backoff.remaining(cursor.next_attempt_at, time.time())
        if not wait or settings.url is None or self.is_erasing or not self._is_alone:
            return None
        destinations.place(settings.destination)
        key = required_key(self._needs_key, settings)
        if cursor.fingerprint != fingerprint(self._salt, settings.url, key):
            return None
        if places.refusal(settings.directory) is not None or not _is_free(settings.directory):
            return None
        return FlushReport("held" if cursor.held else "postponed", reason=cursor.reason or "", wait=wait)


def outlook(settings: Settings) -> Outlook:
    """Return what waits in the outbox that *settings* mean. Nothing is written. Raises OutboxError, OSError."""
    found = Outlook(settings)
    if exists(settings.directory):
        with look.look(settings.directory) as view:
            found.read(view)
    return found


def _is_free(directory: str) -> bool:
    """Tell whether nobody delivers. Raises OSError."""
    lock = DrainLock(directory)
    try:
        return lock.try_acquire()
    finally:
        lock.release()
