"""Every row of the table of answers, through a real server, with what `status --json` says afterwards."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from subprocess import CompletedProcess
from typing import Any

import pytest

import outtray
from outtray.delivery import backoff
from outtray.outbox.records import LONGEST_WAIT
from outtray.testing import FakeServer

Run = Callable[..., CompletedProcess[str]]
OPTIONS = {"app": "answers", "flush": "manual", "timeout": 1.0}


@pytest.fixture
def status(run_python: Run) -> Callable[[], dict[str, Any]]:
    def ask() -> dict[str, Any]:
        answer = run_python("-m", "outtray", "status", "--json")
        assert answer.returncode == 0, answer.stderr
        found: dict[str, Any] = json.loads(answer.stdout)
        return found

    return ask


def track(count: int, name: str = "good") -> None:
    for number in range(count):
        assert outtray.track(name, {"number": number})


def test_the_receivers_own_success_is_a_delivery(server: FakeServer, status: Callable[[], dict[str, Any]]) -> None:
    for mode in ("ok", "empty"):
        server.set_mode(mode)
        outtray.configure(url=server.url, **OPTIONS)
        track(3)
        assert outtray.flush(10).outcome == "drained"
    found = status()
    assert (found["pending"], found["delivered"], found["held"], found["next_attempt_at"]) == (0, 6, None, None)
    assert [message["properties"]["number"] for message in server.received] == [0, 1, 2, 0, 1, 2]


@pytest.mark.parametrize(
    ("mode", "options", "reason"),
    [
        ("refuse", {}, "connection refused"),
        ("reset", {}, "connection reset"),
        ("drop_after_accept", {}, "without an answer"),
        ("hang", {}, "no answer within"),
        ("trickle", {"interval": 0.2}, "no answer within"),
        ("html", {}, "is not the receiver's answer"),
        ("204", {}, "is not the receiver's answer"),
        ("bad_chunks", {}, "not valid HTTP"),
        ("endless", {}, "is not the receiver's answer"),
        ("gzip_bomb", {}, "is not the receiver's answer"),
        ("huge_headers", {}, "header"),
        ("500", {}, "500 Internal Server Error"),
        ("502", {}, "502 Bad Gateway"),
        ("503", {}, "503 Service Unavailable"),
        ("408", {}, "408 Request Timeout"),
        ("425", {}, "425 Too Early"),
        ("429", {}, "429 Too Many Requests"),
    ],
)
def test_a_receiver_that_cannot_take_them_now_loses_nothing(
    mode: str, options: dict[str, Any], reason: str, server: FakeServer, status: Callable[[], dict[str, Any]]
) -> None:
    outtray.configure(url=server.url, **OPTIONS)
    server.set_mode(mode, **options)
    track(3)
    began = time.monotonic()
    report = outtray.flush(3)  # longer than the request's own timeout, and than the bomb takes to be made
    assert time.monotonic() - began < 13
    assert report.outcome in ("postponed", "timeout")  # the second if its time was over in a later attempt
    found = status()
    assert (found["pending"], found["delivered"], found["dead"], found["held"]) == (3, 0, 0, None)
    assert reason in found["waiting_for"]
    assert found["next_attempt_at"] <= time.time() + backoff.OFFLINE_WAIT
    assert found["oldest_pending_age"] >= 0
    server.set_mode("ok")
    outtray.configure(url=server.url + "/", **OPTIONS)  # another url is due at once
    assert outtray.flush(10).outcome == "drained"
    assert len(server.received) == 3
    assert status()["pending"] == 0


def test_a_name_that_does_not_resolve_loses_nothing(status: Callable[[], dict[str, Any]]) -> None:
    outtray.configure(url="http://receiver.invalid", **OPTIONS)
    track(2)
    assert outtray.flush(3).outcome in ("postponed", "timeout")
    found = status()
    assert found["pending"] == 2
    assert "cannot be resolved" in found["waiting_for"]


def test_a_receiver_without_tls_loses_nothing(server: FakeServer, status: Callable[[], dict[str, Any]]) -> None:
    outtray.configure(url=server.url.replace("http:", "https:"), **OPTIONS)
    track(2)
    assert outtray.flush(3).outcome in ("postponed", "timeout")
    found = status()
    assert (found["pending"], found["held"]) == (2, None)
    assert "SSL" in found["waiting_for"]


@pytest.mark.parametrize("form", ["seconds", "date"])
def test_retry_after_is_obeyed(form: str, server: FakeServer, status: Callable[[], dict[str, Any]]) -> None:
    later = format_datetime(datetime.now(UTC) + timedelta(seconds=600), usegmt=True)
    server.set_mode("429", retry_after="600" if form == "seconds" else later)
    outtray.configure(url=server.url, **OPTIONS)
    track(1)
    report = outtray.flush(5)
    assert report.outcome == "postponed"
    assert report.wait is not None
    assert 590 < report.wait <= 600
    requests = len(server.requests)
    assert outtray.flush(5).outcome == "postponed"
    assert len(server.requests) == requests
    found = status()
    assert 500 < found["next_attempt_at"] - time.time() <= 600
    assert "next attempt in" in found["why"]


def test_retry_after_is_capped(server: FakeServer) -> None:
    server.set_mode("503", retry_after="99999999999999999999")
    outtray.configure(url=server.url, **OPTIONS)
    track(1)
    assert outtray.flush(5).wait == LONGEST_WAIT


@pytest.mark.parametrize("mode", ["401", "403", "404", "405", "redirect_self", "redirect_host", "301", "307"])
def test_a_fault_of_configuration_holds_all_and_buries_none(
    mode: str, server: FakeServer, status: Callable[[], dict[str, Any]]
) -> None:
    server.set_mode(mode)
    outtray.configure(url=server.url, **OPTIONS)
    track(30)
    report = outtray.flush(5)
    assert (report.outcome, report.delivered, report.dead) == ("held", 0, 0)
    assert len(server.requests) == 1  # no redirect was followed
    found = status()
    assert (found["pending"], found["dead"]) == (30, 0)
    assert "check url and key" in found["held"]
    assert "check url and key" in found["why"]
    if mode == "redirect_host":
        assert "http://other.invalid/batch" in found["held"]
    assert found["next_attempt_at"] - time.time() > LONGEST_WAIT - 60
    server.set_mode("ok")
    assert outtray.flush(1).outcome == "held"  # the same url and key wait
    with FakeServer() as other:
        outtray.configure(url=other.url, **OPTIONS)
        assert outtray.flush(10).outcome == "drained"  # another url is due at once
        assert len(other.received) == 30


@pytest.mark.parametrize("code", ["400", "413", "422"])
def test_one_bad_message_does_not_hold_the_others(
    code: str, server: FakeServer, status: Callable[[], dict[str, Any]]
) -> None:
    server.set_mode("refuse_marked", marker="bad one", status=int(code))
    outtray.configure(url=server.url, **OPTIONS)
    track(100)
    track(1, "bad one")
    track(100)
    report = outtray.flush(20)
    assert (report.outcome, report.delivered, report.dead) == ("drained", 200, 1)
    assert len(server.received) == 200
    assert len(server.requests) <= 2 * 8 + 4  # 2·log2(n), and the good ones around
    found = status()
    assert (found["pending"], found["delivered"], found["dead"]) == (0, 200, 1)


def test_batches_that_are_too_large_are_halved_until_they_fit(server: FakeServer) -> None:
    server.set_mode("too_large", max_bytes=5_000)
    outtray.configure(url=server.url, **OPTIONS)
    for number in range(64):
        assert outtray.track("wide", {"number": number, "filling": "x" * 500})
    assert outtray.flush(20).delivered == 64
    assert [message["properties"]["number"] for message in server.received] == list(range(64))


@pytest.mark.parametrize("order", ["before", "after"])
def test_a_refused_message_is_buried_once_another_is_taken(
    order: str, server: FakeServer, status: Callable[[], dict[str, Any]], run_python: Run
) -> None:
    server.set_mode("refuse_marked", marker="bad one")
    outtray.configure(url=server.url, **OPTIONS)
    for name in ("good", "bad one") if order == "before" else ("bad one", "good"):
        track(1, name)
    report = outtray.flush(10)
    assert (report.delivered, report.dead) == (1, 1)
    (dead,) = json.loads(run_python("-m", "outtray", "list", "--state", "dead", "--json").stdout)
    assert (dead["event"], dead["status"], dead["reason"]) == ("bad one", 400, "400 Bad Request")
    (shown,) = json.loads(run_python("-m", "outtray", "show", str(dead["id"]), "--json").stdout)
    assert shown["excerpt"]


def test_a_lone_refused_message_stays_pending(server: FakeServer, status: Callable[[], dict[str, Any]]) -> None:
    server.set_mode("400")
    outtray.configure(url=server.url, **OPTIONS)
    track(1)
    assert outtray.flush(3).outcome in ("postponed", "timeout")
    found = status()
    assert (found["pending"], found["dead"]) == (1, 0)
    assert "kept until another is taken" in found["waiting_for"]


def test_six_hundred_refused_messages_do_not_hold_four_hundred_good_ones(
    server: FakeServer, status: Callable[[], dict[str, Any]], run_python: Run
) -> None:
    server.set_mode("refuse_marked", marker="bad one")
    outtray.configure(url=server.url, **OPTIONS)
    track(600, "bad one")
    track(400)
    report = outtray.flush(100)
    assert (report.outcome, report.delivered, report.dead) == ("drained", 400, 600)
    assert len(server.received) == 400
    assert not server.repeats
    assert (status()["dead"], status()["pending"]) == (600, 0)

    server.set_mode("ok")
    retried = run_python("-m", "outtray", "retry", "--all")
    assert retried.returncode == 0, retried.stderr
    assert (status()["dead"], status()["pending"]) == (0, 600)
    assert outtray.flush(100).delivered == 600
    assert len(server.received) == 1000
    assert not server.repeats
    found = status()
    assert (found["pending"], found["dead"], found["delivered"]) == (0, 0, 1000)


@pytest.mark.parametrize("count", [2, 19, 20, 21, 200])
def test_a_receiver_that_refuses_everything_buries_none(
    count: int, server: FakeServer, status: Callable[[], dict[str, Any]]
) -> None:
    server.set_mode("400")
    outtray.configure(url=server.url, **OPTIONS)
    track(count)
    report = outtray.flush(0.5 if count <= 20 else 30)
    assert (report.delivered, report.dead) == (0, 0)
    found = status()
    assert (found["pending"], found["dead"]) == (count, 0)
    if count > 20:
        assert "refuses every message" in found["held"]


def test_a_receiver_that_turns_bad_in_mid_run_buries_none(server: FakeServer) -> None:
    outtray.configure(url=server.url, max_batch_count=10, **OPTIONS)
    server.set_mode("422")
    server.set_mode("ok", times=3)
    track(300)
    report = outtray.flush(30)
    assert report.outcome == "held"
    assert (report.delivered, report.dead) == (30, 0)
    found = outtray.status()
    assert (found["pending"], found["dead"]) == (270, 0)
    assert "refuses every message" in found["held"]


def test_a_proxy_that_hangs_after_the_connection_costs_one_deadline() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        outtray.configure(url=f"http://127.0.0.1:{silent.getsockname()[1]}", **OPTIONS)
        track(1)
        began = time.monotonic()
        assert outtray.flush(1).outcome in ("postponed", "timeout")
        assert time.monotonic() - began < 8
