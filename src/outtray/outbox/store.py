"""The outbox: append, pending, settle. One per directory and process, see `shared.py`."""

from __future__ import annotations

import sqlite3
import sys
import time
import zlib

from outtray import consent, identity, journal
from outtray.errors import DiskFull, OutboxBusy, OutboxDenied, OutboxFull, SyncFailed
from outtray.outbox import reserve, sql, waiting
from outtray.outbox.connection import DamageFound, is_damage, translated
from outtray.outbox.database import Database
from outtray.outbox.gate import CHOICE_BITS, NO_ROOM, Header, with_last_id
from outtray.outbox.records import Batch, Cursor, Mark, checksum
from outtray.outbox.transaction import Transaction

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from typing import TypeVar

    from outtray.outbox.connection import Connection
    from outtray.outbox.sync import Waiter

    Result = TypeVar("Result")

BYTES_BETWEEN_CHECKS = 256 * 1024
"""Bytes that one process appends, at most, between two looks at the size of the file."""

USUAL_FLAGS = (0, consent.CHOICES.index(consent.GRANTED))
"""The flags of the header with which a message is stored as it comes."""


class Outbox(Database):
    """The messages of one application and how far each destination is.

    *destination* is where new messages go, *max_bytes* bounds the live bytes of the database. With
    *sync_each* an append returns when the disk has the message. *epoch* is the one in which this process last saw
    that its client id holds, 0 before. Methods raise OutboxError.
    """

    def __init__(self, directory: str, *, destination: str, max_bytes: int, sync_each: bool = False) -> None:
        super().__init__(directory)
        self.destination = destination
        self.max_bytes = max_bytes
        self.sync_each = sync_each
        self.last_id = 0
        self.epoch = 0
        self._replacements = 0
        self._marks_checked = 0
        self._unchecked = 0

    # Appending

    def append(
        self,
        body: str,
        *,
        accepted_at: float,
        local: bool = False,
        follows_choice: bool = False,
        epoch: int | None = None,
    ) -> int:
        """Commit one message and return its id; when this returns, `kill -9` does not lose it any more.

        *body* is the encoded message; a *local* one is recorded and not sent. With *follows_choice* the user's
        choice says whether it is local, and OutboxDenied is raised where it is a denial. *epoch* is the outbox's
        as it was before the caller put its client id into *body*: in a later one that id may be forgotten, and
        is replaced; None where there is none in it.
        Raises OutboxBusy, OutboxFull, DiskFull, OutboxUnusable: then nothing was stored; with `sync_each` also
        SyncFailed: then it may be.
        """
        content = (accepted_at, body.encode(), body)
        frame = sys._getframe()
        try:
            self._enter(frame)
            try:
                id = self._append_as_usual(content, local=local, epoch=epoch)
                if id is None:
                    id = self._append(content, local=local, follows_choice=follows_choice, epoch=epoch)
            except (sqlite3.DatabaseError, UnicodeDecodeError) as error:
                if not is_damage(error):
                    raise
                self._begin_generation(error)
                id = self._append(content, local=local, follows_choice=follows_choice, epoch=epoch)
            waiter = self._wal.join() if self.sync_each else None
        except (sqlite3.Error, OSError) as error:
            self._drop_after(error)
            raise translated(error, self._path or self.directory) from error
        finally:
            self._leave(frame)
        self.last_id = id
        self.unsynced = True
        if waiter is not None:
            self._wait_for_disk(waiter)
        return id

    def _append_as_usual(self, content: tuple[float, bytes, str], *, local: bool, epoch: int | None) -> int | None:
        """Do what `_append` does where nothing is out of the ordinary; where anything is, do nothing and return None.

        Nearly every message goes this way: the same steps in one function, without the calls that would take half as
        long as the INSERT.
        """
        (kept, header), connection, file = self._kept, self._connection, self._gate.file
        accepted_at, data, body = content
        found = file.read(Header.SIZE)
        if found != kept:
            header = Header.from_bytes(found)
        if (
            header is None
            or connection is None
            or header.flags not in USUAL_FLAGS
            or (epoch is not None and epoch != header.epoch)
            or len(data) > self._unchecked
            or local
            or self._is_fresh
            or self._is_wal_doubtful
            or self._ledger.given
            or connection.in_transaction
            or not self._is_at_path(header)
        ):
            return None
        id = header.last_id + 1
        crc = zlib.crc32(data, id & 0xFFFFFFFF)
        try:
            connection.execute(sql.APPEND, (id, accepted_at, crc, body))
        except sqlite3.IntegrityError:
            return None
        header.last_id = id
        self._unchecked -= len(data)
        written = with_last_id(found, id, self._signature)
        try:
            file.write(written)
            self._kept = (written, header)
        except OSError as error:  # as in `_append`
            journal.failed("writing the header of the gate", error)
        return id

    def _append(
        self,
        content: tuple[float, bytes, str],
        *,
        local: bool,
        follows_choice: bool,
        epoch: int | None,
    ) -> int:
        connection, header = self._ready()
        if follows_choice and header.flags & CHOICE_BITS:
            local = self._is_local(header, otherwise=local)
        if header.flags & NO_ROOM:
            self._require_room(header)
        if epoch is not None and epoch != header.epoch:
            body = self._with_valid_id(content[2], header)
            content = (content[0], body.encode(), body)
        self._unchecked -= len(content[1])
        if self._is_fresh or self._unchecked < 0 or local or self._ledger.given:
            self._append_with_care(connection, header, content, local=local)
        else:
            self._insert(connection, header, content, local=False)
        id = header.last_id
        try:
            self._kept = (self._gate.write(header), header)
        except OSError as error:  # the message is stored; a header that lags is caught up
            journal.failed("writing the header of the gate", error)
        return id

    def _is_local(self, header: Header, *, otherwise: bool) -> bool:
        """Return whether the user chose that messages are not sent. Raises OutboxDenied."""
        if header.choice == consent.DENIED:
            header.choice = consent.stored(self.directory)  # a command may have ended between the file and the header
        if header.choice == consent.DENIED:
            raise OutboxDenied(f"the user denied consent for {self.directory}")
        return otherwise if header.choice is None else header.choice == consent.LOCAL

    def _with_valid_id(self, body: str, header: Header) -> str:
        """Return *body* with the client id that holds now: only inside the gate nobody can forget it meanwhile."""
        is_same_place = self._replacements == self.replacements
        body = identity.with_valid_id(self.directory, body, forgettable=is_same_place)
        self.epoch, self._replacements = header.epoch, self.replacements
        return body

    def keep_identity(self) -> bool:
        """Have the client id on the disk, unless it may be forgotten by now; False if that is to be repeated."""
        with self.writing() as transaction:
            return transaction.header.epoch == self.epoch and identity.keep(self.directory)

    def _insert(
        self,
        connection: sqlite3.Connection,
        header: Header,
        content: tuple[float, bytes, str],
        *,
        local: bool,
    ) -> None:
        accepted_at, data, body = content
        id = header.last_id + 1
        try:
            connection.execute(sql.APPEND, (id, accepted_at, checksum(id, data, local=local), body))
        except sqlite3.IntegrityError:
            if not self._gate.file.is_at_path():
                raise OutboxBusy(f"{self._gate.file.path} was replaced; the next call uses the new one") from None
            # The header lags: somebody died between the commit and the header.
            id = max(connection.execute(sql.HIGHEST_ID).fetchone()[0], id) + 1
            connection.execute(sql.APPEND, (id, accepted_at, checksum(id, data, local=local), body))
        header.last_id = id

    def _require_room(self, header: Header) -> None:
        """Let messages in again where there is room for them and the reserve. Raises DiskFull."""
        if not reserve.has_room(self.directory):
            raise DiskFull(f"the disk is full; what room is left in {self.directory} is for what was delivered")
        header.flags &= ~NO_ROOM

    def _wait_for_disk(self, waiter: Waiter) -> None:
        try:
            self._wal.wait(waiter)
        except OSError as error:
            self._distrust_wal()
            raise SyncFailed(f"{self._path} was written, but the disk did not confirm it: {error}") from error

    def _append_with_care(
        self,
        connection: Connection,
        header: Header,
        content: tuple[float, bytes, str],
        *,
        local: bool,
    ) -> None:
        """Append with what is not done every time: size bound, cursor, ledger, the mark of a local message."""
        transaction = Transaction(connection, header)
        connection.execute(sql.BEGIN)
        try:
            if self._is_fresh or self._unchecked < 0:
                self._check_size(transaction)
            self._insert(connection, header, content, local=local)
            transaction.execute(sql.ADD_CURSOR, (self.destination, 0))
            if local:
                transaction.mark(self.destination, header.last_id, "local")
            self._commit(connection)
            self._is_fresh = False
        except BaseException:
            self._roll_back(connection)
            raise

    def _check_size(self, transaction: Transaction) -> None:
        """Let some more bytes in, after making room where there is none. Raises OutboxFull."""
        room = self.max_bytes - transaction.live_bytes()
        if room <= 0:
            transaction.remove(transaction.prunable(until_id=transaction.header.last_id))
            room = self.max_bytes - transaction.live_bytes()
        if room <= 0:
            raise OutboxFull(f"{self._path} holds max_bytes={self.max_bytes} of messages that are not delivered yet")
        self._unchecked = min(room // 4, BYTES_BETWEEN_CHECKS)
        if not self._is_fresh:
            self._make_reserve()

    def _make_reserve(self) -> None:
        """Make the reserve now: whoever stores so much may fill the disk before anything is tidied."""
        try:
            reserve.fill(self.directory)
        except OSError as error:
            journal.failed("making the reserve", error)

    # Delivering

    def pending(
        self,
        destination: str,
        *,
        after_id: int,
        max_count: int,
        max_bytes: int,
        passed_over: Iterable[int] = (),
        is_ahead: bool = False,
    ) -> Batch | None:
        """Return the messages that are due next, None if there are none.

        Exceptions whose time has come go first, then the log behind *after_id* (or the cursor); at most
        *max_count* messages and *max_bytes* of bodies, but always one. Those with an id in *passed_over* stay.
        With *is_ahead* a damaged file is not left, as the batch before is still to be settled in it.
        """
        with self.reading(leave_damaged=not is_ahead) as connection:
            return waiting.due(
                connection,
                self.header(),
                destination,
                after_id=after_id,
                max_count=max_count,
                max_bytes=max_bytes,
                passed_over=passed_over,
            )

    def check_marks(self) -> None:
        """See, once for each opening of the file, that no mark is passed over. Raises OutboxDamaged."""
        if self._marks_checked == self.openings:
            return
        with self.reading() as connection:
            waiting.require_sound_marks(connection)
            self._marks_checked = self.openings

    def newest(self, destination: str, *, after_id: int) -> Batch | None:
        """Return the newest waiting message behind *after_id* as a batch of one that may overtake the others."""
        with self.reading() as connection:
            return waiting.newest(connection, self.header(), destination, after_id=after_id)

    def settle(self, batch: Batch, marks: Sequence[Mark] = (), *, status: int, seconds: float) -> bool:
        """Write down that *batch* is done: delivered, but for the messages that *marks* name.

        *marks* may also name messages behind the cursor that are not of the batch. Returns False, and changes
        nothing, if the batch is from before a withdrawal, a purge or a new generation.
        """
        return self._with_reserve(lambda: self._settle(batch, marks, status=status, seconds=seconds))

    def _settle(self, batch: Batch, marks: Sequence[Mark], *, status: int, seconds: float) -> bool:
        destination = batch.destination
        done = batch.without({mark.message.id for mark in marks if mark.state != "delivered"})
        with self.writing() as transaction:
            if not batch.is_of(transaction.header):
                return False
            execute = transaction.execute
            execute(sql.ADD_CURSOR, (destination, 0))
            transaction.cursor(destination)  # which must be sound before it is moved
            if batch.in_order:
                execute(sql.ADVANCE, (batch.last_id, destination))
            else:
                for id in done.ids:
                    if not transaction.settle_out_of_order(destination, id) and batch.marked:
                        raise DamageFound(f"the mark of message {id} is in the index and not in its table")
            for mark in marks:
                transaction.mark(
                    destination,
                    mark.message.id,
                    mark.state,
                    next_attempt_at=mark.next_attempt_at,
                    attempts=mark.message.attempts + 1,
                    status=mark.status,
                    reason=mark.reason,
                    excerpt=mark.excerpt,
                )
            transaction.advance_over_settled()
            execute(sql.FORGET_PASSED, (destination,))
            transaction.header.settled_id = execute(sql.LOWEST_CURSOR).fetchone()[0]
            if done.ids:
                count, size = len(done.ids), done.bytes - len(done.ids)
                execute(sql.DELIVERED, (count, status, destination))
                span = (batch.ids[0], batch.last_id)
                execute(sql.ADD_DELIVERY, (destination, *span, time.time(), status, count, size, seconds))
            return True

    def cursor(self, destination: str) -> Cursor:
        """Return how far *destination* is."""
        with self.reading() as connection:
            return waiting.cursor(connection, destination)

    def is_settled(self, destination: str, id: int) -> bool:
        """Tell whether no message up to *id* is pending for *destination*."""
        with self.reading() as connection:
            return bool(connection.execute(sql.IS_SETTLED, (destination, id)).fetchone()[0])

    def postpone(
        self,
        destination: str,
        *,
        until: float,
        reason: str,
        fingerprint: str,
        held: bool = False,
        status: int | None = None,
    ) -> None:
        """Store that the whole *destination* waits *until* (Unix seconds), or less long for another *fingerprint*."""

        def write() -> None:
            with self.writing() as transaction:
                transaction.execute(sql.ADD_CURSOR, (destination, 0))
                transaction.execute(sql.WAIT, (until, status, reason, held, fingerprint, destination))

        self._with_reserve(write)

    def _with_reserve(self, write: Callable[[], Result]) -> Result:
        """Return what *write* returns, with the room of the reserve where there is no other. Raises OutboxError."""
        try:
            return write()
        except DiskFull:
            if not self.give_back_reserve():
                raise
        return write()

    # What the outbox knows of itself

    def meta(self, key: str) -> str | None:
        """Return the value kept under *key*."""
        with self.reading() as connection:
            row = connection.execute(sql.META, (key,)).fetchone()
            return row[0] if row else None

    def set_meta(self, key: str, value: str) -> None:
        """Keep *value* under *key*, unless it is there already."""
        if self.meta(key) != value:
            with self.writing() as transaction:
                transaction.execute(sql.SET_META, (key, value))
