"""The clock jumps, stands still, or is wrong by decades: nothing is lost, and no delivery waits for years.

The programs run under libfaketime, which reads the time to show from a file again and again, so that the clock of a
running program can be moved. The monotonic clock is left alone, as by a system whose clock is set, but in cells that
need no timed wait of a thread: libfaketime moves the clock under such a wait, but not the wait.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any
from uuid import UUID

from faults.report import Report
from faults.scene import FAULTS, Running, Scene, scene, wait_until

AT_ONCE = 3
"""Cells that are played at the same time: most of them wait for something."""

CHILD = str(FAULTS / "clock_child.py")
YEAR = 365.25 * 86_400
TEN_YEARS = 10 * YEAR


class Clock:
    """The clock of a scene's programs: real time and an offset in seconds, or a moment at which it stands."""

    def __init__(self, scene: Scene, library: Path, *, zone: str, monotonic: bool) -> None:
        self._file = scene.home / "faketime"
        self._offset = 0.0
        self._write("+0")
        scene.variables.update(
            LD_PRELOAD=str(library),
            FAKETIME_TIMESTAMP_FILE=str(self._file),
            FAKETIME_NO_CACHE="1",
            TZ=zone,
            PYTHONPATH=os.pathsep.join((str(FAULTS / "clock_site"), scene.environment()["PYTHONPATH"])),
        )
        if not monotonic:
            scene.variables["DONT_FAKE_MONOTONIC"] = "1"

    @property
    def now(self) -> float:
        """What the programs see, unless the clock stands."""
        return time.time() + self._offset

    def move(self, seconds: float) -> None:
        """Set the clock forward, or back."""
        self._offset += seconds
        self._write(f"{self._offset:+.0f}")

    def set(self, moment: str) -> None:
        """Set the clock to *moment*, an ISO time with its offset from UTC."""
        self.move(datetime.fromisoformat(moment).timestamp() - self.now)

    def freeze(self) -> None:
        """Have the clock stand still; the zone must be UTC."""
        self._write(time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(self.now)))

    def _write(self, text: str) -> None:
        # A new file with each change: a reader must not find half of one.
        new = self._file.with_suffix(".new")
        new.write_text(text + "\n")
        new.replace(self._file)


@dataclass(frozen=True)
class Cell:
    """*play* one cell, with *arguments*, from the moment *start* on; the *quick* ones make the quick slice."""

    play: Callable[..., None]
    arguments: tuple[Any, ...] = ()
    start: str = ""
    zone: str = "UTC"
    monotonic: bool = False
    quick: bool = False


