"""What a job of `jobs_child` was promised, and whether it was kept: the outbox and the receiver against the log."""

from __future__ import annotations

import json
import shutil
import sqlite3
import tempfile
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from faults.jobs_child import APP, LAST, message_id, properties
from faults.traced import ForkServer
from outtray.outbox import sql
from outtray.outbox.records import is_intact
from outtray.testing import FakeServer

READ_WITHIN = 0.5
"""Seconds that a receiver is given to read what is on its way, at most."""

STATES = "SELECT id, state FROM message_states"


@dataclass
class Stored:
    """What the database files of an outbox hold: ids and states by message number, and what is wrong with them."""

    ids: dict[int, int] = field(default_factory=dict)
    states: dict[int, str] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)


@dataclass
class Promised:
    """What was promised so far: ids by the number of the accepted message, and what was removed on purpose.

    *removing* is what a command was about to remove when it was last heard of: "", "delivered" or "all".
    """

    ids: dict[int, int] = field(default_factory=dict)
    removed: set[int] = field(default_factory=set)
    removing: str = ""

    def add(self, said: Iterable[dict[str, Any]]) -> None:
        """Take in the lines of a log."""
        for line in said:
            if "accepted" in line:
                self.ids[line["accepted"]] = line["id"]
            self.removed.update(line.get("removed", ()))
            self.removing = line.get("removing", self.removing)

    def copy(self) -> Promised:
        """Return one that can be added to."""
        return Promised(dict(self.ids), set(self.removed), self.removing)


@dataclass
class Received:
    """What a receiver got: numbers in the order of first acceptance, those of its last accepted request, repeats."""

    numbers: list[int] = field(default_factory=list)
    last_request: set[int] = field(default_factory=set)
    repeated: dict[int, int] = field(default_factory=dict)
    altered: list[int] = field(default_factory=list)

    @classmethod
    def by(cls, server: FakeServer) -> Received:
        """Return the record of *server*."""
        messages = server.received
        accepted = [request for request in server.requests if request.status == 200 or request.status is None]
        return cls(
            [message["properties"]["number"] for message in messages],
            {_number(id) for id in accepted[-1].message_ids} if accepted else set(),
            {_number(id): times for id, times in server.repeats.items()},
            [_number(message["message_id"]) for message in messages if not _is_whole(message)],
        )


_FIRST = int(message_id(0).replace("-", ""), 16)


def _number(text: str) -> int:
    return int(text.replace("-", ""), 16) - _FIRST


def _is_whole(message: dict[str, Any]) -> bool:
    number = _number(message["message_id"])
    return {**message["properties"], **properties(number)} == message["properties"] and message["event"] == "event"


def shown(numbers: Iterable[int]) -> str:
    """Return the numbers of messages, or how many they are and the first."""
    listed = list(numbers)
    return f"{len(listed)} messages: {', '.join(map(str, listed[:8]))}" + (", ..." if len(listed) > 8 else "")


def stored(folder: Path) -> Stored:
    """Return what the outbox below *folder* holds in all its generations, from a copy."""
    result = Stored()
    with tempfile.TemporaryDirectory(prefix="outtray-faults-") as name:
        copy = Path(name) / APP
        if (folder / APP).is_dir():
            shutil.copytree(folder / APP, copy)
        for path in sorted(copy.glob("outbox-*.db")):
            _read(path, result)
    return result


def _read(path: Path, result: Stored) -> None:
    connection = sqlite3.connect(path, isolation_level=None)
    try:
        if connection.execute(sql.IS_EMPTY).fetchone()[0]:
            return  # its creator was killed
        result.problems += [text for (text,) in connection.execute(sql.INTEGRITY) if text != "ok"]
        here: dict[int, int] = {}
        for id, crc, body in connection.execute(sql.CHECKSUMS):
            if not is_intact(id, body, crc):
                result.problems.append(f"the message with the id {id} is damaged")
                continue
            number = _number(json.loads(body)["message_id"])
            if number in here:
                result.problems.append(f"message {number} stands there twice, as {here[number]} and as {id}")
            here[number] = id
        numbers = list(here)
        if numbers != sorted(numbers):
            result.problems.append(f"ids do not rise in the order of acceptance: {shown(numbers)}")
        result.ids.update(here)
        states = dict(connection.execute(STATES))
        result.states.update({number: states[id] for number, id in here.items() if id in states})
    except sqlite3.Error as error:
        result.problems.append(f"{path.name}: {error}")
    finally:
        connection.close()


