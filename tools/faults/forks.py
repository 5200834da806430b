"""The fork matrix: every way in which a host program has several processes, or ends, or stands still.

Each cell runs a real program with a receiver, and the same program without outtray. It must end, in the same way and
with the same words on stderr, and every call that returned True must be delivered, or wait exactly once.
"""

from __future__ import annotations

import http.client
import importlib.util
import itertools
import json
import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from faults.report import Report
from faults.scene import FAULTS, Ended, Running, Scene, scene, session_members, wait_until, without_numbers

AT_ONCE = 3
"""Cells that are played at the same time: most of them wait for something."""

CHILD = str(FAULTS / "forks_child.py")

ENDED = "a process that ends, or is killed, while an answer is on its way does not write it down"
IN_ANOTHER_CALL = "a signal handler that comes in the middle of a call is told that it cannot store now"
IN_TWO_PROCESSES = "a call that was forked in its middle ends in both processes, with the same message id"
FORKS_IN_CALLS = "forks in the middle of a call"
SUBINTERPRETER = "a subinterpreter may be refused"
STOPPED = "a stopped process holds the gate"

Play = Callable[[Scene], None]
Drive = Callable[[Scene, Running], None]


@dataclass(frozen=True)
class Cell:
    """One cell: *play* it, with a receiver in *mode*.

    *rounds* are played in the whole run, for what depends on chance; the *quick* cells make the quick slice;
    *needs* names a module without which it cannot be tried.
    """

    play: Play
    mode: str = "ok"
    options: tuple[tuple[str, Any], ...] = ()
    rounds: int = 1
    quick: bool = False
    needs: str = ""


def run(*, whole: bool, only: str = "") -> Report:
    """Play the cells, in the quick slice the cheap ones, or those with *only* in their name.

    `tried` counts cells, each as often as it was played.
    """
    report = Report("cells")
    if not hasattr(os, "fork"):
        report.skipped = "this system has no fork"
        return report
    plays = []
    for name, cell in CELLS.items():
        if cell.needs and importlib.util.find_spec(cell.needs) is None:
            report.add(f"cells skipped without {cell.needs}")
        elif only in name and (whole or cell.quick or only):
            plays += [(name, cell)] * (cell.rounds if whole else 1)
    with ThreadPoolExecutor(AT_ONCE) as threads:
        for played in threads.map(_play, plays):
            report.tried += 1
            report.violations += played.violations
            for what in ("accepted", "repeats", "refused", FORKS_IN_CALLS):
                report.add(what, int(played.notes.pop(what, 0)))
            for what, figure in played.notes.items():
                report.raise_to(what, figure)
    return report


def _play(named: tuple[str, Cell]) -> Scene:
    name, cell = named
    with scene(name, cell.mode, **dict(cell.options)) as playing:
        cell.play(playing)
    return playing


# What most cells are: a program of forks_child, run with and without outtray


def program(
    *arguments: str,
    drive: Drive | None = None,
    check: Callable[[Scene, Ended], None] | None = None,
    repeats: str = "",
    refusals: str = "",
    copies: str = "",
    **variables: str,
) -> Play:
    """Return a play of one program, with *check* behind the audit; see `Scene.audit` for the three reasons."""

    def play(scene: Scene) -> None:
        ended = compared(scene, sys.executable, CHILD, *arguments, drive=drive, **variables)
        scene.audit(repeats=repeats, refusals=refusals, copies=copies)
        if check is not None:
            check(scene, ended)

    return play


def compared(scene: Scene, *command: str, drive: Drive | None = None, **variables: str) -> Ended:
    """Run a program without outtray and with it: exit code and the words on stderr must be the same."""
    plain = scene.run(*command, drive=drive, FAULTS_PLAIN="1", **variables)
    ended = scene.run(*command, drive=drive, **variables)
    if ended.returncode is None:
        return ended  # which is noted, with more words on stderr than can be compared
    scene.require(
        ended.returncode == plain.returncode,
        f"ended with {ended.returncode} and {ended.stderr!r}, without outtray with {plain.returncode}",
    )
    said, plainly = without_numbers(ended.stderr), without_numbers(plain.stderr)
    more, less = set(said) - set(plainly), set(plainly) - set(said)
    scene.require(not more | less, f"on stderr only with outtray: {sorted(more)}, only without: {sorted(less)}")
    return ended


