"""One run of deliveries: `Drain.step` does one batch and says how long to wait before the next."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, TypeVar

from outtray import destinations, forking, journal
from outtray.delivery import backoff
from outtray.delivery.target import delivery_settings, fingerprint, required_key
from outtray.errors import (
    DeliveryError,
    Held,
    OutboxBusy,
    OutboxError,
    OutboxUnusable,
    Postponed,
    Rejected,
    SettingsError,
)
from outtray.outbox.erasure import remove_marked
from outtray.outbox.records import LONGEST_WAIT, Mark
from outtray.secrets import without_secrets

if TYPE_CHECKING:
    from collections.abc import Callable

    from outtray.destinations import Destination
    from outtray.outbox.records import Batch, Message
    from outtray.outbox.store import Outbox
    from outtray.settings import Settings

Result = TypeVar("Result")

MAX_SUSPECTS = 20
"""Refused messages in a row, after which the newest one is tried alone to tell bad messages from a bad receiver."""

FIRST_COUNT = 500
"""Messages in the first request of a run, at most, and in all where the receiver is near."""

FAR, SLOW = 0.05, 1.0
"""Seconds that an answer takes from a receiver so far away that larger batches pay, and where the line is too slow."""

WRITE_WITHIN = 60.0
"""Seconds that an answer in hand waits for a busy outbox, if the run has so much time; without it, all is repeated."""

WRITE_AT_LEAST = 10.0
"""Seconds that it waits even where the run's time is over before."""

PAUSE = 0.05
"""Seconds between two tries to write."""


