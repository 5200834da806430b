"""One run of deliveries: `Drain.step` does one batch and says how long to wait before the next."""

from __future__ import annotations

import hashlib
import json
import time
from typing import TYPE_CHECKING, Any

from outtray import destinations, journal
from outtray.delivery import backoff
from outtray.errors import Held, Postponed, Rejected, SettingsError
from outtray.outbox.records import Mark
from outtray.outbox.store import DELIVERY_SETTINGS
from outtray.settings import config_path, without_credentials

if TYPE_CHECKING:
    from collections.abc import Callable

    from outtray.outbox.look import Look
    from outtray.outbox.records import Batch
    from outtray.outbox.store import Outbox
    from outtray.settings import Settings

MAX_SUSPECTS = 20
"""Refused messages in a row, after which the newest one is tried alone to tell bad messages from a bad receiver."""


class Drain:
    """A run that delivers what is due in *outbox*, until a step returns a wait.

    With *heed_wait* False a stored wait is passed over; *deadline* (on the monotonic clock) cuts requests short,
    *limit* bounds the messages of the run.
    *delivered*, *dead* count messages; *stopped_by* is the error that ended the run, if one did.
    *meanwhile* is called about five times a second while an answer is awaited; once *is_leaving* says True
    an answer that still comes is not written down. Raises SettingsError if url, destination or key are
    missing or wrong.
    """

    def __init__(
        self,
        outbox: Outbox,
        settings: Settings,
        *,
        heed_wait: bool = True,
        deadline: float = float("inf"),
        limit: int | None = None,
        meanwhile: Callable[[], None] = lambda: None,
        is_leaving: Callable[[], bool] = lambda: False,
    ) -> None:
        stored = delivery_settings(outbox)
        settings = settings.over(stored)
        if settings.url is None:
            raise SettingsError(
                f"no url is set for {settings.app!r}: give --url, set OUTTRAY_URL or call configure(url=…)"
            )
        key = required_key(bool(stored.get("needs_key")), settings)
        self._outbox = outbox
        self._settings = settings
        self._name = settings.destination
        self._destination = destinations.find(self._name)(settings, key)
        self._fingerprint = fingerprint(outbox.meta("salt") or "", settings.url, key)
        self._heed_wait = heed_wait
        self._deadline = deadline
        self._meanwhile = meanwhile
        self._is_leaving = is_leaving
        self._limit = limit
        self._size = settings.max_batch_count
        self._ahead: Batch | None = None
        self._suspects: dict[int, Mark] = {}
        self._log_suspect = 0
        self._refused_in_a_row = 0
        self.delivered = 0
        self.dead = 0
        self.stopped_by: Postponed | Held | None = None

    def step(self) -> float | None:
        """Deliver one batch. Returns 0 if there may be more, the seconds to wait, or None if nothing is left to do."""
        if self._heed_wait:
            wait = self._stored_wait()
            if wait > 0:
                return wait
            self._heed_wait = False
        batch = self._next_batch()
        try:
            if batch is None:
                return self._end_of_run()
            refusal = self._attempt(batch)
            if refusal is not None:
                self._refused(batch, refusal)
            return 0.0
        except Held as error:
            return self._stop(error, backoff.LONGEST_WAIT)
        except Postponed as error:
            attempts = self._outbox.cursor(self._name).attempts + 1
            return self._stop(error, backoff.wait(attempts, error.retry_after))

    def _attempt(self, batch: Batch) -> Rejected | None:
        """Post *batch*: settle it, and bury the suspects, if it is delivered; return the refusal if it is refused."""
        started = time.monotonic()
        bodies = [message.body for message in batch.messages]
        try:
            status = self._destination.deliver(bodies, self._time_left(), self._while_waiting_for(batch))
        except Rejected as refusal:
            return refusal
        if not self._is_leaving():
            self._settle(batch, list(self._suspects.values()), status, time.monotonic() - started)
            self._suspects.clear()
            self._refused_in_a_row = 0
            self._size = min(self._size * 2, self._settings.max_batch_count)
        return None

    def _time_left(self) -> float:
        return max(0.05, min(self._settings.timeout, self._deadline - time.monotonic()))

    def _while_waiting_for(self, batch: Batch) -> Callable[[], None]:
        """Return what to do while the answer is awaited: read the next batch, once, and what the loop wants."""
        todo = batch.in_order and self._limit is None

        def meanwhile() -> None:
            nonlocal todo
            if todo:
                todo = False
                self._ahead = self._read(after_id=batch.last_id)
            self._meanwhile()

        return meanwhile

    def _next_batch(self) -> Batch | None:
        """Return the batch to post now, without messages whose checksum no longer holds."""
        batch, self._ahead = self._ahead, None
        if batch is None or len(batch.messages) > self._size or not batch.is_of(self._outbox.header()):
            batch = self._read()
        while batch is not None and not all(message.intact for message in batch.messages):
            damaged = [message for message in batch.messages if not message.intact]
            marks = [Mark(message, "dead", reason="damaged: the checksum does not hold") for message in damaged]
            self._settle(batch.only(damaged), marks, 0, 0.0)
            batch = self._read()
        return batch

    def _read(self, after_id: int = 0) -> Batch | None:
        count = self._size if self._limit is None else min(self._size, self._limit - self.delivered - self.dead)
        if count <= 0:
            return None
        return self._outbox.pending(
            self._name,
            after_id=max(after_id, self._log_suspect),
            max_count=count,
            max_bytes=self._settings.max_batch_bytes,
            passed_over=self._suspects,
        )

    def _refused(self, batch: Batch, refusal: Rejected) -> None:
        """Halve until the first bad message stands alone; bury it once the receiver is known to take others."""
        self._ahead = None
        if len(batch.messages) > 1:
            self._size = len(batch.messages) // 2
            return
        message = batch.messages[0]
        mark = Mark(message, "dead", status=refusal.status, reason=refusal.reason, excerpt=refusal.excerpt)
        if self.delivered:
            self._settle(batch, [mark], refusal.status or 0, 0.0)
        else:
            self._suspects[message.id] = mark
            if batch.in_order:
                self._log_suspect = message.id
        self._refused_in_a_row += 1
        if self._refused_in_a_row >= MAX_SUSPECTS:
            self._try_the_newest()

    def _try_the_newest(self) -> None:
        """Tell bad messages from a receiver that refuses everything. Raises Held for the second."""
        newest = self._outbox.newest(self._name, after_id=self._log_suspect)
        if newest is None:
            return  # the rest of the run finds nothing either and ends
        refusal = self._attempt(newest)
        if refusal is not None:
            raise Held(f"the receiver refuses every message: {refusal.reason}", status=refusal.status)

    def _end_of_run(self) -> float | None:
        """End a run that found nothing more to post. Raises Postponed if refused messages are left to compare."""
        for mark in self._suspects.values():
            others = f" and {len(self._suspects) - 1} more" if len(self._suspects) > 1 else ""
            raise Postponed(
                f"{mark.reason} for message {mark.message.id}{others}: kept until another is taken", status=mark.status
            )
        return None

    def _settle(self, batch: Batch, marks: list[Mark], status: int, seconds: float) -> None:
        if not self._outbox.settle(batch, marks, status=status, seconds=seconds):
            return  # purged or withdrawn while it was on its way
        buried = {mark.message.id for mark in marks}
        count = sum(message.id not in buried for message in batch.messages)
        self.delivered += count
        self.dead += len(buried)
        if count:
            journal.delivered(count, seconds)
        if marks:
            journal.buried(len(marks), marks[-1].reason or "")

    def _stop(self, error: Held | Postponed, wait: float) -> float:
        """Store the wait of the whole destination and return it."""
        held = isinstance(error, Held)
        self._outbox.postpone(
            self._name,
            until=time.time() + wait,
            reason=error.reason,
            fingerprint=self._fingerprint,
            held=held,
            status=error.status,
        )
        self.stopped_by = error
        if held:
            journal.held(error.reason)
        else:
            journal.postponed(error.reason, wait)
        return wait

    def _stored_wait(self) -> float:
        cursor = self._outbox.cursor(self._name)
        if cursor.fingerprint != self._fingerprint:
            return 0.0  # another url or key is due at once
        return backoff.remaining(cursor.next_attempt_at, time.time())


def delivery_settings(outbox: Outbox | Look) -> dict[str, Any]:
    """Return what the host stored for drainers, see `Settings.to_store`."""
    stored = json.loads(outbox.meta(DELIVERY_SETTINGS) or "{}")
    return stored if isinstance(stored, dict) else {}


def required_key(needs_key: bool, settings: Settings) -> str | None:
    """Return the write key. Raises SettingsError if it is missing and the host delivers with one."""
    key = settings.find_key()
    if key is None and needs_key and without_credentials(settings.url) == settings.url:
        raise SettingsError(
            f"the write key of {settings.app!r} is missing: set OUTTRAY_WRITE_KEY, or write_key_file, or have the "
            f"application call configure(remember_key=True), which keeps it in {config_path()}"
        )
    return key


def fingerprint(salt: str, url: str, key: str | None) -> str:
    """Return what a stored wait belongs to, from which neither url nor key can be read."""
    return hashlib.sha256(f"{salt}\0{url}\0{key or ''}".encode()).hexdigest()[:16]
