"""Looking: whoever tracks goes in between, whatever is asked; and what a damaged young outbox says."""

from __future__ import annotations

import functools
import json
import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import outtray
from outtray.cli import main
from outtray.outbox import look, sql
from outtray.outbox.connection import open_database
from outtray.outbox.filelock import FileLock

from .test_cli import fill

Run = Callable[..., subprocess.CompletedProcess[str]]
Capture = pytest.CaptureFixture[str]

COUNT = 5_000
"""Messages: more than one look visits."""


def test_a_nul_in_a_name_is_not_its_end(home: Path, capsys: Capture) -> None:
    tray = outtray.Tray(app="a", flush="manual")
    for event, message_id in (("a", "m"), ("a\0b", "m\0x"), ("b", r"\\u0000")):
        assert tray.track(event, message_id=message_id)
    assert main(["list", "--json", "--app", "a"]) == 0
    listed = json.loads(capsys.readouterr().out)
    assert [(each["event"], each["message_id"]) for each in listed] == [
        ("b", r"\\u0000"),
        ("a\0b", "m\0x"),
        ("a", "m"),
    ]
    for event, count in (("a", 1), ("a\0b", 1), ("b", 1)):
        main(["list", "--json", "--app", "a", "--event", event])
        assert len(json.loads(capsys.readouterr().out)) == count
    assert main(["show", "--app", "a", "m"]) == 0
    assert "m\\0x" not in capsys.readouterr().out


def body(id: int) -> str:
    return json.dumps({"message_id": f"m-{id:04}", "event": "common" if id % 1_000 else "seldom"})


@pytest.fixture
def crowded(home: Path) -> Path:
    """The directory of an outbox with so many messages: every thousandth "seldom", those below 2,000 are delivered."""
    fill("a", 1, "e", url="http://127.0.0.1:9")
    directory = home / ".local/state/outtray/a"
    connection = sqlite3.connect(directory / "outbox-1-0.db")
    rows = ((id, 0.0, 0, body(id)) for id in range(2, COUNT + 1))
    connection.executemany(sql.APPEND, rows)
    connection.execute("UPDATE cursors SET id = 1999, mirror = -1999, delivered = 1999")
    connection.executemany(sql.MARK, [("zenml", id, "dead", 0, 1, 400, "no", None) for id in (3, 1_500)])
    connection.executemany(sql.MARK, [("zenml", 7, "retry", 0, 1, 400, "no", None)])
    connection.executemany(sql.MARK, [("zenml", 4_000, "delivered", 0, 1, 200, None, None)])
    connection.commit()
    connection.close()
    return directory


@pytest.mark.parametrize(
    "asked", [{"event": "nosuch"}, {"message_id": "nosuch"}, {"since": 1e12}, {"state": "delivered", "event": "nosuch"}]
)
def test_one_look_visits_some_messages_and_not_all(asked: dict[str, Any], crowded: Path) -> None:
    before_id: int | None = 2**62
    looks = 0
    while before_id is not None:
        with look.look(os.fspath(crowded)) as view:
            page = view.some(before_id=before_id, **asked)
        assert page.messages == []
        assert page.next_before_id is None or page.next_before_id < before_id
        if page.next_before_id is not None and looks:
            assert before_id - page.next_before_id <= look.ROWS_AT_ONCE
        before_id = page.next_before_id
        looks += 1
    assert 2 < looks < 10, "the last one only finds that nothing follows"


def test_what_is_listed_page_by_page_is_all_of_it(crowded: Path, capsys: Capture) -> None:
    def listed(*words: str) -> list[int]:
        assert main(["list", "--json", "--limit", "100000", *words]) == 0
        return [each["id"] for each in json.loads(capsys.readouterr().out)]

    dead, pending = [1_500, 3], [*(id for id in range(COUNT, 1_999, -1) if id != 4_000), 7]
    assert listed() == list(range(COUNT, 0, -1))
    assert listed("--state", "dead") == dead
    assert listed("--state", "pending") == pending
    assert listed("--state", "delivered") == sorted({*range(1, COUNT + 1)} - {*dead, *pending}, reverse=True)
    assert listed("--event", "seldom") == [5_000, 4_000, 3_000, 2_000, 1_000]
    assert listed("--state", "deferred") == []
    assert main(["show", "m-0002", "--json"]) == 0
    assert [each["id"] for each in json.loads(capsys.readouterr().out)] == [2]


def test_a_look_jumps_over_ids_that_are_not_there(crowded: Path, capsys: Capture) -> None:
    connection = sqlite3.connect(crowded / "outbox-1-0.db")
    connection.execute(sql.APPEND, (2**41, 0.0, 0, "{}"))
    connection.commit()
    connection.close()
    assert main(["list", "--json", "--event", "seldom"]) == 0
    assert len(json.loads(capsys.readouterr().out)) == 5


