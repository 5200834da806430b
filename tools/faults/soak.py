"""All at once: appenders, drainers, a killer, an outside `sqlite3` shell, and a receiver that changes its mind."""

from __future__ import annotations

import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from faults.programs import FAULTS, Programs, end
from faults.report import Report
from faults.soak_child import MARKER
from outtray.outbox.inspect import Unreadable, inspect
from outtray.testing import FakeServer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

APPENDERS = 16
THREAD_DRAINERS = 2
"""Programs that track and deliver with their own thread."""

FLUSH_DRAINERS = 2
"""Loops of ``python -m outtray flush``."""

WHOLE_SECONDS = 600.0
QUICK_SECONDS = 9.0
SEED = 20_240

MODE_SECONDS = 1.0
KILL_EVERY = 0.4
"""Seconds between two signals of the killer, about."""

DRAIN_WITHIN = 300.0
"""Seconds for delivering what is left once the receiver is good again."""

PAUSE = 0.8
"""Mean of the seconds between two bursts of one appender: about 25 messages a second from each."""

MODES: tuple[tuple[str, dict[str, Any]], ...] = (
    ("ok", {}),
    ("ok", {"delay": 0.05}),
    ("ok", {"delay": 2.0}),
    ("empty", {}),
    ("500", {}),
    ("503", {"retry_after": 1}),
    ("429", {"retry_after": 1}),
    ("401", {}),
    ("404", {}),
    ("html", {}),
    ("drop_after_accept", {}),
    ("reset", {}),
    ("hang", {}),
    ("refuse", {}),
    ("trickle", {"interval": 0.05}),
    ("bad_chunks", {}),
    ("redirect_self", {}),
    ("flaky", {}),
    ("too_large", {"max_bytes": 20_000}),
    ("refuse_marked", {"marker": MARKER, "status": 422}),
)

# A reader as people are: it opens, looks, and leaves; one in four stays in its transaction for a second.
SHELL_LOOKS = b".timeout 1000\nSELECT state, count(*) FROM message_states GROUP BY state;\n"
SHELL_BEGINS = b".timeout 1000\nBEGIN;\nSELECT count(*) FROM messages;\n"
SHELL_ENDS = b"COMMIT;\n"


def run(*, whole: bool, seconds: float | None = None, seed: int = SEED) -> Report:
    """Let all loose for *seconds* (by default `WHOLE_SECONDS` or `QUICK_SECONDS`), then drain and compare."""
    report = Report("seconds")
    length = seconds or (WHOLE_SECONDS if whole else QUICK_SECONDS)
    with (
        tempfile.TemporaryDirectory(prefix="outtray-soak-") as folder,
        FakeServer() as server,
        Programs(Path(folder), OUTTRAY_TIMEOUT="1") as programs,
    ):
        soak = _Soak(Path(folder), server, programs, random.Random(seed))
        soak.run(length)
        soak.drain(report)
        soak.compare(report)
    report.tried = round(length)
    report.violations = [f"{violation} (seed {seed}, {length:.0f} s)" for violation in report.violations]
    return report


@dataclass
class _Role:
    """A program that is always running: *start* starts it (again), after *pause* seconds, numbered from 0."""

    start: Callable[[int], subprocess.Popen[Any]]
    pause: float = 0.0
    process: subprocess.Popen[Any] | None = None
    starts: int = 0
    ended_at: float = 0.0

    def keep_running(self) -> None:
        """Start the program if it is not running."""
        if self.process is not None and self.process.poll() is None:
            return
        now = time.monotonic()
        if self.process is not None:
            end(self.process)
            self.process, self.ended_at = None, now
        if now - self.ended_at >= self.pause or not self.starts:
            self.process = self.start(self.starts)
            self.starts += 1


@dataclass
class _Figures:
    kills: int = 0
    stops: int = 0
    shells: int = 0
    shells_failed: int = 0
    wal_peak: int = 0
    modes: int = 0
    flush_exits: dict[int, int] = field(default_factory=dict)
    stopped: list[tuple[int, float, float]] = field(default_factory=list)
    """Process id, begin and end of each stop: what a call lasted in it was not the library's doing."""


