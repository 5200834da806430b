"""What can be done inside one transaction under the gate."""

from __future__ import annotations

from outtray.outbox import sql
from outtray.outbox.records import Cursor

TYPE_CHECKING = False
if TYPE_CHECKING:
    import sqlite3

    from outtray.outbox.gate import Header

ROWS_UNDER_THE_GATE = 500
"""Rows that one transaction removes or changes, at most: a few milliseconds."""

BYTES_UNDER_THE_GATE = 1024 * 1024
"""Bytes of bodies that one transaction removes or brings back, about."""

ERASING = "erasing"
"""Key in `meta` of an erasure under way: the ledger's word for it, and the last id that it concerns."""

DELIVERY_SETTINGS = "delivery"
"""Key in `meta` of what drainers need to know of the host's settings, as JSON."""

WITHDRAWN, FORGOTTEN = "withdrawn", "forgotten"
"""The ledger's words for what goes with the consent, and for what goes with everything."""


class Transaction:
    """SQL by *execute*, and changes of the *header*."""

    __slots__ = ("execute", "header")

    def __init__(self, connection: sqlite3.Connection, header: Header) -> None:
        self.execute = connection.execute
        self.header = header

    def live_bytes(self) -> int:
        """Return the bytes of the database without its free pages."""
        return int(self.execute(sql.LIVE_BYTES).fetchone()[0])

    def count_in_ledger(self, reason: str, number: int) -> None:
        """Add *number* to what the ledger counts under *reason*."""
        if number:
            self.execute(sql.COUNT_IN_LEDGER, (reason, number))

    def leave_gap(self, id: int) -> bool:
        """Take *id* out of the ids that no message has, and return True; False if a message has or had it."""
        gap = self.execute(sql.GAP_UP_TO, (id,)).fetchone()
        if gap is None or gap[1] < id:
            return False
        first_id, last_id = gap
        self.execute(sql.REMOVE_GAP, (first_id,))
        for start, end in ((first_id, id - 1), (id + 1, last_id)):
            if start <= end:
                self.execute(sql.ADD_GAP, (start, end))
        return True

    def unused_ids(self, after_id: int, last_id: int) -> int:
        """Return how many ids behind *after_id*, up to *last_id*, no message has or had."""
        return int(self.execute(sql.UNUSED_IDS, (after_id, last_id)).fetchone()[0])

    def mark(
        self,
        destination: str,
        id: int,
        state: str,
        *,
        next_attempt_at: float = 0.0,
        attempts: int = 0,
        status: int | None = None,
        reason: str | None = None,
        excerpt: str | None = None,
    ) -> None:
        """Write down what the cursor does not say of a message."""
        self.execute(sql.MARK, (destination, id, state, next_attempt_at, attempts, status, reason, excerpt))

    def cursor(self, destination: str) -> Cursor:
        """Return how far *destination* is."""
        return Cursor(self.execute(sql.CURSOR, (destination,)).fetchone())

    def settle_out_of_order(self, destination: str, id: int) -> bool:
        """Note one message as delivered, one ahead of the cursor by a mark; returns whether it had another mark."""
        was_marked = self.execute(sql.UNMARK, (destination, id)).rowcount > 0
        if id > self.cursor(destination).id:
            self.mark(destination, id, "delivered")
        return was_marked

    def advance_over_settled(self) -> None:
        """Move each cursor up to the next message that waits; not past one that is missing, which `pending` meets."""
        for destination, id, until_id in self.execute(sql.BEFORE_WAITING, (self.header.last_id,)).fetchall():
            if until_id > id:
                accounted = self.execute(sql.ACCOUNTED, (destination, id, until_id)).fetchone()[0]
                if accounted is None or accounted >= until_id - id:
                    self.execute(sql.ADVANCE, (until_id, destination))

    def prunable(self, until_id: int) -> list[int]:
        """Return the oldest delivered messages up to *until_id* and every cursor, a slice's worth at most."""
        lowest = self.execute(sql.LOWEST_CURSOR).fetchone()[0]
        rows = self.execute(sql.PRUNABLE, (min(lowest, until_id), ROWS_UNDER_THE_GATE))
        return [id for (id,) in rows]

    def begin_erasure(self, reason: str) -> None:
        """Note that all messages up to now are to be erased, for *reason*; from here on nothing of them is settled.

        An erasure of everything that was not finished stays one of everything.
        """
        before = self.execute(sql.META, (ERASING,)).fetchone()
        if before is not None and before[0].startswith(FORGOTTEN):
            reason = FORGOTTEN
        self.execute(sql.SET_META, (ERASING, f"{reason} {self.header.last_id}"))
        self.header.epoch += 1

    def remove_waiting(self, ids: list[int], reason: str) -> list[int]:
        """Do as `remove` with messages that may not be delivered, move cursors over them, count them as *reason*."""
        removed = self.remove(ids)
        for id in removed:
            self.execute(sql.PASS_REMOVED, (id,))
        self.advance_over_settled()
        self.execute(sql.FORGET_ALL_PASSED)
        self.count_in_ledger(reason, len(removed))
        return removed

    def remove(self, ids: list[int]) -> list[int]:
        """Delete the first of these messages, a slice's worth, and their marks on purpose: they do not count as lost.

        Returns the ids that are gone; of more than none that is one at least.
        """
        removed: list[int] = []
        size = 0
        for id in ids:
            if size > BYTES_UNDER_THE_GATE:
                break
            size += self.execute(sql.BODY_BYTES, (id,)).fetchone()[0]
            self.execute(sql.DELETE_MESSAGE, (id,))
            self.execute(sql.DELETE_EXCEPTIONS, (id,))
            removed.append(id)
        if removed:
            before = self.execute(sql.META, ("removed_id",)).fetchone()
            highest = max(max(removed), int(before[0]) if before else 0)
            self.execute(sql.SET_META, ("removed_id", str(highest)))
        return removed