def test_a_look_ends_where_it_has_read_enough_bytes(home: Path) -> None:
    fill("a", 1, url="http://127.0.0.1:9")
    directory = home / ".local/state/outtray/a"
    connection = sqlite3.connect(directory / "outbox-1-0.db")
    text = json.dumps("x" * (look.BYTES_AT_ONCE // 4))
    connection.executemany(sql.APPEND, ((id, 0.0, 0, text) for id in range(2, 30)))
    connection.commit()
    connection.close()
    with look.look(os.fspath(directory)) as view:
        assert 1 < len(view.some().messages) < 10
        assert 1 < len(view.pending_sizes("zenml")) < 10
        assert [each.id for each in view.page(limit=29)] == list(range(29, 0, -1))


@pytest.mark.parametrize("asked", [{"event": "nosuch"}, {"message_id": "nosuch"}])
def test_a_look_for_some_ends_too_where_it_has_read_enough_bytes_of_others(asked: dict[str, str], home: Path) -> None:
    fill("a", 30, "e" * (look.BYTES_AT_ONCE // 8), max_message_bytes=look.BYTES_AT_ONCE)
    with look.look(os.fspath(home / ".local/state/outtray/a")) as view:
        page = view.some(**asked)  # type: ignore[arg-type]
    assert page.messages == []
    assert page.next_before_id is not None
    assert page.next_before_id > 20


def test_a_dry_run_of_many_messages_says_that_its_bytes_are_an_estimate(crowded: Path, capsys: Capture) -> None:
    def plan(*words: str) -> dict[str, Any]:
        assert main(["flush", "--dry-run", "--json", *words]) == 0
        (found,) = json.loads(capsys.readouterr().out)
        return dict(found)

    found = plan()
    assert (found["count"], found["bytes"], found["bytes_estimated"]) == (3_001, 3_001 * len(body(2)), True)
    found = plan("--limit", "1000")
    assert (found["count"], found["bytes"], found["bytes_estimated"]) == (1_000, 1_000 * len(body(2)), False)
    assert main(["flush", "--dry-run"]) == 0
    assert "a: 3001 messages, about 126.0 KiB, to zenml" in capsys.readouterr().out


# A young outbox

KILLED = """
import os, outtray
outtray.configure(app="y", url="http://127.0.0.1:9", flush="manual")
assert all([outtray.track("e", {"n": n}) for n in range(20)])
os.kill(os.getpid(), 9)
"""


def test_a_flipped_bit_in_the_wal_of_a_young_outbox_costs_its_end_only(home: Path, run_python: Run) -> None:
    assert run_python("-c", KILLED).returncode == -9
    directory = home / ".local/state/outtray/y"
    wal = directory / "outbox-1-0.db-wal"
    data = wal.read_bytes()
    shutil.copytree(directory, home / "kept")
    for where in (40, 5_000, len(data) // 2):
        shutil.rmtree(directory)
        shutil.copytree(home / "kept", directory)
        damaged = bytearray(data)
        damaged[where] ^= 1
        wal.write_bytes(damaged)
        found = run_python("-m", "outtray", "status")
        assert found.returncode == 0, (where, found)
        again = "import outtray; outtray.configure(app='y', flush='manual'); print(outtray.track('e'))"
        assert run_python("-c", again).stdout == "True\n"
        lost = json.loads(run_python("-m", "outtray", "status", "--json").stdout)["ledger"]["lost"]
        listed = json.loads(run_python("-m", "outtray", "list", "--json").stdout)
        assert lost + len(listed) == 21, where
        assert len(listed) > 5 or where < 10_000, "what stands before the damage is there"


def test_values_that_became_those_of_another_type_are_shown(home: Path, capsys: Capture) -> None:
    fill("a", 3, "e")
    connection = sqlite3.connect(home / ".local/state/outtray/a/outbox-1-0.db")
    connection.execute("UPDATE messages SET accepted_at = x'00', body = json_set(body, '$.message_id', 7) WHERE id = 2")
    connection.execute(sql.MARK, ("zenml", 2, "dead", "never", "x", b"x", b"no\xff", b"sorry"))
    connection.commit()
    connection.close()
    assert main(["list", "--json"]) == 0
    (_, listed, _) = json.loads(capsys.readouterr().out)
    assert main(["show", "2", "--json"]) == 0
    (shown,) = json.loads(capsys.readouterr().out)
    assert shown.pop("message")["event"] == "e"
    assert (shown.pop("excerpt"), shown.pop("delivered_at")) == ("sorry", None)
    assert shown == listed
    assert listed.pop("bytes") > 10
    assert listed == {
        "id": 2, "message_id": "7", "event": "e", "accepted_at": 0.0, "destination": "zenml", "state": "dead",
        "next_attempt_at": 0.0, "attempts": 0, "status": 0, "reason": "no\ufffd",
    }  # fmt: skip
    for command in (["list"], ["show", "2"], ["status"], ["doctor"]):
        assert main(command) in (0, 1)


def test_a_damaged_body_says_no_event_and_stops_nothing(home: Path, capsys: Capture) -> None:
    bodies = [
        "",
        "{'no': json}",
        '{"event": "cut off',
        '["event"]',
        "7",
        '{"n": NaN, "event": "e"}',
        "[" * 100_000,
        b'\xff\xfe{"event"',
        2.5,
    ]
    fill("a", len(bodies) + 1, "e")
    connection = sqlite3.connect(home / ".local/state/outtray/a/outbox-1-0.db")
    connection.executemany(
        "UPDATE messages SET body = ? WHERE id = ?", [(each, id) for id, each in enumerate(bodies, 1)]
    )
    connection.commit()
    connection.close()
    assert main(["list", "--json"]) == 0
    sound, *damaged = json.loads(capsys.readouterr().out)
    assert (sound["id"], sound["event"]) == (len(bodies) + 1, "e")
    assert {(each["message_id"], each["event"]) for each in damaged} == {("", "")}
    assert len(damaged) == len(bodies)
    assert main(["list", "--event", "e", "--json"]) == 0
    assert [each["id"] for each in json.loads(capsys.readouterr().out)] == [len(bodies) + 1]
    assert main(["show", sound["message_id"], "--json"]) == 0


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        ({"event": 5, "type": "track"}, "5"),
        ({"event": {"name": "é"}, "type": "track"}, '{"name":"é"}'),
        ({"event": None, "type": "track"}, "track"),
        ({"event": "", "type": "track"}, ""),
        ({"type": "page"}, "page"),
        ({"event": 'say "é\n"', "deep": functools.reduce(lambda inner, _: [inner], range(60), 1e308)}, 'say "é\n"'),
    ],
)
def test_an_event_of_a_foreign_client_is_listed_as_text(
    said: dict[str, Any], shown: str, home: Path, capsys: Capture
) -> None:
    tray = fill("a", 1, "other")
    assert tray.client.store_foreign({**said, "message_id": "theirs"})[0]
    tray.close()
    assert main(["list", "--event", shown, "--json"]) == 0
    (found,) = json.loads(capsys.readouterr().out)
    assert (found["event"], found["message_id"]) == (shown, "theirs")


def test_a_reader_with_sqlite_sees_message_id_and_event_in_the_view(home: Path) -> None:
    fill("a", 1, "Ünïcode “event”").identify({})
    reader = sqlite3.connect(home / ".local/state/outtray/a/outbox-1-0.db")
    rows = reader.execute("SELECT message_id, event, body FROM message_states ORDER BY id").fetchall()
    reader.close()
    assert [event for _, event, _ in rows] == ["Ünïcode “event”", "identify"]
    assert [id for id, _, _ in rows] == [json.loads(body)["message_id"] for *_, body in rows]


def test_an_outbox_without_its_tables_is_damaged_or_unfinished_and_not_foreign(home: Path, capsys: Capture) -> None:
    fill("a", 1)
    database = home / ".local/state/outtray/a/outbox-1-0.db"
    connection = sqlite3.connect(database)
    connection.execute("PRAGMA application_id = 0")
    connection.close()
    assert main(["status"]) == 78
    assert "is damaged, or was not finished when it was made" in capsys.readouterr().err
    tool = Path(__file__).parent.parent / "tools/inspect_outbox.py"
    done = subprocess.run([sys.executable, str(tool), str(database)], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "is damaged, or was not finished when it was made" in done.stderr


@pytest.mark.parametrize("after", ["nothing", "the journal mode", "the tables"])
def test_what_was_killed_in_the_middle_of_creation_is_finished_by_the_next_opener(after: str, tmp_path: Path) -> None:
    path = str(tmp_path / "outbox-1-0.db")
    code = f"""
import os, sqlite3
from outtray.outbox import sql
connection = sqlite3.connect({path!r}, isolation_level=None)
if {after!r} != "nothing":
    connection.execute(sql.USE_WAL)
if {after!r} == "the tables":
    connection.execute(sql.BEGIN)
    for statement in sql.SETUP:
        connection.execute(statement)
os._exit(9)
"""
    source = str(Path(__file__).parent.parent / "src")
    assert subprocess.run([sys.executable, "-c", code], env={"PYTHONPATH": source}, check=False).returncode == 9
    connection = open_database(path, FileLock(str(tmp_path / "outbox-1.gate")))
    try:
        assert connection.execute(sql.FORMAT).fetchone() == (sql.APPLICATION_ID, sql.MINOR)
        assert os.path.getsize(f"{path}-wal") == 0
    finally:
        connection.close()
