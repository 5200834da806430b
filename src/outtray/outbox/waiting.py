"""Which messages are due next, read so that no damage passes for a gap: whatever is missing raises DamageFound."""

from __future__ import annotations

import time
from sqlite3 import SQLITE_LIMIT_LENGTH, DataError
from struct import Struct

from outtray.outbox import sql
from outtray.outbox.connection import DamageFound
from outtray.outbox.records import LONGEST_WAIT, Batch, Cursor, Message, checksums

TYPE_CHECKING = False
if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Iterable, Iterator, Sequence

    from outtray.outbox.gate import Header

MARKS_CHECKED = 100_000
"""Marks that are read as a whole, at most: about 30 ms."""


def cursor(connection: sqlite3.Connection, destination: str) -> Cursor:
    """Return how far *destination* is."""
    return Cursor(connection.execute(sql.CURSOR, (destination,)).fetchone())


def due(
    connection: sqlite3.Connection,
    header: Header,
    destination: str,
    *,
    after_id: int,
    max_count: int,
    max_bytes: int,
    passed_over: Iterable[int],
) -> Batch | None:
    """Return the next batch, None if nothing is due; see `Outbox.pending`."""
    now = time.time()
    when = (destination, now, now + LONGEST_WAIT)
    # One statement where nothing is out of the ordinary, so where no exception is due either: before a second one the
    # thread that makes a request takes the interpreter's lock, and reading ahead begins when that has nearly ended.
    run = _run(connection, when, after_id, max_count, max_bytes)
    if run is not None:
        return Batch.of_run(destination, *run, header)
    after_id = max(cursor(connection, destination).id, after_id)
    messages = _within(connection.execute(sql.DUE_EXCEPTIONS, when), max_count, max_bytes, frozenset(passed_over))
    if messages:
        return Batch(destination, messages, header, in_order=False, marked=True)
    messages = _within(_log(connection, destination, after_id, max_count), max_count, max_bytes, frozenset())
    if not messages:
        return None
    if messages[-1].id - after_id != len(messages):
        _require_all_accounted(connection, destination, after_id, messages)
    return Batch(destination, messages, header, in_order=True)


def newest(connection: sqlite3.Connection, header: Header, destination: str, *, after_id: int) -> Batch | None:
    """Return the newest waiting message as a batch of one, None if there is none; see `Outbox.newest`."""
    after_id = max(cursor(connection, destination).id, after_id)
    row = connection.execute(sql.NEWEST, (destination, after_id)).fetchone()
    return Batch(destination, [Message(row)], header, in_order=False) if row else None


def require_sound_marks(connection: sqlite3.Connection) -> None:
    """See that no mark is passed over. Of more than `MARKS_CHECKED` marks only `doctor` reads all."""
    if connection.execute(sql.MORE_MARKS_THAN, (MARKS_CHECKED,)).fetchone()[0]:
        return
    by_table = connection.execute(sql.MARKS_BY_TABLE).fetchone()[:4]
    unknown = connection.execute(sql.UNKNOWN_STATES).fetchone()
    if unknown or by_table != connection.execute(sql.MARKS_BY_INDEX).fetchone():
        raise DamageFound("the marks of messages and their index disagree")


def _run(
    connection: sqlite3.Connection, when: tuple[str, float, float], after_id: int, max_count: int, max_bytes: int
) -> tuple[range, bytes, Struct] | None:
    """Return the ids behind the cursor and *after_id*, their messages as a JSON array, and where in it each is.

    They are *max_count*, or all that are left. None if there is more to say of any of them (an id is missing or has a
    mark, a message is not as it was stored or not to be sent), if they are one or none, or more than *max_bytes*, if
    the cursor is missing or damaged, or if an exception is due; *when* is what `DUE_EXCEPTIONS` asks for.
    """
    if max_count < 2:
        return None
    usual = connection.getlimit(SQLITE_LIMIT_LENGTH)
    connection.setlimit(SQLITE_LIMIT_LENGTH, min(max_bytes + 2, usual))  # a bracket, and a byte that SQLite keeps
    try:
        row = connection.execute(sql.RUN, (*when, after_id, max_count, max_bytes)).fetchone()
    except DataError:  # too many bytes
        return None
    finally:
        connection.setlimit(SQLITE_LIMIT_LENGTH, usual)
    before_id, last_id, count, crcs, lengths, array = row
    if not count or count != last_id - before_id or array is None:
        return None
    ids, places = range(before_id + 1, last_id + 1), Struct(f"x{lengths}sx")
    bodies = places.unpack(array) if places.size == len(array) else ()
    is_sound = len(bodies) == count and ",".join(map(str, checksums(ids, bodies))) == crcs
    return (ids, array, places) if is_sound else None


def _log(connection: sqlite3.Connection, destination: str, after_id: int, max_count: int) -> Iterator[Sequence[object]]:
    """Give the messages behind *after_id* that have no mark, read *max_count* at a time. Raises DamageFound."""
    is_more = True
    while is_more:
        count = 0
        for row in connection.execute(sql.LOG, (destination, after_id, max_count)):
            if row[0] <= after_id:
                raise DamageFound(f"behind message {after_id} the log goes on with {row[0]}")
            after_id = row[0]
            count += 1
            if row[2] is not None:
                yield row
        is_more = count == max_count


def _require_all_accounted(
    connection: sqlite3.Connection, destination: str, after_id: int, messages: list[Message]
) -> None:
    """See that no message is missing between those of a batch. Raises DamageFound."""
    last_id = messages[-1].id
    accounted = connection.execute(sql.ACCOUNTED, (destination, after_id, last_id)).fetchone()[0]
    if accounted is not None and len(messages) + accounted < last_id - after_id:
        raise DamageFound(f"between the messages {after_id} and {last_id} some are missing")


def _within(
    rows: Iterable[Sequence[object]], max_count: int, max_bytes: int, passed_over: frozenset[int]
) -> list[Message]:
    messages: list[Message] = []
    size = 0
    for row in rows:
        if row[0] in passed_over:
            continue
        message = Message(row)
        size += len(message.body) + 1  # and the comma
        if messages and size > max_bytes:
            break
        messages.append(message)
        if len(messages) == max_count:
            break
    return messages
