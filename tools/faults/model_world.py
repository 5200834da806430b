"""The stateful model's idea of an outbox, and the comparison of the two."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from faults.programs import FAULTS, Programs
from outtray.errors import OutboxUnusable
from outtray.outbox import look
from outtray.outbox.files import database_path, exists, newest_generation
from outtray.outbox.records import Cursor

if TYPE_CHECKING:
    from collections.abc import Iterable

    from outtray.testing import FakeServer

APP = "model"
DESTINATION = "zenml"

WAITING, DEFERRED, DEAD, LOCAL, DELIVERED, REMOVED = "pending", "deferred", "dead", "local", "delivered", "removed"

MARKER = "tulip"
LIMIT = 6_000
"""Bytes above which the receiver refuses a request in the mode "too_large": a few small messages, no large one."""

LARGE = 8_000
MAX_MESSAGE_BYTES = 20_000
MAX_BATCH_COUNT = 5
TIMEOUT, SHORT_TIMEOUT = 20.0, 0.3
"""Deadlines of a request in seconds: the short one is for a receiver that never answers."""

WHOLE_RUN = 10_000
"""Steps of a drain that are never reached: it goes on until nothing is due."""

REFUSALS = (400, 413, 422)
"""Answers after which a message that was sent alone is passed over, in that run only."""

SUSPECTS = 20
"""Refused messages in a row from which the newest one is tried alone, out of its order."""

DAY = 86_400.0

TAKES_ALL = ("ok", "empty")
TAKES_SOME = ("marked 400", "marked 413", "marked 422", "too_large", "flaky")
TAKES_NONE = ("500", "503", "429", "401", "404", "html", "redirect", "reset", "hang", "refuse", "bad_chunks")
LOSES_ANSWERS = ("drop_after_accept",)

MODES: dict[str, tuple[str, dict[str, Any]]] = {
    "marked 400": ("refuse_marked", {"marker": MARKER, "status": 400}),
    "marked 413": ("refuse_marked", {"marker": MARKER, "status": 413}),
    "marked 422": ("refuse_marked", {"marker": MARKER, "status": 422}),
    "too_large": ("too_large", {"max_bytes": LIMIT}),
    "redirect": ("redirect_self", {}),
    "429": ("429", {"retry_after": 100}),
}
"""The modes of the fake server whose name or options are not just the word in the lists above."""


class Violation(AssertionError):
    """The outbox is not what it must be."""


class Nursery:
    """Gives processes: see `model_child`."""

    def __init__(self, programs: Programs, path: Path) -> None:
        self._path = str(path)
        pipe = subprocess.PIPE
        self._process = programs.start(str(FAULTS / "model_child.py"), self._path, stdin=pipe, stdout=pipe)

    def __enter__(self) -> Nursery:
        if self._process.stdout is None or self._process.stdout.readline() != b"ready\n":
            raise RuntimeError("the process that forks the others did not start")
        return self

    def __exit__(self, *_: object) -> None:
        """Leave it to `Programs` to end it."""

    def process(self, **options: Any) -> Process:
        """Return a new process that is configured with *options*."""
        connection = socket.socket(socket.AF_UNIX)
        connection.connect(self._path)
        process = Process(connection)
        process.order("configure", **options)
        return process


class Process:
    """One process that uses the outbox."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        connection.settimeout(60)
        self._answers = connection.makefile("rb")
        self.pid: int = json.loads(self._answers.readline())["pid"]
        self._life = os.pidfd_open(self.pid)

    def order(self, name: str, **arguments: Any) -> list[dict[str, Any]]:
        """Have it do *name* and return its answers, the last of them being the result."""
        self._send(name, arguments)
        answers = self._read()
        if not (answers and "done" in answers[-1]):
            raise Violation(f"the process died of {name}({arguments})")
        if "error" in answers[-1]:
            raise Violation(f"{name}({arguments}) failed: {answers[-1]['error']}")
        return answers

    def killed_in(self, name: str, seconds: float, **arguments: Any) -> list[dict[str, Any]]:
        """Have it begin *name*, kill it after *seconds*, and return what it answered before."""
        self._send(name, arguments)
        time.sleep(seconds)
        self.kill()
        return self._read()

    def kill(self) -> None:
        """Kill it; once `end` returns it is dead."""
        os.kill(self.pid, signal.SIGKILL)

    def end(self) -> None:
        """Wait for its end, after a `kill`, or end it by closing the connection."""
        with contextlib.suppress(OSError):  # it is dead already
            self._connection.shutdown(socket.SHUT_WR)
        self._read(to_the_end=True)
        select.select([self._life], [], [])  # the connection ends a little before its locks do
        os.close(self._life)
        self._answers.close()
        self._connection.close()

    def _send(self, name: str, arguments: dict[str, Any]) -> None:
        self._connection.sendall(json.dumps({"do": name, **arguments}).encode() + b"\n")

    def _read(self, *, to_the_end: bool = False) -> list[dict[str, Any]]:
        """Return its answers up to the end of the order, or of the process."""
        answers: list[dict[str, Any]] = []
        with contextlib.suppress(ConnectionResetError):
            for line in self._answers:
                if not line.endswith(b"\n"):
                    break  # it was killed while it said that
                answers.append(json.loads(line))
                if "done" in answers[-1] and not to_the_end:
                    break
        return answers


