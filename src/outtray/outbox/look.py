"""Looking at an outbox without changing it: counts, pages of messages, one message."""

from __future__ import annotations

import os
import sqlite3
import time
from contextlib import contextmanager
from dataclasses import asdict, dataclass

from outtray.errors import OutboxBusy, OutboxUnusable
from outtray.outbox import sql
from outtray.outbox.connection import open_for_reading, translated
from outtray.outbox.files import database_path, gate_path, newest_generation
from outtray.outbox.gate import Gate
from outtray.outbox.records import Cursor

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

REFUSED = ("busy", "error", "full", "too_large", "unusable")
"""The ledger's reasons that mean: a call returned False and nothing was stored."""


@dataclass(frozen=True)
class Counts:
    """How many messages are in each state for one destination; *delivered* is the lifetime's."""

    pending: int
    deferred: int
    delivered: int
    dead: int
    local: int


@dataclass(frozen=True)
class StoredMessage:
    """One message with its state for one destination; moments are Unix seconds, *body* is the JSON text."""

    id: int
    message_id: str
    event: str
    accepted_at: float
    destination: str
    state: str
    next_attempt_at: float | None
    attempts: int
    status: int | None
    reason: str | None
    excerpt: str | None
    body: str

    def to_dict(self) -> dict[str, Any]:
        """Return the fields by name."""
        return asdict(self)


class Look:
    """What one reading *connection* shows; *last_id* is the newest id ever given."""

    def __init__(self, connection: sqlite3.Connection, last_id: int) -> None:
        self._execute = connection.execute
        self.last_id = last_id

    def destinations(self) -> list[str]:
        """Return the names of the destinations that have a cursor."""
        return [name for (name,) in self._execute(sql.DESTINATIONS)]

    def cursor(self, destination: str) -> Cursor:
        """Return how far *destination* is."""
        return Cursor(self._execute(sql.CURSOR, (destination,)).fetchone() or (0, 0, None, 0, None, None, 0, None))

    def counts(self, destination: str) -> Counts:
        """Return the messages in each state, without reading the messages."""
        cursor = self.cursor(destination)
        marked: dict[str, int] = {}
        ahead = 0
        for state, count, beyond in self._execute(sql.EXCEPTION_COUNTS, (destination, cursor.id)):
            marked[state] = count
            ahead += beyond
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
        return dict(self._execute(sql.LEDGER).fetchall())

    def meta(self, key: str) -> str | None:
        """Return the value kept under *key*."""
        row = self._execute(sql.META, (key,)).fetchone()
        return row[0] if row else None

    def page(
        self,
        *,
        state: str | None = None,
        event: str | None = None,
        since: float = 0.0,
        before_id: int = 2**62,
        limit: int = 50,
    ) -> list[StoredMessage]:
        """Return up to *limit* messages, newest first, with ids below *before_id*, accepted at *since* or later."""
        statement = {
            None: sql.PAGE, "delivered": sql.PAGE_DELIVERED, "pending": sql.PAGE_PENDING
        }.get(state, sql.PAGE_MARKED)  # fmt: skip
        values: tuple[object, ...] = (before_id, event, since, limit)
        rows = self._execute(statement, (*values, state) if statement == sql.PAGE_MARKED else values)
        return [StoredMessage(*row) for row in rows]

    def find(self, id: str) -> list[StoredMessage]:
        """Return the message with this id or message_id, once for each destination; empty if there is none."""
        rows = self._execute(sql.BY_ID, (int(id),)).fetchall() if id.isdecimal() and len(id) < 19 else []
        return [StoredMessage(*row) for row in rows or self._execute(sql.BY_MESSAGE_ID, (id,))]


@contextmanager
def look(directory: str) -> Iterator[Look]:
    """Give a `Look` at the outbox in *directory*, leaving no trace there. Raises OutboxUnusable if there is none.

    The gate is held meanwhile where it can be had, so that nobody opens or closes the files; where a stopped
    process keeps it, the look goes on without.
    """
    if not os.path.isdir(directory):
        raise OutboxUnusable(f"there is no outbox in {directory}")
    path = database_path(directory, newest_generation(directory))
    if not os.path.exists(path):
        raise OutboxUnusable(f"there is no outbox in {directory}")
    gate = Gate(gate_path(directory))
    entered = _entered(gate)
    try:
        # Nobody writes while the gate is held, or where there is none (a copy), or on a medium that is read-only.
        is_still = entered or not os.path.exists(gate.file.path) or not os.access(directory, os.W_OK)
        connection = open_for_reading(path, immutable=is_still and not os.path.exists(f"{path}-wal"))
        try:
            header = gate.read() if gate.file.is_open else None
            highest = connection.execute(sql.HIGHEST_ID).fetchone()[0]
            yield Look(connection, max(header.last_id if header else 0, highest))
        finally:
            connection.close()
    except sqlite3.Error as error:
        raise translated(error, path) from error
    finally:
        if entered:
            gate.leave()
        gate.file.close()


def status(view: Look, destination: str) -> dict[str, Any]:
    """Return what `status --json` says of the outbox itself: counts, ages in seconds, the wait, the ledger."""
    cursor = view.cursor(destination)
    counts = view.counts(destination)
    oldest = view.oldest_pending_at(destination)
    ledger = view.ledger()
    return {
        **asdict(counts),
        "refused": sum(ledger.get(reason, 0) for reason in REFUSED),
        "oldest_pending_age": None if oldest is None else max(0.0, time.time() - oldest),
        "next_attempt_at": cursor.next_attempt_at if counts.pending else None,
        "attempts": cursor.attempts,
        "waiting_for": cursor.reason,
        "held": cursor.reason if cursor.held else None,
        "ledger": ledger,
    }


def size(directory: str) -> int:
    """Return the bytes of all files of the outbox."""
    return sum(entry.stat().st_size for entry in os.scandir(directory) if entry.name.startswith("outbox-"))


def _entered(gate: Gate) -> bool:
    try:
        gate.file.open(create=False)
        gate.enter()
    except (OutboxBusy, OSError):
        return False
    return True
