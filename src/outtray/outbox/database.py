"""What is done with the open files of an outbox: one transaction, a look, a sync, the ledger, the reserve."""

from __future__ import annotations

import os
import sqlite3
import sys

from outtray import journal
from outtray.errors import OutboxBusy, OutboxDamaged, OutboxError
from outtray.outbox import reserve, sql
from outtray.outbox.connection import DamageFound, is_damage, translated
from outtray.outbox.gate import NO_ROOM, REWRITE_WAL, Header
from outtray.outbox.handle import Handle
from outtray.outbox.transaction import Transaction

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import TracebackType

FOREIGN_ERRORS = (sqlite3.Error, OSError, DamageFound, UnicodeDecodeError)
"""What is translated at the edge; the last is raised for a damaged name in SQLite's own words."""


class Database(Handle):
    """The files of one outbox in *directory*, as this process sees them; any number of threads may use it.

    Nothing is opened or created before the first use. All methods raise OutboxError, `sync` and
    `fill_reserve` OSError.
    """

    def writing(self) -> Writing:
        """Return a context manager for one transaction under the gate; it gives a `Transaction`."""
        return Writing(self)

    def count(self, reason: str, number: int = 1) -> None:
        """Count *number* messages in the ledger under *reason*: now if the gate is free, else with the next write."""
        self._ledger.add(reason, number)
        if os.path.isdir(self.directory):
            try:
                with self.writing():
                    return
            except OutboxError as error:
                journal.refused(reason, error)

    def sync(self) -> None:
        """Have all that was appended on the disk before returning. Raises OSError.

        Where the disk does not confirm it, the log is moved into the database before anything more is stored:
        the kernel forgets what it could not write, so that a later sync would confirm what is not there.
        """
        self.unsynced = False
        try:
            self._wal.all()
        except OSError:
            self.unsynced = True
            self._distrust_wal()
            raise

    def _distrust_wal(self) -> None:
        """Have whoever passes the gate next, in any process, move the log into the database first."""
        self._is_wal_doubtful = True
        frame = sys._getframe()
        try:
            self._enter(frame)
            header = self._gate.read()
            if header is not None:
                header.flags |= REWRITE_WAL
                self._gate.write(header)
        except (OutboxError, OSError) as error:  # then this process alone knows, and does it with its next write
            journal.failed("telling other processes that the disk did not confirm what was stored", error)
        finally:
            self._leave(frame)

    def close(self, *, leaving: bool = False) -> None:
        """Write what the ledger still needs and close the file under the gate; the next use opens it again.

        With *leaving* every later append closes the file again at once: the interpreter is about to end.
        """
        self._leaving = self._leaving or leaving
        if self._connection is None:
            return
        try:
            if self._ledger.given:
                with self.writing():
                    pass  # each transaction writes it
        finally:
            frame = sys._getframe()
            try:
                self._enter(frame)
                self._close_connection()
            finally:
                self._leave(frame)

    def empty_wal(self, *, rebuild: bool = False) -> None:
        """Move all of the WAL into the database and cut it to nothing, so that no deleted text is left in it.

        With *rebuild* the database is written anew before: rows that were moved, as their neighbours went, left
        copies in its free space.
        """
        frame = sys._getframe()
        try:
            self._enter(frame)
            connection, _ = self._ready()
            if rebuild:
                connection.execute(sql.VACUUM)
            (is_busy, _, _) = connection.execute(sql.TRUNCATE_WAL).fetchone()
            if is_busy:
                raise OutboxBusy(f"{self._path} is being read by another program, so deleted text is still in its log")
        except (sqlite3.Error, OSError) as error:
            raise translated(error, self._path) from error
        finally:
            self._leave(frame)

    # Room on the disk

    def fill_reserve(self) -> None:
        """Make the reserve if it is missing and there is room for it. Raises OSError too."""
        if not reserve.fill(self.directory):
            return
        header = self._glance()
        if header is not None and header.flags & NO_ROOM:
            with self.writing() as transaction:
                transaction.header.flags &= ~NO_ROOM

    def give_back_reserve(self) -> bool:
        """Give the room of the reserve to what was delivered; False if that was done before.

        From then on no message is stored until there is room again.
        """
        frame = sys._getframe()
        try:
            self._enter(frame)
            connection, header = self._ready()
            is_new = not header.flags & NO_ROOM
            header.flags |= NO_ROOM
            self._gate.write(header)
            is_new = reserve.give_back(self.directory) or is_new
            connection.execute(sql.TRUNCATE_WAL)
            return is_new
        except (sqlite3.Error, OSError) as error:
            raise translated(error, self._path) from error
        finally:
            self._leave(frame)

    # Reading

    def reading(self, *, leave_damaged: bool = True) -> Reading:
        """Return a context manager that gives a connection for reading, for 50 ms at most.

        With *leave_damaged* False damage that is met is told, and the file stays in use until somebody else meets it.
        """
        return Reading(self, leave_damaged=leave_damaged)

    def header(self) -> Header:
        """Return the gate's header as it is now, without waiting for the gate unless the header is damaged."""
        header = self._glance()
        if header is None:
            with self.writing() as transaction:
                header = transaction.header
        return header

    # Damage

    def leave_damaged(self, error: BaseException, number: int) -> OutboxDamaged:
        """Begin a new generation, unless another thread or process did since *number* was found damaged.

        Returns what to raise then.
        """
        frame = sys._getframe()
        try:
            self._enter(frame)
            header = self._gate.read()
            if header is None or header.generation == number:
                self._begin_generation(error)
        except (sqlite3.Error, OSError) as failure:
            raise translated(failure, self._path or self.directory) from failure
        finally:
            self._leave(frame)
        return OutboxDamaged(f"the outbox in {self.directory} was damaged and goes on in {self._path}: {error}")


