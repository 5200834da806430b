"""Bringing back what waits in damaged files: under its own ids, and so in its place; each source once.

They are read byte by byte, as nobody writes them any more, and what they hold counts only with its checksum.
"""

from __future__ import annotations

import json
import time

from outtray import consent, journal
from outtray.errors import OutboxBusy, OutboxDamaged, OutboxError
from outtray.outbox import pages, sources, sql
from outtray.outbox.generation import LEFT, SALVAGED, base_id, numbers
from outtray.outbox.records import checksum, whole_message
from outtray.outbox.transaction import BYTES_UNDER_THE_GATE, ERASING, ROWS_UNDER_THE_GATE

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any

    from outtray.outbox.store import Outbox
    from outtray.outbox.transaction import Transaction

STATE = " state"
"""Ends the name of a source in `SALVAGED` whose cursors and ledger were taken over."""

CARRIED_OVER = ("retry", "deferred", "dead", "local")
"""States in `exceptions` of messages that are kept or still to be sent."""


def salvage(outbox: Outbox, go_on: Callable[[], bool] = lambda: True) -> int:
    """Bring back what waits in damaged files and return how many messages.

    A batch that somebody else has on its way meanwhile is not settled, and repeated. Where *go_on* says False it
    ends; the next call goes on. What the user denied stays where it is, to be erased. Raises OutboxError, OSError.
    """
    if consent.stored(outbox.directory) == consent.DENIED:
        return 0
    saved = 0
    while True:
        number = outbox.header().generation
        left = sources.waiting(outbox.directory, number, outbox.meta)
        if not left:
            break
        # The newest, which may know that it had what is in older ones.
        work = _Salvage(outbox, left[0], go_on, generation=number)
        try:
            lost = work.run()
        except _Erased:
            return saved + work.saved
        except _AnotherGeneration:  # which sees other sources, or the same ones in another light
            saved += work.saved
            continue
        saved += work.saved
        if lost is None:
            break
        journal.salvaged(work.saved, lost, left[0].name)
    return saved


def salvage_if_possible(outbox: Outbox, go_on: Callable[[], bool]) -> None:
    """Do as `salvage`; where it fails, the next delivery tries again, and this one goes on with what is there.

    Raises OutboxBusy and OutboxDamaged.
    """
    try:
        salvage(outbox, go_on)
    except (OutboxBusy, OutboxDamaged):
        raise
    except (OutboxError, OSError) as error:
        journal.failed("saving what waits in a damaged file", error)


class _State:
    """What a damaged database says of its messages: cursors, marks, gaps, ledger and meta, as far as it can be read."""

    def __init__(self, records: Iterator[pages.Record]) -> None:
        self.cursors: dict[str, tuple[int, int]] = {}
        self.marks: dict[tuple[str, int], tuple[Any, ...]] = {}
        found: dict[tuple[str, int], list[tuple[Any, ...]]] = {}
        self.ledger: dict[str, int] = {}
        self.meta: dict[str, str] = {}
        self.gaps: list[tuple[int, int]] = []
        indexed: dict[tuple[str, int], str] = {}
        for record in records:
            match record.values:
                case (bytes(key), bytes(value)):
                    self.meta[_text(key)] = _text(value)
                case (bytes(reason), int(count)) if record.rowid is None:
                    self.ledger[_text(reason)] = count
                case (None, int(last_id)) if record.rowid is not None:
                    self.gaps.append((record.rowid, last_id))
                case (bytes(name), int(id), int(state), *_, int(mirror)) if len(record.values) == 10 and mirror == -id:
                    self.cursors[_text(name)] = (id, state)
                case (bytes(name), int(id), bytes(state), *rest) if len(record.values) == 8:
                    found.setdefault((_text(name), id), []).append((_state(state), *rest))
                case (bytes(state), bytes(name), int(id)):
                    indexed[_text(name), id] = _state(state)
        for place, marks in found.items():  # of more than one, all but one are those of other messages
            right = [mark for mark in marks if mark[0] == indexed.get(place)]
            self.marks[place] = (right or marks)[0]
        self._compare(indexed)

    def _compare(self, indexed: dict[tuple[str, int], str]) -> None:
        """Put the marks right by their index: where the two disagree, a message is rather sent again than lost."""
        for key in [key for key in self.marks if indexed and key not in indexed]:
            name, id = key
            if id > self.cursors.get(name, (0, 0))[0]:
                del self.marks[key]
        for key, state in indexed.items():
            if key not in self.marks and state in CARRIED_OVER:
                self.marks[key] = (state, 0.0, 0, None, None, None)