def run(*, whole: bool, only: str = "") -> Report:
    """Play the cells, in the quick slice the cheap ones, or those with *only* in their name."""
    report = Report("cells")
    library = next(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"), None)
    if library is None:
        report.skipped = "libfaketime is not installed"
        return report
    chosen = [(name, cell, library) for name, cell in CELLS.items() if whole or cell.quick or only]
    chosen = [each for each in chosen if only in each[0]]
    with ThreadPoolExecutor(AT_ONCE) as threads:
        for played in threads.map(_play, chosen):
            report.tried += 1
            report.violations += played.violations
            report.add("messages", int(played.notes["accepted"]))
            report.add("repeats", int(played.notes["repeats"]))
    return report


def _play(what: tuple[str, Cell, Path]) -> Scene:
    name, cell, library = what
    with scene(name) as playing:
        clock = Clock(playing, library, zone=cell.zone, monotonic=cell.monotonic)
        if cell.start:
            clock.set(cell.start)
        cell.play(playing, clock, *cell.arguments)
        playing.audit()
        _received_is_sound(playing)
    return playing


def _received_is_sound(scene: Scene) -> None:
    """Look at what arrived: each accepted once, in the order of acceptance, with moments that can be read."""
    accepted = scene.record()["accepted"]
    received = scene.server.received
    scene.require(len(set(accepted)) == len(accepted), "a message id was given twice")
    scene.require([message["message_id"] for message in received] == accepted, "the order is another one")
    for message in received:
        moment = message["timestamp"]
        try:
            is_aware = datetime.fromisoformat(moment).tzinfo is not None
        except ValueError:
            is_aware = False
        scene.require(is_aware, f"the timestamp {moment!r} cannot be read, or is without its zone")


class Conversation:
    """A running `clock_child`, asked line by line."""

    def __init__(self, scene: Scene, running: Running) -> None:
        self._scene = scene
        self._running = running
        self._asked = 0

    def ask(self, line: str) -> Any:
        """Return the answer, None if there is none in time."""
        self._running.tell(line)
        self._asked += 1
        answered = wait_until(lambda: len(self._running.lines()) >= self._asked or self._running.has_ended())
        lines = self._running.lines()
        if not answered or len(lines) < self._asked:
            self._scene.violated(f"no answer to {line!r}: {self._running.end()}")
            return None
        return json.loads(lines[self._asked - 1])

    def track(self, number: int, kind: str = "track") -> None:
        """Have it track so many messages, all of which must be taken."""
        self._scene.require(self.ask(f"{kind} {number}"), f"a call of {number} returned False")

    def end(self) -> None:
        """Have it close and end."""
        self._running.tell("end 0")
        ended = self._running.end()
        self._scene.require(ended.returncode == 0 and not ended.stderr, f"the program ended with {ended}")


@contextmanager
def conversation(scene: Scene, flush: str = "manual") -> Iterator[Conversation]:
    """Give a conversation, which has ended well behind the block."""
    with scene.started(sys.executable, CHILD, OUTTRAY_FLUSH=flush) as running:
        talk = Conversation(scene, running)
        yield talk
        talk.end()


def looks_sound(scene: Scene, pending: int) -> None:
    """Look as a user would, under the clock as it is now."""
    looked = scene.cli("status", "--json")
    found = json.loads(looked.stdout) if looked.returncode == 0 else {}
    scene.require(found.get("pending") == pending, f"status ended with {looked.returncode}, {found or looked.stderr}")
    age = found.get("oldest_pending_age")
    scene.require(age is not None and age >= 0, f"the oldest pending message is {age} s old")
    listed = scene.cli("list", "--state", "pending", "--limit", "1000")
    scene.require(listed.returncode == 0, f"list ended with {listed.returncode}: {listed.stderr}")


def flushes(scene: Scene, code: int, why: str) -> None:
    """Flush as cron does, heeding a stored wait, and require the exit code."""
    flushed = scene.cli("flush", "--json")
    scene.require(
        flushed.returncode == code, f"flush ended with {flushed.returncode}, not {code} ({why}): {flushed.stdout}"
    )


def arrived(scene: Scene, number: int, seconds: float = 30.0) -> None:
    wait_until(lambda: len(scene.server.received) >= number, seconds)
    scene.require(len(scene.server.received) == number, f"{len(scene.server.received)} arrived, not {number}")


# Plays


def while_messages_wait(scene: Scene, clock: Clock, jump: float) -> None:
    with conversation(scene) as talk:
        talk.track(10)
        clock.move(jump)
        looks_sound(scene, 10)
        talk.track(5)
        looks_sound(scene, 15)
        clock.move(-jump)
        talk.track(5)
        clock.move(jump)
    flushes(scene, 0, "nothing keeps it")
    arrived(scene, 20)


def while_a_wait_is_stored(scene: Scene, clock: Clock, jump: float) -> None:
    scene.server.set_mode(503, retry_after="600")
    with conversation(scene) as talk:
        talk.track(10)
    flushes(scene, 75, "the receiver wants to be left alone")
    scene.server.set_mode("ok")
    flushes(scene, 75, "its wait is heeded")
    arrived(scene, 0, 0.0)
    clock.move(jump)
    looks_sound(scene, 10)
    flushes(scene, 0, "the wait is over, or further away than any can be")
    arrived(scene, 10)


def while_a_wait_is_stored_and_a_little_back(scene: Scene, clock: Clock) -> None:
    """Set back by less than the longest wait, a wait is longer by that, and no more."""
    scene.server.set_mode(503, retry_after="600")
    with conversation(scene) as talk:
        talk.track(10)
    flushes(scene, 75, "the receiver wants to be left alone")
    scene.server.set_mode("ok")
    clock.move(-1800.0)
    flushes(scene, 75, "the wait is heeded")
    clock.move(1800.0 + 601.0)
    flushes(scene, 0, "the wait is over")
    arrived(scene, 10)


def while_the_thread_waits(scene: Scene, clock: Clock, jump: float) -> None:
    scene.server.set_mode(503, retry_after="2", times=1)
    with conversation(scene, "thread") as talk:
        talk.track(10)
        scene.require(wait_until(lambda: scene.server.requests), "no request came")
        clock.move(jump)
        arrived(scene, 10)


def between_append_and_drain(scene: Scene, clock: Clock, jump: float) -> None:
    with conversation(scene, "thread") as talk:
        for _ in range(3):
            talk.track(10)
            clock.move(jump)
            outcome = talk.ask("flush 30")
            scene.require(outcome == "drained", f"flush in the program: {outcome}")
            clock.move(-jump)


def in_a_request(scene: Scene, clock: Clock, jump: float) -> None:
    scene.server.set_mode("ok", delay=1.0)
    with conversation(scene, "thread") as talk:
        talk.track(10)
        scene.require(wait_until(lambda: scene.server.requests), "no request came")
        clock.move(jump)
        talk.track(10)
        outcome = talk.ask("flush 30")
        scene.require(outcome == "drained", f"flush in the program: {outcome}")


def while_delivered_ones_age(scene: Scene, clock: Clock, jump: float) -> None:
    """Prune by age: what is not delivered is not touched, however old it seems."""
    with conversation(scene) as talk:
        talk.track(10)
        flushes(scene, 0, "nothing keeps it")
        scene.server.set_mode("refuse")
        talk.track(10)
        for _ in range(2):
            clock.move(jump)
            flushes(scene, 75, "the receiver is away")
            looks_sound(scene, 10)
            scene.require(scene.cli("purge", "--yes").returncode == 0, "purge of the delivered failed")
            looks_sound(scene, 10)


def ids_when_it_goes_back(scene: Scene, clock: Clock) -> None:
    with conversation(scene) as talk:
        for jump in (-1.0, -3600.0, -TEN_YEARS, TEN_YEARS):
            talk.track(200, "own")
            clock.move(jump)
        clock.freeze()
        talk.track(200, "own")
    versions = {UUID(message_id).version for message_id in scene.record()["accepted"]}
    scene.require(versions == {7}, f"ids of versions {versions}")


def at_another_time(scene: Scene, clock: Clock) -> None:
    """All of it, at a moment that is decades away."""
    while_a_wait_is_stored(scene, clock, 601.0)
    with conversation(scene, "thread") as talk:
        talk.track(10)
        outcome = talk.ask("flush 30")
        scene.require(outcome == "drained", f"flush in the program: {outcome}")
    years = {message["timestamp"][:4] for message in scene.server.received}
    expected = time.strftime("%Y", time.gmtime(clock.now))
    scene.require(years == {expected}, f"timestamps of {sorted(years)} in {expected}")


def across_a_switch(scene: Scene, clock: Clock) -> None:
    """From ten seconds before the hands are turned: a wait is neither an hour longer nor over at once."""
    scene.server.set_mode(503, retry_after="600")
    before = clock.now
    with conversation(scene) as talk:
        talk.track(10)
        flushes(scene, 75, "the receiver wants to be left alone")
        scene.server.set_mode("ok")
        clock.move(60.0)
        talk.track(10)
        looks_sound(scene, 20)
        flushes(scene, 75, "the wait is heeded")
        clock.move(541.0)
    flushes(scene, 0, "the wait is over")
    arrived(scene, 20)
    moments = [datetime.fromisoformat(message["timestamp"]).timestamp() for message in scene.server.received]
    scene.require(moments == sorted(moments), "timestamps go back")
    scene.require(
        before - 1 <= moments[0] and moments[-1] <= clock.now, f"timestamps from {moments[0]} to {moments[-1]}"
    )


def standing(scene: Scene, clock: Clock) -> None:
    clock.freeze()
    with conversation(scene, "thread") as talk:
        talk.track(20)
        outcome = talk.ask("flush 30")
        scene.require(outcome == "drained", f"flush in the program: {outcome}")
        talk.track(20)
        looks_sound_or_delivered(scene)
        arrived(scene, 40)


def standing_and_the_thread_waits(scene: Scene, clock: Clock) -> None:
    """The stored wait does not come nearer by the clock; whoever has slept it out goes on all the same."""
    clock.freeze()
    scene.server.set_mode(503, retry_after="2", times=1)
    with conversation(scene, "thread") as talk:
        talk.track(10)
        arrived(scene, 10)


def standing_and_flush_waits(scene: Scene, clock: Clock) -> None:
    clock.freeze()
    scene.server.set_mode(503, retry_after="2", times=1)
    with conversation(scene) as talk:
        talk.track(10)
        outcome = talk.ask("flush 30")
        scene.require(outcome == "drained", f"flush in the program: {outcome}")


def looks_sound_or_delivered(scene: Scene) -> None:
    looked = scene.cli("status", "--json")
    scene.require(looked.returncode == 0, f"status ended with {looked.returncode}: {looked.stderr}")


def _jumps(play: Callable[..., None], name: str, *, quick: bool = False, monotonic: bool = False) -> dict[str, Cell]:
    also = ", the monotonic clock too" if monotonic else ""
    return {
        f"{word} ten years {name}{also}": Cell(play, (jump,), monotonic=monotonic, quick=quick)
        for word, jump in (("forward", TEN_YEARS), ("back", -TEN_YEARS))
    }


CELLS: dict[str, Cell] = {
    **_jumps(while_messages_wait, "while messages wait"),
    **_jumps(while_a_wait_is_stored, "while a wait is stored", quick=True),
    "back half an hour while a wait is stored": Cell(while_a_wait_is_stored_and_a_little_back),
    **_jumps(while_the_thread_waits, "while the thread waits"),
    **_jumps(between_append_and_drain, "between append and drain"),
    **_jumps(in_a_request, "in a request", quick=True),
    **_jumps(while_delivered_ones_age, "while delivered ones age"),
    **_jumps(while_messages_wait, "while messages wait", monotonic=True),
    **_jumps(while_a_wait_is_stored, "while a wait is stored", monotonic=True),
    "ids when the clock goes back": Cell(ids_when_it_goes_back, quick=True),
    "in 1970": Cell(at_another_time, start="1970-01-02T00:00:00+00:00"),
    "in 2040": Cell(at_another_time, start="2040-02-29T12:00:00+00:00"),
    "summer time begins": Cell(across_a_switch, start="2026-03-29T01:59:50+01:00", zone="Europe/Berlin"),
    "summer time ends": Cell(across_a_switch, start="2026-10-25T02:59:50+02:00", zone="Europe/Berlin"),
    "the clock stands": Cell(standing),
    "the clock stands and the thread waits": Cell(standing_and_the_thread_waits),
    "the clock stands and flush waits": Cell(standing_and_flush_waits),
}
