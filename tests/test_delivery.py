"""Draining when something comes in between: a removed directory, a busy gate, a purge, a deadline, an end."""

from __future__ import annotations

import shutil
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
from outtray.delivery.flush import flush
from outtray.delivery.lock import DrainLock
from outtray.errors import Postponed
from outtray.outbox import shared
from outtray.outbox.files import drain_lock_path, gate_path
from outtray.outbox.store import Outbox
from outtray.testing import FakeServer
from tests.conftest import exchange, wait_until

Run = Callable[..., CompletedProcess[str]]

HOLD_THE_GATE = """
import fcntl, sys, time
with open(sys.argv[1], "r+b") as file:
    fcntl.flock(file, fcntl.LOCK_EX)
    print("held", flush=True)
    time.sleep(float(sys.argv[2]))
"""


def tray_of(server: FakeServer, app: str, **options: Any) -> outtray.Tray:
    return outtray.Tray(app=app, url=server.url, **{"flush": "manual", **options})


def track(tray: outtray.Tray, count: int, name: str = "good") -> None:
    for number in range(count):
        assert tray.track(name, {"number": number})


def outbox_of(tray: outtray.Tray) -> Outbox:
    settings = tray.settings
    return shared.at(settings.directory, destination=settings.destination, max_bytes=settings.max_bytes)


# How much goes into a request


def sizes(server: FakeServer) -> list[int]:
    return [len(request.message_ids) for request in server.requests]


def test_a_receiver_far_away_gets_more_in_one_request(server: FakeServer) -> None:
    server.set_mode("ok", delay=0.1)
    tray = tray_of(server, "far")
    track(tray, 4_000)
    assert tray.flush(60).settled
    assert sizes(server)[0] == 500
    assert max(sizes(server)) >= 1_000
    assert not server.repeats


@pytest.mark.parametrize("options", [{"max_batch_count": 700}, {"max_batch_bytes": 200_000}])
def test_what_a_request_may_hold_is_a_bound_however_far_the_receiver_is(
    options: dict[str, int], server: FakeServer
) -> None:
    server.set_mode("ok", delay=0.1)
    tray = tray_of(server, "far", **options)
    track(tray, 3_000)
    assert tray.flush(60).settled
    assert max(sizes(server)) <= 700
    assert len(server.received) == 3_000


def test_what_was_too_large_for_a_receiver_far_away_is_not_tried_again_in_that_run(server: FakeServer) -> None:
    server.set_mode("too_large", max_bytes=350_000, delay=0.1)
    tray = tray_of(server, "far")
    track(tray, 6_000)
    report = tray.flush(60)
    assert (report.outcome, report.dead) == ("drained", 0)
    statuses = [request.status for request in server.requests]
    assert statuses.count(413) == 1


# A removed directory


def test_after_the_directory_was_removed_one_drainer_is_left(
    server: FakeServer, environment: dict[str, str], home: Path
) -> None:
    server.set_mode("ok", delay=0.02)
    code = f"""
import outtray, time
outtray.configure(app="gone", url={server.url!r}, flush_interval=0.01)
while True:
    outtray.track("event")
    time.sleep(0.005)
"""
    running = [subprocess.Popen([sys.executable, "-c", code], env=environment) for _ in range(2)]
    try:
        assert wait_until(lambda: len(server.received) > 200)
        shutil.rmtree(home / ".local/state/outtray/gone", ignore_errors=True)
        count = len(server.received)
        assert wait_until(lambda: len(server.received) > count + 200)  # what was on its way at that moment is done
        before, count = sum(server.repeats.values()), len(server.received)
        assert wait_until(lambda: len(server.received) > count + 600)
        assert sum(server.repeats.values()) == before
    finally:
        for process in running:
            process.kill()
            process.wait()


