"""Looking at an outbox without changing it: counts, pages of messages, one message."""

from __future__ import annotations

import json
import math
import os
import sqlite3
import sys
from contextlib import contextmanager

from outtray.errors import OutboxBusy, OutboxDamaged, OutboxUnusable
from outtray.outbox import sql
from outtray.outbox.connection import DamageFound, is_damage, open_for_reading, translated
from outtray.outbox.files import database_path, gate_path, has_outbox, reserve_path
from outtray.outbox.gate import Gate
from outtray.outbox.generation import current, is_missing
from outtray.outbox.records import Cursor

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from types import FrameType
    from typing import Any

ROWS_AT_ONCE = 2_000
"""Messages that one look visits, at most: writers wait for some milliseconds."""

BYTES_AT_ONCE = 2 * 1024 * 1024
"""Bytes of bodies that one look reads, about: SQLite parses 50 to 500 MB of JSON a second."""


class Counts:
    """How many messages are in each state for one destination; *delivered* is the lifetime's."""

    def __init__(
        self, *, pending: int = 0, deferred: int = 0, delivered: int = 0, dead: int = 0, local: int = 0
    ) -> None:
        self.pending = pending
        self.deferred = deferred
        self.delivered = delivered
        self.dead = dead
        self.local = local


class StoredMessage:
    """One message with its state for one destination; moments are Unix seconds, *body* is the JSON text.

    In the *row* of the view a flipped bit may have made any value one of another type.
    """

    def __init__(self, row: Sequence[Any]) -> None:
        self.id: int = row[0]
        self.message_id = _text(row[1])
        self.event = _text(row[2])
        self.accepted_at = _number(row[3])
        self.destination = _text(row[4])
        self.state = _text(row[5])
        self.next_attempt_at = None if row[6] is None else _number(row[6])
        self.attempts = int(_number(row[7]))
        self.status = None if row[8] is None else int(_number(row[8]))
        self.reason = None if row[9] is None else _text(row[9])
        self.excerpt = None if row[10] is None else _text(row[10])
        self.body = _text(row[11])
        if sql.NUL in self.body:
            self.message_id, self.event = _uncut(self.body, self.message_id, self.event)

    def to_dict(self) -> dict[str, Any]:
        """Return the fields by name."""
        return dict(vars(self))


class Page:
    """Some *messages*, newest first; the next page has the ids below *next_before_id*, None at the end."""

    def __init__(self, messages: list[StoredMessage], next_before_id: int | None) -> None:
        self.messages = messages
        self.next_before_id = next_before_id


class Look:
    """What one reading *connection* shows of the file of *generation*; *last_id* is the newest id ever given."""

    def __init__(self, connection: sqlite3.Connection, generation: int, last_id: int) -> None:
        self._execute = connection.execute
        self.generation = generation
        self.last_id = last_id

    def destinations(self) -> list[str]:
        """Return the names of the destinations that have a cursor."""
        return [name for (name,) in self._execute(sql.DESTINATIONS)]

    def cursor(self, destination: str) -> Cursor:
        """Return how far *destination* is."""
        return Cursor(self._execute(sql.CURSOR, (destination,)).fetchone())

    def counts(self, destination: str) -> Counts:
        """Return the messages in each state, without reading the messages."""
        cursor = self.cursor(destination)
        marked: dict[str, int] = {}
        ahead = 0
        for state, count, beyond in self._execute(sql.EXCEPTION_COUNTS, (destination, cursor.id)):
            marked[state] = count
            ahead += beyond
        ahead += self._execute(sql.UNUSED_IDS, (cursor.id, self.last_id)).fetchone()[0]
        return Counts(
            pending=max(self.last_id - cursor.id - ahead, 0) + marked.get("retry", 0),
            deferred=marked.get("deferred", 0),
            delivered=cursor.delivered,
            dead=marked.get("dead", 0),
            local=marked.get("local", 0),
        )

    def oldest_pending_at(self, destination: str) -> float | None:
        """Return when the oldest pending message was accepted, None if nothing is pending."""
        moment = self._execute(sql.OLDEST_PENDING, (destination, self.cursor(destination).id)).fetchone()[0]
        return None if moment is None else float(moment)

    def ledger(self) -> dict[str, int]:
        """Return the counts of what was refused, lost or removed, by reason."""
        return counted(self._execute(sql.LEDGER))

    def meta(self, key: str) -> str | None:
        """Return the value kept under *key*."""
        row = self._execute(sql.META, (key,)).fetchone()
        return _text(row[0]) if row else None

    def some(
        self,
        *,
        state: str | None = None,
        event: str | None = None,
        message_id: str | None = None,
        since: float = 0.0,
        before_id: int = 2**62,
        limit: int = 500,
    ) -> Page:
        """Return messages with ids below *before_id*, accepted at *since* or later, about *limit* at most.

        No more than `ROWS_AT_ONCE` messages are visited and `BYTES_AT_ONCE` read, so that a page may be empty
        though more follows.
        """
        first_id = self._execute(sql.PAGE_BEGIN.get(state, sql.PAGE_BEGIN_MARKED), (before_id, state)).fetchone()[0]
        last_id: int | None = None
        total = 0
        for id, size in self._execute(sql.PAGE_SIZES, (first_id, ROWS_AT_ONCE)):
            last_id = id
            total += size
            if total > BYTES_AT_ONCE:
                break
        messages: list[StoredMessage] = []
        for row in self._execute(sql.PAGE, (last_id, first_id, since, state, event, message_id)):
            message = StoredMessage(row)
            if event not in (None, message.event) or message_id not in (None, message.message_id):
                continue
            if len(messages) >= limit and message.id != messages[-1].id:  # it has a row for each destination
                return Page(messages, messages[-1].id)
            messages.append(message)
        return Page(messages, last_id)

    def page(self, *, state: str | None = None, limit: int = 50) -> list[StoredMessage]:
        """Return the newest *limit* messages, however many must be visited for that: not for a crowded outbox."""
        messages: list[StoredMessage] = []
        before_id: int | None = 2**62
        while before_id is not None and len(messages) < limit:
            some = self.some(state=state, before_id=before_id, limit=limit - len(messages))
            messages += some.messages
            before_id = some.next_before_id
        return messages[:limit]

    def find(self, id: int) -> list[StoredMessage]:
        """Return the message, once for each destination; empty if there is none."""
        return [StoredMessage(row) for row in self._execute(sql.BY_ID, (id,))]

    def delivery(self, message: StoredMessage) -> tuple[float, int] | None:
        """Return when the batch of a delivered message was settled, in Unix seconds, and the status of the answer.

        None where that is not known: what is sent again makes batches with ids of others between its own.
        """
        found = self._execute(sql.DELIVERIES_OF, (message.destination, message.id)).fetchall()
        if message.state != "delivered" or not found or not (found[0][2] or len(found) == 1):
            return None
        return _number(found[0][0]), int(_number(found[0][1]))

    def pending_sizes(self, destination: str) -> list[int]:
        """Return the bytes of the bodies that go next, in about their order: of the first messages, not of all."""
        sizes: list[int] = []
        total = 0
        for (size,) in self._execute(sql.PENDING_SIZES, (destination, ROWS_AT_ONCE)):
            sizes.append(size)
            total += size
            if total > BYTES_AT_ONCE:
                break
        return sizes