def broken(promised: Promised, outbox: Stored, delivered: set[int], *, unanswered: int = 0) -> list[str]:
    """Return how *outbox* breaks what was promised; up to *unanswered* messages may be there without an answer."""
    found = list(outbox.problems)
    given = list(promised.ids.values())
    if len(set(given)) < len(given):
        found.append(f"an id was given twice: {sorted(id for id in set(given) if given.count(id) > 1)}")
    may_be_gone = {"": set(), "delivered": delivered, "all": set(promised.ids)}[promised.removing]
    missing = set(promised.ids) - set(outbox.ids) - promised.removed - may_be_gone
    if missing:
        found.append(f"accepted, and gone: {shown(missing)}")
    if left := promised.removed & set(outbox.ids):
        found.append(f"there although their removal was done: {shown(left)}")
    moved = {number for number, id in promised.ids.items() if outbox.ids.get(number, id) != id}
    if moved:
        found.append(f"there under another id than the one that was given: {shown(moved)}")
    others = set(outbox.ids) - set(promised.ids)
    if len(others) > unanswered:
        found.append(f"messages that no call answered for: {shown(others)}")
    return found


@dataclass
class GoneOn:
    """What the next program found: its own violations, the ledger, and the receiver's record."""

    violations: list[str]
    ledger: dict[str, int]
    received: Received
    outbox: Stored


def go_on(
    workers: ForkServer, folder: Path, server: FakeServer, promised: Promised, before: Stored, delivered: set[int]
) -> GoneOn:
    """Have the next program look, append and drain, and check that all that was promised is kept.

    *before* is what was stored and *delivered* what was received before *server* began its record.
    """
    _let_read(server)
    earlier = Received.by(server)
    outcome = workers.run("go_on", folder, server.url)
    found: list[str] = []
    if outcome.code or outcome.hung:
        found.append(f"the next program ended with {outcome.code}: {outcome.errors.strip()[-600:]}")
    found += [f"status fails: {error}" for error in outcome.all("status") if error]
    highest = max([*promised.ids.values(), *before.ids.values()], default=0)
    if LAST not in outcome.all("accepted"):
        found.append("the next call was not accepted")
    elif outcome.last("id") <= highest:
        found.append(f"the next message got the id {outcome.last('id')}, given before (up to {highest})")
    promised = promised.copy()
    promised.add(outcome.said)
    received, after = Received.by(server), stored(folder)
    found += broken(promised, after, delivered | set(received.numbers), unanswered=len(before.ids))
    found += _undelivered(promised, before, after, delivered, received)
    found += _badly_delivered(after, delivered, earlier, received)
    return GoneOn(found, outcome.last("ledger") or {}, received, after)


def _let_read(server: FakeServer) -> None:
    """Give *server* a moment to read what a program had sent that is gone: on a busy machine that may come later."""
    end = time.monotonic() + READ_WITHIN
    while server._listener is not None and server._listener._connections and time.monotonic() < end:
        time.sleep(0.001)


def _undelivered(
    promised: Promised, before: Stored, after: Stored, delivered: set[int], received: Received
) -> list[str]:
    waiting = [number for number, state in after.states.items() if state == "pending"]
    found = [f"the drain left messages waiting: {shown(waiting)}"] if waiting else []
    dead = {number for number, state in after.states.items() if state == "dead"}
    removed = set(promised.ids) - set(before.ids) if promised.removing == "all" else promised.removed
    missing = set(promised.ids) - delivered - set(received.numbers) - dead - removed
    if missing:
        found.append(f"accepted, and never delivered: {shown(missing)}")
    return found


def _badly_delivered(after: Stored, delivered: set[int], earlier: Received, received: Received) -> list[str]:
    found = [f"delivered with another text: {shown(received.altered)}"] if received.altered else []
    again = {number: times - earlier.repeated.get(number, 0) for number, times in received.repeated.items()}
    again.update(dict.fromkeys(delivered & set(received.numbers), 1))
    wrongly = [number for number, times in again.items() if times > (number in earlier.last_request)]
    if wrongly:
        found.append(f"delivered again, though settled: {shown(wrongly)}")
    in_order = [number for number in received.numbers if number % 15 != 7]  # a refused one may come later
    if in_order != sorted(in_order):
        found.append(f"delivered out of order: {shown(in_order)}")
    return found