def test_a_flush_goes_on_with_the_outbox_that_took_the_place_of_a_removed_one(server: FakeServer) -> None:
    tray = tray_of(server, "replaced")
    track(tray, 3, "before")
    server.set_mode("ok", delay=1.0)
    reports = []
    thread = threading.Thread(target=lambda: reports.append(tray.flush(30)))
    thread.start()
    assert wait_until(lambda: len(server.received) == 3)
    shutil.rmtree(tray.settings.directory)
    track(tray, 2, "after")
    server.set_mode("ok")
    thread.join(30)
    assert reports[0].settled
    assert tray.flush(10).settled
    assert [message["event"] for message in server.received] == ["before"] * 3 + ["after"] * 2
    assert not server.repeats


def test_a_drainer_that_waits_takes_the_lock_of_the_outbox_that_is_there_now(tmp_path: Path) -> None:
    first, second = DrainLock(str(tmp_path)), DrainLock(str(tmp_path))
    assert first.try_acquire()
    assert not second.try_acquire()
    drain_lock = Path(drain_lock_path(str(tmp_path)))
    drain_lock.unlink()
    assert not first.beat()
    assert second.try_acquire()
    assert second.beat()
    assert not first.try_acquire()
    second.release()
    assert first.try_acquire()
    first.release()


# A busy gate


@pytest.mark.skipif(sys.platform == "win32", reason="flock")
def test_a_success_in_hand_is_written_down_once_the_gate_is_free(server: FakeServer) -> None:
    tray = tray_of(server, "busy")
    track(tray, 5)
    server.set_mode("ok", delay=0.5)
    reports = []
    thread = threading.Thread(target=lambda: reports.append(tray.flush(20)))
    thread.start()
    assert wait_until(lambda: len(server.received) == 5)
    hold = [sys.executable, "-c", HOLD_THE_GATE, gate_path(tray.settings.directory), "4"]
    holder = subprocess.run(hold, capture_output=True, text=True, check=True)
    thread.join(60)
    assert holder.stdout == "held\n"
    assert (reports[0].outcome, reports[0].delivered) == ("drained", 5)
    assert tray.flush(10).settled
    assert not server.repeats


@pytest.mark.skipif(sys.platform == "win32", reason="flock")
def test_a_wait_is_stored_once_the_gate_is_free(server: FakeServer) -> None:
    tray = tray_of(server, "busy")
    track(tray, 1)
    server.set_mode("503", delay=0.5, retry_after="600")
    reports = []
    thread = threading.Thread(target=lambda: reports.append(tray.flush(20)))
    thread.start()
    assert wait_until(lambda: len(server.requests) == 1)
    hold = [sys.executable, "-c", HOLD_THE_GATE, gate_path(tray.settings.directory), "4"]
    subprocess.run(hold, capture_output=True, text=True, check=True)
    thread.join(60)
    assert reports[0].outcome == "postponed"
    assert "503" in reports[0].reason
    assert tray.status()["next_attempt_at"] - time.time() > 300


def test_one_thread_makes_the_requests_of_a_flush_and_ends_with_it(server: FakeServer) -> None:
    tray = tray_of(server, "line", max_batch_count=10)
    track(tray, 100)
    seen: set[int | None] = set()
    assert flush(outbox_of(tray), tray.settings, progress=lambda _: seen.update(requesting())).settled
    assert len(server.requests) == 10
    assert len(seen) == 1
    assert wait_until(lambda: not requesting())


@pytest.mark.parametrize("mode", ["503", "refuse", "hang"])
def test_a_flush_that_fails_leaves_no_thread(mode: str, server: FakeServer) -> None:
    server.set_mode(mode)
    tray = tray_of(server, "line", timeout=1.0)
    track(tray, 1)
    assert not tray.flush(5).settled
    assert wait_until(lambda: not requesting())


def requesting() -> list[int | None]:
    return [thread.ident for thread in threading.enumerate() if thread.name == "outtray-request"]


