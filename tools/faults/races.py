"""Settling against everything that can happen between a request and its answer, and appending against `rm -rf`.

The receiver has taken a batch and holds its answer back; meanwhile somebody purges, withdraws, deletes or replaces;
then the answer comes. Whatever was tracked after that must be delivered, and nothing may count that was not sent.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import IO, Any, Self

from faults import races_loops
from faults.programs import FAULTS, Programs, end
from faults.races_loops import APP
from faults.report import Report
from outtray.errors import OutboxError
from outtray.outbox import look
from outtray.outbox.files import database_path, exists, newest_generation

DESTINATION = "zenml"
EARLY = ("early-1", "early-2")
BEFORE = tuple(f"before-{number}" for number in range(1, 6))
PATIENCE = 30.0
"""Seconds within which whatever a step waits for has happened, also on a busy machine."""

WHOLE_ROUNDS, QUICK_ROUNDS = 200, 12
"""Deletions, and as many replacements, under two programs that append in a tight loop."""

WHOLE_REPEATS = 3


class Receiver(ThreadingHTTPServer):
    """Takes every batch; while it is *holding* it keeps its answers back."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.received: list[str] = []
        """Message ids in the order of their arrival, repeats too."""
        self.arrived = threading.Semaphore(0)
        self.answering = threading.Event()
        self.answering.set()
        self.url = f"http://127.0.0.1:{self.server_address[1]}"

    def __enter__(self) -> Self:
        threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.answering.set()
        self.shutdown()
        self.server_close()

    def hold(self) -> None:
        """Keep all answers back from now on."""
        while self.arrived.acquire(blocking=False):
            continue
        self.answering.clear()

    def handle_error(self, *_: object) -> None:
        """Say nothing of clients that were killed."""


class _Handler(BaseHTTPRequestHandler):
    server: Receiver
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        """Print nothing."""

    def do_POST(self) -> None:
        messages = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.received += [message["message_id"] for message in messages]
        self.server.arrived.release()
        self.server.answering.wait(PATIENCE)
        body = b'{"success": true}'
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


class Child:
    """One `races_child`."""

    def __init__(self, programs: Programs) -> None:
        pipe = subprocess.PIPE
        self.process = programs.start(str(FAULTS / "races_child.py"), stdin=pipe, stdout=pipe, text=True)
        if self.process.stdin is None or self.process.stdout is None:
            raise ValueError("the program has no pipes")
        self._orders: IO[str] = self.process.stdin
        self._answers: IO[str] = self.process.stdout

    def begin(self, do: str, **arguments: Any) -> None:
        """Have it begin something."""
        self._orders.write(json.dumps({"do": do, **arguments}) + "\n")
        self._orders.flush()

    def result(self) -> dict[str, Any]:
        """Wait for what it began and return its answer. Raises RuntimeError if it died instead."""
        line = self._answers.readline()
        if not line:
            raise RuntimeError("a program of the harness died")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def order(self, do: str, **arguments: Any) -> dict[str, Any]:
        """Have it do something, and wait."""
        self.begin(do, **arguments)
        return self.result()


