"""tools/inspect_outbox.py: any outbox file, also copied, damaged or foreign, and without touching it."""

from __future__ import annotations

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
from outtray.outbox.inspect import inspect
from outtray.testing import FakeServer

from .conftest import wait_until
from .test_cli import fill
from .test_cli_look import traces

TOOL = Path(__file__).parent.parent / "tools/inspect_outbox.py"
Run = Callable[..., subprocess.CompletedProcess[str]]


def tool(*words: str | Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run the tool as from a fresh clone: without site-packages and without anything in the environment."""
    command = [sys.executable, "-S", "-E", str(TOOL), *map(str, words)]
    return subprocess.run(
        command, cwd="/", env={"PATH": "/nowhere", **variables}, capture_output=True, text=True, check=False
    )


def report(*words: str | Path, code: int = 0) -> dict[str, Any]:
    done = tool(*words, "--json")
    assert done.returncode == code, done
    (found,) = json.loads(done.stdout)
    result: dict[str, Any] = found
    return result


@pytest.fixture
def outbox(home: Path, server: FakeServer) -> Path:
    """The directory of an outbox with 4 delivered, 1 dead, 2 local and 3 pending messages."""
    server.set_mode("refuse_marked")
    tray = fill("a", 4, url=server.url)
    tray.track("bad")
    assert tray.flush(20).dead == 1
    local = outtray.Tray(app="a", url=server.url, consent="local", flush="manual")
    for _ in range(2):
        local.track("kept here")
    for number in range(3):
        tray.track("waits", {"number": number})
    tray.close()
    return home / ".local/state/outtray/a"


@pytest.fixture
def killed(home: Path, run_python: Run) -> Path:
    """The directory of an outbox whose owner was killed: 50 messages, most of them in the WAL."""
    code = (
        "import os, outtray; outtray.configure(app='k', flush='manual');"
        "assert all([outtray.track('e', {'n': n}) for n in range(50)]); os.kill(os.getpid(), 9)"
    )
    assert run_python("-c", code).returncode == -9
    return home / ".local/state/outtray/k"


def test_it_says_what_is_in_an_outbox(outbox: Path) -> None:
    found = report(outbox, "--messages", "2")
    assert found["format"] == {"major": 1, "minor": 1, "application_id": "0x6f757474"}
    assert found["states"] == {"zenml": {"dead": 1, "delivered": 4, "local": 2, "pending": 3}}
    assert found["messages"] == {"count": 10, "first_id": 1, "last_id": 10}
    assert found["cursors"]["zenml"]["delivered"] == 4
    header = found["header"]
    assert (header["magic_ok"], header["crc_ok"], header["last_id"], header["generation"]) == (True, True, 10, 0)
    assert (found["generation"], found["integrity"], found["missing"], found["ledger"]) == (0, ["ok"], 0, {})
    assert found["damaged"] == {"count": 0, "ids": []}
    assert found["problems"] == []
    assert [each["id"] for each in found["newest"]] == [10, 9]


def test_it_takes_a_file_its_wal_its_directory_and_the_one_above(outbox: Path, killed: Path) -> None:
    assert report(outbox / "outbox-1-0.db")["messages"]["count"] == 10
    assert report(killed / "outbox-1-0.db-wal")["messages"]["count"] == 50
    done = tool(outbox.parent, "--json")
    assert [each["messages"]["count"] for each in json.loads(done.stdout)] == [10, 50]
    done = tool(outbox, killed)
    assert done.returncode == 0
    assert "pending 3" in done.stdout
    assert "pending 50" in done.stdout


@pytest.mark.parametrize("which", ["outbox", "killed"])
def test_it_writes_nothing_beside_what_it_reads(
    which: str, request: pytest.FixtureRequest, tmp_path: Path, home: Path
) -> None:
    folder = request.getfixturevalue(which)
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    before = traces(home)
    assert tool(folder, "--messages", "5", TMPDIR=str(temporary)).returncode == 0
    assert traces(home) == before
    assert not list(temporary.iterdir())


def test_a_copy_from_another_machine(killed: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    copy.mkdir()
    shutil.copy(killed / "outbox-1-0.db", copy / "with-wal.db")
    shutil.copy(killed / "outbox-1-0.db-wal", copy / "with-wal.db-wal")
    found = report(copy / "with-wal.db")
    assert found["messages"]["count"] == 50
    assert found["format"]["major"] is None
    assert (found["header"], found["generation"], found["missing"]) == (None, None, None)
    assert sorted(path.name for path in copy.iterdir()) == ["with-wal.db", "with-wal.db-wal"]


def test_rows_that_a_flipped_bit_in_the_wal_has_cost_are_missing(killed: Path) -> None:
    wal = killed / "outbox-1-0.db-wal"
    data = bytearray(wal.read_bytes())
    data[len(data) // 2] ^= 1
    wal.write_bytes(data)
    found = report(killed, code=1)
    assert found["integrity"] == ["ok"]
    assert found["missing"] > 0
    assert found["missing"] == 50 - (found["messages"]["last_id"] or 0)
    assert (
        f"messages that the header knows of, and that are not in the database: {found['missing']}" in found["problems"]
    )


def test_messages_without_their_checksum_are_named(outbox: Path) -> None:
    connection = sqlite3.connect(outbox / "outbox-1-0.db")
    connection.execute("UPDATE messages SET body = replace(body, 'waits', 'waitz') WHERE id IN (8, 10)")
    connection.commit()
    connection.close()
    found = report(outbox, code=1)
    assert found["damaged"] == {"count": 2, "ids": [8, 10]}
    assert "bad checksum  2: 8, 10" in tool(outbox).stdout


def test_a_damaged_header_is_told(outbox: Path) -> None:
    gate = outbox / "outbox-1.gate"
    data = bytearray(gate.read_bytes())
    data[20] ^= 1
    gate.write_bytes(data)
    found = report(outbox, code=1)
    assert not found["header"]["crc_ok"]
    assert found["missing"] is None
    assert "crc WRONG" in tool(outbox).stdout


def test_a_damaged_database_is_read_as_far_as_it_goes(outbox: Path, server: FakeServer) -> None:
    tray = outtray.Tray(app="a", flush="manual")
    for _ in range(300):
        tray.track("more", {"text": "x" * 500})
    tray.close()
    database = outbox / "outbox-1-0.db"
    data = bytearray(database.read_bytes())
    middle = len(data) // 2 // 4096 * 4096
    data[middle : middle + 8192] = b"\xff" * 8192
    database.write_bytes(data)
    done = tool(outbox, "--json")
    assert done.returncode == 1
    (found,) = json.loads(done.stdout)
    assert any("integrity" in problem for problem in found["problems"])
    assert found["cursors"]["zenml"]["delivered"] == 4
    assert found["header"]["last_id"] == 310
    assert "Traceback" not in done.stderr


def test_a_truncated_database_is_one_clear_line_or_a_report(outbox: Path) -> None:
    database = outbox / "outbox-1-0.db"
    data = database.read_bytes()
    for size in (1, 50, 100, 4_095, 4_096, 8_192, len(data) - 1):
        database.write_bytes(data[:size])
        done = tool(outbox)
        assert done.returncode == 1, size
        assert "Traceback" not in done.stderr
        assert done.stdout or len(done.stderr.splitlines()) == 1


def test_what_is_no_outbox_is_said_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "text.db").write_text("hello, this is text and no database at all")
    (tmp_path / "empty.db").touch()
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe.db")
    connection = sqlite3.connect(tmp_path / "foreign.db")
    connection.execute("CREATE TABLE messages (id)")
    connection.commit()
    connection.close()
    for name, words in {
        "text.db": "is no SQLite file",
        "empty.db": "is empty",
        "folder": "holds no outbox",
        "pipe.db": "is not a regular file",
        "foreign.db": "is an SQLite file but no outbox of outtray",
        "absent.db": "does not exist",
    }.items():
        done = tool(tmp_path / name)
        assert done.returncode == 1
        assert not done.stdout
        assert len(done.stderr.splitlines()) == 1
        assert words in done.stderr
    assert tool(tmp_path / "text.db", "--json").stdout == "[]\n"
    assert tool().returncode == 2
    assert tool(tmp_path, "--messages", "none").returncode == 2


def test_one_unreadable_file_does_not_hide_the_others(outbox: Path, killed: Path) -> None:
    (outbox / "outbox-1-0.db").write_bytes(b"nonsense" * 1_000)
    done = tool(outbox.parent, "--json")
    assert done.returncode == 1
    assert [each["messages"]["count"] for each in json.loads(done.stdout)] == [50]
    assert "is no SQLite file" in done.stderr


def test_a_newer_major_is_named(outbox: Path) -> None:
    shutil.copy(outbox / "outbox-1-0.db", outbox / "outbox-2-3.db")
    found = report(outbox / "outbox-2-3.db", code=1)
    assert (found["format"]["major"], found["generation"], found["header"]) == (2, 3, None)
    assert "its format 2 is not the one that is known here (1)" in found["problems"]


def test_what_events_say_cannot_move_the_terminal(home: Path) -> None:
    tray = outtray.Tray(app="h", flush="manual")
    tray.track("\x1b[31mred\x9b‮")
    tray.close()
    for words in ([], ["--json"]):
        shown = tool(home / ".local/state/outtray/h", "--messages", "1", *words).stdout
        assert not [each for each in shown if not each.isprintable() and each != "\n"]
        assert "red" in shown


def test_an_outbox_that_is_written_to_is_copied_whole(home: Path, environment: dict[str, str]) -> None:
    code = (
        "import outtray; outtray.configure(app='w', flush='manual'); print(1, flush=True)\n"
        "while True: outtray.track('busy', {'text': 'x' * 300})"
    )
    writer = subprocess.Popen([sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE)
    try:
        assert writer.stdout is not None
        writer.stdout.read(1)
        database = home / ".local/state/outtray/w/outbox-1-0.db"
        assert wait_until(lambda: database.exists() and database.stat().st_size)
        last = 0
        for _ in range(5):
            found = inspect(str(database))
            assert found["integrity"] == ["ok"]
            assert found["damaged"] == {"count": 0, "ids": []}
            assert found["messages"]["count"] == found["messages"]["last_id"] >= last
            last = found["messages"]["last_id"]
    finally:
        writer.kill()
        writer.communicate()
