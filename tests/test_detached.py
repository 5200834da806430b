"""The flush in a process of its own that a program leaves behind."""

from __future__ import annotations

from collections.abc import Callable
from subprocess import CompletedProcess

from outtray.testing import FakeServer
from tests.conftest import wait_until

Run = Callable[..., CompletedProcess[str]]


def test_the_hosts_consent_holds_in_the_flush_that_it_leaves_behind(server: FakeServer, run_python: Run) -> None:
    code = f"""
import outtray
outtray.configure(app="agreed", url={server.url!r}, flush="exit", consent="granted")
assert outtray.track("e")
"""
    done = run_python("-c", code, DO_NOT_TRACK="1")
    assert (done.returncode, done.stderr) == (0, "")
    assert wait_until(lambda: len(server.received) == 1)


def test_no_warning_is_said_of_the_flush_that_is_left_behind(server: FakeServer, run_python: Run) -> None:
    code = f"""
import gc, outtray
tray = outtray.Tray(app="quiet", url={server.url!r}, flush="exit", exit_interval=0)
for event in ("first", "second"):
    assert tray.track(event)
    tray.close()
    gc.collect()
outtray.configure(app="quiet-too", url={server.url!r}, flush="exit")
assert outtray.track("third")
"""
    done = run_python("-X", "dev", "-W", "error", "-c", code)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert wait_until(lambda: len(server.received) == 3)


def test_a_flush_that_ended_is_not_left_as_a_zombie(server: FakeServer, run_python: Run) -> None:
    code = f"""
import os, outtray, time
tray = outtray.Tray(app="tidy", url={server.url!r}, flush="exit", exit_interval=0)
def children():
    return len(open(f"/proc/self/task/{{os.getpid()}}/children").read().split())
for number in range(3):
    assert tray.track("e")
    tray.close()
    if number < 2:
        end = time.monotonic() + 60
        while tray.status()["pending"] and time.monotonic() < end:
            time.sleep(0.05)
        time.sleep(0.5)
print(children())
"""
    assert run_python("-c", code).stdout.split() == ["1"]