def test_a_call_that_is_left_by_an_exception_is_abandoned(server: FakeServer) -> None:
    server.set_mode("hang")

    def interrupt() -> None:
        if server.requests:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        exchange(server.url + "/batch", b"[]", {}, 60, meanwhile=interrupt)
    assert wait_until(lambda: not requesting())


def test_an_abandoned_connection_is_never_used_again(server: FakeServer) -> None:
    server.set_mode("ok", delay=0.3)
    for _ in range(10):  # the answer comes around the deadline
        try:
            exchange(server.url + "/batch", b"[]", {}, 0.3)
        except Postponed:
            continue
    time.sleep(0.5)
    server.set_mode("ok")
    for _ in range(10):
        assert exchange(server.url + "/batch", b"[]", {}, 20).status_code == 200


# Deadlines


@pytest.mark.parametrize("mode", ["ok", "hang"])
def test_a_short_flush_does_not_punish_a_receiver_that_needs_longer(mode: str, server: FakeServer) -> None:
    server.set_mode(mode, delay=3.0)
    tray = tray_of(server, "short")
    track(tray, 3)
    for _ in range(2):
        report = tray.flush(0.5)
        assert (report.outcome, report.wait) == ("timeout", None)
    found = tray.status()
    assert (found["pending"], found["attempts"], found["next_attempt_at"], found["waiting_for"]) == (3, 0, None, None)
    server.set_mode("ok")
    assert tray.flush(20).settled


def test_a_flush_whose_messages_are_settled_heeds_no_wait_of_others(server: FakeServer, run_python: Run) -> None:
    tray = tray_of(server, "own")
    track(tray, 1)
    assert tray.flush(20).settled
    code = f'import outtray; outtray.Tray(app="own", url={server.url!r}, flush="manual").track("event")'
    assert run_python("-c", code).returncode == 0
    requests = len(server.requests)
    assert tray.flush(20).outcome == "drained"
    assert len(server.requests) == requests  # it did not wait for the other's message
    server.set_mode("503", retry_after="600")
    assert run_python("-m", "outtray", "flush").returncode == 75
    assert tray.flush(20).outcome == "drained"


# Refused messages


@pytest.mark.parametrize("count", [1, 5])
def test_messages_refused_after_a_success_are_buried_at_the_end_of_the_run(count: int, server: FakeServer) -> None:
    server.set_mode("refuse_marked", marker="bad one")
    tray = tray_of(server, "end", max_batch_count=1)
    track(tray, 3)
    track(tray, count, "bad one")
    report = tray.flush(30)
    assert (report.outcome, report.delivered, report.dead) == ("drained", 3, count)
    assert tray.status()["pending"] == 0


def test_a_run_that_is_postponed_leaves_its_suspects_pending(server: FakeServer) -> None:
    server.set_mode("503", retry_after="600")
    server.set_mode("400", times=2)
    server.set_mode("ok", times=1)
    tray = tray_of(server, "suspects", max_batch_count=1)
    track(tray, 5)
    report = tray.flush(30)
    assert (report.outcome, report.delivered, report.dead) == ("postponed", 1, 0)
    assert tray.status()["pending"] == 4


def test_a_limit_counts_refused_messages_too(server: FakeServer, run_python: Run) -> None:
    server.set_mode("400")
    tray = tray_of(server, "limit", max_batch_count=1)
    track(tray, 10)
    assert run_python("-m", "outtray", "flush", "--limit", "4", OUTTRAY_MAX_BATCH_COUNT="1").returncode == 75
    assert len(server.requests) == 4


def test_a_purge_in_mid_run_costs_no_message_that_was_refused_before(server: FakeServer) -> None:
    """The cursor must not pass a suspect that is no longer known to be one."""
    server.set_mode("400", times=1, delay=1.0)
    tray = tray_of(server, "purged", max_batch_count=1)
    track(tray, 3)
    outbox = outbox_of(tray)
    reports = []
    thread = threading.Thread(target=lambda: reports.append(tray.flush(30)))
    thread.start()
    assert wait_until(lambda: len(server.requests) == 1)
    with outbox.writing() as transaction:
        transaction.header.epoch += 1
    thread.join(60)
    assert reports[0].settled
    assert len(server.received) == 3