@dataclass
class Message:
    """What the model knows of one message."""

    message_id: str
    text: str
    state: str
    id: int | None = None
    is_stored: bool = True
    is_due: bool = True
    """Not for a deferred message whose time has not come."""

    may_arrive_late: bool = False
    """A request for it may still be on its way from a process that was killed."""

    may_overtake: bool = False
    """Retried and deferred messages are the stated exceptions from the order.

    So is one that was refused alone, if the others arrived after that and their answers were not written down.
    """

    @property
    def is_marked(self) -> bool:
        """Whether a receiver that looks for the marker refuses it."""
        return MARKER in self.text

    @property
    def is_large(self) -> bool:
        """Whether it alone is above the receiver's limit."""
        return len(self.text) > LIMIT

    def is_bad(self, mode: str) -> bool:
        """Tell whether the receiver refuses this one message in *mode*."""
        return self.is_marked if mode.startswith("marked") else self.is_large and mode == "too_large"


class World:
    """One outbox, its receiver and processes, and the model of it."""

    def __init__(self, server: FakeServer, nursery: Nursery, directory: Path) -> None:
        self._server = server
        self._prefix = f"{directory.name}-"  # of its message ids: an earlier world's requests may still arrive
        self._nursery = nursery
        self._directory = directory
        self._options: dict[str, Any] = {
            "app": APP,
            "dir": str(directory),
            "url": server.url,
            "flush": "manual",
            "max_batch_count": MAX_BATCH_COUNT,
            "max_message_bytes": MAX_MESSAGE_BYTES,
        }
        self._process: Process | None = None
        self._count = 0
        self._requests_seen = 0
        self._received_seen = 0
        self._highest_first_delivery = 0
        self._cursor = 0
        self._may_have_pruned = False
        self.messages: dict[str, Message] = {}
        self.maybe: dict[str, Message] = {}
        """Messages of a call that was killed: stored or not."""
        self.answered: set[str] = set()
        """Messages that a receiver took which is not the fake server."""
        self.ledger: dict[str, int] = {}
        self.is_consent_denied = False
        self.is_consent_local = False
        self.wait = "none"
        """"blocked": a wait is stored that must be heeded; "over": one that must not; "unknown" after a failure."""

    @property
    def path(self) -> str:
        """The directory of the outbox."""
        return str(self._directory / APP)

    @property
    def may_send(self) -> bool:
        """Whether the user's choice allows to send."""
        return not (self.is_consent_denied or self.is_consent_local)

    @property
    def has_process(self) -> bool:
        """Whether a process is using the outbox."""
        return self._process is not None

    def start_process(self) -> Process:
        """Return the process that uses the outbox at the moment, a new one if there is none."""
        if self._process is None:
            self._process = self._nursery.process(**self._options)
        return self._process

    def order(self, name: str, **arguments: Any) -> dict[str, Any]:
        """Have the process do *name* and return the result."""
        return self.start_process().order(name, **arguments)[-1]

    def command(self, *words: str) -> dict[str, Any]:
        """Run the command line in a process of its own."""
        process = self._nursery.process(**self._options)
        try:
            return process.order("command", words=[*words, "--app", APP, "--dir", str(self._directory)])[-1]
        finally:
            process.end()

    def end_process(self, *, kill: bool) -> None:
        """End the process; the next step has a new one."""
        process, self._process = self._process, None
        if process is not None:
            if kill:
                process.kill()
            process.end()

    def kill_in(self, name: str, seconds: float, **arguments: Any) -> list[dict[str, Any]]:
        """Have the process begin *name*, kill it after *seconds* and return what it had answered."""
        answers = self.start_process().killed_in(name, seconds, **arguments)
        self.end_process(kill=False)  # it is dead
        return answers

    def limit(self, max_bytes: int) -> None:
        """Bound the outbox, for the next process on."""
        self.end_process(kill=False)
        self._may_have_pruned = not self.is_unlimited  # since the last check
        self._options["max_bytes"] = max_bytes

    @property
    def is_unlimited(self) -> bool:
        """Whether the outbox is too large to be full."""
        return bool(self._options.get("max_bytes", 1 << 30) >= 1 << 30)

    def be_in(self, mode: str) -> None:
        """Have the receiver answer in *mode*."""
        name, options = MODES.get(mode, (mode, {}))
        self._server.set_mode(name, **options)

    def new(self, kinds: Iterable[str]) -> list[Message]:
        """Return messages that nobody tracked yet."""
        made = []
        for kind in kinds:
            self._count += 1
            filler = {"small": "s" * 300, "marked": MARKER, "large": "l" * LARGE, "too large": "t" * MAX_MESSAGE_BYTES}
            text = f"{self._count} {filler[kind]}"
            made.append(Message(f"{self._prefix}{self._count}", text, WAITING))
        return made

    def in_state(self, *states: str) -> list[Message]:
        """Return the messages in *states*, in the order of their ids."""
        return [message for message in self.messages.values() if message.state in states]

    def due(self) -> list[Message]:
        """Return the messages that a drain would send now."""
        return [message for message in self.in_state(WAITING, DEFERRED) if message.is_due]

    # Looking: after each step all of it is compared with the model

    def check(self, allowed: dict[str, set[str]] | None = None, *, may_prune: bool = False) -> None:
        """Compare the outbox with the model, in which *allowed* names what may have become of messages by their id.

        Where several states are allowed the model takes the one that it finds. With *may_prune* delivered messages
        may be gone; so they may where the outbox is bounded: at any time the thread of a process that tracked removes
        those beyond an eighth of the bound, and a call at the bound as many as it needs. Raises Violation.
        """
        may_prune = may_prune or not self.is_unlimited or self._may_have_pruned
        self._may_have_pruned = False
        self._check_sending()
        seen = self._look()
        if seen is None:
            if self.messages:
                raise Violation("the outbox is gone")
            self.maybe.clear()
            return
        rows, counts, cursor, ledger = seen
        self._adopt(rows)
        for message in self.messages.values():
            row = rows.get(message.message_id)
            self._check_message(message, row, (allowed or {}).get(message.message_id, {message.state}), may_prune)
        self._check_order()
        unknown = set(rows) - set(self.messages)
        if unknown:
            raise Violation(f"the outbox holds what nobody stored: {sorted(unknown)}")
        self._check_counts(counts, ledger)
        if cursor.id < self._cursor:
            raise Violation(f"the cursor moved back from {self._cursor} to {cursor.id}")
        self._cursor = cursor.id

    def _adopt(self, rows: dict[str, look.StoredMessage]) -> None:
        """Take over what a killed call had stored: the first of its messages, and no message behind a missing one."""
        for message_id, message in self.maybe.items():
            if message_id in rows:
                self.messages[message_id] = message
        stored = [message_id in rows for message_id in self.maybe]
        if stored != sorted(stored, reverse=True):
            raise Violation(f"of the messages of a killed call some in the middle are missing: {stored}")
        self.maybe.clear()
        highest = max((message.id for message in self.messages.values() if message.id), default=0)
        for message in self.messages.values():
            if message.id is None and message.message_id in rows:
                message.id = rows[message.message_id].id
                if message.id <= highest:
                    raise Violation(f"{message.message_id} has the id {message.id}, and {highest} was given before")
                highest = message.id

    def _check_message(
        self, message: Message, row: look.StoredMessage | None, allowed: set[str], may_prune: bool
    ) -> None:
        name = f"{message.message_id} (id {message.id}, {message.state})"
        if row is None:
            if message.state == REMOVED or REMOVED in allowed:
                message.state, message.is_stored = REMOVED, False
            elif DELIVERED in allowed and (may_prune or not message.is_stored) and self._has_arrived(message):
                message.state, message.is_stored = DELIVERED, False
            else:
                raise Violation(f"{name} is lost: it is not in the outbox")
            return
        if row.state not in allowed or not message.is_stored:
            raise Violation(f"{name} is {row.state} now, allowed is {' or '.join(sorted(allowed))}")
        if row.id != message.id:
            raise Violation(f"{name} has the id {row.id} now")
        if json.loads(row.body)["properties"]["text"] != message.text:
            raise Violation(f"{name} has another text now")
        message.state = row.state
        if message.state == DELIVERED and not self._has_arrived(message):
            raise Violation(f"{name} counts as delivered and was never received")

    def _is_ours(self, message_id: str) -> bool:
        return message_id.startswith(self._prefix)

    def _has_arrived(self, message: Message) -> bool:
        received = {each["message_id"] for each in self._server.received}
        return message.message_id in received | self.answered

    def _check_sending(self) -> None:
        """Check that nothing was sent but what waited, as it was tracked."""
        known = {**self.messages, **self.maybe}
        requests = self._server.requests
        for request in requests[self._requests_seen :]:
            for message_id in filter(self._is_ours, request.message_ids):
                message = known.get(message_id)
                if message is not None and message.may_arrive_late:
                    continue
                if message is None or message.state not in (WAITING, DEFERRED) or not message.is_due:
                    what = "which nobody tracked" if message is None else f"which was {message.state} or not due"
                    raise Violation(f"{message_id} was sent, {what}")
        self._requests_seen = len(requests)
        for received in filter(lambda each: self._is_ours(each["message_id"]), self._server.received):
            if received["properties"]["text"] != known[received["message_id"]].text:
                raise Violation(f"{received['message_id']} arrived with another text")

    def refused_alone(self) -> set[str]:
        """Return the message ids that the receiver refused alone since the last check."""
        new = self._server.requests[self._requests_seen :]
        return {each.message_ids[0] for each in new if len(each.message_ids) == 1 and each.status in REFUSALS}

    def _check_order(self) -> None:
        """Check that first deliveries go by id."""
        received = self._server.received
        for each in filter(self._is_ours, [each["message_id"] for each in received[self._received_seen :]]):
            message = self.messages[each]
            is_late = message.may_arrive_late and message.state in (REMOVED, DEAD)
            if message.may_overtake or message.id is None or is_late:
                continue
            if message.id < self._highest_first_delivery:
                raise Violation(f"{message.message_id} (id {message.id}) arrived after {self._highest_first_delivery}")
            self._highest_first_delivery = message.id
        self._received_seen = len(received)

    def _check_counts(self, counts: look.Counts, ledger: dict[str, int]) -> None:
        for state in (WAITING, DEFERRED, DEAD, LOCAL, DELIVERED):
            number = len(self.in_state(state))
            if getattr(counts, state) != number:
                raise Violation(f"status counts {getattr(counts, state)} {state}, the model {number}")
        if ledger != {reason: number for reason, number in self.ledger.items() if number}:
            raise Violation(f"the ledger has {ledger}, the model {self.ledger}")

    def _look(self) -> tuple[dict[str, look.StoredMessage], look.Counts, Cursor, dict[str, int]] | None:
        """Return the stored messages by message id, the counts, the cursor and the ledger; None without an outbox."""
        if not exists(self.path):
            return None
        try:
            with look.look(self.path) as view:
                rows = {each.message_id: each for each in view.page(limit=1 << 20) if each.destination == DESTINATION}
                return rows, view.counts(DESTINATION), view.cursor(DESTINATION), view.ledger()
        except OutboxUnusable as error:
            if self.messages:
                raise Violation(f"the outbox cannot be looked at: {error}") from error
            return None  # a process was killed while it made the first file

    def stored_ids(self) -> set[str]:
        """Return the message ids of all that is stored."""
        seen = self._look()
        return set(seen[0]) if seen else set()

    def take_over_ledger(self) -> None:
        """Believe the ledger after a step whose own reasons the model does not know; nothing may be lost by it."""
        seen = self._look()
        if seen is None:
            return
        ledger = seen[3]
        if ledger.get("lost", 0) > self.ledger.get("lost", 0):
            raise Violation(f"messages were lost: the ledger has {ledger}, the model {self.ledger}")
        self.ledger = ledger

    def damage(self) -> None:
        """Overwrite the beginning of the newest database file, as a program without manners would, or a bad disk."""
        path = database_path(self.path, newest_generation(self.path))
        # In a process of its own: opening and closing the file here would be no matter, but for the look's sake.
        command = [sys.executable, "-c", "import sys; open(sys.argv[1], 'r+b').write(b'?' * 100)", path]
        subprocess.run(command, check=True, timeout=60)

    def new_generation(self) -> None:
        """Have the cursor begin anew, as it does in a new generation or after `forget`."""
        self._cursor = 0
