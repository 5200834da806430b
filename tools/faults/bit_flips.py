"""Damage in the files of an outbox, bit by bit and worse: what goes unnoticed, and how much is saved.

Each point is one damage to a fresh copy of an outbox that a killed process left. The copy is then used as by a
new process: one message is appended, all is drained, one more is appended and drained. Every message that was
accepted and not settled must by then be delivered with its very body, or kept as it was, or marked as damaged, or
counted as lost, or, where nothing has read it yet, be found by `tools/inspect_outbox.py`; and no call may be refused
for ever.
"""

from __future__ import annotations

import json
import os
import random
import select
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from faults.bit_flips_child import DESTINATION, FILES, Damage
from faults.bit_flips_map import Map
from faults.report import Report

HERE = Path(__file__).resolve().parent
SRC = HERE.parent.parent / "src"

SEED = 4
SMALL, LARGE = 14, 20_000
"""Messages in the two outboxes."""

QUICK_LARGE_POINTS, QUICK_LARGE = 12, 2_000
LARGE_POINTS = 2_000

WITHOUT_CHECKSUM = tuple(
    f"{file} {table}{part}"
    for file in ("db", "wal")
    for table in ("cursors", "exceptions")
    for part in (".", " header of a record", " size of a record")
)

WITHOUT_SETTLES = tuple(f"db {table}" for table in ("messages", "ledger", "meta", "gaps", "schema"))
"""Places in which a flipped bit leaves what is known of settled messages whole: none of them may be sent again."""

WORKERS = 2
POINTS_PER_PROCESS = 400
"""A process keeps a file open for each outbox that it ever used."""

PATIENCE = 60.0
"""Seconds for one point; who needs more hangs."""


def run(*, whole: bool) -> Report:
    report = Report("points")
    place = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix="outtray-flips-", dir=place) as folder:
        for where in ("log", "database"):
            small = Scene(Path(folder, where), SMALL, where)
            small.try_all([*(small.every_byte() if whole else small.every_field()), *small.of_whole_files()], report)
        large = Scene(Path(folder, "large"), LARGE if whole else QUICK_LARGE, "log")
        rough = [*large.at_random(LARGE_POINTS if whole else QUICK_LARGE_POINTS), *large.of_whole_files()]
        large.try_all(rough if whole else random.Random(SEED).sample(rough, QUICK_LARGE_POINTS), report)
    saved, messages = (float(report.counts.pop(name, 0)) for name in ("saved", "messages"))
    report.counts["messages saved"] = f"{100 * saved / max(messages, 1):.3f} %"
    return report


