"""Cut the power in the middle of appending and delivering, start again, and count what is missing.

The outbox lies on a small ext4 file system of its own. At a random moment that file system is shut down without
writing its memory or its journal, as a power cut does, and mounted again; to the programs that is another start of the
system. What was accepted stands in a log on another file system; what was delivered, in a receiver that keeps running.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from faults.boots import Boots
from faults.ext4_volume import Unavailable, Volume
from faults.power_cut_verdict import Accepted, Cut, Found, Life, Verdict
from faults.report import Report
from outtray.options import OPTIONS
from outtray.outbox.inspect import Unreadable, find_databases, inspect
from outtray.testing import FakeServer

SEED = 4

CHILD = Path(__file__).with_name("power_cut_child.py")
TOOLS = CHILD.parent.parent
SOURCE = TOOLS.parent / "src"

CUTS = 104  # for each durability, in the whole run
QUICK_CUTS = 3

THREADS = 2  # that append, in each process


@dataclass(frozen=True)
class Load:
    """What runs until the cut, which comes *shortest* to *longest* seconds after the first sign of it.

    *pause* is the longest time in seconds between two messages of a thread. With *short_programs* there are also
    programs that track a little and end, and the cut comes when one of them just has. *receiver* is the mode of the
    receiver until the cut; one that hangs accepts nothing.
    """

    name: str
    flush: str
    processes: int
    pause: float
    shortest: float
    longest: float
    short_programs: bool = False
    receiver: str = "ok"


# SQLite itself syncs now and then while much is appended, and one process syncs what others wrote. So only a slow one
# that is alone shows whether a message that nothing follows is synced in time.
LOADS = (
    Load("slow", "manual", processes=1, pause=0.4, shortest=1.1, longest=3.0),
    Load("delivering", "thread", processes=2, pause=0.0, shortest=0.0, longest=2.0),
    Load("creation", "manual", processes=2, pause=0.0, shortest=0.0, longest=0.05),
    Load("full", "manual", processes=2, pause=0.0, shortest=0.0, longest=2.0),
    Load("slow delivering", "thread", processes=1, pause=0.4, shortest=1.1, longest=3.0),
    Load("ending", "manual", processes=1, pause=0.4, shortest=0.1, longest=0.9, short_programs=True),
    Load("unanswered", "thread", processes=1, pause=0.1, shortest=1.5, longest=3.0, receiver="hang"),
    Load("first second", "manual", processes=2, pause=0.0, shortest=0.0, longest=1.0),
)
CREATIONS = ("creation", "first second")
"""Loads that begin with an outbox that is not there yet, counted from its directory on."""

REOPENING = Load("after the cut", "manual", processes=1, pause=0.0, shortest=0.0, longest=0.0)

START_WITHIN = 60.0  # seconds
END_WITHIN = 20.0


def run(*, whole: bool) -> Report:
    report = Report("cuts")
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="outtray-power-")))
        try:
            volume = stack.enter_context(Volume(folder))
            volume.require_loss()
            boots = Boots(folder)
        except Unavailable as error:
            report.skipped = str(error)
            return report
        server = stack.enter_context(FakeServer())
        has_option = any(option.name == "durability" for option in OPTIONS)
        for durability in ("process", "power"):
            report.add(f"{durability}: cuts", 0)
            if durability == "power" and not has_option:
                continue
            machine = Machine(volume, boots, server, folder, report, durability, has_option=has_option)
            for number in range(CUTS if whole else QUICK_CUTS):
                machine.live_and_cut(number)
    return report


class ProgramFailed(Exception):
    """A program ended in a way of its own; the text says how."""


class Machine:
    """One volume and the programs on it, all with one *durability*, which releases without that option call process."""

    def __init__(
        self,
        volume: Volume,
        boots: Boots,
        server: FakeServer,
        folder: Path,
        report: Report,
        durability: str,
        *,
        has_option: bool,
    ) -> None:
        self._volume = volume
        self._boots = boots
        self._server = server
        self._report = report
        self._durability = durability
        self._has_option = has_option
        self._home = folder
        self._log = folder / "accepted.log"
        self._errors = folder / "errors.log"
        self._life = Life("none")

    def live_and_cut(self, number: int) -> None:
        """Let programs append until the power is cut, start again, and compare."""
        chance = random.Random(f"{SEED}-{self._durability}-{number}")
        load = LOADS[number % len(LOADS)]
        if load.name in CREATIONS or self._life.cuts == 0 or chance.random() < 0.5:
            self._begin_outbox(f"{self._durability}-{number}")
        elif chance.random() < 0.5:  # the machine was shut down since the last cut: the gate's header is there, but old
            self._restart()
        self._life.cuts += 1
        cut = self._load_until_cut(load, chance, f"cut {number} of seed {SEED}, {self._durability}, {load.name}")
        self._restart()
        found = self._look()
        try:
            reopened = self._reopen()
        except ProgramFailed as error:
            self._report.violated(f"{cut.name}: the next program failed: {error}")
            self._life = Life("none")
            return
        before = len(self._report.violations)
        verdict = Verdict(self._report, self._durability, self._life, cut, found)
        verdict.give(reopened, self._look(), self._server.received, sum(self._server.repeats.values()))
        if len(self._report.violations) > before:
            self._life = Life("none")  # the next cut meets a sound outbox, and reports what is its own

    def _restart(self) -> None:
        self._volume.unmount()
        self._volume.mount()
        self._boots.start()

    def _begin_outbox(self, app: str) -> None:
        for entry in self._volume.path.iterdir():
            if entry.name != "lost+found":
                shutil.rmtree(entry)
        self._life = Life(app)
        self._server.clear()

    # Before the cut

    def _load_until_cut(self, load: Load, chance: random.Random, name: str) -> Cut:
        self._log.write_bytes(b"")
        self._errors.write_bytes(b"")
        seconds = chance.uniform(load.shortest, load.longest)
        self._server.set_mode(load.receiver)
        with self._programs() as programs:
            for _ in range(load.processes):
                programs.append(self._start("load", load, len(programs)))
            self._wait_for_start(load, programs)
            end = time.monotonic() + seconds
            exited = self._run_short_programs(load, programs, until=end) if load.short_programs else set()
            time.sleep(max(0.0, end - time.monotonic()))
            began_at, ended_at = self._volume.cut_power()
            delivered = {message["message_id"] for message in self._server.received}
        self._server.set_mode("ok")
        returned, late = self._read_log()
        return Cut(name, began_at, ended_at, returned, late, exited, delivered)

    def _start(self, role: str, load: Load, number: int) -> subprocess.Popen[bytes]:
        with open(self._errors, "ab") as errors:
            return subprocess.Popen(
                self._boots.command(sys.executable, str(CHILD), role, json.dumps(self._options(role, load, number))),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE if role == "reopen" else subprocess.DEVNULL,
                stderr=errors,
                cwd=self._home,
                env={"HOME": str(self._home), "PATH": os.environ["PATH"], "PYTHONPATH": f"{SOURCE}{os.pathsep}{TOOLS}"},
            )

    def _options(self, role: str, load: Load, number: int) -> dict[str, Any]:
        return {
            "app": self._life.app,
            "dir": str(self._volume.path),
            "url": self._server.url,
            "flush": load.flush,
            "durability": self._durability if self._has_option else None,
            "name": f"{role}-{self._life.cuts}-{number}",
            "log": str(self._log),
            "threads": THREADS,
            "pause": load.pause,
        }

    def _wait_for_start(self, load: Load, programs: list[subprocess.Popen[bytes]]) -> None:
        """Wait for the first accepted message, or to cut the creation, for the first sign of an outbox."""
        directory = self._volume.path / self._life.app
        end = time.monotonic() + START_WITHIN
        while not (directory.exists() if load.name in CREATIONS else self._log.stat().st_size):
            if time.monotonic() > end or any(program.poll() is not None for program in programs):
                raise ProgramFailed(f"the appenders do not start: {self._errors.read_text()[-500:]}")
            time.sleep(0.001)

    def _run_short_programs(self, load: Load, programs: list[subprocess.Popen[bytes]], *, until: float) -> set[str]:
        """Run programs that end by themselves, one after another, until then; returns their names."""
        exited: set[str] = set()
        while time.monotonic() < until:
            program = self._start("short", load, len(programs))
            programs.append(program)
            if program.wait(timeout=START_WITHIN) != 0:
                raise ProgramFailed(
                    f"a short program ended with {program.returncode}: {self._errors.read_text()[-500:]}"
                )
            exited.add(f"short-{self._life.cuts}-{len(programs) - 1}")
        return exited

    @contextmanager
    def _programs(self) -> Iterator[list[subprocess.Popen[bytes]]]:
        """Give a list for programs; those in it are told to end, and have ended behind this."""
        programs: list[subprocess.Popen[bytes]] = []
        try:
            yield programs
        finally:
            for program in programs:
                if program.stdin is not None:
                    program.stdin.close()
            for program in programs:
                try:
                    program.wait(timeout=END_WITHIN)
                except subprocess.TimeoutExpired:
                    program.kill()
                    program.wait()

    def _read_log(self) -> tuple[list[Accepted], float]:
        """Return the calls that returned True, and how many seconds too late a thread was woken."""
        returned: list[Accepted] = []
        late = 0.0
        for line in self._log.read_text(encoding="utf-8").splitlines():
            word, *times = line.split()
            if word == "late":
                late = max(late, float(times[0]))
            else:
                returned.append(Accepted(word, float(times[0]), float(times[1])))
        return returned, late

    # After the cut

    def _look(self) -> Found:
        """Return what lies on the volume, from copies; what the cut left unfinished at creation holds nothing."""
        rows: list[tuple[int, str, str, str]] = []
        problems: list[str] = []
        header_id = log_bytes = None
        for path in self._databases():
            try:
                seen = inspect(path, messages=10**9)
            except Unreadable:
                continue
            rows += [(row["id"], row["message_id"], row["state"], row["body"]) for row in seen["newest"] or ()]
            if seen["integrity"] != ["ok"] or seen["damaged"] is None or seen["damaged"]["count"]:
                problems += [problem.partition("\n")[0] for problem in seen["problems"]]
            if seen["header"] is not None and seen["header"]["crc_ok"]:
                header_id = seen["header"]["last_id"]
            log_bytes = seen["wal_bytes"]
        return Found(sorted(rows), header_id, log_bytes, problems)

    def _databases(self) -> list[str]:
        try:
            return find_databases(str(self._volume.path / self._life.app))
        except Unreadable:
            return []

    def _reopen(self) -> dict[str, Any]:
        with self._programs() as programs:
            programs.append(program := self._start("reopen", REOPENING, 0))
            output, _ = program.communicate(timeout=120)
        if program.returncode != 0:
            raise ProgramFailed(f"exit code {program.returncode}: {self._errors.read_text()[-500:]}")
        seen: dict[str, Any] = json.loads(output)
        return seen
