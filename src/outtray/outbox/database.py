"""The database file behind the gate: opened when needed, checked before each use, closed before a fork."""

from __future__ import annotations

import os
import sqlite3
import sys

from outtray import journal
from outtray.errors import OutboxError, OutboxUnusable
from outtray.outbox import sql
from outtray.outbox.connection import open_database, sync_directory, translated
from outtray.outbox.files import database_path, gate_path, newest_generation
from outtray.outbox.gate import Gate, Header
from outtray.outbox.ledger import Ledger
from outtray.outbox.transaction import Transaction
from outtray.settings import make_directory

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import FrameType, TracebackType


class Database:
    """The files of one outbox in *directory*, as this process sees them; any number of threads may use it.

    Nothing is opened or created before the first use. All methods raise OutboxError, `sync` OSError.
    """

    def __init__(self, directory: str) -> None:
        self.directory = directory
        self.unsynced = False
        self.openings = 0
        self._gate = Gate(gate_path(directory))
        self._connection: sqlite3.Connection | None = None
        self._path = ""
        self._identity = (0, 0)
        self._generation = 0
        self._is_fresh = True  # nothing was appended since the file was opened
        self._ledger = Ledger()
        self._synced_wal = 0
        self._leaving = False
        self._inherited: sqlite3.Connection | None = None

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
        """Have all that was appended on the disk before returning. Raises OSError."""
        self.unsynced = False
        try:
            self._sync()
        except BaseException:
            self.unsynced = True
            raise

    def _sync(self) -> None:
        try:
            descriptor = os.open(f"{self._path}-wal", os.O_RDWR)  # SQLite keeps no locks on this file
        except FileNotFoundError:
            return  # it was checkpointed, and with that synced, by whoever closed last
        try:
            os.fsync(descriptor)
            inode = os.fstat(descriptor).st_ino
        finally:
            os.close(descriptor)
        if inode != self._synced_wal:
            sync_directory(self.directory)
            self._synced_wal = inode

    def close(self, *, leaving: bool = False) -> None:
        """Write what the ledger still needs and close the file under the gate; the next use opens it again.

        With *leaving* every later append closes the file again at once: the interpreter is about to end.
        """
        self._leaving = self._leaving or leaving
        if self._connection is None:
            return
        try:
            if self._ledger:
                with self.writing():
                    pass  # each transaction writes it
        finally:
            frame = sys._getframe()
            try:
                self._enter(frame)
                self._close_connection()
            finally:
                self._leave(frame)

    def empty_wal(self) -> None:
        """Move all of the WAL into the database and cut it to nothing, so that no deleted text is left in it."""
        frame = sys._getframe()
        try:
            self._enter(frame)
            connection, _ = self._ready()
            connection.execute(sql.TRUNCATE_WAL)
        except (sqlite3.Error, OSError) as error:
            raise translated(error, self._path) from error
        finally:
            self._leave(frame)

    # Reading

    def reading(self) -> Reading:
        """Return a context manager that gives a connection for reading, for 50 ms at most."""
        return Reading(self)

    def header(self) -> Header:
        """Return the gate's header as it is now, without waiting for the gate unless the header is damaged."""
        header = self._glance()
        if header is None:
            with self.writing() as transaction:
                header = transaction.header
        return header

    def _glance(self) -> Header | None:
        """Return the header as read beside the gate, None if it cannot be read or was torn by a write just then."""
        try:
            return self._gate.read() if self._gate.file.is_open else None
        except OSError:
            return None  # another thread is just opening the file anew

    # Opening

    def _enter(self, frame: FrameType) -> None:
        try:
            self._gate.enter(frame)
        except FileNotFoundError:
            try:
                make_directory(self.directory)
                self._gate.enter(frame)
            except OSError as error:
                raise translated(error, self.directory) from error
        except OSError as error:
            raise translated(error, self.directory) from error

    def _leave(self, frame: FrameType) -> None:
        """Leave if *frame* is inside; after the end of the program has begun, with the file closed."""
        if self._leaving and self._gate.is_inside(frame):
            self._close_connection()
        self._gate.leave(frame)

    def _ready(self) -> tuple[sqlite3.Connection, Header]:
        """Return the connection and the header, both true of what lies at the path now; only inside the gate."""
        if self._inherited is not None:
            raise OutboxUnusable(f"this process was forked inside a transaction in {self.directory}; it cannot use it")
        if self._connection is not None and self._connection.in_transaction:
            self._roll_back(self._connection)  # an exception of a signal handler tore it
        header = self._gate.read()
        if self._connection is not None and header is not None and self._is_at_path(header):
            return self._connection, header
        return self._open()

    def _enter_to_read(self, frame: FrameType) -> sqlite3.Connection:
        """Keep the threads out and return the connection; the gate is passed only to open the file."""
        if self._connection is not None and not self._leaving:
            self._gate.enter(frame, alone=False)
            header = self._glance()
            if self._connection is not None and header is not None and self._is_at_path(header):
                return self._connection
            self._gate.leave(frame)
        self._enter(frame)
        try:
            connection, _ = self._ready()
        except (sqlite3.Error, OSError) as error:
            raise translated(error, self._path or self.directory) from error
        if not self._leaving:
            self._gate.leave_file()
        return connection

    def _commit(self, connection: sqlite3.Connection) -> None:
        """Commit the open transaction, with what the ledger still needs."""
        self._ledger.write(connection)
        connection.execute(sql.COMMIT)
        self._ledger.forget()

    def _roll_back(self, connection: sqlite3.Connection) -> None:
        """Undo the open transaction, if there is one."""
        self._ledger.take_back()
        if connection.in_transaction:
            connection.execute(sql.ROLLBACK)

    def _is_at_path(self, header: Header) -> bool:
        """Tell whether what is open is what the header and the path mean now: SQLite writes into deleted files too."""
        if header.generation != self._generation:
            return False
        try:
            found = os.stat(self._path)
        except OSError:
            return False
        return (found.st_dev, found.st_ino) == self._identity

    def _open(self) -> tuple[sqlite3.Connection, Header]:
        self._close_connection()
        if not self._gate.file.is_at_path():  # the directory is gone or another: begin with what is there
            make_directory(self.directory)
            self._gate.reopen()
        header = self._gate.read()
        generation = header.generation if header else newest_generation(self.directory)
        self._path = database_path(self.directory, generation)
        connection = open_database(self._path)
        try:
            highest = connection.execute(sql.HIGHEST_ID).fetchone()[0]
            header = header or Header(generation, _new_epoch(), highest)
            if header.last_id > highest:
                self._count_missing(connection, header.last_id, header.last_id - highest)
            header.last_id = max(header.last_id, highest)
            self._gate.write(header)
        except BaseException:
            connection.close()
            raise
        found = os.stat(self._path)
        self._connection, self._identity = connection, (found.st_dev, found.st_ino)
        self._generation = generation
        self._is_fresh = True
        self.openings += 1
        self.unsynced = True  # a program that was killed may have left something that nobody synced
        return connection, header

    def _count_missing(self, connection: sqlite3.Connection, last_id: int, missing: int) -> None:
        """Count messages that the header knows and the database lost, once."""
        journal.rows_missing(missing, self.directory)
        connection.execute(sql.BEGIN)
        connection.execute(sql.SET_META, ("removed_id", str(last_id)))
        connection.execute(sql.COUNT_IN_LEDGER, ("lost", missing))
        connection.execute(sql.COMMIT)

    def _close_connection(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    # Forks: SQLite keeps a table of its POSIX locks in the process, and a child inherits the table without the
    # locks. So no connection stays open across a fork, and parent and child open their own when they need it.

    def before_fork(self, frame: FrameType) -> None:
        """Keep the threads out while *frame* forks, and close the file if nobody else is at the gate just now."""
        self._gate.keep_threads_out()  # also where it comes out of a call of this very thread, that may not be inside
        try:
            self._gate.enter(frame, alone=False)
        except OutboxError:
            return  # the fork comes out of a call of this very thread, or a thread does not come out
        if self._gate.try_file():
            self._close_connection()
            self._gate.leave_file()

    def after_fork_in_parent(self, frame: FrameType) -> None:
        """Let the threads go on."""
        self._gate.leave(frame)
        self._gate.let_threads_in()

    def after_fork_in_child(self) -> None:
        """Begin anew in the child, which has none of the parent's threads and locks."""
        connection, self._connection = self._connection, None
        self._gate = Gate(self._gate.file.path)
        self._ledger = Ledger()  # what the parent has not written is the parent's to write
        self.unsynced = False
        if connection is None:
            return
        if connection.in_transaction:  # a signal handler forked in the middle of it: the child must not end it
            connection.set_authorizer(lambda *_: sqlite3.SQLITE_DENY)
            self._inherited = connection
        else:
            connection.close()  # idle, and the parent's lock on the file keeps SQLite from doing more than closing


def _new_epoch() -> int:
    """Return a number that no earlier outbox at this path had: a settle on its way is not for this one."""
    return int.from_bytes(os.urandom(6), "little")


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
            database._leave(self._frame)
            raise translated(error, database._path or database.directory) from error
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
                database._leave(self._frame)
                del self._frame
        if isinstance(error, (sqlite3.Error, OSError)):
            raise translated(error, database._path) from error


class Reading:
    """The outbox's connection, with this process's other threads kept out, but not other processes."""

    __slots__ = ("_database", "_frame")

    def __init__(self, database: Database) -> None:
        self._database = database

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
        self._database._leave(self._frame)
        del self._frame
        if isinstance(error, sqlite3.Error):
            raise translated(error, self._database._path) from error
