"""Counts on their way into the ledger: they can be given at any moment, also in a signal handler, without a lock."""

from __future__ import annotations

from collections import deque

from outtray.outbox import sql

TYPE_CHECKING = False
if TYPE_CHECKING:
    import sqlite3


class Ledger:
    """What this process has to add to the ledger with its next transaction: *given*, by reason, in any order."""

    def __init__(self) -> None:
        self.given: deque[tuple[str, int]] = deque()
        self._written: dict[str, int] = {}

    def add(self, reason: str, number: int) -> None:
        """Count *number* under *reason*."""
        self.given.append((reason, number))

    def write(self, connection: sqlite3.Connection) -> None:
        """Write all counts in the open transaction; `forget` or `take_back` says how that ended."""
        while self.given:
            reason, number = self.given.popleft()
            self._written[reason] = self._written.get(reason, 0) + number
        for count in self._written.items():  # summed up: on a full disk each refused call tries to write them all
            connection.execute(sql.COUNT_IN_LEDGER, count)

    def forget(self) -> None:
        """The transaction is committed."""
        self._written.clear()

    def take_back(self) -> None:
        """The transaction failed: the counts go into the next one."""
        self.given.extend(self._written.items())
        self._written.clear()