@contextmanager
def look(directory: str) -> Iterator[Look]:
    """Give a `Look` at the outbox in *directory*, leaving no trace there. Raises OutboxUnusable if there is none.

    The gate is held meanwhile where it can be had, so that nobody opens or closes the files; where a stopped
    process keeps it, the look goes on without.
    """
    if not has_outbox(directory):
        raise OutboxUnusable(f"there is no outbox in {directory}")
    gate = Gate(gate_path(directory))
    frame = sys._getframe()
    entered = _entered(gate, frame)
    path = directory
    try:
        header = gate.read() if gate.file.is_open else None
        number, header = current(directory, header)
        path = database_path(directory, number)
        if is_missing(directory, number, header):
            raise DamageFound("it is gone, empty or no file, though messages were stored in it")
        # Nobody writes while the gate is held, or where there is none (a copy), or on a medium that is read-only.
        is_still = entered or not os.path.exists(gate.file.path) or not os.access(directory, os.W_OK)
        has_log = os.path.exists(f"{path}-wal") and os.stat(f"{path}-wal").st_size > 0
        connection = open_for_reading(path, immutable=is_still and not has_log)
        try:
            highest = connection.execute(sql.HIGHEST_ID).fetchone()[0]
            yield Look(connection, number, max(header.last_id if header else 0, highest))
        finally:
            connection.close()
    except (sqlite3.Error, DamageFound, UnicodeDecodeError) as error:
        if isinstance(error, (DamageFound, UnicodeDecodeError)) or is_damage(error):
            raise OutboxDamaged(
                f"{path} is damaged ({error}); `outtray doctor --salvage` goes on in a new file and brings back what "
                "it can, and so does a flush that meets the damage"
            ) from error
        raise translated(error, path) from error
    finally:
        if entered:
            gate.leave(frame)
        gate.file.close()


def counted(rows: Iterable[tuple[object, object]]) -> dict[str, int]:
    """Return a ledger's *rows* as counts by reason, also where a flipped bit made a value one of another type."""
    return {_text(reason): int(_number(count)) for reason, count in rows}


def size(directory: str) -> int:
    """Return the bytes of all files of the outbox, but for the reserve."""
    reserve = os.path.basename(reserve_path(directory))
    entries = [entry for entry in os.scandir(directory) if entry.name.startswith("outbox-") and entry.name != reserve]
    return sum(entry.stat().st_size for entry in entries)


def _uncut(body: str, *cut: str) -> list[str]:
    """Return message_id and event as they stand in *body*; what is no text there stays as it was *cut*."""
    try:
        message = json.loads(body)
        found = (message.get("message_id"), message.get("event", message.get("type")))
    except (ValueError, AttributeError, RecursionError):
        return list(cut)
    return [whole if isinstance(whole, str) else text for whole, text in zip(found, cut, strict=True)]


def _text(value: object) -> str:
    """Return what should be text as such."""
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else "" if value is None else str(value)


def _number(value: object) -> float:
    """Return what should be a number as such, 0 where it is none that can be shown."""
    return value if isinstance(value, (int, float)) and math.isfinite(value) else 0.0


def _entered(gate: Gate, frame: FrameType) -> bool:
    try:
        gate.file.open(create=False)
        gate.enter(frame)
    except (OutboxBusy, OSError):
        return False
    return True
