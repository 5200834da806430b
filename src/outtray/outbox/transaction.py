"""What happens inside the gate, and what inside a process: one transaction, one read."""

from __future__ import annotations

import sqlite3

from outtray.outbox import sql
from outtray.outbox.connection import translated

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import TracebackType

    from outtray.outbox.database import Database
    from outtray.outbox.gate import Header

ROWS_UNDER_THE_GATE = 500
"""Rows that one transaction removes or changes, at most: a few milliseconds."""


class Transaction:
    """What can be done inside `Database.writing`: SQL by *execute*, and changes of the *header*."""

    __slots__ = ("_connection", "execute", "header")

    def __init__(self, connection: sqlite3.Connection, header: Header) -> None:
        self._connection = connection
        self.execute = connection.execute
        self.header = header

    def live_bytes(self) -> int:
        """Return the bytes of the database without its free pages."""
        return int(self.execute(sql.LIVE_BYTES).fetchone()[0])

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

    def settle_out_of_order(self, destination: str, id: int) -> None:
        """Note one message as delivered: a mark of its own is gone, and one ahead of the cursor gets one."""
        cursor = self.execute(sql.CURSOR, (destination,)).fetchone()[0]
        self.execute(sql.UNMARK, (destination, id))
        if id > cursor:
            self.mark(destination, id, "delivered")

    def prunable(self, until_id: int) -> list[int]:
        """Return the oldest delivered messages up to *until_id* and every cursor, a slice's worth at most."""
        lowest = self.execute(sql.LOWEST_CURSOR).fetchone()[0]
        rows = self.execute(sql.PRUNABLE, (min(lowest, until_id), ROWS_UNDER_THE_GATE))
        return [id for (id,) in rows]

    def remove(self, ids: list[int]) -> None:
        """Delete messages and their marks on purpose: their ids do not count as lost."""
        for id in ids:
            self.execute(sql.DELETE_MESSAGE, (id,))
            self.execute(sql.DELETE_EXCEPTIONS, (id,))
        if ids:
            removed = self.execute(sql.META, ("removed_id",)).fetchone()
            highest = max(max(ids), int(removed[0]) if removed else 0)
            self.execute(sql.SET_META, ("removed_id", str(highest)))


class Writing:
    """One transaction under the gate: committed at the end, rolled back on an exception."""

    __slots__ = ("_database", "_transaction")

    def __init__(self, database: Database) -> None:
        self._database = database

    def __enter__(self) -> Transaction:
        database = self._database
        database._enter()
        try:
            connection, header = database._ready()
            connection.execute(sql.BEGIN)
        except (sqlite3.Error, OSError) as error:
            database._gate.leave()
            raise translated(error, database._path or database.directory) from error
        except BaseException:
            database._gate.leave()
            raise
        self._transaction = Transaction(connection, header)
        return self._transaction

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        database, transaction = self._database, self._transaction
        connection = transaction._connection
        try:
            if kind is None:
                database._write_ledger(connection)
                connection.execute(sql.COMMIT)
                database._gate.write(transaction.header)
            else:
                roll_back(connection)
                if isinstance(error, (sqlite3.Error, OSError)):
                    raise translated(error, database._path) from error
        except (sqlite3.Error, OSError) as failure:
            roll_back(connection)
            raise translated(failure, database._path) from failure
        finally:
            database._leave()


class Reading:
    """The outbox's connection, with this process's other threads kept out, but not other processes."""

    __slots__ = ("_database",)

    def __init__(self, database: Database) -> None:
        self._database = database

    def __enter__(self) -> sqlite3.Connection:
        return self._database._enter_to_read()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._database._leave()
        if isinstance(error, sqlite3.Error):
            raise translated(error, self._database._path) from error


def roll_back(connection: sqlite3.Connection) -> None:
    """Undo an open transaction, if there is one."""
    if connection.in_transaction:
        connection.execute(sql.ROLLBACK)