class _Soak:
    """One run in *folder*."""

    def __init__(self, folder: Path, server: FakeServer, programs: Programs, chance: random.Random) -> None:
        self._folder = folder
        self._server = server
        self._programs = programs
        self._chance = chance
        self._figures = _Figures()
        self._over = threading.Event()
        self._logs = folder / "logs"
        self._logs.mkdir()
        self._database = folder / "outboxes" / "soak" / "outbox-1-0.db"
        self._pids: dict[str, int] = {}
        names = [f"appender{n:02}" for n in range(APPENDERS)]
        self._roles = [
            *(_Role(self._appender(name, "manual")) for name in names),
            *(_Role(self._appender(f"thread{n:02}", "thread")) for n in range(THREAD_DRAINERS)),
            *(_Role(self._flusher(), pause=0.2) for _ in range(FLUSH_DRAINERS)),
        ]

    def _appender(self, name: str, flush: str) -> Callable[[int], subprocess.Popen[Any]]:
        def start(incarnation: int) -> subprocess.Popen[Any]:
            own = f"{name}-{incarnation}"
            directory, log = str(self._folder / "outboxes"), str(self._logs / own)
            seed = str(self._chance.random())
            command = (str(FAULTS / "soak_child.py"), directory, self._server.url, log, own, flush, str(PAUSE), seed)
            process = self._programs.start(*command, stderr=subprocess.DEVNULL)
            self._pids[own] = process.pid
            return process

        return start

    def _flusher(self) -> Callable[[int], subprocess.Popen[Any]]:
        def start(_: int) -> subprocess.Popen[Any]:
            options = ["--dir", str(self._folder / "outboxes"), "--all", "--wait", "--max-time", "4"]
            return self._programs.start("-m", "outtray", "flush", *options, stderr=subprocess.DEVNULL)

        return start

    # While it lasts

    def run(self, seconds: float) -> None:
        """Run all of it for *seconds*, then end every program."""
        threads = [threading.Thread(target=each) for each in (self._watch_wal, self._look_from_outside)]
        for thread in threads:
            thread.start()
        try:
            self._let_loose(time.monotonic() + seconds)
        finally:
            self._over.set()
            for thread in threads:
                thread.join()
        for role in self._roles:
            if role.process is not None:
                end(role.process)

    def _let_loose(self, end_at: float) -> None:
        next_mode = next_kill = time.monotonic() + 1.0  # the programs are just starting
        stopped: list[tuple[float, float, subprocess.Popen[Any]]] = []
        while (now := time.monotonic()) < end_at:
            for role in self._roles:
                role.keep_running()
            if now >= next_mode:
                name, options = self._chance.choice(MODES)
                self._server.set_mode(name, **options)
                self._figures.modes += 1
                next_mode = now + MODE_SECONDS
            if now >= next_kill:
                self._kill_or_stop(stopped)
                next_kill = now + self._chance.uniform(0.5, 1.5) * KILL_EVERY
            self._let_go_on(stopped, now)
            time.sleep(0.02)
        self._let_go_on(stopped, float("inf"))

    def _kill_or_stop(self, stopped: list[tuple[float, float, subprocess.Popen[Any]]]) -> None:
        """Kill one of the programs, or stop it for a while."""
        frozen = {process.pid for _, _, process in stopped}
        running = [role.process for role in self._roles if role.process is not None and role.process.poll() is None]
        chosen = self._chance.choice([process for process in running if process.pid not in frozen] or running)
        if self._chance.random() < 0.6:
            chosen.kill()
            self._figures.kills += 1
        elif chosen.pid not in frozen:
            chosen.send_signal(signal.SIGSTOP)
            now = time.monotonic()
            stopped.append((now + self._chance.choice((0.05, 0.3, 1.0, 2.5)), now, chosen))
            self._figures.stops += 1

    def _let_go_on(self, stopped: list[tuple[float, float, subprocess.Popen[Any]]], until: float) -> None:
        for each in [each for each in stopped if each[0] <= until]:
            stopped.remove(each)
            _, since, process = each
            process.send_signal(signal.SIGCONT)  # a no-op for one that was killed meanwhile and is reaped
            self._figures.stopped.append((process.pid, since, time.monotonic()))

    def _watch_wal(self) -> None:
        """Note the largest size of the WAL; nothing is opened for it."""
        while not self._over.wait(0.01):
            try:
                size = Path(f"{self._database}-wal").stat().st_size
            except FileNotFoundError:
                continue
            self._figures.wal_peak = max(self._figures.wal_peak, size)

    def _look_from_outside(self) -> None:
        """Open the database with another program, again and again."""
        command = [shutil.which("sqlite3") or sys.executable]
        if command == [sys.executable]:
            command = [sys.executable, "-c", _SHELL, str(self._database)]
        else:
            command = [*command, "-batch", str(self._database)]
        chance = random.Random(self._chance.random())
        while not self._over.wait(0.1):
            if not self._database.exists():
                continue
            shell = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
            )
            try:
                _talk(shell, self._over, chance.random() < 0.25)
                self._figures.shells_failed += shell.wait(timeout=30) != 0
            finally:
                end(shell)
            self._figures.shells += 1

    # Afterwards

    def drain(self, report: Report) -> None:
        """Have the receiver take everything, and deliver what is left, dead messages too."""
        self._server.set_mode("ok")
        directory = str(self._folder / "outboxes")
        end_at = time.monotonic() + DRAIN_WITHIN
        while True:
            retried = self._programs.outtray("retry", "--all", "--dir", directory)
            flushed = self._programs.outtray("flush", "--all", "--dir", directory, seconds=DRAIN_WITHIN)
            found = self._status()
            if flushed.returncode == 0 and not (found["pending"] or found["dead"] or found["deferred"]):
                return
            if time.monotonic() >= end_at:
                report.violated(
                    f"not drained in {DRAIN_WITHIN:.0f} s by a receiver that takes all: flush exits with "
                    f"{flushed.returncode} ({flushed.stderr.strip()}), retry says {retried.stderr.strip()!r}, {found}"
                )
                return

    def _status(self) -> dict[str, Any]:
        self._programs.environment["OUTTRAY_DIR"] = str(self._folder / "outboxes")
        return self._programs.status("soak")

    def compare(self, report: Report) -> None:
        """Compare what was accepted with what arrived, and put the figures into *report*."""
        accepted: set[str] = set()
        last_logged: dict[str, int] = {}
        refused = 0
        longest = [0.0]
        for name, calls in self._calls():
            for number, taken, begin, finish in calls:
                last_logged[name] = number
                accepted.update([f"{name}-{number}"] if taken else [])
                refused += not taken
                if finish - begin > longest[0]:
                    longest[0] = max(longest[0], finish - begin - self._frozen(name, begin, finish))
        received = self._server.received
        repeats = sum(self._server.repeats.values())
        ids = [message["message_id"] for message in received]
        lost = accepted.difference(ids)
        for message_id in sorted(lost)[:5]:
            report.violated(f"{message_id} was accepted and never arrived ({len(lost)} such messages)")
        breaks = list(_order_breaks(received))
        for what in breaks[:5]:
            report.violated(f"{what} ({len(breaks)} such messages)")
        for message in received:
            name, _, number = message["message_id"].rpartition("-")
            if message["properties"]["number"] != int(number):
                report.violated(f"{message['message_id']} arrived with another message's properties: {message}")
            if message["message_id"] not in accepted and int(number) != last_logged.get(name, 0) + 1:
                report.violated(f"{message['message_id']} arrived, and its call had returned False or never was made")
        found = self._status()
        self._require_sound(report, found, distinct=len(ids))
        figures = self._figures
        report.counts = {
            "accepted": len(accepted),
            "delivered": len(ids),
            "repeats %": round(100 * repeats / max(len(ids), 1), 1),
            "lost": len(lost),
            "order breaks": len(breaks),
            "refused": refused,
            "longest append ms": round(longest[0] * 1000),
            "WAL peak bytes": figures.wal_peak,
            "kills": figures.kills,
            "stops": figures.stops,
            "outside shells": figures.shells,
            "outside shells failed": figures.shells_failed,
            "mode changes": figures.modes,
            "programs started": sum(role.starts for role in self._roles),
        }

    def _require_sound(self, report: Report, found: dict[str, Any], *, distinct: int) -> None:
        """Report an outbox that counts wrongly, or is damaged."""
        if found["delivered"] != distinct:
            report.violated(f"the outbox counts {found['delivered']} delivered, {distinct} different messages arrived")
        unexpected = set(found["ledger"]) - {"busy"}
        if unexpected:
            report.violated(f"the ledger counts what did not happen: {found['ledger']}")
        try:
            problems = inspect(str(self._database))["problems"]
        except Unreadable as error:
            problems = [str(error)]
        if problems:
            report.violated(f"the outbox is not sound: {problems}")

    def _calls(self) -> Iterator[tuple[str, list[tuple[int, bool, float, float]]]]:
        for path in sorted(self._logs.iterdir()):
            lines = path.read_bytes().split(b"\n")[:-1]  # a line that a kill cut off is no record
            fields = [line.split() for line in lines]
            yield path.name, [(int(a), b == b"1", float(c), float(d)) for a, b, c, d in fields]

    def _frozen(self, name: str, begin: float, finish: float) -> float:
        """Return the seconds between the two moments in which that program itself was stopped."""
        own = [(since, until) for pid, since, until in self._figures.stopped if pid == self._pids[name]]
        return sum(max(0.0, min(finish, until) - max(begin, since)) for since, until in own)


_SHELL = """
import sqlite3, sys
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
for line in sys.stdin:
    if not line.startswith("."):
        connection.execute(line).fetchall()
"""


def _talk(shell: subprocess.Popen[bytes], over: threading.Event, stays: bool) -> None:
    stdin = shell.stdin
    if stdin is None:
        raise ValueError("the shell has no standard input")
    try:
        stdin.write(SHELL_BEGINS if stays else SHELL_LOOKS)
        stdin.flush()
        if stays:
            over.wait(1.0)
            stdin.write(SHELL_ENDS)
        stdin.close()
    except BrokenPipeError:
        return  # it met an error and left; its exit code is counted


def _order_breaks(received: list[dict[str, Any]]) -> Iterator[str]:
    """Give each first delivery that came behind a later message of the same program.

    Marked messages are left out: the receiver refuses them at times, and what is retried is no longer in order.
    """
    latest: dict[str, int] = {}
    for message in received:
        if message["properties"]["note"] == MARKER:
            continue
        name, _, text = message["message_id"].rpartition("-")
        if int(text) < latest.get(name, 0):
            yield f"{message['message_id']} arrived for the first time after {name}-{latest[name]}"
        latest[name] = max(int(text), latest.get(name, 0))
