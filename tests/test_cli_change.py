"""retry and purge: what they change, what they say, and what `status` says afterwards."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path
from typing import Any

import pytest

import outtray
from outtray.cli import main
from outtray.outbox.upkeep import STATES
from outtray.testing import FakeServer

from .test_cli import fill

Capture = pytest.CaptureFixture[str]


def asked(capsys: Capture, *words: str, code: int = 0) -> Any:
    assert main([*words, "--json"]) == code
    return json.loads(capsys.readouterr().out)


def counts(capsys: Capture) -> dict[str, int]:
    found = asked(capsys, "status")
    return {state: found[state] for state in (*STATES, "refused") if found[state]}


@pytest.fixture
def dead(server: FakeServer, capsys: Capture) -> list[dict[str, Any]]:
    """An outbox with two delivered and three dead messages, the dead ones as `list` shows them."""
    server.set_mode("refuse_marked", status=422)
    tray = fill("a", 2, url=server.url)
    for number in range(3):
        tray.track("bad", {"number": number})
    tray.close()
    assert main(["flush"]) == 1
    capsys.readouterr()
    found: list[dict[str, Any]] = asked(capsys, "list", "--state", "dead")
    assert len(found) == 3
    return found


def test_retried_messages_arrive_under_their_own_message_id(
    dead: list[dict[str, Any]], server: FakeServer, capsys: Capture
) -> None:
    server.set_mode("ok")
    assert asked(capsys, "retry", "--all") == {"app": "a", "retried": 3, "not_dead": []}
    assert counts(capsys) == {"pending": 3, "delivered": 2}
    assert main(["flush"]) == 0
    assert counts(capsys) == {"delivered": 5}
    assert {each["message_id"] for each in dead} <= {each["message_id"] for each in server.received}
    assert len(server.received) == 5
    assert not server.repeats


def test_retry_takes_ids_and_message_ids_and_names_what_is_not_dead(
    dead: list[dict[str, Any]], capsys: Capture
) -> None:
    first, second, _ = dead
    given = [str(first["id"]), second["message_id"], str(first["id"]), "1", "unknown"]
    assert asked(capsys, "retry", *given, code=1) == {"app": "a", "retried": 2, "not_dead": ["1", "unknown"]}
    assert counts(capsys) == {"pending": 2, "delivered": 2, "dead": 1}
    assert main(["retry", str(first["id"])]) == 1
    assert f"no dead message: {first['id']}" in capsys.readouterr().err
    assert main(["retry", str(dead[2]["id"])]) == 0
    assert capsys.readouterr().err == "1 message pending again; `outtray flush` sends them\n"


def test_retry_by_reason(dead: list[dict[str, Any]], capsys: Capture) -> None:
    assert "422" in dead[0]["reason"]
    assert asked(capsys, "retry", "--reason", "413")["retried"] == 0
    assert asked(capsys, "retry", "--reason", "422")["retried"] == 3


def test_a_dead_message_shows_why(dead: list[dict[str, Any]], capsys: Capture) -> None:
    (found,) = asked(capsys, "show", str(dead[0]["id"]))
    assert (found["state"], found["status"]) == ("dead", 422)
    assert "bad" in found["excerpt"]
    assert main(["status"]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith("nothing is waiting to be sent; kept: 3 dead\n")
    assert "retry --all" in shown


def mixed(server: FakeServer) -> None:
    """An outbox with 2 delivered, 1 dead, 3 local and 4 pending messages, the local ones between the pending."""
    server.set_mode("refuse_marked")
    tray = outtray.Tray(app="a", url=server.url, flush="manual")
    local = outtray.Tray(app="a", url=server.url, consent="local", flush="manual")
    for event in ("good", "good", "bad"):
        tray.track(event)
    assert tray.flush(20).dead == 1
    tray.track("first")
    tray.track("second")
    for _ in range(3):
        local.track("secret local")
    tray.track("third")
    tray.track("fourth")
    tray.close()


MIXED = {"delivered": 2, "dead": 1, "local": 3, "pending": 4}


@pytest.mark.parametrize("state", ["dead", "local", "pending"])
def test_purging_what_was_not_delivered_needs_yes(state: str, server: FakeServer, capsys: Capture) -> None:
    mixed(server)
    assert counts(capsys) == MIXED
    assert main(["purge", "--state", state]) == 2
    assert "would be lost for good: add --yes" in capsys.readouterr().err
    expected = {"app": "a", "state": state, "removed": 0, "would_remove": MIXED[state]}
    assert asked(capsys, "purge", "--state", state, "--dry-run") == expected
    assert counts(capsys) == MIXED
    expected = {"app": "a", "state": state, "removed": MIXED[state], "would_remove": MIXED[state]}
    assert asked(capsys, "purge", "--state", state, "--yes") == expected
    assert counts(capsys) == {name: count for name, count in MIXED.items() if name != state}
    assert asked(capsys, "status")["ledger"] == {"purged": MIXED[state]}
    assert asked(capsys, "list", "--state", state) == []
    server.set_mode("ok")
    assert main(["flush"]) == 0
    delivered = 2 + (0 if state == "pending" else 4)
    left = {name: MIXED[name] for name in ("dead", "local") if name != state}
    assert counts(capsys) == {"delivered": delivered, **left}
    assert len(server.received) == delivered


def test_purge_takes_the_delivered_if_nothing_else_is_said(server: FakeServer, capsys: Capture) -> None:
    mixed(server)
    assert asked(capsys, "purge", "--dry-run")["would_remove"] == 2
    assert asked(capsys, "purge")["removed"] == 2
    assert counts(capsys) == MIXED, "delivered counts the outbox's life"
    assert asked(capsys, "list", "--state", "delivered") == []
    assert len(asked(capsys, "list")) == 8


def test_purge_before_a_moment(home: Path, server: FakeServer, capsys: Capture) -> None:
    fill("a", 10, url=server.url)
    connection = sqlite3.connect(home / ".local/state/outtray/a/outbox-1-0.db")
    # Two old ones with the clock set back between them: what is removed leaves a gap among what waits.
    connection.execute("UPDATE messages SET accepted_at = accepted_at - 864000 WHERE id IN (2, 3, 6)")
    connection.commit()
    connection.close()
    assert asked(capsys, "purge", "--state", "pending", "--before", "2d", "--dry-run")["would_remove"] == 3
    assert asked(capsys, "purge", "--state", "pending", "--before", "2d", "--yes")["removed"] == 3
    assert asked(capsys, "purge", "--state", "pending", "--before", "2020-01-01", "--yes")["removed"] == 0
    assert counts(capsys) == {"pending": 7}
    assert main(["flush", "--limit", "2"]) == 75
    assert counts(capsys) == {"pending": 5, "delivered": 2}
    assert main(["flush"]) == 0
    assert counts(capsys) == {"delivered": 7}
    assert [each["properties"]["number"] for each in server.received] == [0, 3, 4, 6, 7, 8, 9]


def test_purged_text_is_on_no_page_any_more(home: Path, server: FakeServer, capsys: Capture) -> None:
    mixed(server)
    files = sorted((home / ".local/state/outtray/a").iterdir())
    assert any(b"secret local" in file.read_bytes() for file in files)
    assert main(["purge", "--state", "local", "--yes"]) == 0
    files = sorted((home / ".local/state/outtray/a").iterdir())
    assert not any(b"secret local" in file.read_bytes() for file in files)


def test_nothing_to_change_is_no_error(capsys: Capture) -> None:
    for words in (["retry", "--all"], ["purge"], ["purge", "--state", "pending", "--yes"]):
        assert main(words) == 0
    assert main(["retry", "5"]) == 1
    fill("a", 1)
    assert main(["retry", "--all"]) == 0
    assert main(["purge"]) == 0
    assert not capsys.readouterr().out
    assert counts(capsys) == {"pending": 1}