class Scene:
    """An outbox of *count* messages in *folder*, of which copies are damaged; its end lies *where*."""

    def __init__(self, folder: Path, count: int, where: str) -> None:
        self._folder = folder
        self._name = f"{count} messages, {where}"
        self._is_over = False
        folder.mkdir()
        program = [sys.executable, str(HERE / "bit_flips_scene.py"), str(folder / "a"), str(count), DESTINATION, where]
        made = subprocess.run(program, env=_environment(), stdout=subprocess.PIPE, timeout=300, check=False)
        (folder / "messages").write_bytes(made.stdout)
        assert len(made.stdout.splitlines()) == count
        self._map = Map(folder / "a" / FILES["db"])

    def every_byte(self) -> list[Damage]:
        """Return a flipped bit for every byte of the database, of its WAL, and of the gate's header."""
        return self._flips(self._bytes())

    def every_field(self) -> list[Damage]:
        """Return a flipped bit for every kind of place, such as "wal messages.crc"."""
        places = [*self._bytes()]
        random.Random(SEED).shuffle(places)
        return self._flips({self._map.at(file, offset): (file, offset) for file, offset in places}.values())

    def _bytes(self) -> Iterator[tuple[str, int]]:
        for file, size in self._map.sizes.items():
            for offset in range(size):
                yield file, offset

    def _flips(self, places: Iterable[tuple[str, int]]) -> list[Damage]:
        """Return one for each byte in *places*, and all its bits where no checksum of our own tells of them."""
        choice = random.Random(f"{SEED} {self._name}")
        damages = []
        for file, offset in places:
            bits = range(8) if self._map.at(file, offset).startswith(WITHOUT_CHECKSUM) else [choice.randrange(8)]
            damages += [Damage(file, "bit", 8 * offset + bit, flush_first=choice.random() < 0.5) for bit in bits]
        return damages

    def at_random(self, number: int) -> list[Damage]:
        """Return flipped bits and larger holes at random."""
        choice = random.Random(f"{SEED} {self._name} random")
        damages = []
        for _ in range(number):
            (file,) = choice.choices(("db", "wal"), (self._map.sizes["db"], self._map.sizes["wal"]))
            kind = choice.choices(("bit", "sector", "page", "cut"), (85, 6, 6, 3))[0]
            at, flush_first = choice.randrange(self._map.sizes[file]), choice.random() < 0.5
            if kind == "bit":
                damages.append(Damage(file, "bit", 8 * at + choice.randrange(8), flush_first=flush_first))
            elif kind == "cut":
                damages.append(Damage(file, "cut", at, flush_first=flush_first))
            else:
                size = 512 if kind == "sector" else 4096
                damages.append(Damage(file, "zeros", at - at % size, size, flush_first))
        return damages

    def of_whole_files(self) -> list[Damage]:
        """Return what can befall a file as a whole, and what befalls none."""
        kinds = {
            "db": ("nothing", "text", "other", "directory", "empty"),
            "wal": ("deleted", "empty", "text", "other"),
            "shm": ("deleted", "empty", "text"),
            "gate": ("deleted", "empty", "text"),
        }
        return [
            Damage(file, kind, flush_first=flush_first)
            for file, each in kinds.items()
            for kind in each
            for flush_first in (False, True)
        ]

    def try_all(self, damages: list[Damage], report: Report) -> None:
        """Try each of *damages*, in several processes at once."""
        with ThreadPoolExecutor(WORKERS) as threads:
            try:
                stripes = [damages[first::WORKERS] for first in range(WORKERS)]
                for found in threads.map(lambda stripe: list(self._try(stripe)), stripes):
                    for damage, verdict in found:
                        self._note(damage, verdict, report)
            except BaseException:
                self._is_over = True  # or the threads would go on to the end of their stripes
                raise

    def _note(self, damage: Damage, verdict: dict[str, Any], report: Report) -> None:
        report.tried += 1
        for name, number in verdict["counts"].items():
            report.add(name, number)
        offset = damage.place // 8 if damage.kind == "bit" else damage.place
        is_there = damage.kind in ("bit", "zeros") and damage.file in self._map.sizes
        where = self._map.at(damage.file, offset) if is_there else damage.file
        if verdict["counts"].get("repeats") and damage.kind == "bit" and where.startswith(WITHOUT_SETTLES):
            report.violated(f"sent again: bit in {where} [{self._name}, {damage}]")
        for kind, words in verdict["violations"]:
            report.violated(f"{kind}: {damage.kind} in {where}: {words} [{self._name}, {damage}]")

    def _try(self, damages: list[Damage]) -> Iterator[tuple[Damage, dict[str, Any]]]:
        """Give the verdict of each point; one that ends or stalls its process is a violation, and a new one goes on."""
        left = iter(damages)
        while True:
            worker = _Worker(self._folder)
            try:
                for damage in left:
                    if self._is_over:
                        return
                    verdict = worker.verdict(damage)
                    yield damage, verdict
                    if worker.is_done:
                        break
                else:
                    return
            finally:
                worker.end()


class _Worker:
    """A process that tries one damage after the other."""

    def __init__(self, template: Path) -> None:
        self._scratch = tempfile.TemporaryDirectory(dir=template.parent)
        self._process = subprocess.Popen(
            [sys.executable, str(HERE / "bit_flips_child.py"), str(template), self._scratch.name],
            env=_environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
        )
        self.is_done = False
        self._points = 0

    def verdict(self, damage: Damage) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with suppress(BrokenPipeError):  # it ended, and what is read says so
            self._process.stdin.write(json.dumps(asdict(damage)).encode() + b"\n")
        ready, _, _ = select.select([self._process.stdout], [], [], PATIENCE)
        line = self._process.stdout.readline() if ready else b""
        self._points += 1
        if line:
            self.is_done = self._points == POINTS_PER_PROCESS
            found: dict[str, Any] = json.loads(line)
            return found
        self.is_done = True
        what = f"the process ended with {self._process.wait()}" if ready else f"no end within {PATIENCE:.0f} s"
        return {"violations": [("ended", what)], "counts": {}}

    def end(self) -> None:
        self._process.kill()
        self._process.communicate()
        self._scratch.cleanup()


def _environment() -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("OUTTRAY_", "XDG_"))}
    return {**kept, "PYTHONPATH": str(SRC)}