@dataclass
class Cell:
    """One pair: a batch is in flight by *way* when *other* happens."""

    way: str
    other: str
    folder: Path
    receiver: Receiver
    programs: Programs
    children: list[Child] = field(default_factory=list)
    after: list[str] = field(default_factory=list)
    drainer: subprocess.Popen[Any] | None = None
    problems: list[str] = field(default_factory=list)
    cursors: dict[int, int] = field(default_factory=dict)
    """The cursor last seen, by the inode of the database."""

    @property
    def directory(self) -> Path:
        """Where the outbox lies."""
        return self.folder / "outboxes" / APP

    def options(self) -> tuple[str, ...]:
        """Return the options of a command that is about this outbox."""
        return "--app", APP, "--dir", str(self.folder / "outboxes")

    def run(self) -> list[str]:
        """Bring a batch on its way, let *other* happen, have the answer come; return what is wrong."""
        happening = OTHERS[self.other]
        host, neighbour = Child(self.programs), Child(self.programs)
        self.children = [host, neighbour]
        try:
            self._deliver_early(host)
            if happening.needs_copy:
                for child in self.children:
                    child.order("close")
                shutil.copytree(self.directory, self.folder / "copy")
            neighbour.order("track", ids=["before-0"])
            self._bring_on_its_way(host)
            self.look("before")
            happening.happen(self)
            if happening.tracks:
                self.track_after(*self.children if self.way != "flush" else [neighbour])
            self.look("while the answer is held")
            self.receiver.answering.set()
            self._end_drainer(host)
            self.look("after the answer")
            self._deliver_the_rest()
            self._compare(happening)
        except (RuntimeError, OSError, OutboxError, subprocess.SubprocessError) as error:
            self.problems.append(f"{type(error).__name__}: {error}")
        finally:
            self.receiver.answering.set()
            for child in self.children:
                end(child.process)
            if self.drainer is not None:
                end(self.drainer)
        return [f"{self.way}, {self.other}: {problem}" for problem in self.problems]

    def _configure(self, child: Child, flush: str) -> None:
        directory = str(self.folder / "outboxes")
        child.order("configure", app=APP, dir=directory, url=self.receiver.url, flush=flush, flush_interval=0.0)

    def _deliver_early(self, host: Child) -> None:
        for child in self.children:
            self._configure(child, "manual")
        self.take(host, EARLY)
        if host.order("flush", timeout=PATIENCE)["outcome"] != "drained":
            raise RuntimeError("the first messages were not delivered")

    def _bring_on_its_way(self, host: Child) -> None:
        self.receiver.hold()
        if self.way == "thread":
            self._configure(host, "thread")
        self.take(host, BEFORE)
        if self.way == "command":
            self.drainer = self.programs.start("-m", "outtray", "flush", *self.options(), stderr=subprocess.DEVNULL)
        elif self.way == "flush":
            host.begin("flush", timeout=PATIENCE)
        if not self.receiver.arrived.acquire(timeout=PATIENCE):
            raise RuntimeError("no request was made")

    def _end_drainer(self, host: Child) -> None:
        if self.drainer is not None:
            self.drainer.wait(PATIENCE)
        elif host.process.poll() is None:
            if self.way == "flush":
                host.result()
            host.order("close")

    def take(self, child: Child, ids: tuple[str, ...]) -> None:
        """Have *child* track; it must say True to all."""
        taken = child.order("track", ids=ids)["taken"]
        if taken != list(ids):
            self.problems.append(f"of {', '.join(ids)} only {taken} were taken")

    def track_after(self, *children: Child) -> None:
        """Track more, from programs that were there before; what returns True must be at the path."""
        for number, child in enumerate(children):
            if child.process.poll() is None:
                ids = tuple(f"after-{number}-{each}" for each in range(3))
                self.take(child, ids)
                self.after += ids
        missing = set(self.after) - races_loops.stored(self.directory)
        if missing:
            self.problems.append(f"True for {sorted(missing)}, which are not in the outbox at the path")

    def look(self, when: str) -> None:
        """Check that the cursor of the database at the path has not moved back."""
        if not exists(str(self.directory)):
            return
        path = database_path(str(self.directory), newest_generation(str(self.directory)))
        with look.look(str(self.directory)) as view:
            cursor = view.cursor(DESTINATION).id
        inode = os.stat(path).st_ino
        if cursor < self.cursors.get(inode, 0):
            self.problems.append(f"the cursor moved back from {self.cursors[inode]} to {cursor} ({when})")
        self.cursors[inode] = cursor

    def outtray(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Run a command about this outbox; it must not end with an error."""
        done = self.programs.outtray(*words, *self.options())
        if done.returncode not in (0, 75):
            self.problems.append(f"{' '.join(words)} exits with {done.returncode}: {done.stderr.strip()}")
        return done

    def _deliver_the_rest(self) -> None:
        done = self.outtray("flush", "--all")
        with look.look(str(self.directory)) as view:
            found = view.counts(DESTINATION)
        if done.returncode or found.pending:
            self.problems.append(f"flush exits with {done.returncode}, {found.pending} are pending: {done.stderr}")
        happening = OTHERS[self.other]
        if happening.delivered is not None:
            expected = happening.delivered + len(self.after)
            if found.delivered != expected:
                self.problems.append(f"{found.delivered} count as delivered instead of {expected}")

    def _compare(self, happening: Happening) -> None:
        received = self.receiver.received
        lost = set(self.after) - set(received)
        if not happening.removes:
            aside = races_loops.stored(self.folder / "aside")
            lost |= {"before-0", *BEFORE} - set(received) - aside
        if lost:
            self.problems.append(f"lost: {sorted(lost)} were accepted, and neither delivered nor removed by anybody")
        repeats = {each for each in received if received.count(each) > 1}
        if repeats and not happening.repeats:
            self.problems.append(f"{sorted(repeats)} arrived more than once")


# What happens meanwhile


@dataclass(frozen=True)
class Happening:
    """What *happen* does while a batch is in flight, and what may come of it.

    *delivered* is how many messages the outbox at the path counts as delivered in the end, beside those that were
    tracked afterwards; None where that is not known. *removes*: what waited may be gone.
    """

    happen: Callable[[Cell], object]
    delivered: int | None
    removes: bool = False
    repeats: bool = False
    tracks: bool = True
    needs_copy: bool = False


ALL_DELIVERED = len(EARLY) + len(BEFORE) + 1


def _remove(cell: Cell) -> None:
    while cell.directory.exists():
        subprocess.run(["rm", "-rf", str(cell.directory)], check=False, timeout=PATIENCE)


def _move_away(cell: Cell) -> None:
    cell.directory.rename(cell.folder / "aside")


def _replace_by_copy(cell: Cell) -> None:
    _move_away(cell)
    (cell.folder / "copy").rename(cell.directory)


def _kill_and_drain(cell: Cell) -> None:
    """Kill the drainer; another one gets the right to drain at once and sends the same again."""
    host = cell.children[0]
    end(cell.drainer or host.process)
    again = cell.programs.start("-m", "outtray", "flush", *cell.options(), stderr=subprocess.DEVNULL)
    if not cell.receiver.arrived.acquire(timeout=PATIENCE):
        cell.problems.append("a drainer that was killed was not replaced")
    cell.drainer = again


def _deny(cell: Cell) -> None:
    cell.outtray("consent", "off")
    denied = cell.children[1].order("track", ids=["denied"])["taken"]
    if denied or "denied" in races_loops.stored(cell.directory):
        cell.problems.append("a message was taken after consent was withdrawn")
    cell.outtray("consent", "on")


def _damage(cell: Cell) -> None:
    path = database_path(str(cell.directory), newest_generation(str(cell.directory)))
    cell.programs.start("-c", "import sys; open(sys.argv[1], 'r+b').write(b'?' * 100)", path).wait(PATIENCE)


OTHERS: dict[str, Happening] = {
    "purge of what waits": Happening(
        lambda cell: cell.outtray("purge", "--state", "pending", "--yes"), len(EARLY), removes=True
    ),
    "purge of what was delivered": Happening(lambda cell: cell.outtray("purge"), ALL_DELIVERED),
    "retry": Happening(lambda cell: cell.outtray("retry", "--all"), ALL_DELIVERED),
    "another drainer": Happening(lambda cell: cell.outtray("flush", "--all"), ALL_DELIVERED),
    "kill -9 and another drainer": Happening(_kill_and_drain, ALL_DELIVERED, repeats=True),
    "rm -rf": Happening(_remove, 0, removes=True),
    "moved away": Happening(_move_away, 0),
    "moved away and replaced by a copy": Happening(_replace_by_copy, len(EARLY), needs_copy=True),
    "consent withdrawn": Happening(_deny, None, removes=True),
    "forget": Happening(lambda cell: cell.outtray("forget", "--yes"), None, removes=True),
    "new generation": Happening(_damage, None, repeats=True),
}

WAYS = ("command", "flush", "thread")


def run(*, whole: bool, only: str = "") -> Report:
    """Try every pair, in the quick slice one way for each, and the loops; or the pairs with *only* in their name."""
    report = Report("races")
    pairs = [(way, other) for other in OTHERS for way in WAYS] * WHOLE_REPEATS
    if not whole:
        pairs = [(WAYS[number % len(WAYS)], other) for number, other in enumerate(OTHERS)]
    pairs = [(way, other) for way, other in pairs if only in other]
    for way, other in pairs:
        with (
            tempfile.TemporaryDirectory(prefix="outtray-race-") as folder,
            Receiver() as receiver,
            Programs(Path(folder)) as programs,
        ):
            report.violations += Cell(way, other, Path(folder), receiver, programs).run()
        report.tried += 1
    report.counts["pairs"] = len(set(pairs))
    if only:
        return report
    rounds = WHOLE_ROUNDS if whole else QUICK_ROUNDS
    for loop in (races_loops.remove, races_loops.replace):
        loop(report, rounds)
    return report
