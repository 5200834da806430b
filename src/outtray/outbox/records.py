"""What goes in and out of the outbox: messages, batches, marks, cursors."""

from __future__ import annotations

import zlib
from itertools import repeat

from outtray.outbox.connection import DamageFound

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Sequence
    from struct import Struct

    from outtray.outbox.gate import Header
    from outtray.outbox.pages import Record


LONGEST_WAIT = 3600.0
"""Seconds that anything waits, at most: what seems to wait for longer is due, as the clock was changed since."""


def checksum(id: int, body: bytes, *, local: bool = False) -> int:
    """Return what is stored with a message: a crc32 of the body that also tells its id, and whether it is local.

    So a message that is not to be sent is not sent, whatever becomes of its mark.
    """
    crc = zlib.crc32(body, id & 0xFFFFFFFF)
    return crc ^ 0xFFFFFFFF if local else crc


def checksums(ids: Iterable[int], bodies: Iterable[bytes]) -> Iterator[int]:
    """Give the `checksum` of each message, with no call of Python for each: of an id crc32 too takes the low bits."""
    return map(zlib.crc32, bodies, ids)


def is_intact(id: int, body: bytes, crc: object) -> bool:
    """Tell whether *crc* is the checksum of that message, local or not."""
    return crc in (checksum(id, body), checksum(id, body, local=True))


def whole_message(record: Record) -> tuple[int, float, int, str] | None:
    """Return id, accepted_at, crc and body if *record* is a message as it was stored, else None."""
    match record.values:
        case (None, int() | float() as accepted_at, int(crc), bytes(body)):
            id = record.rowid
            if id is not None and id > 0 and is_intact(id, body, crc):
                return id, float(accepted_at), crc, body.decode("utf-8", "replace")
    return None


class Message:
    """One stored message; *body* is its UTF-8.

    *intact* says whether it and the id still have their checksum, *local* that it is not to be sent.
    """

    __slots__ = ("attempts", "body", "id", "intact", "local")

    def __init__(self, row: Sequence[object]) -> None:
        self.id: int
        self.body: bytes
        self.attempts: int
        self.id, crc, self.body, self.attempts = row  # type: ignore[assignment]
        found = checksum(self.id, self.body)
        self.local = found ^ 0xFFFFFFFF == crc
        self.intact = found == crc or self.local


class Batch:
    """Messages for one request, and of which outbox they are: *generation* and *epoch* must still hold to settle it.

    *ids* are theirs, *array* is the JSON array of all, *unfit* are those that are not to be sent. *in_order* batches
    are the next of the log, so that settling them moves the cursor; those of *marked* messages have a row each in
    `exceptions`, which settling them removes.
    """

    __slots__ = (
        "_messages",
        "_places",
        "array",
        "destination",
        "epoch",
        "generation",
        "ids",
        "in_order",
        "marked",
        "unfit",
    )

    def __init__(
        self,
        destination: str,
        messages: list[Message],
        header: Header | Batch,
        *,
        in_order: bool,
        marked: bool = False,
    ) -> None:
        self.destination = destination
        self.ids: Sequence[int] = [message.id for message in messages]
        self.array = b"".join((b"[", b",".join([message.body for message in messages]), b"]"))
        self.unfit = [message for message in messages if message.local or not message.intact]
        self.generation: int = header.generation
        self.epoch: int = header.epoch
        self.in_order = in_order
        self.marked = marked
        self._messages: list[Message] | None = messages
        self._places: Struct | None = None

    @classmethod
    def of_run(cls, destination: str, ids: range, array: bytes, places: Struct, header: Header) -> Batch:
        """Return the batch of messages that come one after the other in the log, each as it was stored.

        *places* says where in *array* they are, which is taken apart only for who wants to have them one by one.
        """
        batch = cls(destination, [], header, in_order=True)
        batch.ids, batch.array, batch._places, batch._messages = ids, array, places, None
        return batch

    def only(self, messages: list[Message]) -> Batch:
        """Return a batch of some of the messages, whose settling does not move the cursor past the others."""
        return Batch(self.destination, messages, self, in_order=False, marked=self.marked)

    def without(self, ids: Collection[int]) -> Batch:
        """Return a batch of the messages that have none of *ids*."""
        return self.only([message for message in self.messages if message.id not in ids]) if ids else self

    @property
    def messages(self) -> list[Message]:
        """The messages one by one."""
        if self._messages is None:
            assert self._places is not None
            bodies = self._places.unpack(self.array)
            rows = zip(self.ids, checksums(self.ids, bodies), bodies, repeat(0))
            self._messages = [Message(row) for row in rows]
        return self._messages

    @property
    def last_id(self) -> int:
        """The highest id in the batch."""
        return self.ids[-1]

    @property
    def bytes(self) -> int:
        """The bytes of the messages, with a comma for each."""
        return len(self.array) - 1

    def goes_on_with(self, part: Batch, max_bytes: int) -> bool:
        """Take the messages of *part* in and return True, if they come next in the log and are not too many bytes."""
        is_next = self.in_order and part.in_order and part.is_of(self) and part.bytes <= max_bytes
        if is_next:
            self._messages = self.messages + part.messages
            self.array = b",".join((self.array[:-1], part.array[1:]))
            self.ids = [*self.ids, *part.ids]
            self.unfit = self.unfit + part.unfit
        return is_next

    def is_of(self, header: Header | Batch) -> bool:
        """Tell whether nothing was withdrawn and no new generation began between this one and *header*."""
        return (self.generation, self.epoch) == (header.generation, header.epoch)


class Mark:
    """What becomes of one message in a way that the cursor does not say.

    *state* is "dead", "deferred" or "delivered" (ahead of the cursor); *excerpt* the answer's first 500 bytes.
    """

    __slots__ = ("excerpt", "message", "next_attempt_at", "reason", "state", "status")

    def __init__(
        self,
        message: Message,
        state: str,
        *,
        status: int | None = None,
        reason: str | None = None,
        excerpt: str | None = None,
        next_attempt_at: float = 0.0,
    ) -> None:
        self.message = message
        self.state = state
        self.status = status
        self.reason = reason
        self.excerpt = excerpt
        self.next_attempt_at = next_attempt_at


class Cursor:
    """How far a destination is, and what it waits for: *next_attempt_at* with *attempts* failures in a row.

    Without a *row* it stands at the beginning. Raises DamageFound for one that would skip messages.
    """

    __slots__ = ("attempts", "delivered", "fingerprint", "held", "id", "next_attempt_at", "reason", "status")

    def __init__(self, row: Sequence[object] | None = None) -> None:
        self.id: int
        self.delivered: int
        self.next_attempt_at: float | None
        self.attempts: int
        self.status: int | None
        self.reason: str | None
        self.fingerprint: str | None
        (
            self.id,
            mirror,
            self.delivered,
            self.next_attempt_at,
            self.attempts,
            self.status,
            self.reason,
            held,
            self.fingerprint,
        ) = row or (0, 0, 0, None, 0, None, None, 0, None)  # type: ignore[assignment]
        self.held = bool(held)
        if mirror != -self.id:
            raise DamageFound(f"the cursor says {self.id} and, negated, {mirror}")