class _Erased(Exception):
    """The user had erased what is just being brought back."""


class _AnotherGeneration(Exception):
    """The next generation was begun while a source was read."""


class _Salvage:
    """Brings one source back, in slices under the gate. A message is taken whose id no other message has, or had."""

    def __init__(self, outbox: Outbox, source: sources.Source, go_on: Callable[[], bool], *, generation: int) -> None:
        self._outbox = outbox
        self._generation = generation  # the one in use when the source was found
        self._source = source
        self._go_on = go_on
        self._state = _State(source.newest())
        self._header = self._known()
        self._is_all_known = bool(self._state.cursors and self._header)
        settled_id = self._header.get("settled_id")
        if source.is_left and settled_id is not None and not self._state.cursors:
            self._state.cursors[outbox.destination] = (settled_id, 0)
        self.saved = 0
        self._lowest_seen: int | None = None
        self._highest_seen = 0

    def run(self) -> int | None:
        """Bring back what is wanted, and return how many messages are lost, None if it is to go on later."""
        if self._source.is_left:
            self._carry_over()
        rows: list[tuple[Any, ...]] = []
        size = 0
        for row in self._messages():
            rows.append(row)
            size += len(row[-1])
            if len(rows) == ROWS_UNDER_THE_GATE or size > BYTES_UNDER_THE_GATE:
                self._bring_back(rows)
                rows, size = [], 0
                if not self._go_on():
                    return None
        self._bring_back(rows)
        return self._finish()

    def _require_wanted(self, transaction: Transaction) -> None:
        """See that this still holds: nothing was erased or begun anew meanwhile. Raises _Erased, _AnotherGeneration."""
        if transaction.header.generation != self._generation:
            raise _AnotherGeneration
        is_under_way = transaction.header.choice == consent.DENIED or _meta(transaction, ERASING) is not None
        if is_under_way or not self._source.files:
            raise _Erased

    @property
    def _erased_id(self) -> int:
        """Up to which id messages were being erased when the source was left, 0 if none."""
        until = self._state.meta.get(ERASING, "").partition(" ")[2]
        return int(until) if until.isdecimal() else 0

    def _known(self) -> dict[str, int]:
        """Return what the header said when the source was left, empty if that is not known."""
        known = numbers(self._outbox.meta(LEFT.format(self._source.generation)))
        return {name: int(id) for name, id in known.items()}

    def _messages(self) -> Iterator[tuple[Any, ...]]:
        """Give id, accepted_at, crc and body of all that is whole and was not settled."""
        top = base_id(self._source.generation + 1)
        for record in self._source.all():
            message = whole_message(record)
            if message is None or message[0] > top:
                continue
            id = message[0]
            self._lowest_seen = id if self._lowest_seen is None else min(self._lowest_seen, id)
            self._highest_seen = max(self._highest_seen, id)
            if self._is_wanted(id):
                yield message

    def _is_wanted(self, id: int) -> bool:
        if id <= self._erased_id:
            return False
        if not self._source.is_left or not self._state.cursors:
            return True  # the gaps of the database in use tell, or nobody knows
        return any(
            self._state.marks[name, id][0] in CARRIED_OVER if (name, id) in self._state.marks else id > cursor
            for name, (cursor, _) in self._state.cursors.items()
        )

    def _bring_back(self, rows: list[tuple[Any, ...]]) -> None:
        if not rows:
            return
        with self._outbox.writing() as transaction:
            self._require_wanted(transaction)
            transaction.header.epoch += 1  # settling a batch on its way would move the cursor over what comes in here
            cursors = dict(transaction.execute(sql.CURSOR_IDS).fetchall())
            count = 0
            for row in rows:
                if transaction.leave_gap(row[0]):
                    transaction.execute(sql.APPEND, row)
                    self._mark(transaction, row, cursors)
                    count += 1
            transaction.count_in_ledger("salvaged", count)
            if not self._source.is_left:
                transaction.count_in_ledger("lost", -count)  # they were counted when the file was opened
        self.saved += count

    def _mark(self, transaction: Transaction, row: tuple[Any, ...], cursors: dict[str, int]) -> None:
        """Say of a message that was brought back what the cursors do not."""
        id, *_, crc, body = row
        is_local = checksum(id, body.encode(), local=True) == crc
        for name, cursor in cursors.items():
            mark = self._state.marks.get((name, id))
            if is_local:
                transaction.mark(name, id, "local")
            elif mark is not None and mark[0] in CARRIED_OVER and mark[0] != "local":  # of which the checksum tells
                state, next_attempt_at, attempts, status, reason, excerpt = mark
                transaction.mark(
                    name,
                    id,
                    state,
                    next_attempt_at=_number(next_attempt_at, 0.0),
                    attempts=int(_number(attempts, 0)),
                    status=None if status is None else int(_number(status, 0)),
                    reason=_optional_text(reason),
                    excerpt=_optional_text(excerpt),
                )
            elif id <= cursor:
                transaction.mark(name, id, "retry")

    def _carry_over(self) -> None:
        """Take cursors, ledger and meta over, once."""
        with self._outbox.writing() as transaction:
            self._require_wanted(transaction)
            execute = transaction.execute
            read = numbers(_meta(transaction, SALVAGED))
            if self._source.name + STATE in read:
                return
            for name, (id, delivered) in self._state.cursors.items():
                if id <= base_id(self._source.generation + 1):
                    execute(sql.ADD_CURSOR, (name, 0))
                    execute(sql.CARRY_CURSOR, (id, delivered, name))
            for reason, count in self._state.ledger.items():
                transaction.count_in_ledger(reason, count)
            for key, value in self._state.meta.items():
                if key not in (SALVAGED, ERASING) and _meta(transaction, key) is None:
                    execute(sql.SET_META, (key, value))
            # What was brought back into this one before is in it, or was purged from it, and is not read again.
            read = numbers(self._state.meta.get(SALVAGED)) | read
            read[self._source.name + STATE] = time.time()
            execute(sql.SET_META, (SALVAGED, json.dumps(read)))

    def _finish(self) -> int:
        """Note that the source was read to its end, count what it did not have, and return how many that is."""
        with self._outbox.writing() as transaction:
            self._require_wanted(transaction)
            read = numbers(_meta(transaction, SALVAGED))
            if self._source.name in read:
                return 0  # somebody else read it at the same time, and has counted
            lost = self._count_lost(transaction) if self._source.is_left else 0
            transaction.count_in_ledger("lost", lost)
            if not self._is_all_known and self._source.is_left:
                transaction.count_in_ledger("lost_unknown", 1)
            read[self._source.name] = 0.0 if self._erased_id else time.time()  # text that is to go is not kept for long
            transaction.execute(sql.SET_META, (SALVAGED, json.dumps(read)))
        return lost

    def _count_lost(self, transaction: Transaction) -> int:
        """Return how many ids were given to messages that were not settled and are not here now."""
        last_id = max(self._highest_seen, self._header.get("last_id", 0))
        settled = [id for id, _ in self._state.cursors.values()]
        first = min(settled) if settled else (self._lowest_seen or 1) - 1
        unused = transaction.unused_ids(first, last_id)
        unused -= sum(max(0, min(end, last_id) - max(start, first + 1) + 1) for start, end in self._state.gaps)
        marked = {id: state for (_, id), (state, *_) in self._state.marks.items()}
        unused -= sum(state == "delivered" and first < id <= last_id for id, state in marked.items())
        gone = sum(
            state in CARRIED_OVER and id <= first and transaction.unused_ids(id - 1, id) == 1
            for id, state in marked.items()
        )
        return int(max(0, unused) + gone)


def _meta(transaction: Transaction, key: str) -> str | None:
    row = transaction.execute(sql.META, (key,)).fetchone()
    return row[0] if row else None


def _state(data: bytes) -> str:
    """Return the state of a mark; what it can no longer be read from was rather not delivered than lost."""
    state = _text(data)
    return state if state in (*CARRIED_OVER, "delivered") else "retry"


def _text(data: bytes) -> str:
    return data.decode("utf-8", "replace")


def _optional_text(value: Any) -> str | None:
    return _text(value) if isinstance(value, bytes) else None


def _number(value: Any, default: float) -> float:
    return value if isinstance(value, (int, float)) else default
