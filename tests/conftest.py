"""Fixtures: a home of one's own, a receiver, and other processes."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import requests

from outtray import settings
from outtray.request import Line
from outtray.testing import FakeServer

SRC = Path(__file__).parent.parent / "src"


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A home folder of the test's own, with nothing set; the outboxes lie in .local/state/outtray below it."""
    folder = tmp_path / "home"
    folder.mkdir()
    for name in list(os.environ):
        if name.startswith(("OUTTRAY_", "XDG_")) or name in ("DO_NOT_TRACK", "CI", "GITHUB_ACTIONS"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(folder))
    settings.use({})
    yield folder
    _close_outboxes()
    monkeypatch.undo()
    settings.use({})


def _close_outboxes() -> None:
    """End the threads and forget the outboxes of the test, so that the next one begins as in a new process."""
    from outtray import client, consent, identity, journal
    from outtray.delivery import flusher
    from outtray.outbox import shared

    for running in flusher._shared.values():
        running.stop()
    flusher._shared.clear()
    shared._shared.clear()
    identity._known.clear()
    consent._known.clear()
    journal._last.clear()
    journal._skipped.clear()
    client.default_client._line = None


@pytest.fixture
def server() -> Iterator[FakeServer]:
    """A receiver on loopback that accepts everything until it is told otherwise."""
    with FakeServer() as running:
        yield running


@pytest.fixture
def environment(home: Path) -> dict[str, str]:
    """The environment of a process that can import outtray from this checkout, and knows nothing else."""
    return {"HOME": str(home), "PYTHONPATH": str(SRC), "PATH": os.environ["PATH"]}


@pytest.fixture
def run_python(environment: dict[str, str], tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run this interpreter with arguments (`run_python("-c", code)`, `run_python("-m", "outtray", "status")`).

    Keyword arguments are environment variables; the working directory is the test's own.
    """

    def run(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, *arguments],
            env={**environment, **variables},
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )

    return run


def wait_until(condition: Callable[[], Any], seconds: float = 20.0) -> bool:
    """Return True as soon as *condition* holds, False if it does not within *seconds*."""
    import time

    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.01)
    return bool(condition())


def exchange(
    url: str, body: bytes, headers: dict[str, str], timeout: float, meanwhile: Callable[[], None] | None = None
) -> requests.Response:
    """Post *body* as the only request of its line; see `Line.exchange`."""
    with closing(Line("POST", url, headers)) as line:
        return line.exchange(body, timeout, meanwhile)
