"""The host comes first: what its program does to tracking, and what tracking does to its program."""

from __future__ import annotations

import asyncio
import gc
import json
import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest

import outtray
from outtray.testing import FakeServer
from tests.conftest import wait_until

Run = Callable[..., CompletedProcess[str]]


def ledger(run_python: Run, app: str) -> dict[str, int]:
    found = json.loads(run_python("-m", "outtray", "status", "--app", app, "--json").stdout)
    counts: dict[str, int] = found["ledger"]
    assert found["refused"] == sum(counts.values())
    return counts


# What is refused is counted


def test_a_message_above_the_limit_is_refused_and_counted(run_python: Run) -> None:
    outtray.configure(app="large", flush="manual", max_message_bytes=2_000)
    assert outtray.track("fits", {"text": "x" * 1_000})
    for _ in range(3):
        assert not outtray.track("does not", {"text": "x" * 3_000})
    assert not outtray.track("does not in bytes", {"text": "€" * 1_000})
    assert outtray.track("fits again")
    assert ledger(run_python, "large") == {"too_large": 4}


def test_a_full_outbox_refuses_the_newest_and_counts(run_python: Run) -> None:
    outtray.configure(app="full", flush="manual", max_bytes=200_000)
    answers = [outtray.track("event", {"text": "x" * 1_000}) for _ in range(400)]
    assert True in answers
    assert False in answers
    first_refusal = answers.index(False)
    assert all(answers[:first_refusal])
    assert ledger(run_python, "full") == {"full": answers.count(False)}
    assert outtray.status()["pending"] == answers.count(True)


def test_an_unusable_folder_costs_the_event_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    outtray.configure(app="nowhere", dir=str(tmp_path / "file"))
    assert outtray.track("event") is False
    assert outtray.identify({"a": 1}) is False
    assert outtray.flush(1).outcome in ("drained", "failed")
    assert outtray.status()["app"] == "nowhere" or outtray.status()["error"]


# When the file is synced


def test_what_was_accepted_is_synced_within_a_second_and_at_the_end(environment: dict[str, str]) -> None:
    code = """
import os, sys, time
synced, real = [], os.fdatasync
def fdatasync(descriptor):
    synced.append((time.monotonic(), os.readlink(f"/proc/self/fd/{descriptor}")))
    real(descriptor)
os.fdatasync = fdatasync
import outtray
outtray.configure(app="synced", flush=sys.argv[1])
outtray.track("first")
began = time.monotonic()
while not any(path.endswith("-wal") for _, path in synced) and time.monotonic() - began < 20:
    time.sleep(0.01)
print([path.rpartition("/")[2] for _, path in synced])
synced.clear()
outtray.track("last")
import atexit
atexit._run_exitfuncs()
print([path.rpartition("/")[2] for _, path in synced])
"""
    if sys.platform != "linux":
        pytest.skip("reads /proc")
    for mode in ("manual", "thread"):
        command = [sys.executable, "-c", code, mode]
        output = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, timeout=60).stdout
        while_running, at_the_end = output.splitlines()
        assert "outbox-1-0.db-wal" in while_running
        assert "outbox-1-0.db-wal" in at_the_end


