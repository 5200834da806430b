"""The outbox: append, pending, settle. One per directory and process, see `shared`."""

from __future__ import annotations

import sqlite3
import sys
import time
import zlib

from outtray import consent, forking, identity
from outtray.errors import OutboxBusy, OutboxDenied, OutboxFull
from outtray.outbox import sql
from outtray.outbox.connection import translated
from outtray.outbox.database import Database
from outtray.outbox.gate import CHOICE_BITS
from outtray.outbox.records import Batch, Cursor, Mark, Message
from outtray.outbox.transaction import Transaction

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from types import FrameType

    from outtray.outbox.gate import Header

BYTES_BETWEEN_CHECKS = 256 * 1024
"""Bytes that one process appends, at most, between two looks at the size of the file."""

DELIVERY_SETTINGS = "delivery"
"""Key in `meta` of what drainers need to know of the host's settings, as JSON."""


class Outbox(Database):
    """The messages of one application and how far each destination is.

    *destination* is where new messages go, *max_bytes* bounds the live bytes of the database, *epoch* is the one in
    which this process last saw that its client id holds, 0 before. Methods raise OutboxError.
    """

    def __init__(self, directory: str, *, destination: str, max_bytes: int) -> None:
        super().__init__(directory)
        self.destination = destination
        self.max_bytes = max_bytes
        self.last_id = 0
        self.epoch = 0
        self._replacements = 0
        self._unchecked = 0

    # Appending

    def append(
        self,
        message_id: str,
        event: str,
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
        Raises OutboxBusy, OutboxFull, OutboxUnusable: then nothing was stored.
        """
        data = body.encode()
        row = (message_id, event, accepted_at, zlib.crc32(data), body)
        frame = sys._getframe()
        try:
            self._enter(frame)
            connection, header = self._ready()
            if follows_choice and header.flags & CHOICE_BITS:
                local = self._is_local(header, otherwise=local)
            if epoch is not None and epoch != header.epoch:
                body = self._with_valid_id(body, header)
                data = body.encode()
                row = (message_id, event, accepted_at, zlib.crc32(data), body)
            self._unchecked -= len(data)
            if self._is_fresh or self._unchecked < 0 or local or self._ledger:
                self._append_with_care(connection, header, row, local=local)
            else:
                self._insert(connection, header, row)
            self._gate.write(header)
        except (sqlite3.Error, OSError) as error:
            raise translated(error, self._path or self.directory) from error
        finally:
            self._leave(frame)
        self.last_id = header.last_id
        self.unsynced = True
        return header.last_id

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

    def _insert(self, connection: sqlite3.Connection, header: Header, row: tuple[object, ...]) -> None:
        try:
            connection.execute(sql.APPEND, (header.last_id + 1, *row))
        except sqlite3.IntegrityError:
            if not self._gate.file.is_at_path():
                raise OutboxBusy(f"{self._gate.file.path} was replaced; the next call uses the new one") from None
            # The header lags: somebody died between the commit and the header.
            header.last_id = connection.execute(sql.HIGHEST_ID).fetchone()[0]
            connection.execute(sql.APPEND, (header.last_id + 1, *row))
        header.last_id += 1

    def _append_with_care(
        self, connection: sqlite3.Connection, header: Header, row: tuple[object, ...], *, local: bool
    ) -> None:
        """Append with what is not done every time: size bound, cursor, ledger, the mark of a local message."""
        transaction = Transaction(connection, header)
        connection.execute(sql.BEGIN)
        try:
            if self._is_fresh or self._unchecked < 0:
                self._check_size(transaction)
            self._insert(connection, header, row)
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

    # Delivering

    def pending(
        self, destination: str, *, after_id: int, max_count: int, max_bytes: int, passed_over: Iterable[int] = ()
    ) -> Batch | None:
        """Return the messages that are due next, None if there are none.

        Exceptions whose time has come go first, then the log behind *after_id* (or the cursor); at most
        *max_count* messages and *max_bytes* of bodies, but always one. Those with an id in *passed_over* stay.
        """
        with self.reading() as connection:
            header = self.header()
            row = connection.execute(sql.CURSOR, (destination,)).fetchone()
            cursor = row[0] if row else 0
            rows = connection.execute(sql.DUE_EXCEPTIONS, (destination, time.time()))
            messages = _within(rows, max_count, max_bytes, frozenset(passed_over))
            if messages:
                return Batch(destination, messages, header, in_order=False)
            rows = connection.execute(sql.LOG, (destination, max(cursor, after_id), max_count))
            messages = _within(rows, max_count, max_bytes, frozenset())
            return Batch(destination, messages, header, in_order=True) if messages else None

    def newest(self, destination: str, *, after_id: int) -> Batch | None:
        """Return the newest waiting message behind *after_id* as a batch of one that may overtake the others."""
        with self.reading() as connection:
            cursor = connection.execute(sql.CURSOR, (destination,)).fetchone()
            row = connection.execute(sql.NEWEST, (destination, max(after_id, cursor[0] if cursor else 0))).fetchone()
            return Batch(destination, [Message(row)], self.header(), in_order=False) if row else None

    def settle(self, batch: Batch, marks: Sequence[Mark] = (), *, status: int, seconds: float) -> bool:
        """Write down that *batch* is done: delivered, but for the messages that *marks* name.

        *marks* may also name messages behind the cursor that are not of the batch. Returns False, and changes
        nothing, if the batch is from before a withdrawal, a purge or a new generation.
        """
        destination = batch.destination
        marked = {mark.message.id for mark in marks if mark.state != "delivered"}
        done = [message for message in batch.messages if message.id not in marked]
        with self.writing() as transaction:
            if not batch.is_of(transaction.header):
                return False
            execute = transaction.execute
            execute(sql.ADD_CURSOR, (destination, 0))
            if batch.in_order:
                execute(sql.ADVANCE, (batch.last_id, destination))
            else:
                for message in done:
                    transaction.settle_out_of_order(destination, message.id)
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
            execute(sql.ADVANCE_OVER_SETTLED, (transaction.header.last_id,))
            execute(sql.FORGET_PASSED, (destination,))
            if done:
                size = sum(len(message.body) for message in done)
                execute(sql.DELIVERED, (len(done), status, destination))
                span = (batch.messages[0].id, batch.last_id)
                execute(sql.ADD_DELIVERY, (destination, *span, time.time(), status, len(done), size, seconds))
            return True

    def cursor(self, destination: str) -> Cursor:
        """Return how far *destination* is."""
        with self.reading() as connection:
            row = connection.execute(sql.CURSOR, (destination,)).fetchone()
            return Cursor(row)

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
        with self.writing() as transaction:
            transaction.execute(sql.ADD_CURSOR, (destination, 0))
            transaction.execute(sql.WAIT, (until, status, reason, held, fingerprint, destination))

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
        if messages and (size > max_bytes or len(messages) == max_count):
            break
        messages.append(message)
    return messages


_shared: dict[str, Outbox] = {}


def shared(directory: str, *, destination: str, max_bytes: int) -> Outbox:
    """Return this process's one `Outbox` for *directory*: two would end each other's locks."""
    outbox = _shared.get(directory)
    if outbox is None:
        outbox = _shared.setdefault(directory, Outbox(directory, destination=destination, max_bytes=max_bytes))
    outbox.destination, outbox.max_bytes = destination, max_bytes
    return outbox


def _before_fork(frame: FrameType) -> None:
    for outbox in list(_shared.values()):
        outbox.before_fork(frame)


def _after_fork_in_parent(frame: FrameType) -> None:
    for outbox in list(_shared.values()):
        outbox.after_fork_in_parent(frame)


def _after_fork_in_child() -> None:
    for outbox in list(_shared.values()):
        outbox.after_fork_in_child()


forking.before.append(_before_fork)
forking.in_parent.append(_after_fork_in_parent)
forking.in_child.append(_after_fork_in_child)