class Drain:
    """A run that delivers what is due in *outbox*, until a step returns a wait.

    With *heed_wait* False a stored wait is passed over, and the one until *slept_out* (Unix seconds) is over: whoever
    has slept it out by the monotonic clock goes on, though the clock stands still or was set back. *deadline* (on the
    monotonic clock) cuts requests short, *limit* bounds the messages of the run.
    *delivered*, *dead* count messages, *reached_id* is how far in the log they go; *stopped_by* is the error that
    ended the run, if one did; *waits_until* is the moment of the stored wait.
    *go_on* is called before each request and about five times a second while an answer is awaited; where it
    returns False no request begins. Once *is_leaving* says True an answer that still comes is not written
    down. Raises SettingsError if url, destination or key are missing or wrong, and OutboxError.
    """

    def __init__(
        self,
        outbox: Outbox,
        settings: Settings,
        *,
        heed_wait: bool = True,
        slept_out: float | None = None,
        deadline: float = float("inf"),
        limit: int | None = None,
        go_on: Callable[[], bool] = lambda: True,
        is_leaving: Callable[[], bool] = lambda: False,
    ) -> None:
        remove_marked(outbox)  # an erasure that was ended before it was through: none of it may be sent
        outbox.check_marks()
        stored = delivery_settings(outbox)
        settings = settings.over(stored)
        if settings.url is None:
            raise SettingsError(
                f"no url is set for {settings.app!r}: give --url, set OUTTRAY_URL or call configure(url=…)"
            )
        key = required_key(bool(stored.get("needs_key")), settings)
        self._depth = forking.depth
        self._outbox = outbox
        self._settings = settings
        self._key = key
        self._name = settings.destination
        self._place = destinations.place(self._name)
        self._destination: Destination | None = None  # loaded for the first request: most runs of cron make none
        self._fingerprint = fingerprint(outbox.meta("salt") or "", settings.url, key)
        self._heed_wait = heed_wait
        self._slept_out = slept_out
        self._deadline = deadline
        self._go_on = go_on
        self._is_leaving = is_leaving
        self._limit = limit
        self._most = settings.max_batch_count
        self._size = min(FIRST_COUNT, self._most)
        self._ahead: Batch | None = None
        self._suspects: dict[int, Mark] = {}  # the messages refused since the last success
        self._last_refused: Batch | None = None
        self._log_suspect = 0
        self.delivered = 0
        self.dead = 0
        self.reached_id = 0
        self.stopped_by: Postponed | Held | None = None
        self.waits_until: float | None = None

    def close(self) -> None:
        """End what the run began."""
        if self._destination is not None:
            self._destination.close()

    def step(self) -> float | None:
        """Deliver one batch, with one request at most.

        Returns 0 if there may be more or the run may not go on, the seconds to wait, or None if nothing is left.
        """
        if self._heed_wait:
            wait = self._stored_wait()
            if wait > 0:
                return wait
            self._heed_wait = False
        probe = self._probe()
        batch = probe or self._next_batch()
        try:
            if batch is None:
                return self._end_of_run()
            if self._last_refused is not None and not self._last_refused.is_of(batch):
                self._forget_suspects()  # some may have been removed; those that are left are tried again
                return 0.0
            if not self._go_on():
                return 0.0
            refusal = self._attempt(batch)
            if refusal is not None and probe is not None:
                raise Held(f"the receiver refuses every message: {refusal.reason}", status=refusal.status)
            if refusal is not None:
                self._refused(batch, refusal)
            return 0.0
        except Held as error:
            return self._stop(error, LONGEST_WAIT)
        except Postponed as error:
            attempts = self._write(lambda: self._outbox.cursor(self._name)).attempts + 1
            return self._stop(error, backoff.wait(attempts, error.retry_after))

    def _attempt(self, batch: Batch) -> Rejected | None:
        """Post *batch*: settle it, and bury the suspects, if it is delivered; return the refusal if it is refused."""
        if self._destination is None:
            self._destination = destinations.load(self._place)(self._settings, self._key)
        started = time.monotonic()
        timeout = max(0.05, min(self._settings.timeout, self._deadline - started))
        try:
            status = self._deliver(self._destination, batch, timeout)
        except Rejected as refusal:
            return refusal
        except Postponed as error:
            is_cut_short = error.status is None and timeout < self._settings.timeout
            if is_cut_short and time.monotonic() >= self._deadline:
                return None  # our own time was over, which says nothing of the receiver
            raise
        seconds = time.monotonic() - started
        if not self._is_leaving():
            self._settle(batch, list(self._suspects.values()), status, seconds)
            self._forget_suspects()
            self._resize(seconds, is_full=len(batch.ids) == self._size)
        return None

    def _resize(self, seconds: float, *, is_full: bool) -> None:
        """Take more in the next request: as before a refusal, or than usual where most of the time is the way."""
        usual = min(FIRST_COUNT, self._most)
        if seconds >= SLOW:
            self._size = min(self._size, usual)
        elif self._size < usual:
            self._size = min(self._size * 2, usual)
        elif seconds >= FAR and is_full:
            self._size = min(self._size * 2, self._most)

    def _deliver(self, destination: Destination, batch: Batch, timeout: float) -> int:
        """Return the status of the answer. Raises DeliveryError, in which nothing secret is left."""
        try:
            return destination.deliver(batch, timeout, self._while_waiting_for(batch))
        except DeliveryError as error:
            error.conceal(lambda text: without_secrets(text, self._settings.url, self._key))
            raise

    def _while_waiting_for(self, batch: Batch) -> Callable[[], None]:
        """Return what to do while the answer is awaited: read the next batch, once, and what the loop wants."""
        todo = batch.in_order and self._limit is None

        def meanwhile() -> None:
            nonlocal todo
            if todo:
                todo = False
                self._read_ahead(batch.last_id)
            else:
                self._while_waiting()

        return meanwhile

    def _while_waiting(self) -> None:
        """Do what the loop wants; its word, and its errors, count when the answer in hand is written down."""
        try:
            self._go_on()
        except Exception as error:
            journal.failed("working while an answer is awaited", error)

    def _read_ahead(self, after_id: int) -> None:
        try:
            self._ahead = self._read(after_id, is_ahead=True)
        except OutboxError as error:  # the answer is still awaited, and the next step reads for itself
            journal.failed("reading ahead", error)

    def _next_batch(self) -> Batch | None:
        """Return the batch to post now, without messages whose checksum no longer holds, or that are not to be sent."""
        batch, self._ahead = self._ahead, None
        if batch is None or len(batch.ids) > self._size or not batch.is_of(self._outbox.header()):
            batch = self._read()
        while batch is not None and batch.unfit:
            self._settle(batch.only(batch.unfit), [_mark_of_unfit(message) for message in batch.unfit], 0, 0.0)
            batch = self._read()
        return batch

    def _read(self, after_id: int = 0, *, is_ahead: bool = False) -> Batch | None:
        """Return the next batch, None if nothing is due; read in slices, between which whoever tracks goes first."""
        whole = self._slice(after_id, self._size, self._settings.max_batch_bytes, is_ahead=is_ahead)
        while whole is not None and whole.in_order and len(whole.ids) % FIRST_COUNT == 0:
            count, size = self._size - len(whole.ids), self._settings.max_batch_bytes - whole.bytes
            try:
                part = self._slice(whole.last_id, count, size, is_ahead=True, taken=len(whole.ids))
            except OutboxError as error:  # the next step meets it with nothing in hand
                journal.failed("reading on", error)
                break
            if part is None or not whole.goes_on_with(part, size):
                break
        return whole

    def _slice(self, after_id: int, count: int, max_bytes: int, *, is_ahead: bool, taken: int = 0) -> Batch | None:
        count = int(min(count, FIRST_COUNT, self._room() - taken))
        if count <= 0 or max_bytes <= 0:
            return None
        return self._outbox.pending(
            self._name,
            after_id=max(after_id, self._log_suspect),
            max_count=count,
            max_bytes=max_bytes,
            passed_over=self._suspects,
            is_ahead=is_ahead,
        )

    def _room(self) -> float:
        """Return how many messages the limit still allows; refused ones count."""
        if self._limit is None:
            return float("inf")
        return self._limit - self.delivered - self.dead - len(self._suspects)

    def _probe(self) -> Batch | None:
        """Return the newest message, to tell bad messages from a bad receiver, if too many were refused in a row."""
        if len(self._suspects) < MAX_SUSPECTS or self._room() <= 0:
            return None
        return self._outbox.newest(self._name, after_id=self._log_suspect)

    def _refused(self, batch: Batch, refusal: Rejected) -> None:
        """Halve until the first bad message stands alone; it is buried when the receiver takes another one."""
        self._ahead = None
        if len(batch.ids) > 1:
            self._size = len(batch.ids) // 2
            self._most = max(self._size, min(FIRST_COUNT, self._most))  # none of those that were larger than usual
            return
        message = batch.messages[0]
        mark = Mark(message, "dead", status=refusal.status, reason=refusal.reason, excerpt=refusal.excerpt)
        self._suspects[message.id] = mark
        self._last_refused = batch
        if batch.in_order:
            self._log_suspect = message.id

    def _forget_suspects(self) -> None:
        self._suspects.clear()
        self._last_refused = None
        self._log_suspect = 0

    def _end_of_run(self) -> float | None:
        """End a run that found nothing more to post; its suspects are bad if the receiver took others before them.

        Raises Postponed if there is nothing to compare them with.
        """
        if self._last_refused is None:
            return None
        marks = list(self._suspects.values())
        if self.delivered:
            self._settle(self._last_refused.only([mark.message for mark in marks]), marks, 0, 0.0)
            self._forget_suspects()
            return 0.0
        first, others = marks[0], f" and {len(marks) - 1} more" if len(marks) > 1 else ""
        raise Postponed(
            f"{first.reason} for message {first.message.id}{others}: kept until another is taken", status=first.status
        )

    def _settle(self, batch: Batch, marks: list[Mark], status: int, seconds: float) -> None:
        if not self._write(lambda: self._outbox.settle(batch, marks, status=status, seconds=seconds)):
            return  # purged or withdrawn while it was on its way
        count = len(batch.without({mark.message.id for mark in marks}).ids)
        dead = [mark for mark in marks if mark.state == "dead"]
        if batch.in_order:
            self.reached_id = batch.last_id
        self.delivered += count
        self.dead += len(dead)
        if count:
            journal.delivered(count, seconds)
        if dead:
            journal.buried(len(dead), dead[-1].reason or "")

    def _stop(self, error: Held | Postponed, wait: float) -> float:
        """Store the wait of the whole destination and return it."""
        held = isinstance(error, Held)
        self.waits_until = until = time.time() + wait
        if not self._is_leaving():
            self._write(
                lambda: self._outbox.postpone(
                    self._name,
                    until=until,
                    reason=error.reason,
                    fingerprint=self._fingerprint,
                    held=held,
                    status=error.status,
                )
            )
        self.stopped_by = error
        if held:
            journal.held(error.reason)
        else:
            journal.postponed(error.reason, wait)
        return wait

    def _write(self, write: Callable[[], Result]) -> Result:
        """Return what *write* returns, tried again while the outbox is busy. Raises OutboxError."""
        now = time.monotonic()
        end = min(now + WRITE_WITHIN, max(self._deadline, now + WRITE_AT_LEAST))
        while True:
            if forking.depth != self._depth:
                raise OutboxUnusable("this process was forked while it delivered; its parent goes on with that")
            try:
                return write()
            except OutboxBusy:
                if self._is_leaving() or time.monotonic() >= end:
                    raise
            self._while_waiting()
            time.sleep(PAUSE)

    def _stored_wait(self) -> float:
        cursor = self._outbox.cursor(self._name)
        self.waits_until = cursor.next_attempt_at
        if cursor.fingerprint != self._fingerprint:
            return 0.0  # another url or key is due at once
        if cursor.next_attempt_at == self._slept_out:
            return 0.0
        return backoff.remaining(cursor.next_attempt_at, time.time())


def _mark_of_unfit(message: Message) -> Mark:
    """Return the mark of a message that is not to be posted."""
    if message.local:
        return Mark(message, "local")  # the mark that it had was lost
    return Mark(message, "dead", reason="damaged: the checksum does not hold")
