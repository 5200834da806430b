"""One outbox, one receiver, the programs that use them, and the audit of what they were told was accepted."""

from __future__ import annotations

import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from outtray import Tray
from outtray.outbox import look
from outtray.testing import FakeServer

FAULTS = Path(__file__).resolve().parent
ROOT = FAULTS.parent.parent

PATIENCE = 60.0
"""Seconds after which a program that has not ended counts as deadlocked."""

LINGER = 10.0
"""Seconds that helper processes of multiprocessing have for noticing that the program has ended."""

APP = "cell"


@dataclass
class Ended:
    """How a program ended; *returncode* is None where it had to be killed because it did not."""

    returncode: int | None
    stdout: str
    stderr: str

    @property
    def figures(self) -> dict[str, Any]:
        """The last line of the output, where the program left its figures as JSON."""
        lines = self.stdout.splitlines()
        return json.loads(lines[-1]) if lines and lines[-1].startswith("{") else {}


@dataclass
class Scene:
    """What one cell plays in; *violations* are sentences, *notes* figures by name.

    *variables* are in the environment of every program.
    """

    name: str
    home: Path
    server: FakeServer
    variables: dict[str, str] = field(default_factory=dict)
    violations: list[str] = field(default_factory=list)
    notes: dict[str, float] = field(default_factory=dict)

    def violated(self, what: str) -> None:
        """Note one broken promise."""
        self.violations.append(f"{self.name}: {what}")

    def require(self, condition: object, what: str) -> None:
        """Note *what* as a broken promise unless *condition* holds."""
        if not condition:
            self.violated(what)

    @property
    def folder(self) -> Path:
        """Where the outboxes lie."""
        return self.home / "outboxes"

    @property
    def directory(self) -> Path:
        """Where the one outbox lies."""
        return self.folder / APP

    def environment(self, **more: str) -> dict[str, str]:
        """Return the environment of a program: this checkout, this outbox and receiver, and nothing else."""
        return {
            "HOME": str(self.home),
            "PATH": os.environ["PATH"],
            "PYTHONPATH": os.pathsep.join((str(ROOT / "src"), str(ROOT / "tools"))),
            "PYTHONDONTWRITEBYTECODE": "1",
            "OUTTRAY_DIR": str(self.folder),
            "OUTTRAY_APP": APP,
            "OUTTRAY_URL": self.server.url,
            "OUTTRAY_FLUSH_INTERVAL": "0.01",
            "FAULTS_RECORD": str(self.home / "record"),
            **self.variables,
            **more,
        }

    # Programs

    @contextmanager
    def started(self, *command: str, **variables: str) -> Iterator[Running]:
        """Give the running program; whatever is left of its session is killed at the end."""
        with (
            tempfile.TemporaryFile(dir=self.home) as output,
            tempfile.TemporaryFile(dir=self.home) as errors,
            subprocess.Popen(
                command,
                env=self.environment(**variables),
                cwd=self.home,
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=errors,
                start_new_session=True,
            ) as process,
        ):
            try:
                # os.abort is one of the cells, and must not leave a core behind.
                resource.prlimit(process.pid, resource.RLIMIT_CORE, (0, 0))
                yield Running(process, output, errors, is_plain="FAULTS_PLAIN" in variables)
            finally:
                kill_session(process.pid)

    def run(self, *command: str, drive: Callable[[Scene, Running], None] | None = None, **variables: str) -> Ended:
        """Run a program to its end while *drive* does what the harness has to do meanwhile."""
        with self.started(*command, **variables) as running:
            if drive is not None:
                drive(self, running)
            ended = running.end()
            if ended.returncode is None:
                self.violated(f"did not end within {PATIENCE:.0f} s; where its processes stood:\n{ended.stderr}")
            elif not wait_until(lambda: not session_members(running.pid), LINGER):
                self.violated(f"left {len(session_members(running.pid))} processes behind")
            return ended

    def cli(self, *arguments: str, **variables: str) -> Ended:
        """Run `python -m outtray` with *arguments*."""
        return self.run(sys.executable, "-m", "outtray", *arguments, **variables)

    # The audit

    def record(self) -> dict[str, list[str]]:
        """Return the message ids that programs wrote down as tried, accepted and refused."""
        found: dict[str, list[str]] = {"tried": [], "accepted": [], "refused": []}
        path = self.home / "record"
        for line in path.read_text().splitlines() if path.exists() else []:
            word, message_id = line.split()
            found[word].append(message_id)
        return found

    def stored(self) -> dict[str, list[str]]:
        """Return the message ids in the outbox that are not delivered, by state."""
        found: dict[str, list[str]] = {}
        if not self.directory.exists():
            return found
        before: int | None = 2**62
        while before is not None:
            with look.look(str(self.directory)) as view:
                page = view.some(before_id=before)
            for message in page.messages:
                if message.state != "delivered":
                    found.setdefault(message.state, []).append(message.message_id)
            before = page.next_before_id
        return found

    def status(self) -> dict[str, Any]:
        """Return what `status --json` says."""
        return Tray(app=APP, dir=str(self.folder), url=self.server.url).status()

    def delivered(self) -> set[str]:
        """Return the ids of the messages that the receiver took."""
        return {message["message_id"] for message in self.server.received}

    def audit(self, *, repeats: str = "", refusals: str = "", copies: str = "", **variables: str) -> None:
        """Compare what was accepted with what is delivered and waiting, deliver the rest, and compare again.

        *repeats* says why a message may have been posted twice, *refusals* why a call may have returned False,
        *copies* why two calls may have stored one message; without a reason one that did is a violation. *variables*
        are the environment of the last flush.
        """
        record, stored, delivered = self.record(), self.stored(), self.delivered()
        tried, accepted, refused = (set(record[word]) for word in ("tried", "accepted", "refused"))
        rows = [message_id for ids in stored.values() for message_id in ids]
        here = delivered | set(rows)
        self.notes["accepted"] = len(accepted)
        self.require(accepted, "nothing was accepted, so nothing was tried")
        self.require(accepted <= here, f"{len(accepted - here)} of {len(accepted)} accepted are gone")
        self.require(copies or len(rows) == len(set(rows)), f"{len(rows) - len(set(rows))} messages are stored twice")
        self.require(here <= tried, f"{len(here - tried)} messages that nobody tracked")
        self.require(
            copies or not refused & here, f"{len(refused & here)} messages were refused and stored all the same"
        )
        self.require(refusals or not refused, f"{len(refused)} calls returned False")
        self.require(not set(stored) - {"pending"}, f"messages in states {sorted(set(stored) - {'pending'})}")
        self._drain(**variables)
        delivered, status = self.delivered(), self.status()
        self.require(accepted <= delivered, f"{len(accepted - delivered)} accepted messages did not arrive in the end")
        self.require(status["error"] is None, f"status: {status['error']}")
        self.require(status["pending"] == 0, f"{status['pending']} messages wait after the last flush")
        self.require(
            status["delivered"] == len(delivered) or (copies and status["delivered"] > len(delivered)),
            f"{status['delivered']} messages are settled as delivered, {len(delivered)} arrived",
        )
        self.require(not status["ledger"].get("lost"), f"the ledger counts {status['ledger'].get('lost')} lost")
        repeated = sum(self.server.repeats.values())
        self.notes["repeats"] = repeated
        self.notes["refused"] = len(refused)
        self.require(repeats or not repeated, f"{repeated} messages arrived twice, and nothing explains it")

    def _drain(self, **variables: str) -> None:
        self.server.set_mode("ok")
        flushed = self.cli("flush", "--all", "--wait", "--max-time", "40", **variables)
        self.require(
            flushed.returncode == 0, f"the last flush ended with {flushed.returncode}: {flushed.stderr.strip()}"
        )


