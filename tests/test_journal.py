"""The log lines of the library."""

from __future__ import annotations

import logging
from collections.abc import Callable
from subprocess import CompletedProcess

import pytest

from outtray import journal


@pytest.fixture(autouse=True)
def _nothing_said_yet() -> None:
    journal._last.clear()
    journal._skipped.clear()


def test_without_the_hosts_own_logging_nothing_is_printed_and_no_root_handler_installed(
    run_python: Callable[..., CompletedProcess[str]],
) -> None:
    code = (
        "import outtray, logging\n"
        "assert outtray.track('x' * 2_000_000) is False\n"
        "assert logging.getLogger().handlers == []\n"
        "assert logging.getLogger().level == logging.WARNING\n"
        "assert [type(one).__name__ for one in logging.getLogger('outtray').handlers] == ['NullHandler']"
    )
    result = run_python("-c", code)
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


def test_a_line_says_what_happened_and_why(caplog: pytest.LogCaptureFixture) -> None:
    journal.refused("full", ValueError("no room"))
    journal.held("401 from the receiver")
    assert [record.getMessage() for record in caplog.records] == [
        "outtray did not store a message (full): no room",
        "outtray holds its messages: 401 from the receiver",
    ]
    assert {record.name for record in caplog.records} == {"outtray"}
    assert {record.levelno for record in caplog.records} == {logging.WARNING}


def test_every_fact_can_be_said(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    journal.refused("full", ValueError("x"))
    journal.failed("tracking", KeyError("x"))
    journal.setting_passed_over("x")
    journal.rows_missing(3, "/folder")
    journal.delivered(3, 0.25)
    journal.postponed("offline", 4.0)
    journal.held("x")
    journal.buried(3, "x")
    assert len([record.getMessage() for record in caplog.records]) == 8


def test_the_same_fact_is_said_once_a_minute_with_the_number_of_those_between(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [1000.0]
    monkeypatch.setattr("outtray.journal.time.monotonic", lambda: now[0])
    for _ in range(4):
        journal.held("x")
    journal.buried(1, "another fact")
    now[0] += journal.MIN_INTERVAL
    journal.held("x")
    now[0] += journal.MIN_INTERVAL
    journal.held("x")
    said = [record.getMessage() for record in caplog.records]
    assert said == [
        "outtray holds its messages: x",
        "outtray: the receiver refused 1 messages for good: another fact",
        "outtray holds its messages: x (and 3 more like this)",
        "outtray holds its messages: x",
    ]


def test_a_handler_of_the_host_that_fails_is_kept_from_the_call() -> None:
    class Broken(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            raise RuntimeError("the host's own fault")

    handler = Broken()
    logging.getLogger("outtray").addHandler(handler)
    try:
        journal.held("x")
    finally:
        logging.getLogger("outtray").removeHandler(handler)
