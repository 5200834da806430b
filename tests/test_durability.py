"""What a power cut and a kill leave: when the log is synced, for whom, and what a failed sync means."""

from __future__ import annotations

import errno
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import outtray
from outtray.outbox import shared, sync
from outtray.outbox.filelock import FileLock
from outtray.outbox.gate import REWRITE_WAL
from outtray.testing import FakeServer
from tests.conftest import wait_until

needs_strace = pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")

BEGIN = """
import os, signal, sys, threading, time, outtray
def configure(**options):
    return outtray.configure(**{"app": "hard", "url": "http://127.0.0.1:9", "flush": "manual", **options})
def say(*words):
    os.write(1, (" ".join(map(str, words)) + "\\n").encode())
"""

Traced = Callable[..., "Trace"]


@dataclass
class Trace:
    """What a traced program did: *calls* in order ("fsync" or "write" of the log, "say WORDS"), and what it said."""

    calls: list[str]
    said: list[str]
    code: int
    errors: str

    def count(self, call: str, *, after: str = "", before: str = "") -> int:
        """Return how often *call* came between what was said in *after* and in *before*."""
        first = self.calls.index(f"say {after}") if after else 0
        last = self.calls.index(f"say {before}") if before else len(self.calls)
        return self.calls[first:last].count(call)


_LINE = re.compile(r"^\d+ +(\w+)\((\d+)<([^>]*)>(?:, (?:\"((?:[^\"\\]|\\.)*)\")?)?")


def _calls(text: str) -> list[str]:
    """Return fsyncs and writes of the log, and what was said; a call that is interrupted counts where it ends."""
    found = []
    begun: dict[str, str] = {}
    for line in text.splitlines():
        pid = line.split(" ", 1)[0]
        if line.endswith("<unfinished ...>"):
            begun[pid] = line
            continue
        if " resumed>" in line:
            line = begun.pop(pid, line)
        match = _LINE.match(line)
        if match is None:
            continue
        call, descriptor, path, data = match.groups()
        if call == "write" and descriptor == "1":
            found.append("say " + (data or "").removesuffix("\\n"))
        elif path.endswith("-wal") and call in ("fsync", "fdatasync"):
            found.append("fsync")
        elif path.endswith("-wal") and call in ("pwrite64", "write"):
            found.append("write")
    return found