# Purge and retention


@pytest.mark.parametrize(("state", "delivered"), [("dead", 3), ("local", 3), ("delivered", 3), ("pending", 0)])
def test_only_a_purge_of_what_waits_drops_the_answer_to_a_batch_on_its_way(
    state: str, delivered: int, server: FakeServer, run_python: Run
) -> None:
    server.set_mode("refuse_marked", marker="bad one")
    tray = tray_of(server, "purge")
    track(tray, 1, "bad one")
    track(tray, 1)
    assert tray.flush(20).dead == 1
    local = 'import outtray; assert outtray.Tray(app="purge", consent="local", flush="manual").track("kept here")'
    assert run_python("-c", local).returncode == 0
    track(tray, 3)
    server.set_mode("ok", delay=1.5)
    reports = []
    thread = threading.Thread(target=lambda: reports.append(tray.flush(30)))
    thread.start()
    assert wait_until(lambda: len(server.received) == 4)
    done = run_python("-m", "outtray", "purge", "--state", state, "--yes")
    assert done.returncode == 0, done.stderr
    thread.join(60)
    assert reports[0].delivered == delivered
    assert not server.repeats


def test_a_flush_that_delivers_nothing_removes_what_is_past_its_retention(server: FakeServer) -> None:
    tray = tray_of(server, "old")
    track(tray, 5)
    assert tray.flush(20).delivered == 5
    outbox = outbox_of(tray)
    with outbox.writing() as transaction:
        transaction.execute("UPDATE deliveries SET settled_at = settled_at - 8 * 86400")
    assert flush(outbox, tray.settings).outcome == "drained"
    with outbox.reading() as connection:
        assert connection.execute("SELECT count(*) FROM messages").fetchone()[0] == 0


# The thread


def test_the_thread_gathers_for_as_long_as_it_is_told_to(server: FakeServer) -> None:
    tray = tray_of(server, "gather", flush="thread", flush_interval=3.0)
    track(tray, 1)
    time.sleep(1.6)  # above the time within which it syncs
    track(tray, 4)
    assert not server.requests
    assert wait_until(lambda: len(server.received) == 5)
    assert len(server.requests) == 1


def test_the_thread_gathers_what_comes_during_a_delivery_too(server: FakeServer) -> None:
    server.set_mode("ok", delay=0.2)
    tray = tray_of(server, "gather", flush="thread", flush_interval=2.0)
    track(tray, 1)
    assert wait_until(lambda: len(server.requests) == 1)
    tracked = 1
    while len(server.requests) < 2:  # chasing them, the second would begin with the answer to the first
        track(tray, 1)
        tracked += 1
        time.sleep(0.02)
    assert tracked > 20
    assert wait_until(lambda: len(server.received) == tracked)
    assert len(server.requests) <= 3


def test_closing_a_tray_waits_for_the_answer_on_its_way(server: FakeServer) -> None:
    server.set_mode("ok", delay=1.0)
    tray = tray_of(server, "closing", flush="thread", flush_interval=0.01)
    track(tray, 1)
    assert wait_until(lambda: len(server.received) == 1)
    tray.close()
    found = tray.status()
    assert (found["pending"], found["delivered"]) == (0, 1)


def test_closing_a_tray_waits_no_longer_than_a_request_may_take(server: FakeServer) -> None:
    server.set_mode("hang")
    tray = tray_of(server, "closing", flush="thread", flush_interval=0.01, timeout=1.0)
    track(tray, 1)
    assert wait_until(lambda: len(server.requests) == 1)
    began = time.monotonic()
    tray.close()
    assert time.monotonic() - began < 15
    assert tray.status()["pending"] == 1
