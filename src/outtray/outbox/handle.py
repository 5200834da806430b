"""The open files of one outbox: they are opened, checked against what lies at the path, closed and kept from forks."""

from __future__ import annotations

import os
import sqlite3
import time

from outtray.errors import DiskFull, OutboxBusy
from outtray.outbox import opening, places, reserve, sql
from outtray.outbox.connection import Connection, forbid_all, forked, translated
from outtray.outbox.files import database_path, gate_path
from outtray.outbox.gate import NO_ROOM, REWRITE_WAL, Gate, Header, new_epoch, signature
from outtray.outbox.ledger import Ledger
from outtray.outbox.sync import Sync

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import FrameType

STICKY_ERRORS = (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN)
"""Primary result codes of SQLite after which a connection is not used again."""

NOTHING_KEPT: tuple[bytes, Header | None] = (b"", None)

TICK, LONG_TICK = 0.012, 4.0
"""Seconds between two times that a file system tells apart, and some: a tick of the kernel is 10 ms, FAT's 2 s."""

FORK_PATIENCE = 1.0
"""Seconds that a fork waits for the gate, to close the file; a child that inherits it open cannot use the outbox."""


class Handle:
    """Gate, connection and log of the outbox in *directory*, opened when needed and checked before each use.

    What is done with them is in `Database`; here is what every use has to do with them, the end of a transaction
    and the counts for the ledger that go with it included.

    *openings* counts how often the file was opened, *replacements* how often the directory had become another one,
    such as by `rm -rf` and the next message; *unsynced* says that something may be stored that the disk has not
    confirmed yet.
    """

    def __init__(self, directory: str) -> None:
        self.directory = directory
        self.unsynced = False
        self.openings = 0
        self.replacements = 0
        self._gate = Gate(gate_path(directory))
        self._connection: Connection | None = None
        self._path = ""
        self._identity: tuple[int, int] | None = None
        self._compared: tuple[int, int, int, int] | None = None  # the directory, when its files were found to be ours
        self._kept = NOTHING_KEPT  # the header that we wrote last, and its bytes: it is still the one if they are
        self._generation = 0
        self._signature = b""  # who we are, in the header
        self._is_fresh = True  # nothing was appended since the file was opened
        self._ledger = Ledger()
        self._wal = Sync()
        self._is_wal_doubtful = False  # the disk did not confirm it
        self._leaving = False

    # Passing the gate

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
        data = self._gate.file.read(Header.SIZE)
        (kept, header), self._kept = self._kept, NOTHING_KEPT  # whoever has it may change it
        if data != kept:
            header = Header.from_bytes(data)
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

    def _glance(self) -> Header | None:
        """Return the header as read beside the gate, None if it cannot be read or was torn by a write just then."""
        try:
            return self._gate.read() if self._gate.file.is_open else None
        except OSError:
            return None  # another thread is just opening the file anew

    # A transaction

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

    # Opening

    def _is_at_path(self, header: Header) -> bool:
        """Tell whether what is open is what the header and the path mean now: SQLite writes into deleted files too.

        A directory that did not change since both files were compared still has them: one look instead of three.
        """
        if header.generation != self._generation:
            return False
        now = time.time()  # before the first look: what changes after the last one has a later time than this
        try:
            here = os.stat(self.directory)
            directory = (here.st_dev, here.st_ino, here.st_mtime_ns, here.st_ctime_ns)
            if directory == self._compared:
                return True
            found = os.stat(self._path)
        except OSError:
            return False
        is_same = (found.st_dev, found.st_ino) == self._identity and self._gate.file.is_at_path()
        # Two changes within a tick of the file system's clock leave the same times. A long one shows in whole seconds.
        tick = TICK if here.st_mtime_ns % 1_000_000_000 else LONG_TICK
        is_at_rest = max(here.st_mtime, here.st_ctime) + tick < now
        self._compared = directory if is_same and is_at_rest else None
        return is_same

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
        self._compared = None
        self._generation = header.generation
        self._signature = signature()
        self._is_fresh = True
        self.openings += 1
        self.unsynced = True  # a program that was killed may have left something that nobody synced
        return connection, header

    def _rewrite_wal(self, connection: sqlite3.Connection, header: Header) -> None:
        """Move the log, which the disk did not confirm, into the database and sync that; only inside the gate."""
        is_busy, _, _ = connection.execute(sql.TRUNCATE_WAL).fetchone()
        if is_busy:
            raise OutboxBusy(f"{self._path} is being read by another program; its log is to be written anew first")
        header.flags &= ~REWRITE_WAL
        self._gate.write(header)
        self._is_wal_doubtful = False

    # Closing

    def _close_connection(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            self._wal.close()
            connection.close()

    def _drop_after(self, error: BaseException) -> None:
        """Close the file after an error that may stick to the connection, so that the next use opens it anew.

        Where SQLite could not open the file for writing, for want of a descriptor or because of an error of the
        disk, it opened it for reading, and the connection stays like that. Only inside the gate.
        """
        if getattr(error, "sqlite_errorcode", 0) & 0xFF in STICKY_ERRORS:
            self._close_connection()

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
