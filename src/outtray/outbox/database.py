"""The database file behind the gate: opened when needed, checked before each use, closed before a fork."""

from __future__ import annotations

import os
import sqlite3
import sys

from outtray import journal
from outtray.errors import DiskFull, OutboxBusy, OutboxDamaged, OutboxError
from outtray.outbox import opening, places, reserve, sql
from outtray.outbox.connection import Connection, DamageFound, forbid_all, forked, is_damage, translated
from outtray.outbox.files import database_path, gate_path
from outtray.outbox.gate import NO_ROOM, REWRITE_WAL, Gate, Header, new_epoch
from outtray.outbox.ledger import Ledger
from outtray.outbox.sync import Sync
from outtray.outbox.transaction import Transaction

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import FrameType, TracebackType


STICKY_ERRORS = (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN)
"""Primary result codes of SQLite after which a connection is not used again."""

FOREIGN_ERRORS = (sqlite3.Error, OSError, DamageFound, UnicodeDecodeError)
"""What is translated at the edge; the last is raised for a damaged name in SQLite's own words."""

FORK_PATIENCE = 1.0
"""Seconds that a fork waits for the gate, to close the file; a child that inherits it open cannot use the outbox."""


class Database:
    """The files of one outbox in *directory*, as this process sees them; any number of threads may use it.

    Nothing is opened or created before the first use. All methods raise OutboxError, `sync` OSError.
    """

    def __init__(self, directory: str) -> None:
        self.directory = directory
        self.unsynced = False
        self.openings = 0
        self.replacements = 0  # of the directory, such as by `rm -rf` and the next message
        self._gate = Gate(gate_path(directory))
        self._connection: Connection | None = None
        self._path = ""
        self._identity: tuple[int, int] | None = None
        self._generation = 0
        self._is_fresh = True  # nothing was appended since the file was opened
        self._ledger = Ledger()
        self._wal = Sync()
        self._is_wal_doubtful = False  # the disk did not confirm it
        self._leaving = False

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

    def _glance(self) -> Header | None:
        """Return the header as read beside the gate, None if it cannot be read or was torn by a write just then."""
        try:
            return self._gate.read() if self._gate.file.is_open else None
        except OSError:
            return None  # another thread is just opening the file anew

    # Opening

    def _drop_after(self, error: BaseException) -> None:
        """Close the file after an error that may stick to the connection, so that the next use opens it anew.

        Where SQLite could not open the file for writing, for want of a descriptor or because of an error of the
        disk, it opened it for reading, and the connection stays like that. Only inside the gate.
        """
        if getattr(error, "sqlite_errorcode", 0) & 0xFF in STICKY_ERRORS:
            self._close_connection()

    def _enter(self, frame: FrameType) -> None:
        try:
            if not self._gate.file.is_open:
                places.prepare(self.directory)
            self._gate.enter(frame)
        except OSError as error:
            raise translated(error, self.directory) from error

    def _leave(self, frame: FrameType) -> None:
        """Leave if *frame* is inside; after the end of the program has begun, with the file closed."""
        if self._leaving and self._gate.is_inside(frame):
            self._close_connection()
        self._gate.leave(frame)

    def _ready(self) -> tuple[Connection, Header]:
        """Return the connection and the header, both true of what lies at the path now; only inside the gate."""
        if self._connection is not None and self._connection.in_transaction:
            self._roll_back(self._connection)  # an exception of a signal handler tore it
        header = self._gate.read()
        if self._connection is None or header is None or not self._is_at_path(header):
            connection, header = self._open()
        else:
            connection = self._connection
        if header.flags & REWRITE_WAL or self._is_wal_doubtful:
            self._rewrite_wal(connection, header)
            return self._open()
        return connection, header

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

    def _roll_back(self, connection: Connection) -> None:
        """Undo the open transaction, if there is one."""
        self._ledger.take_back()
        if connection.in_transaction and not connection.is_inherited:
            connection.execute(sql.ROLLBACK)

    def _is_at_path(self, header: Header) -> bool:
        """Tell whether what is open is what the header and the path mean now: SQLite writes into deleted files too."""
        if header.generation != self._generation or not self._gate.file.is_at_path():
            return False
        try:
            found = os.stat(self._path)
        except OSError:
            return False
        return (found.st_dev, found.st_ino) == self._identity

    def _open(self) -> tuple[Connection, Header]:
        """Open what the header names, or the next generation where that is damaged."""
        self._close_connection()
        is_another = not self._gate.file.is_at_path()
        if is_another:  # the directory is gone or another: begin with what is there
            places.prepare(self.directory)
            self._gate.reopen()
            self.replacements += 1
        header = self._gate.read()
        if header is not None and is_another:
            header.epoch = new_epoch()  # an older copy has the epoch of what was there, and gives the same ids
        return self._use(*self._open_with_reserve(header))

    def _open_with_reserve(self, header: Header | None) -> tuple[Connection, Header]:
        """Open what *header* names; where there is no room for SQLite's shared memory, with that of the reserve."""
        try:
            return opening.open_current(self.directory, self._gate, header)
        except (sqlite3.Error, OSError) as error:
            is_full = isinstance(translated(error, self.directory), DiskFull)
            if not is_full or not reserve.give_back(self.directory):
                raise
        connection, header = opening.open_current(self.directory, self._gate, header)
        header.flags |= NO_ROOM
        self._gate.write(header)
        return connection, header

    def _begin_generation(self, error: BaseException) -> tuple[Connection, Header]:
        """Leave a damaged file as it is and go on in a new one; only inside the gate."""
        self._close_connection()
        return self._use(*opening.open_next(self.directory, self._gate, error))

    def _use(self, connection: Connection, header: Header) -> tuple[Connection, Header]:
        self._path = database_path(self.directory, header.generation)
        try:
            connection.execute(sql.CHECKPOINT_AFTER.format(reserve.log_pages(self.directory)))
            self._wal.open(f"{self._path}-wal")
        except BaseException:
            connection.close()
            raise
        if connection.is_inherited:  # a signal handler forked while it was being opened
            raise forked(self._path)
        self._connection = connection
        self._identity = connection.identity
        self._generation = header.generation
        self._is_fresh = True
        self.openings += 1
        self.unsynced = True  # a program that was killed may have left something that nobody synced
        return connection, header

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

    def _rewrite_wal(self, connection: sqlite3.Connection, header: Header) -> None:
        """Move the log, which the disk did not confirm, into the database and sync that; only inside the gate."""
        is_busy, _, _ = connection.execute(sql.TRUNCATE_WAL).fetchone()
        if is_busy:
            raise OutboxBusy(f"{self._path} is being read by another program; its log is to be written anew first")
        header.flags &= ~REWRITE_WAL
        self._gate.write(header)
        self._is_wal_doubtful = False

    def _close_connection(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            self._wal.close()
            connection.close()

    # Forks: SQLite keeps a table of its POSIX locks in the process, and a child inherits the table without the
    # locks. So no connection stays open across a fork, and parent and child open their own when they need it.

    def before_fork(self, frame: FrameType) -> None:
        """Keep the threads out while *frame* forks, and close the file if nobody else is at the gate just now."""
        is_outside = self._gate.before_fork(frame)
        self._wal.before_fork()
        if is_outside and self._gate.try_file(FORK_PATIENCE):
            self._close_connection()
            self._gate.leave_file()

    def after_fork_in_parent(self, frame: FrameType) -> None:
        """Let the threads go on."""
        self._wal.after_fork_in_parent()
        self._gate.after_fork_in_parent(frame)

    def after_fork_in_child(self, frame: FrameType) -> None:
        """Begin anew in the child, which has none of the parent's threads and locks."""
        lock = self._gate.file
        if self._gate.after_fork_in_child(frame):
            forbid_all(lock)
        self._connection = None
        self._wal.after_fork_in_child()
        self._ledger = Ledger()  # what the parent has not written is the parent's to write
        self.unsynced = False


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
