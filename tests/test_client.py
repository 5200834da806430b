"""The client: what it writes to the disk and when, and what it tells other processes."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess
from threading import Thread
from typing import Any
from uuid import UUID

import pytest

import outtray
from outtray.client import Client
from outtray.context import AnalyticsContext
from outtray.testing import FakeServer

Run = Callable[..., CompletedProcess[str]]

USER = UUID("00000000-0000-4000-8000-000000000001")


def bodies(tray: outtray.Tray) -> list[dict[str, Any]]:
    """Return what is stored, oldest first."""
    from outtray.outbox import look

    with look.look(tray.settings.directory) as view:
        return [json.loads(message.body) for message in reversed(view.page(limit=1000))]


# Nothing is written before a message is accepted


def test_a_context_that_does_not_send_never_touches_the_disk(home: Path) -> None:
    with AnalyticsContext(client=Client(send=False)) as analytics:
        assert analytics.track("e") is True
        assert analytics.identify({"a": 1}) is True
        assert analytics.client_id is not None
    assert list(home.iterdir()) == []


def test_a_refused_message_leaves_nothing_behind(home: Path) -> None:
    tray = outtray.Tray(app="mine", max_message_bytes=100)
    assert tray.track("e", {"text": "x" * 200}) is False
    assert tray.identify({"text": "x" * 200}) is False
    with outtray.analytics_disabler():
        assert tray.track("e") is False
    assert list(home.iterdir()) == []


def test_the_first_accepted_message_has_the_id_that_is_kept() -> None:
    tray = outtray.Tray(app="mine", flush="manual")
    assert tray.track("e")
    (message,) = bodies(tray)
    assert message["user_id"] == message["properties"]["client_id"]
    assert message["user_id"] == (Path(tray.settings.directory) / "client_id").read_text()


def test_processes_that_begin_at_once_store_one_id(run_python: Run) -> None:
    code = "import outtray; assert outtray.configure(app='mine', flush='manual').track('e')"
    threads = [Thread(target=run_python, args=("-c", code)) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(100)
    tray = outtray.Tray(app="mine")
    found = {message["properties"]["client_id"] for message in bodies(tray)}
    assert found == {(Path(tray.settings.directory) / "client_id").read_text()}
    assert len(bodies(tray)) == 6


def test_a_message_that_lost_the_race_for_the_id_is_returned_as_it_is_stored() -> None:
    tray, theirs = outtray.Tray(app="mine", flush="manual"), str(UUID(int=7))
    with AnalyticsContext(client=tray.client) as analytics:
        own = analytics.client_id
        assert own not in (None, theirs)
        Path(tray.settings.directory).mkdir(parents=True)
        (Path(tray.settings.directory) / "client_id").write_text(theirs)  # as another process does meanwhile
        stored, text = tray.client.track(UUID(own), "e", {"client_id": own})
    assert stored is True
    assert json.loads(text)["user_id"] == json.loads(text)["properties"]["client_id"] == theirs
    assert bodies(tray) == [json.loads(text)]


# What other processes need


def test_after_the_directory_was_deleted_a_bare_flush_knows_where_to_and_the_id_is_the_same(
    server: FakeServer, run_python: Run
) -> None:
    tray = outtray.Tray(app="mine", url=server.url, flush="manual")
    assert tray.track("before")
    before = (Path(tray.settings.directory) / "client_id").read_text()
    shutil.rmtree(tray.settings.directory)
    assert tray.track("after")
    tray.close()
    assert (Path(tray.settings.directory) / "client_id").read_text() == before
    flushed = run_python("-m", "outtray", "flush")
    assert (flushed.returncode, flushed.stderr) == (0, "")
    assert [(message["event"], message["user_id"]) for message in server.received] == [("after", before)]


def test_delivery_settings_that_could_not_be_stored_are_stored_with_the_next_message(run_python: Run) -> None:
    tray = outtray.Tray(app="mine", url="http://127.0.0.1:9", flush="manual")
    client_id = Path(tray.settings.directory) / "client_id"
    assert tray.track("first")
    outbox = tray._outbox()
    with outbox.writing() as transaction:  # as if the first attempt had failed
        transaction.execute("DELETE FROM meta WHERE key = ?", ("delivery",))
    client_id.unlink()
    client_id.mkdir()  # so that an attempt fails
    tray.close()
    assert tray.track("second")
    client_id.rmdir()
    assert not client_id.exists()
    assert tray.track("third")
    assert client_id.read_text() == bodies(tray)[0]["user_id"]
    tray.close()
    plan = json.loads(run_python("-m", "outtray", "flush", "--dry-run", "--json").stdout)
    assert plan[0]["url"] == "http://127.0.0.1:9"


# What cannot be loaded


@pytest.mark.parametrize("module", ["requests", "sqlite3", "pydantic"])
def test_a_library_that_cannot_be_imported_costs_no_exception(
    module: str, run_python: Run, tmp_path: Path, environment: dict[str, str], server: FakeServer
) -> None:
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / f"{module}.py").write_text("raise ImportError('broken here')\n")
    calls = "print(outtray.track('e'), outtray.identify({'a': 1}), outtray.group('g'), outtray.alias('a', 'b'))\n"
    others = "print(outtray.flush(5).outcome, outtray.status()['pending'])\n"
    path = f"{tmp_path / 'broken'}:{environment['PYTHONPATH']}"
    code = f"import outtray\n{calls}" + (others if module != "sqlite3" else "")
    done = run_python("-c", code, PYTHONPATH=path, OUTTRAY_URL=server.url, OUTTRAY_FLUSH="manual")
    assert (done.returncode, done.stderr) == (0, "")
    assert (
        done.stdout.split()
        == {
            "requests": ["True"] * 4 + ["failed", "4"],
            "sqlite3": ["False"] * 4,
            "pydantic": ["True"] * 4 + ["drained", "0"],
        }[module]
    )


def test_a_tray_offers_its_client(home: Path) -> None:
    tray = outtray.Tray(app="mine", flush="manual")
    assert tray.client.settings is tray.settings
    assert tray.client.alias(USER, USER)[0] is True
    assert outtray.configure(app="default").client.settings.app == "default"