# What a host does at odd moments


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="no interval timer here")
def test_a_signal_handler_that_tracks_neither_hangs_nor_breaks_the_order(environment: dict[str, str]) -> None:
    code = """
import outtray, signal, sys
outtray.configure(app="signals", flush="manual")
inside = []
signal.signal(signal.SIGALRM, lambda *_: inside.append(outtray.track("handler")))
signal.setitimer(signal.ITIMER_REAL, 0.005, 0.005)
outside = [outtray.track("loop") for _ in range(3000)]
signal.setitimer(signal.ITIMER_REAL, 0)
found = outtray.status()
assert all(outside) and len(inside) > 3
assert found["pending"] == outside.count(True) + inside.count(True), (found, inside.count(True))
assert found["ledger"].get("busy", 0) <= inside.count(False)
"""
    subprocess.run([sys.executable, "-c", code], env=environment, check=True, timeout=90)


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="no interval timer here")
def test_an_exception_from_a_signal_handler_costs_one_call(environment: dict[str, str], run_python: Run) -> None:
    code = """
import outtray, random, signal
class Interrupt(BaseException):
    pass
def interrupt(*_):
    raise Interrupt
outtray.configure(app="interrupted", flush="manual")
signal.signal(signal.SIGALRM, interrupt)
stored = 0
for _ in range(1500):
    try:
        signal.setitimer(signal.ITIMER_REAL, random.uniform(0.0001, 0.0015))
        while True:
            outtray.track("loop")
    except Interrupt:
        pass
    signal.setitimer(signal.ITIMER_REAL, 0)
    assert outtray.track("after")
    stored += 1
found = outtray.status()
assert found["ledger"] == {}, found
assert found["pending"] > stored
print("go on", flush=True)
input()
"""
    command = [sys.executable, "-c", code]
    with subprocess.Popen(
        command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as program:
        assert program.stdout is not None
        assert program.stdout.readline() == "go on\n"
        other = 'import outtray; outtray.configure(app="interrupted", flush="manual"); print(outtray.track("other"))'
        assert run_python("-c", other).stdout == "True\n"
        program.communicate("\n", timeout=60)
    assert program.returncode == 0


def test_a_finaliser_that_tracks_neither_hangs_nor_loses() -> None:
    outtray.configure(app="finalisers", flush="manual")
    answers: list[bool] = []

    class Tracks:
        def __init__(self) -> None:
            self.me = self  # only the collector ends it

        def __del__(self) -> None:
            answers.append(outtray.track("collected"))

    before = gc.get_threshold()
    gc.set_threshold(10, 2, 2)
    try:
        for number in range(300):
            Tracks()
            assert outtray.track("loop", {"list": [[number]] * 5})
    finally:
        gc.set_threshold(*before)
    gc.collect()
    assert len(answers) == 300
    assert outtray.status()["pending"] == 300 + answers.count(True)


def test_tasks_and_threads_track_at_once(server: FakeServer) -> None:
    outtray.configure(app="mixed", url=server.url, flush_interval=0.01)

    async def work(name: str) -> None:
        for number in range(50):
            assert outtray.track(name, {"number": number})
            await asyncio.sleep(0)

    async def main() -> None:
        await asyncio.gather(*(work(f"task {n}") for n in range(5)))

    thread = threading.Thread(target=lambda: [outtray.track("thread", {"number": n}) for n in range(250)])
    thread.start()
    asyncio.run(main())
    thread.join()
    assert outtray.flush(20).settled
    for name in ("thread", *(f"task {n}" for n in range(5))):
        own = [m["properties"]["number"] for m in server.received if m["event"] == name]
        assert own == list(range(len(own)))
    assert len(server.received) == 500


def test_a_call_does_not_wait_for_a_receiver_that_hangs(server: FakeServer) -> None:
    server.set_mode("hang")
    outtray.configure(app="hanging", url=server.url, flush_interval=0.01)
    assert outtray.track("first")
    assert wait_until(lambda: len(server.requests) == 1)
    began = time.monotonic()
    for _ in range(200):
        assert outtray.track("more")
    assert time.monotonic() - began < 10  # the receiver keeps its request for 15 s


def test_nothing_is_printed_and_no_root_handler_installed(server: FakeServer, run_python: Run) -> None:
    server.set_mode("401")
    code = f"""
import outtray, time, logging
outtray.configure(app="quiet", url={server.url!r}, flush_interval=0.01, max_message_bytes=1000)
outtray.track("event"); outtray.track("large", {{"x": "y" * 5000}}); outtray.track("odd", timestamp="never")
assert outtray.flush(5).outcome == "held"
assert not logging.getLogger().handlers
"""
    done = run_python("-W", "error", "-X", "dev", "-c", code)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_the_hosts_data_stay_as_they_are() -> None:
    outtray.configure(app="untouched", flush="manual")
    metadata: dict[str, Any] = {"list": [1, {"deep": {2}}], "nan": float("nan"), "text": "\ud800"}
    before = repr(metadata)
    assert outtray.track("event", metadata)
    assert outtray.identify(metadata)
    assert repr(metadata) == before


# Clocks


def test_a_wait_that_a_clock_made_endless_is_over(server: FakeServer, run_python: Run) -> None:
    server.set_mode("500", retry_after="600")
    code = f"""
import time
real = time.time
time.time = lambda: real() + {{jump}}
import outtray
outtray.configure(app="clock", url={server.url!r}, flush="manual")
outtray.track("event")
print(outtray.flush(5).outcome)
"""
    years = 10 * 365 * 86_400
    for jump in (years, -years):
        assert run_python("-c", code.replace("{jump}", str(jump))).stdout == "postponed\n"
    server.set_mode("ok")
    assert run_python("-m", "outtray", "flush").returncode == 0
    assert len(server.received) == 2


def test_a_killed_drainer_is_replaced(server: FakeServer, environment: dict[str, str], run_python: Run) -> None:
    outtray.configure(app="killed", url=server.url, flush="manual")
    for _ in range(5):
        assert outtray.track("event")
    server.set_mode("hang")
    flushing = subprocess.Popen([sys.executable, "-m", "outtray", "flush"], env=environment)
    assert wait_until(lambda: len(server.requests) == 1)
    os.kill(flushing.pid, signal.SIGKILL)
    flushing.wait()
    server.set_mode("ok")
    assert run_python("-m", "outtray", "flush").returncode == 0
    assert len(server.received) == 5


def test_what_a_program_without_stdin_and_stderr_prints_goes_into_no_file_of_the_outbox(
    environment: dict[str, str], server: FakeServer, home: Path
) -> None:
    code = (
        "import os, sys, outtray\n"
        "outtray.configure(app='closed', url=sys.argv[1], durability='power')\n"
        "assert outtray.track('event')\n"
        "for descriptor in (0, 1, 2):\n"
        "    try: os.write(descriptor, b'printed by the host ' * 50)\n"
        "    except OSError: pass\n"
        "assert outtray.flush(20).settled\n"
    )
    command = f"exec {shlex.quote(sys.executable)} -c {shlex.quote(code)} {server.url} <&- >&- 2>&-"
    assert subprocess.run(["sh", "-c", command], env=environment, check=False, timeout=60).returncode == 0
    directory = home / ".local/state/outtray/closed"
    assert all(b"printed by" not in path.read_bytes() for path in directory.iterdir())
    assert len(server.received) == 1


@pytest.mark.parametrize("look", [outtray.Tray.status, outtray.Tray.flush])
def test_what_a_torn_look_or_flush_had_locked_is_free_again(
    look: Callable[[outtray.Tray], object], server: FakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    tray = outtray.Tray(app="torn", url=server.url, flush="manual")
    assert tray.track("event")

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        for name in ("release", "close"):
            patched.setattr(f"outtray.outbox.filelock.FileLock.{name}", interrupt)
        with pytest.raises(KeyboardInterrupt):
            look(tray)
    gc.collect()
    assert tray.track("event")
    assert tray.flush(10).settled