class Writing:
    """One transaction under the gate: committed at the end, rolled back on an exception."""

    __slots__ = ("_connection", "_database", "_frame", "_header")

    def __init__(self, database: Database) -> None:
        self._database = database

    def __enter__(self) -> Transaction:
        database, self._frame = self._database, sys._getframe(1)
        try:
            database._enter(self._frame)
            self._connection, self._header = database._ready()
            self._connection.execute(sql.BEGIN)
        except (sqlite3.Error, OSError) as error:
            raise self._failure(error) from error
        except BaseException:
            database._leave(self._frame)
            raise
        return Transaction(self._connection, self._header)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        database = self._database
        try:
            if error is None:
                database._commit(self._connection)
                database._gate.write(self._header)
        except (sqlite3.Error, OSError) as failure:
            error = failure
        finally:
            try:
                database._roll_back(self._connection)  # nothing to do after a commit
            finally:
                if not isinstance(error, FOREIGN_ERRORS):
                    database._leave(self._frame)
                    del self._frame
        if isinstance(error, FOREIGN_ERRORS):
            raise self._failure(error) from error

    def _failure(self, error: sqlite3.Error | OSError | DamageFound | UnicodeDecodeError) -> OutboxError:
        """Leave the gate, and a damaged file too, and return what to raise."""
        database = self._database
        path, number = database._path or database.directory, database._generation
        database._drop_after(error)
        database._leave(self._frame)
        del self._frame
        if isinstance(error, (DamageFound, UnicodeDecodeError)) or is_damage(error):
            return database.leave_damaged(error, number)
        return translated(error, path)


class Reading:
    """The outbox's connection, with this process's other threads kept out, but not other processes."""

    __slots__ = ("_database", "_frame", "_leave_damaged")

    def __init__(self, database: Database, *, leave_damaged: bool) -> None:
        self._database = database
        self._leave_damaged = leave_damaged

    def __enter__(self) -> sqlite3.Connection:
        self._frame = sys._getframe(1)
        try:
            return self._database._enter_to_read(self._frame)
        except BaseException:
            self._database._leave(self._frame)
            raise

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        database = self._database
        number = database._generation
        database._leave(self._frame)
        del self._frame
        if error is not None and is_damage(error):
            if self._leave_damaged:
                raise database.leave_damaged(error, number) from error
            raise OutboxDamaged(f"{database._path} is damaged: {error}") from error
        if isinstance(error, sqlite3.Error):
            raise translated(error, database._path) from error