@pytest.fixture
def traced(environment: dict[str, str], tmp_path: Path) -> Traced:
    """Run a program below strace; *options* are further ones of strace."""

    def run(code: str, *options: str) -> Trace:
        output = tmp_path / "trace"
        command = ["strace", "-f", "-y", "-s", "60", "-o", str(output), "-e", "trace=fsync,fdatasync,pwrite64,write"]
        done = subprocess.run(
            [*command, *options, sys.executable, "-c", BEGIN + code],
            env=environment,
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        return Trace(_calls(output.read_text()), done.stdout.splitlines(), done.returncode, done.stderr)

    return run


def ledger(tray: outtray.Tray) -> dict[str, int]:
    found = tray.status()
    assert found["error"] is None, found["error"]
    return dict(found["ledger"])


def tray_of(url: str = "http://127.0.0.1:9", **options: Any) -> outtray.Tray:
    return outtray.Tray(app="hard", url=url, **{"flush": "manual", **options})


# Power


@needs_strace
def test_with_power_each_message_is_synced_before_the_call_returns(traced: Traced) -> None:
    trace = traced("""
configure(durability="power")
outtray.track("first")  # which is followed by what other processes need to know
for number in range(6):
    say("before", number)
    say("answer", number, outtray.track("event"))
""")
    assert trace.said.count("answer 5 True") == 1, trace.errors
    for number in range(6):
        begin, end = trace.calls.index(f"say before {number}"), trace.calls.index(f"say answer {number} True")
        calls = trace.calls[begin:end]
        assert "write" in calls
        assert "fsync" in calls[len(calls) - calls[::-1].index("write") :], "a sync after the last write of the record"


@needs_strace
def test_threads_that_wait_at_the_same_time_share_a_sync(traced: Traced) -> None:
    trace = traced(
        """
configure(durability="power")
outtray.track("first")
say("begin")
answers = []
def work():
    for _ in range(25):
        answers.append(outtray.track("event"))
threads = [threading.Thread(target=work) for _ in range(8)]
for thread in threads: thread.start()
for thread in threads: thread.join()
say("end")
say(answers.count(True))
""",
        "-e",
        "inject=fsync,fdatasync:delay_enter=3000",
    )
    assert trace.said[-1] == "200", trace.errors
    assert 0 < trace.count("fsync", after="begin", before="end") < 200


FAILED_SYNC = """
configure(durability="power")
say("first", outtray.track("event", {"number": 0}))
say("answers", *[outtray.track("event", {"number": number}) for number in range(1, 6)])
say("ledger", outtray.status()["ledger"].get("unknown", 0))
"""


@needs_strace
def test_a_sync_that_fails_is_a_false_that_no_later_sync_turns_into_a_success(
    traced: Traced, server: FakeServer
) -> None:
    trace = traced(FAILED_SYNC)
    assert trace.said == ["first True", "answers True True True True True", "ledger 0"], trace.errors
    shutil.rmtree(tray_of().settings.directory)
    wal = str(Path(tray_of().settings.directory, "outbox-1-0.db-wal"))
    failed = traced(FAILED_SYNC, "-P", wal, "-P", "/dev/null", "-e", "inject=fdatasync:error=EIO:when=6")
    answers = failed.said[1].split()[1:]
    assert failed.said[0] == "first True", failed.errors
    assert answers.count("False") == 1, failed.said
    assert failed.said[2] == "ledger 1"
    tray = tray_of(server.url)
    assert tray.flush(20).outcome == "drained"
    numbers = [message["properties"]["number"] for message in server.received]
    refused = answers.index("False") + 1
    assert [number for number in numbers if number != refused] == [n for n in range(6) if n != refused]
    assert ledger(tray)["unknown"] == 1


@needs_strace
def test_after_a_failed_sync_the_log_is_moved_into_the_database_before_the_next_message(traced: Traced) -> None:
    directory = tray_of().settings.directory
    wal = str(Path(directory, "outbox-1-0.db-wal"))
    trace = traced(
        """
import glob
configure(durability="power")
outtray.track("event")
wal = glob.glob(os.path.expanduser("~/.local/state/outtray/hard/*-wal"))[0]
sizes = [os.stat(wal).st_size]
while outtray.track("event"):
    sizes.append(os.stat(wal).st_size)
after = os.stat(wal).st_size
say(sizes[-1] > sizes[0], after < sizes[-1], outtray.track("event"), outtray.status()["pending"] - len(sizes))
""",
        *("-P", wal, "-e", "inject=fdatasync:error=EIO:when=20"),
    )
    assert trace.said == ["True True True 2"], trace.errors


@needs_strace
def test_other_processes_heed_that_a_sync_failed(traced: Traced, environment: dict[str, str], tmp_path: Path) -> None:
    tray = tray_of()
    assert tray.track("event")
    directory = tray.settings.directory
    wal = Path(directory, "outbox-1-0.db-wal")
    traced(
        'configure(durability="power")\nwhile outtray.track("event"): pass\nos.kill(os.getpid(), 9)',
        *("-P", str(wal), "-e", "inject=fdatasync:error=EIO:when=20+"),
    )
    assert shared.of(tray.settings).header().flags & REWRITE_WAL
    size = wal.stat().st_size
    assert tray.track("event")
    assert shared.of(tray.settings).header().flags & REWRITE_WAL == 0
    assert wal.stat().st_size < size


def test_where_the_gate_is_not_free_a_failed_sync_is_still_an_unknown_and_the_log_is_moved(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tray = tray_of(durability="power")
    assert tray.track("event")
    wal = Path(tray.settings.directory, "outbox-1-0.db-wal")
    other = FileLock(str(wal.with_name("outbox-1.gate")))
    fsync = sync._fsync

    def failing(descriptor: int) -> None:
        monkeypatch.setattr(sync, "_fsync", fsync)
        other.open(create=False)
        assert other.try_acquire()
        raise OSError(errno.EIO, "the disk failed")

    monkeypatch.setattr(sync, "_fsync", failing)
    assert not tray.track("event")
    other.close()
    size = wal.stat().st_size
    assert wait_until(lambda: tray.track("event"))  # after a gate that stayed shut each call tries once
    assert wal.stat().st_size < size
    assert ledger(tray)["unknown"] == 1


@needs_strace
def test_a_failure_belongs_to_all_who_waited_for_that_sync(traced: Traced) -> None:
    wal = str(Path(tray_of().settings.directory, "outbox-1-0.db-wal"))
    trace = traced(
        """
configure(durability="power")
outtray.track("first")
answers = []
def work():
    for _ in range(10):
        answers.append(outtray.track("event"))
threads = [threading.Thread(target=work) for _ in range(8)]
for thread in threads: thread.start()
for thread in threads: thread.join()
say(len(answers), answers.count(False), outtray.status()["ledger"].get("unknown", 0), outtray.status()["pending"])
""",
        *("-P", wal, "-P", "/dev/null", "-e", "inject=fdatasync:error=EIO:delay_enter=2000:when=8"),
    )
    total, refused, unknown, pending = map(int, trace.said[-1].split())
    assert total == 80
    assert 1 <= unknown <= refused, trace.errors
    assert pending == 81 - (refused - unknown), "what was not confirmed is stored all the same"


def test_a_log_that_was_deleted_is_noticed_and_nothing_is_lost(server: FakeServer) -> None:
    tray = tray_of(server.url, durability="power")
    for number in range(3):
        assert tray.track("event", {"number": number})
    os.unlink(Path(tray.settings.directory, "outbox-1-0.db-wal"))
    answers = [tray.track("event", {"number": number}) for number in range(3, 8)]
    assert answers[-1]
    assert answers.count(False) <= 1
    refused = {number for number, answer in enumerate(answers, 3) if not answer}
    tray.close()
    assert tray.flush(20).outcome == "drained"
    assert {m["properties"]["number"] for m in server.received} | refused == set(range(8))
    assert ledger(tray).get("lost", 0) == 0


def test_a_signal_handler_that_tracks_with_power_does_not_stop_the_program(
    environment: dict[str, str], tmp_path: Path
) -> None:
    code = """
tray = configure(durability="power")
answers = []
def handler(*_):
    answers.append(outtray.track("from the handler"))
    signal.setitimer(signal.ITIMER_REAL, 0.003)  # not by itself: on a slow disk handlers would interrupt handlers
signal.signal(signal.SIGALRM, handler)
signal.setitimer(signal.ITIMER_REAL, 0.003)
end = time.monotonic() + 2
count = 0
while time.monotonic() < end:
    count += outtray.track("event")
signal.signal(signal.SIGALRM, signal.SIG_IGN)
stored = outtray.status()
taken = count + answers.count(True)
say(taken == stored["pending"], len(answers) > 0, taken, stored["pending"], stored["ledger"])
"""
    command = [sys.executable, "-c", BEGIN + code]
    done = subprocess.run(
        command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.stdout.startswith("True True"), done.stdout + done.stderr


def test_a_log_that_was_made_longer_ahead_is_read_to_its_end_after_a_kill(
    environment: dict[str, str], tmp_path: Path, server: FakeServer
) -> None:
    code = """
configure(durability="power")
say(all([outtray.track("event", {"number": number}) for number in range(300)]))
os.kill(os.getpid(), signal.SIGKILL)
"""
    command = [sys.executable, "-c", BEGIN + code]
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (-signal.SIGKILL, b"True\n"), done.stderr
    tray = tray_of(server.url)
    wal = Path(tray.settings.directory, "outbox-1-0.db-wal")
    assert wal.read_bytes().endswith(bytes(4120)), "there is room behind the last frame"
    assert tray.flush(30).delivered == 300
    assert [message["properties"]["number"] for message in server.received] == list(range(300))
    assert tray.status()["ledger"] == {}


def test_a_handler_that_tracks_while_its_thread_waits_for_anothers_sync_is_stored_too(
    environment: dict[str, str], tmp_path: Path
) -> None:
    code = """
from outtray.delivery import flusher
from outtray.outbox import sync
flusher.SYNC_WITHIN = 3600  # else the flusher's thread would come to help
configure(durability="power")
outtray.track("first")
fsync, is_syncing = sync._fsync, threading.Event()
def slow(descriptor):
    is_syncing.set()
    time.sleep(1.0)
    fsync(descriptor)
sync._fsync = slow
thread = threading.Thread(target=outtray.track, args=["thread"])
signal.signal(signal.SIGALRM, lambda *_: say("handler", outtray.track("handler")))
thread.start()
is_syncing.wait()
signal.setitimer(signal.ITIMER_REAL, 0.5)
say("program", outtray.track("program"))
thread.join()
say(outtray.status()["pending"])
"""
    command = [sys.executable, "-c", BEGIN + code]
    done = subprocess.run(
        command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.stdout == "handler True\nprogram True\n4\n", done.stdout + done.stderr


def test_parent_and_child_of_a_fork_go_on_with_power(
    environment: dict[str, str], tmp_path: Path, server: FakeServer
) -> None:
    code = f"""
configure(durability="power", url={server.url!r})
stop = threading.Event()
answers = []
def work():
    while not stop.is_set():
        answers.append(outtray.track("thread"))
thread = threading.Thread(target=work); thread.start()
children = []
for _ in range(5):
    time.sleep(0.02)
    child = os.fork()
    if not child:
        os._exit(0 if all(outtray.track("child") for _ in range(5)) else 1)
    children.append(child)
codes = [os.waitpid(child, 0)[1] for child in children]
stop.set(); thread.join()
say(all(answers), len(answers), codes)
report = outtray.flush(30)
say(report.outcome)
"""
    command = [sys.executable, "-c", BEGIN + code]
    done = subprocess.run(
        command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=100, check=False
    )
    said = done.stdout.splitlines()
    assert said[0].startswith("True"), done.stdout + done.stderr
    assert said[0].endswith("[0, 0, 0, 0, 0]"), done.stdout + done.stderr
    assert tray_of(server.url).flush(30).outcome == "drained"
    events = [message["event"] for message in server.received]
    assert events.count("child") == 25
    assert events.count("thread") == int(said[0].split()[1])


# Process


@needs_strace
@pytest.mark.parametrize("mode", ["manual", "exit", "thread"])
def test_the_thread_syncs_within_about_a_second_in_every_mode(mode: str, traced: Traced) -> None:
    trace = traced(f"""
configure(flush={mode!r}, flush_interval=30)
outtray.track("first")
time.sleep(2)
say("begin", outtray.track("event"))
say("answered")
time.sleep(3)
say("end")
os.kill(os.getpid(), 9)
""")
    assert trace.count("fsync", after="begin True", before="end") >= 1, trace.errors
    assert "begin True" in trace.said


@needs_strace
def test_the_call_itself_does_not_sync(traced: Traced) -> None:
    trace = traced("""
configure()
outtray.track("first")
time.sleep(2)
say("begin")
outtray.track("event")
say("end")
""")
    assert trace.count("write", after="begin", before="end") >= 1, trace.errors
    assert trace.count("fsync", after="begin", before="end") == 0


@needs_strace
def test_a_normal_end_syncs(traced: Traced) -> None:
    trace = traced('configure()\nouttray.track("event")\nsay("end")')
    assert trace.code == 0, trace.errors
    assert 1 <= trace.count("fsync", after="end") <= 3, trace.calls


@needs_strace
def test_the_next_one_to_open_syncs_what_a_killed_program_left(traced: Traced) -> None:
    trace = traced('configure()\nsay(outtray.track("event"))\nos.kill(os.getpid(), 9)')
    assert trace.said == ["True"]
    assert trace.count("fsync", after="True") == 0
    trace = traced("""
configure()
say("begin", outtray.track("event"))
time.sleep(2.5)
say("end")
os.kill(os.getpid(), 9)
""")
    assert trace.count("fsync", before="end") >= 1, trace.errors


@needs_strace
def test_a_sync_of_the_thread_that_fails_makes_the_log_be_moved(traced: Traced) -> None:
    tray = tray_of()
    assert tray.track("event")
    tray.close()  # or what SQLite syncs as it makes the file would count too
    directory = Path(tray.settings.directory)
    trace = traced(
        """
import glob
configure()
for _ in range(4):
    outtray.track("event")
    time.sleep(1.5)
wal = glob.glob(os.path.expanduser("~/.local/state/outtray/hard/*-wal"))[0]
for _ in range(20): outtray.track("event")
time.sleep(2)
before = os.stat(wal).st_size
say(outtray.track("event"), os.stat(wal).st_size < before)
""",
        # The fifth of each thread: only the one in the background makes so many.
        *("-P", str(directory / "outbox-1-0.db-wal"), "-e", "inject=fdatasync:error=EIO:when=5"),
    )
    assert trace.said == ["True True"], trace.errors


def test_a_kill_loses_nothing_that_was_accepted(
    environment: dict[str, str], tmp_path: Path, server: FakeServer
) -> None:
    code = """
configure()
number = 0
while True:
    if outtray.track("event", {"number": number}): say(number)
    number += 1
"""
    with subprocess.Popen(
        [sys.executable, "-c", BEGIN + code], env=environment, cwd=tmp_path, stdout=subprocess.PIPE, text=True
    ) as running:
        assert running.stdout is not None
        said = [running.stdout.readline() for _ in range(500)]
        os.kill(running.pid, signal.SIGKILL)
        said += running.stdout.readlines()
    accepted = [int(line) for line in said if line.endswith("\n")]
    tray = tray_of(server.url)
    assert wait_until(lambda: tray.flush(20).outcome == "drained")
    received = [message["properties"]["number"] for message in server.received]
    assert received[: len(accepted)] == accepted
    assert len(received) <= len(accepted) + 1