# Drives


def in_a_request(scene: Scene, running: Running) -> None:
    """Let the program go on once a request has reached the receiver."""
    if not running.is_plain:
        scene.require(wait_until(lambda: scene.server.requests), "no request came")
    running.go()


def ends_in_a_request(scene: Scene, running: Running) -> None:
    in_a_request(scene, running)
    start = time.monotonic()
    wait_until(running.has_ended)
    if not running.is_plain:
        seconds = time.monotonic() - start
        scene.notes["longest exit with a request under way ms"] = round(seconds * 1000)
        scene.require(seconds < 10.0, f"the end took {seconds:.1f} s: it waited for the network")


def second_drainer(scene: Scene, running: Running) -> None:
    """See whether another drainer comes in while the parent awaits an answer and a child has ended."""
    in_a_request(scene, running)
    running.says("forked")
    if not running.is_plain:
        flushed = scene.cli("flush", "--json")
        outcome = json.loads(flushed.stdout)[0]["outcome"]
        scene.require(outcome in ("busy", "drained"), f"another flush beside the parent's ended with {outcome}")
    running.go()


def child_delivers(scene: Scene, running: Running) -> None:
    running.says("ready")
    if not running.is_plain:
        arrived = wait_until(lambda: len(scene.server.received) == 2, 20.0)
        scene.require(arrived, "no thread in the child delivered what it tracked")
    running.go()


def sends(number: int) -> Drive:
    """Return what sends a signal once the program has tracked for a while."""

    def drive(_scene: Scene, running: Running) -> None:
        if running.says("ready"):
            running.signal(number)

    return drive


def hangs_from_the_start(scene: Scene, running: Running) -> None:
    running.says("ready")
    in_a_request(scene, running)


# Checks


def nothing_crossed(scene: Scene, ended: Ended) -> None:
    crossed = ended.figures.get("crossed")
    scene.require(crossed == 0, f"{crossed} descriptors of the database crossed the fork")


def both_handlers(scene: Scene, _ended: Ended) -> None:
    events = {message["event"] for message in scene.server.received}
    missing = {"registered first", "registered last", "as threads are joined"} - events
    scene.require(not missing, f"not accepted at exit: {sorted(missing)}")


def loop_went_on(scene: Scene, ended: Ended) -> None:
    figures = ended.figures
    scene.notes["longest stall of an asyncio loop ms"] = figures["longest stall ms"]
    scene.notes["longest call in it ms"] = figures["longest call ms"]
    scene.require(
        figures["longest stall ms"] < 3000, f"the loop stood still for {figures['longest stall ms']} ms: the network"
    )
    waited = not figures["settled while the receiver hangs"]
    scene.require(
        not waited or figures["ticks while flush waits"] >= 5, "the loop stood still while to_thread(flush) waited"
    )
    scene.require(figures["settled in the end"], "to_thread(flush) did not settle what was tracked")


def says_what_it_can(scene: Scene, ended: Ended) -> None:
    said = set(ended.stdout.split("\n")) - {""}
    scene.require(said <= {"taken", "refused"}, f"a subinterpreter's calls were {sorted(said)}")
    scene.notes["calls taken in subinterpreters"] = 5 * ended.stdout.count("taken")


