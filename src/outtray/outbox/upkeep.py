"""What is done to stored messages apart from delivering them: prune, purge, retry. All in slices under the gate."""

from __future__ import annotations

import time

from outtray.outbox import erasure, recovery, sources, sql
from outtray.outbox.gate import NO_ROOM
from outtray.outbox.transaction import ROWS_UNDER_THE_GATE

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from outtray.outbox.store import Outbox

DELIVERIES_RETENTION = 30 * 86_400.0
"""Seconds that the record of a delivery outlives its messages."""

STATES = ("delivered", "pending", "deferred", "dead", "local")

ON_THEIR_WAY = ("pending", "deferred")
"""States whose messages may be in a batch on its way to the receiver."""


def tidy(outbox: Outbox, *, retention: float) -> None:
    """Do what is due after a delivery: end an erasure that was cut off, prune, clear away, fill the reserve again.

    Raises OutboxError, OSError.
    """
    erasure.finish(outbox)
    if outbox.header().flags & NO_ROOM:
        retention = 0.0  # on a full disk what was delivered goes first
    prune(outbox, retention=retention)
    sources.clear_away(outbox, retention=retention)
    _shrink(outbox)
    outbox.fill_reserve()


def prune(outbox: Outbox, *, retention: float) -> int:
    """Delete delivered messages older than *retention* (seconds since delivery), or beyond an eighth of `max_bytes`.

    Returns how many.
    """
    now = time.time()
    with outbox.reading() as connection:
        old = connection.execute(sql.SETTLED_BEFORE, (now - retention,)).fetchone()[0]
        beyond = connection.execute(sql.SETTLED_BEYOND_BYTES, (outbox.max_bytes // 8,)).fetchone()[0]
        lowest = connection.execute(sql.LOWEST_CURSOR).fetchone()[0]
        # The records of deliveries outlive the messages, so they alone do not say that there is something left.
        oldest = connection.execute(sql.PRUNABLE, (min(max(old, beyond), lowest), 1)).fetchone()
    removed = 0
    more = oldest is not None
    while more:
        with outbox.writing() as transaction:
            gone = transaction.remove(transaction.prunable(max(old, beyond)))
            before = now - max(retention, DELIVERIES_RETENTION)
            execute = transaction.execute
            execute(sql.PRUNE_DELIVERIES, (before, transaction.header.last_id, ROWS_UNDER_THE_GATE))
        removed += len(gone)
        more = bool(gone)
    return removed


def purge(outbox: Outbox, *, state: str, before: float) -> int:
    """Delete the messages that are in *state* and were accepted *before* (Unix seconds); returns how many.

    What was not delivered leaves no byte behind: freed pages are overwritten and the WAL is emptied. A batch
    on its way to the receiver is not settled after a purge of what waits, and may still arrive.
    """
    removed = after = 0
    if state != "delivered":
        recovery.salvage(outbox)  # what waits in damaged files goes too, and does not come up again
    more = True
    while more:
        with outbox.writing() as transaction:  # in which no message gets into another state
            rows = transaction.execute(sql.IDS_IN_STATE[state], (after, before, ROWS_UNDER_THE_GATE, state))
            ids = [id for (id,) in rows]
            gone = transaction.remove(ids) if state == "delivered" else transaction.remove_waiting(ids, "purged")
            if gone and state in ON_THEIR_WAY:
                transaction.header.epoch += 1
        removed += len(gone)
        after = max(gone, default=after)
        more = bool(gone)
    if removed and state != "delivered":
        sources.clear_away(outbox, retention=0)
        outbox.empty_wal()
    _shrink(outbox)
    return removed


def _shrink(outbox: Outbox) -> None:
    """Give the room of deleted messages back to the disk, where what is left can be rebuilt in a moment."""
    with outbox.reading() as connection:
        live = connection.execute(sql.LIVE_BYTES).fetchone()[0]
        free = connection.execute(sql.FREE_BYTES).fetchone()[0]
    if live < erasure.BYTES_REBUILT < free:
        outbox.empty_wal(rebuild=True)


def retry(outbox: Outbox, destination: str, *, ids: list[int] | None = None, reason: str | None = None) -> int:
    """Make dead messages pending again, under their own ids: those in *ids*, or all whose reason holds *reason*.

    Returns how many. They go first in the next drain, which still heeds the wait of the destination.
    """
    count = 0
    for slice_ids in _slices(ids) if ids is not None else _dead_slices(outbox, destination, reason):
        with outbox.writing() as transaction:
            for id in slice_ids:
                count += transaction.execute(sql.RETRY, (destination, id)).rowcount
    return count


def _slices(ids: list[int]) -> Iterator[list[int]]:
    for start in range(0, len(ids), ROWS_UNDER_THE_GATE):
        yield ids[start : start + ROWS_UNDER_THE_GATE]


def _dead_slices(outbox: Outbox, destination: str, reason: str | None) -> Iterator[list[int]]:
    after = 0
    while True:
        with outbox.reading() as connection:
            rows = connection.execute(sql.DEAD, (destination, after, reason, ROWS_UNDER_THE_GATE)).fetchall()
        if not rows:
            return
        yield [id for (id,) in rows]
        after = rows[-1][0]
