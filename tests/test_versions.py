"""Files of other releases: an older minor is migrated, a newer one shared, another major refused and left alone."""

from __future__ import annotations

import hashlib
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import zlib
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

import outtray
from outtray.outbox import gate, sql
from outtray.testing import FakeServer
from tests.conftest import SRC

NEXT_MINOR = """

MINOR = 2
_ADDED = (
    "CREATE TABLE notes (id INTEGER PRIMARY KEY, text TEXT)",
    "ALTER TABLE messages ADD COLUMN colour TEXT NOT NULL DEFAULT 'blue'",
    "ALTER TABLE cursors ADD COLUMN pace REAL",
    "INSERT INTO notes (text) SELECT 'made'",
)
MIGRATIONS = {1: _ADDED}
SETUP = (*SETUP, *_ADDED, f"PRAGMA user_version = {MINOR}")
import sqlite3, zlib
_made = sqlite3.connect(":memory:", isolation_level=None)
for _statement in SETUP:
    _made.execute(_statement)
SCHEMA_CRC = zlib.crc32(_made.execute(SCHEMA).fetchone()[0].encode())
"""

STORE = """
import os, sys, outtray
outtray.configure(app="aged", url=sys.argv[1], flush="manual")
name, first, count = sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
for number in range(first, first + count):
    assert outtray.track("event", {"number": number, "by": name})
"""

SHARE = """
import sys, outtray
outtray.configure(app="aged", url=sys.argv[1], flush="thread", flush_interval=0.02)
for number in range(300):
    assert outtray.track("event", {"number": number, "by": sys.argv[2]})
    if number % 100 == 50:
        outtray.flush(20)
"""

Release = dict[str, str]


@pytest.fixture
def this(environment: dict[str, str]) -> Release:
    """The environment of a program with this release."""
    return environment


@pytest.fixture
def newer(environment: dict[str, str], tmp_path: Path) -> Release:
    """The environment of a program with a release that has the next minor format."""
    source = tmp_path / "newer"
    shutil.copytree(SRC, source, ignore=shutil.ignore_patterns("__pycache__"))
    with (source / "outtray/outbox/sql.py").open("a", encoding="utf-8") as file:
        file.write(NEXT_MINOR)
    return {**environment, "PYTHONPATH": str(source)}


def run(release: Release, *arguments: str, before: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*before, sys.executable, *arguments],
        env=release,
        cwd=release["HOME"],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def must(done: subprocess.CompletedProcess[str]) -> str:
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def directory(home: Path) -> Path:
    return home / ".local/state/outtray/aged"


def read(directory: Path, statement: str) -> list[Any]:
    """Return rows of the closed outbox."""
    with closing(sqlite3.connect(directory / "outbox-1-0.db")) as connection:
        return connection.execute(statement).fetchall()


def minor(directory: Path) -> int:
    return int(read(directory, "PRAGMA user_version")[0][0])


def by(server: FakeServer) -> list[tuple[str, int]]:
    return [(message["properties"]["by"], message["properties"]["number"]) for message in server.received]


def test_an_older_file_is_migrated_and_keeps_its_messages(
    this: Release, newer: Release, directory: Path, server: FakeServer
) -> None:
    must(run(this, "-c", STORE, server.url, "this", "0", "20"))
    assert minor(directory) == sql.MINOR == 1
    must(run(newer, "-c", STORE, server.url, "newer", "20", "5"))
    assert minor(directory) == 2
    assert read(directory, "SELECT text FROM notes") == [("made",)]
    assert read(directory, "SELECT count(*), min(colour) FROM messages") == [(25, "blue")]
    must(run(newer, "-m", "outtray", "flush"))
    assert by(server) == [*(("this", n) for n in range(20)), *(("newer", n) for n in range(20, 25))]
    assert len(list(directory.glob("outbox-*.db"))) == 1


def test_this_release_goes_on_reading_and_writing_a_file_of_a_newer_minor(
    this: Release, newer: Release, directory: Path, server: FakeServer
) -> None:
    must(run(newer, "-c", STORE, server.url, "newer", "0", "10"))
    must(run(this, "-c", STORE, server.url, "this", "10", "10"))
    assert minor(directory) == 2, "and leaves its number as it is"
    must(run(this, "-m", "outtray", "flush"))
    must(run(newer, "-c", STORE, server.url, "newer", "20", "10"))
    must(run(newer, "-m", "outtray", "flush"))
    assert [number for _, number in by(server)] == list(range(30))
    assert not server.repeats
    assert len(list(directory.glob("outbox-*.db"))) == 1, "no file was taken for a damaged one"


def test_two_releases_share_one_outbox_at_the_same_time(
    this: Release, newer: Release, directory: Path, server: FakeServer
) -> None:
    must(run(this, "-c", STORE, server.url, "first", "0", "5"))
    running = [
        subprocess.Popen([sys.executable, "-c", SHARE, server.url, name], env=release, cwd=release["HOME"])
        for name, release in (("this", this), ("newer", newer), ("also this", this))
    ]
    try:
        assert [process.wait(100) for process in running] == [0, 0, 0]
    finally:
        for process in running:
            process.kill()
            process.wait()
    must(run(this, "-m", "outtray", "flush"))
    received = by(server)
    for name in ("this", "newer", "also this"):
        assert [number for by_name, number in received if by_name == name] == list(range(300))
    assert len(received) == 905
    assert minor(directory) == 2
    assert read(directory, "SELECT count(*) FROM notes") == [(1,)], "migrated once"


@pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")
def test_a_kill_in_the_middle_of_a_migration_leaves_a_file_for_both(
    this: Release, newer: Release, directory: Path, server: FakeServer, tmp_path: Path
) -> None:
    must(run(this, "-c", STORE, server.url, "this", "0", "20"))
    before = tmp_path / "before"
    shutil.copytree(directory, before)
    wal = str(directory / "outbox-1-0.db-wal")
    killed, minors = 0, set()
    for when in range(1, 11):
        shutil.rmtree(directory)
        shutil.copytree(before, directory)
        server.clear()
        strace = ("strace", "-f", "-o", "/dev/null", "-P", wal, "-e", "trace=pwrite64", "-e")
        inject = f"inject=pwrite64:signal=KILL:when={when}"
        done = run(newer, "-c", STORE, server.url, "newer", "20", "1", before=(*strace, inject))
        killed += done.returncode == -signal.SIGKILL
        must(run(this, "-c", STORE, server.url, "this", "30", "2"))
        minors.add(minor(directory))
        must(run(newer, "-c", STORE, server.url, "newer", "40", "2"))
        assert minor(directory) == 2
        assert read(directory, "SELECT count(*) FROM notes") == [(1,)]
        must(run(this, "-m", "outtray", "flush"))
        numbers = [number for _, number in by(server)]
        assert [number for number in numbers if number != 20] == [*range(20), 30, 31, 40, 41], when
        assert len(list(directory.glob("outbox-*.db"))) == 1
    assert killed >= 5
    assert minors == {1, 2}, "some were killed before the migration was committed, some after"


# Another major


def fingerprints(directory: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in directory.glob("outbox-*")}


def test_a_gate_of_another_major_is_refused_with_words_and_left_as_it_is(
    this: Release, directory: Path, server: FakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    must(run(this, "-c", STORE, server.url, "this", "0", "3"))
    monkeypatch.setattr(gate, "MAJOR", 2)
    (directory / "outbox-1.gate").write_bytes(gate.Header(0, 77, 3).to_bytes())
    before = fingerprints(directory)
    code = "import outtray; outtray.configure(app='aged'); print(outtray.track('event'))"
    done = run(this, "-c", code)
    assert done.stdout == "False\n", done.stderr
    assert done.returncode == 0
    flushed = run(this, "-m", "outtray", "flush", "--url", server.url)
    assert flushed.returncode != 0
    assert "format 2" in flushed.stderr
    assert "newer release" in flushed.stderr
    assert "Traceback" not in flushed.stderr
    assert fingerprints(directory) == before
    assert not server.received


def test_the_files_of_another_major_lie_beside_untouched(
    this: Release, newer: Release, directory: Path, server: FakeServer
) -> None:
    files = Path(newer["PYTHONPATH"], "outtray/outbox/files.py")
    files.write_text(files.read_text(encoding="utf-8").replace("MAJOR = 1", "MAJOR = 2"), encoding="utf-8")
    must(run(newer, "-c", STORE, server.url, "newer", "0", "3"))
    assert (directory / "outbox-2-0.db").exists()
    before = fingerprints(directory)
    must(run(this, "-c", STORE, server.url, "this", "0", "4"))
    must(run(this, "-m", "outtray", "flush"))
    assert by(server) == [("this", number) for number in range(4)]
    after = fingerprints(directory)
    assert {name: after[name] for name in before} == before
    must(run(newer, "-m", "outtray", "flush"))
    assert by(server)[4:] == [("newer", number) for number in range(3)]


def test_the_checksum_of_the_schema_is_that_of_what_is_made() -> None:
    with closing(sqlite3.connect(":memory:", isolation_level=None)) as connection:
        for statement in sql.SETUP:
            connection.execute(statement)
        (schema,) = connection.execute(sql.SCHEMA).fetchone()
        (count,) = connection.execute("SELECT count(*) FROM sqlite_master WHERE sql IS NOT NULL").fetchone()
    assert zlib.crc32(schema.encode()) == sql.SCHEMA_CRC
    assert schema.count("CREATE ") == count, "each table, index and view is in it"


@pytest.mark.parametrize("auto_vacuum", ["NONE", "FULL", "INCREMENTAL"])
def test_the_checksum_of_the_schema_holds_however_sqlite_vacuums(auto_vacuum: str, tmp_path: Path) -> None:
    with closing(sqlite3.connect(tmp_path / "outbox.db", isolation_level=None)) as connection:
        connection.execute(f"PRAGMA auto_vacuum = {auto_vacuum}")  # some builds have it on
        connection.execute(sql.USE_WAL)
        for statement in sql.SETUP:
            connection.execute(statement)
        for id in range(1, 1_000):
            connection.execute(sql.APPEND, (id, 0.0, 0, "x" * 500))
        connection.execute("DELETE FROM messages WHERE id < 900")
        for _ in range(2):
            (schema,) = connection.execute(sql.SCHEMA).fetchone()
            assert zlib.crc32(schema.encode()) == sql.SCHEMA_CRC
            connection.execute(sql.VACUUM)


def test_a_file_without_the_mark_of_an_outbox_is_damage_and_its_messages_are_saved(
    directory: Path, server: FakeServer
) -> None:
    tray = outtray.Tray(app="aged", url=server.url, flush="manual")
    assert tray.track("event", {"number": 0})
    tray.close()
    with closing(sqlite3.connect(directory / "outbox-1-0.db")) as connection:
        connection.execute("PRAGMA application_id = 0")
    inode = os.stat(directory / "outbox-1-0.db").st_ino
    assert tray.track("event", {"number": 1})
    assert tray.flush(20).outcome == "drained"
    assert [message["properties"]["number"] for message in server.received] == [0, 1]
    assert os.stat(directory / "outbox-1-0.db").st_ino == inode