def in_mid_call(call: str, step: int, programs: int = 1, orders: int = 1) -> Play:
    """Return a play of programs that fork at every *step*-th point of *call*.

    *programs* of them begin at different points, each in all *orders* in which parent and child can go on.
    """

    def play(scene: Scene) -> None:
        forks = 0
        for first, order in itertools.product(range(1, step + 1, step // programs), range(orders)):
            arguments = (call, str(first), str(step), str(order))
            ended = compared(scene, sys.executable, CHILD, "fork_in_mid_call", *arguments, OUTTRAY_TIMEOUT="1")
            forks += ended.figures.get("forks", 0)
            scene.require(ended.figures.get("forks"), "no point was reached, so nothing was tried")
            for what in ended.figures.get("wrong", ()):
                scene.violated(what)
            if call == "track that finds damage":
                scene.cli("flush", "--all", OUTTRAY_RETENTION="0")  # which brings back what is in the damaged files
        scene.notes[FORKS_IN_CALLS] = forks
        scene.audit(repeats=IN_TWO_PROCESSES, refusals=IN_ANOTHER_CALL, copies=IN_TWO_PROCESSES)

    return play


# Cells with more than one program


def orphan(scene: Scene) -> None:
    """A child that was forked in a request outlives its parent: the parent's locks end with the parent."""
    with scene.started(sys.executable, CHILD, "orphan") as running:
        in_a_request(scene, running)
        scene.require(wait_until(lambda: "forked" in running.lines()), "the child did not start")
        wait_until(running.has_ended)
        scene.audit(OUTTRAY_TIMEOUT="2")
        scene.require(session_members(running.pid), "the child did not outlive the audit: nothing was tried")
        running.go()
        scene.require(wait_until(lambda: not session_members(running.pid)), "the child did not end")


def detached(scene: Scene) -> None:
    """With flush="exit" the end of the program delivers, whichever of its processes ends last."""
    compared(scene, sys.executable, CHILD, "end_detached", OUTTRAY_EXIT_INTERVAL="0")
    scene.require(wait_until(lambda: len(scene.server.received) == 10, 30.0), "no detached flush delivered")
    scene.audit()


def atexit_handlers(scene: Scene) -> None:
    ended = compared(scene, sys.executable, CHILD, "exit_handlers")
    left = [path.name for path in scene.directory.iterdir() if path.name.endswith("-wal")]
    scene.require(not left, "a normal exit left a WAL behind: what was tracked last is not synced")
    scene.audit(repeats=ENDED)
    both_handlers(scene, ended)


def gunicorn(scene: Scene) -> None:
    """`gunicorn --preload` with four workers, one of them killed and replaced, then SIGTERM."""
    address = scene.home / "web.sock"
    options = ("--preload", "--workers", "4", "--bind", f"unix:{address}", "--log-level", "warning")

    def drive(scene: Scene, running: Running) -> None:
        scene.require(wait_until(lambda: _request(address)), "gunicorn did not answer")
        victim = max(_requests(address, 60))
        with ThreadPoolExecutor(1) as threads:
            load = threads.submit(_requests, address, 60)
            os.kill(victim, signal.SIGKILL)
            load.result()
        # One master and four workers.
        replaced = wait_until(lambda: len(members := session_members(running.pid)) == 5 and victim not in members)
        scene.require(replaced, "the killed worker was not replaced")
        _requests(address, 20)
        running.signal(signal.SIGTERM)

    compared(scene, sys.executable, "-m", "gunicorn", *options, "faults.forks_web:application", drive=drive)
    scene.audit(repeats=ENDED)
    events = [message["event"] for message in scene.server.received]
    scene.require(events.count("loaded") == 5, "what was tracked at import did not arrive once")
    scene.require(events.count("request") >= 100, "few requests were answered")


def _request(address: Path) -> int:
    """Return the pid of the worker that answered, 0 if none did."""

    class Connection(http.client.HTTPConnection):
        def connect(self) -> None:
            self.sock = socket.socket(socket.AF_UNIX)
            self.sock.settimeout(20.0)
            self.sock.connect(str(address))

    connection = Connection("localhost")
    try:
        connection.request("GET", "/")
        answer = connection.getresponse()
        return int(answer.read()) if answer.status == 200 else 0
    except (OSError, http.client.HTTPException):
        return 0  # a worker that was killed, or is not there yet
    finally:
        connection.close()


def _requests(address: Path, number: int) -> set[int]:
    """Make some requests, eight at a time; return the pids of the workers that answered, with 0 if one did not."""
    with ThreadPoolExecutor(8) as threads:
        return set(threads.map(_request, [address] * number))


def celery(scene: Scene) -> None:
    """A Celery worker with two prefork processes, its broker in a folder; a warm shutdown at the end."""
    tasks = 40
    done = scene.home / "done"
    options = ("--pool", "prefork", "--concurrency", "2", "--loglevel", "ERROR", "--without-gossip", "--without-mingle")

    def drive(scene: Scene, running: Running) -> None:
        plain = {"FAULTS_PLAIN": "1"} if running.is_plain else {}
        scene.run(sys.executable, str(FAULTS / "forks_tasks.py"), str(tasks), **plain)
        finished = wait_until(lambda: done.exists() and done.stat().st_size == tasks)
        scene.require(finished, "not all tasks were worked on")
        running.signal(signal.SIGTERM)
        wait_until(running.has_ended)
        done.unlink(missing_ok=True)

    compared(scene, sys.executable, "-m", "celery", "-A", "faults.forks_tasks", "worker", *options, drive=drive)
    scene.audit(repeats=ENDED)
    events = [message["event"] for message in scene.server.received]
    scene.require(events.count("task") == tasks, f"{events.count('task')} of {tasks} tasks' messages arrived")


# Stopped processes


def is_stopped(running: Running) -> bool:
    stat = Path(f"/proc/{running.pid}/stat").read_text()
    return stat.rpartition(")")[2].split()[0] == "T"


def calls_of(running: Running, turn: int) -> list[tuple[bool, float]]:
    """Wait for what the program `timed` says in its *turn*: of each call whether it was taken, and its seconds."""
    wait_until(lambda: len(running.lines()) > turn or running.has_ended())
    lines = running.lines()
    return [(taken, seconds) for taken, seconds in json.loads(lines[turn])] if len(lines) > turn else []


def stopped_at_the_gate(scene: Scene) -> None:
    """Others lose two seconds once, are told False, and go on when the process goes on."""
    scene.run(sys.executable, CHILD, "just_track", "0", OUTTRAY_FLUSH="manual")
    with scene.started(sys.executable, CHILD, "stop_at_gate") as stopped:
        scene.require(wait_until(lambda: is_stopped(stopped)), "the process at the gate did not stop")
        with scene.started(sys.executable, CHILD, "timed", "4") as other:
            calls = calls_of(other, 0)
            scene.require([taken for taken, _ in calls] == [False] * 4, f"calls while the gate is held: {calls}")
            scene.require(calls[0][1] > 1.5, f"the first call gave up after {calls[0][1]} s")
            scene.require(max(seconds for _, seconds in calls[1:]) < 1.0, f"later calls waited again: {calls}")
            scene.notes["longest call at a held gate ms"] = round(calls[0][1] * 1000)
            status_is(scene, pending=5)
            flushed = scene.cli("flush")
            scene.require(flushed.returncode == 75, f"flush ended with {flushed.returncode}: {flushed.stderr}")
            stopped.signal(signal.SIGCONT)
            scene.require(stopped.end().returncode == 0, "the stopped process did not go on")
            other.go()
            again = calls_of(other, 1)
            scene.require([taken for taken, _ in again] == [True] * 4, f"calls behind the stop: {again}")
            other.go()
            scene.require(other.end().returncode == 0, "the other program did not end well")
    busy = scene.status()["ledger"].get("busy")
    scene.require(busy == 4, f"the ledger counts {busy} busy, 4 calls were")
    scene.audit(refusals=STOPPED)


def stopped_in_a_request(scene: Scene) -> None:
    """A drainer that stands still while it awaits an answer costs nothing but delivery, and is named."""
    scene.run(sys.executable, CHILD, "just_track", "0", OUTTRAY_FLUSH="manual")
    command = (sys.executable, "-m", "outtray", "flush")
    with scene.started(*command, OUTTRAY_TIMEOUT="50") as stopped:
        scene.require(wait_until(lambda: scene.server.requests), "no request came")
        stopped.signal(signal.SIGSTOP)
        scene.require(wait_until(lambda: is_stopped(stopped)), "the drainer did not stop")
        flushed = scene.cli("flush", OUTTRAY_TIMEOUT="0.5")
        scene.require(
            flushed.returncode == 75 and "stalled" in flushed.stderr and str(stopped.pid) in flushed.stderr,
            f"a flush beside the stopped one ended with {flushed.returncode}: {flushed.stderr}",
        )
        status_is(scene, pending=5)
        with scene.started(sys.executable, CHILD, "timed", "5") as other:
            for turn in range(2):
                calls = calls_of(other, turn)
                scene.require([taken for taken, _ in calls] == [True] * 5, f"calls beside a stopped drainer: {calls}")
                other.go()
            scene.require(other.end().returncode == 0, "the other program did not end well")
        stopped.signal(signal.SIGCONT)
        ended = stopped.end()
        scene.require(ended.returncode == 0, f"behind the stop the drainer ended with {ended}")
    scene.audit()


def stopped_idle(scene: Scene) -> None:
    """A program that stands still and holds nothing costs nothing."""
    with scene.started(sys.executable, CHILD, "idle") as stopped:
        stopped.says("ready")
        stopped.signal(signal.SIGSTOP)
        scene.require(wait_until(lambda: is_stopped(stopped)), "the program did not stop")
        with scene.started(sys.executable, CHILD, "timed", "5") as other:
            for turn in range(2):
                calls = calls_of(other, turn)
                scene.require([taken for taken, _ in calls] == [True] * 5, f"calls beside a stopped program: {calls}")
                other.go()
            scene.require(other.end().returncode == 0, "the other program did not end well")
        flushed = scene.cli("flush")
        scene.require(flushed.returncode == 0, f"flush ended with {flushed.returncode}: {flushed.stderr}")
        scene.require(len(scene.server.received) == 15, "the flush did not deliver")
        stopped.signal(signal.SIGCONT)
        stopped.go()
        ended = stopped.end()
        scene.require(ended.returncode == 0, f"behind the stop the program ended with {ended}")
    scene.audit()


def status_is(scene: Scene, *, pending: int) -> None:
    """Look as a user would: an answer comes, and is right, whatever is held."""
    looked = scene.cli("status", "--json")
    found = json.loads(looked.stdout) if looked.returncode == 0 else {}
    scene.require(found.get("pending") == pending, f"status ended with {looked.returncode}, {found or looked.stderr}")


DELAYED = (("delay", 3.0),)
ONCE = (("times", 1),)

CELLS: dict[str, Cell] = {
    "fork, thread idle, child leaves by os._exit": Cell(program("fork_idle", "abrupt", repeats=ENDED)),
    "fork, thread idle, child ends": Cell(program("fork_idle", "normal", repeats=ENDED), quick=True),
    "fork, the child's own thread delivers": Cell(
        program("fork_delivers", drive=child_delivers, repeats=ENDED), quick=True
    ),
    "fork in a request": Cell(program("fork_mid_drain", drive=second_drainer), options=DELAYED, quick=True),
    "fork in a request, the parent dies": Cell(orphan, mode="hang", quick=True),
    "fork in mid-append, 12 times": Cell(program("fork_mid_append", "12", repeats=ENDED), quick=True),
    "fork in mid-append, 200 times": Cell(program("fork_mid_append", "200", repeats=ENDED), rounds=3),
    "fork at a busy gate, the parent dies": Cell(program("fork_at_busy_gate")),
    "fork in a thread": Cell(program("fork_in_thread", repeats=ENDED)),
    **{
        f"fork in a signal handler, the child {way}": Cell(
            program("fork_in_handler", way, repeats=ENDED, refusals=IN_ANOTHER_CALL, copies=copies), rounds=25
        )
        for way, copies in (("leaves", ""), ("returns", IN_TWO_PROCESSES))
    },
    "fork at some points of a track that opens": Cell(in_mid_call("track that opens", 10), quick=True),
    **{
        f"fork at each point of a {call}": Cell(in_mid_call(call, programs, programs, orders))
        for call, programs, orders in (
            ("track", 4, 5),
            ("track that opens", 10, 5),
            ("track that finds damage", 10, 2),
            ("first track", 16, 1),
            ("close", 2, 5),
            ("fork", 2, 5),
            ("flush", 28, 1),
        )
    },
    "fork at every second point of a status": Cell(in_mid_call("status", 14, 7)),
    "fork in a fork": Cell(program("grandchild", repeats=ENDED), rounds=3),
    "fork and exec, exec without a fork": Cell(program("fork_and_exec", repeats=ENDED), rounds=3),
    "no descriptor of the database crosses": Cell(
        program("descriptors", check=nothing_crossed, repeats=ENDED), quick=True
    ),
    **{
        f"{function}, {method}": Cell(program(function, method, repeats=ENDED))
        for function in ("process", "pool", "executor")
        for method in ("fork", "spawn", "forkserver")
    },
    "gunicorn --preload, a worker killed": Cell(gunicorn, needs="gunicorn"),
    "celery prefork, warm shutdown": Cell(celery, needs="celery"),
    "subinterpreters": Cell(
        program("subinterpreters", check=says_what_it_can, repeats=ENDED, refusals=SUBINTERPRETER),
        needs="_xxsubinterpreters",
    ),
    "end in a request that hangs": Cell(program("end_mid_drain", drive=ends_in_a_request), mode="hang", quick=True),
    "end in a request that is answered later": Cell(
        program("end_mid_drain", drive=ends_in_a_request, repeats=ENDED), options=(("delay", 0.3),)
    ),
    'end with flush="exit", a child too': Cell(detached, quick=True),
    "exit handlers before and after outtray's": Cell(atexit_handlers, quick=True),
    "SIGTERM": Cell(program("killed_by", "default", drive=sends(signal.SIGTERM), repeats=ENDED), rounds=10),
    "SIGTERM with a handler": Cell(
        program("killed_by", "handler", drive=sends(signal.SIGTERM), repeats=ENDED, refusals=IN_ANOTHER_CALL),
        rounds=10,
        quick=True,
    ),
    "SIGINT": Cell(program("killed_by", "default", drive=sends(signal.SIGINT), repeats=ENDED), rounds=10),
    "SIGKILL": Cell(program("killed_by", "default", drive=sends(signal.SIGKILL), repeats=ENDED), rounds=10),
    "daemon threads at the end": Cell(program("daemon_threads", repeats=ENDED), rounds=5),
    "sys.exit and an exception in a thread": Cell(program("thread_leaves", repeats=ENDED)),
    "an exception at exit": Cell(program("exception_at_exit", repeats=ENDED)),
    "an exception that nobody catches": Cell(program("uncaught", repeats=ENDED)),
    "os.abort": Cell(program("abort", repeats=ENDED)),
    "asyncio, the receiver hangs": Cell(
        program("coroutines", drive=hangs_from_the_start, check=loop_went_on, repeats=ENDED, OUTTRAY_TIMEOUT="3"),
        mode="hang",
        options=ONCE,
    ),
    "stopped at the gate": Cell(stopped_at_the_gate),
    "stopped in a request": Cell(stopped_in_a_request, options=DELAYED),
    "stopped with nothing in hand": Cell(stopped_idle),
}
"""By name; a receiver accepts everything where its cell does not say otherwise."""
