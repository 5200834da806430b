"""Two programs append in a tight loop while their directory is deleted, moved away, or replaced by an older copy."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from faults.programs import FAULTS, Programs
from outtray.errors import OutboxError
from outtray.outbox import look
from outtray.outbox.files import exists

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from faults.report import Report

APP = "race"
NAMES = ("one", "two")
CALLS_BETWEEN = 3
"""Calls of each program, at least, that begin after one deletion and end before the next."""

PATIENCE = 30.0


@dataclass
class _Log:
    """What one program did, read as it is written."""

    path: Path
    name: str
    offset: int = 0
    accepted: dict[str, float] = field(default_factory=dict)
    """When each call that returned True began."""

    def read(self) -> None:
        """Read what is new."""
        with self.path.open("rb") as file:
            file.seek(self.offset)
            data = file.read()
        data = data[: data.rfind(b"\n") + 1]
        self.offset += len(data)
        for line in data.splitlines():
            number, taken, begin = line.split()
            if taken == b"1":
                self.accepted[f"{self.name}-{int(number)}"] = float(begin)

    def since(self, moment: float) -> set[str]:
        """Return the ids of the accepted calls that began after *moment*."""
        return {name for name, begin in self.accepted.items() if begin > moment}


class _Loop:
    """The two programs, in *folder*."""

    def __init__(self, folder: Path, programs: Programs) -> None:
        self.folder = folder
        self.directory = folder / "outboxes" / APP
        self._logs = [_Log(folder / name, name) for name in NAMES]
        for log in self._logs:
            log.path.touch()
            place = str(folder / "outboxes")
            programs.start(str(FAULTS / "races_child.py"), str(log.path), log.name, place, stderr=subprocess.DEVNULL)

    def missing_since(self, moment: float) -> set[str]:
        """Wait for some calls that began after *moment*; return those of them that are not in the outbox at the path.

        Raises TimeoutError if the programs do not get on.
        """
        end = time.monotonic() + PATIENCE
        while True:
            for log in self._logs:
                log.read()
            accepted = [log.since(moment) for log in self._logs]
            if all(len(ids) >= CALLS_BETWEEN for ids in accepted):
                return set().union(*accepted) - stored(self.directory)
            if time.monotonic() >= end:
                raise TimeoutError(f"no call was taken for {PATIENCE:.0f} s")
            time.sleep(0.002)

    def accepted(self) -> set[str]:
        """Return all ids that were ever accepted."""
        for log in self._logs:
            log.read()
        return set().union(*(log.accepted for log in self._logs))


def stored(directory: Path) -> set[str]:
    """Return the message ids in the outbox in *directory*, none if there is none."""
    if not exists(str(directory)):
        return set()
    with look.look(str(directory)) as view:
        return {each.message_id for each in view.page(limit=1 << 20)}


@contextmanager
def _loop() -> Iterator[tuple[_Loop, Programs]]:
    with tempfile.TemporaryDirectory(prefix="outtray-race-") as folder, Programs(Path(folder)) as programs:
        yield _Loop(Path(folder), programs), programs


def _rounds(report: Report, name: str, loop: _Loop, rounds: int, happen: Callable[[int], object]) -> bool:
    """Let it *happen* again and again; each call that begins afterwards and returns True must be at the path.

    Returns False at the first violation.
    """
    moment = 0.0
    for number in range(rounds + 1):
        try:
            missing = loop.missing_since(moment)
        except (OutboxError, OSError) as error:
            report.violated(f"{name}, round {number}: {type(error).__name__}: {error}")
            return False
        if missing:
            report.violated(
                f"{name}, round {number}: True for {sorted(missing)[:5]} ({len(missing)}), which are not at the path"
            )
            return False
        if number < rounds:
            happen(number)
            moment = time.monotonic()
            report.tried += 1
    return True


def remove(report: Report, rounds: int) -> None:
    """Delete the directory under the programs."""

    def happen(_: int) -> None:
        done = subprocess.run(["rm", "-rf", str(loop.directory)], stderr=subprocess.DEVNULL, check=False)
        report.add("rm -rf that met a new file", done.returncode != 0)

    with _loop() as (loop, _):
        _rounds(report, "append against rm -rf", loop, rounds, happen)


def replace(report: Report, rounds: int) -> None:
    """Move the directory away, and put an older copy in its place where nobody made a new one first."""

    def happen(number: int) -> None:
        loop.directory.rename(asides / str(number))
        copy = loop.folder / "copy"
        if number % 2 and number > 2:
            shutil.copytree(asides / "0", copy)
            try:
                os.rename(copy, loop.directory)
                report.add("replaced by a copy")
            except OSError:  # a program was faster and made a new one
                shutil.rmtree(copy)

    with _loop() as (loop, programs):
        asides = loop.folder / "asides"
        asides.mkdir()
        if not _rounds(report, "append against a replaced directory", loop, rounds, happen):
            return
        programs.end_all()
        found = stored(loop.directory).union(*(stored(each) for each in asides.iterdir()))
        lost = loop.accepted() - found
        if lost:
            report.violated(
                f"append against a replaced directory: {sorted(lost)[:5]} ({len(lost)}) were accepted and are "
                "neither at the path nor in a directory that was moved away"
            )