class Running:
    """A program that runs, in a session of its own."""

    def __init__(self, process: subprocess.Popen[bytes], output: Any, errors: Any, *, is_plain: bool) -> None:
        self._process = process
        self._output = output
        self._errors = errors
        self.pid = process.pid
        self.is_plain = is_plain

    def go(self) -> None:
        """Let a program go on that waits for it."""
        self.tell("go")

    def tell(self, line: str) -> None:
        """Send the program a line."""
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):  # it has ended; its exit code says how
            os.write(self._process.stdin.fileno(), f"{line}\n".encode())

    def lines(self) -> list[str]:
        """Return what the program has printed so far."""
        return _content(self._output).splitlines()

    def says(self, word: str) -> bool:
        """Wait until the program has printed the line *word*; False if it ends, or takes too long, before."""
        return wait_until(lambda: word in self.lines() or self._process.poll() is not None) and word in self.lines()

    def signal(self, number: int) -> None:
        """Send a signal to the program, not to its children."""
        self._process.send_signal(number)

    def has_ended(self) -> bool:
        """Tell whether the program has ended."""
        return self._process.poll() is not None

    def end(self) -> Ended:
        """Wait for the end; where it does not come, have every process say where it stands, and kill them."""
        try:
            code: int | None = self._process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            for pid in session_members(self.pid):
                os.kill(pid, signal.SIGUSR1)
                time.sleep(0.5)  # or their words would mix
            kill_session(self.pid)
            code = None
        return Ended(code, _content(self._output), _content(self._errors))


def _content(file: Any) -> str:
    """Return all of an open file, whose offset the program shares, without moving it."""
    return os.pread(file.fileno(), os.fstat(file.fileno()).st_size, 0).decode(errors="replace")


@contextmanager
def scene(name: str, mode: str = "ok", **options: Any) -> Iterator[Scene]:
    """Give a new scene whose receiver answers as *mode* says; the folder is removed at the end."""
    home = Path(tempfile.mkdtemp(prefix="outtray-faults-"))
    try:
        with FakeServer() as server:
            server.set_mode(mode, **options)
            yield Scene(name, home, server)
    finally:
        shutil.rmtree(home)


def wait_until(condition: Callable[[], Any], seconds: float = PATIENCE) -> bool:
    """Return True as soon as *condition* holds, False if it does not within *seconds*."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() >= end:
            return False
        time.sleep(0.02)
    return True


def session_members(session: int) -> list[int]:
    """Return the processes of a session that have not ended."""
    found = []
    for entry in os.listdir("/proc"):
        if entry.isdecimal():
            try:
                stat = Path(f"/proc/{entry}/stat").read_text()
            except OSError:
                continue  # it has just ended
            state, _parent, _group, of = stat.rpartition(")")[2].split()[:4]
            if int(of) == session and state not in "ZX":
                found.append(int(entry))
    return found


def kill_session(session: int) -> None:
    """Kill every process of a session."""
    for pid in session_members(session):
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue  # it has just ended


def without_numbers(text: str) -> list[str]:
    """Return the distinct lines with every number made the same: what is left of a log that can be compared."""
    return sorted({re.sub(r"0x[0-9a-f]+|\d+", "#", line) for line in text.splitlines() if line.strip()})
