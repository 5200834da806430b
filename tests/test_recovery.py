"""A damaged outbox: the call that notices is accepted, what waits comes back in its place, losses are counted."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

import outtray
from outtray.outbox import erasure, generation, recovery, shared, sources, upkeep
from outtray.outbox.connection import open_database
from outtray.outbox.filelock import FileLock
from outtray.outbox.generation import SALVAGED
from outtray.outbox.records import Mark
from outtray.outbox.store import Outbox
from outtray.testing import FakeServer
from tests.conftest import wait_until

MIB = 1024 * 1024
PAGE = 4096
SETTLED, WAITING = 10, 60
DEAD, DEFERRED = 3, 4
"""Ids of two of the settled messages that are kept."""

Run = Callable[..., subprocess.CompletedProcess[str]]


class World:
    """An outbox of the application "hurt" with messages in every state, its receiver, and its damaged files."""

    def __init__(self, home: Path, server: FakeServer) -> None:
        self.server = server
        self.directory = home / ".local/state/outtray/hurt"
        self.tray = outtray.Tray(app="hurt", url=server.url, flush="manual")
        self.numbers = 0

    @property
    def outbox(self) -> Outbox:
        return shared.of(self.tray.settings)

    def database(self, generation: int = 0) -> Path:
        return self.directory / f"outbox-1-{generation}.db"

    def track(self, count: int, **properties: Any) -> None:
        for _ in range(count):
            assert self.tray.track("event", {"number": self.numbers, **properties})
            self.numbers += 1

    def fill(self) -> None:
        """Store ten settled messages, of which one is dead and one deferred, a local one, and those that wait."""
        self.track(SETTLED)
        batch = self.outbox.pending("zenml", after_id=0, max_count=SETTLED, max_bytes=MIB)
        assert batch is not None
        dead, deferred = (next(m for m in batch.messages if m.id == id) for id in (DEAD, DEFERRED))
        marks = [
            Mark(dead, "dead", status=422, reason="too odd", excerpt="no"),
            Mark(deferred, "deferred", status=429, reason="later", next_attempt_at=time.time() + 3000),
        ]
        assert self.outbox.settle(batch, marks, status=200, seconds=0.1)
        self.track(WAITING)
        self.outbox.append("{}", accepted_at=time.time(), local=True)

    def flush(self) -> None:
        report = self.tray.flush(60)
        assert report.outcome == "drained", report

    def received(self) -> list[int]:
        return [message["properties"]["number"] for message in self.server.received]

    def ledger(self) -> dict[str, int]:
        found = self.tray.status()
        assert found["error"] is None, found["error"]
        return dict(found["ledger"])

    def states(self) -> dict[int, tuple[str, str | None]]:
        """Return state and reason by id, of the newest generation; the outbox is closed for it."""
        self.tray.close()
        newest = max(int(path.stem.rpartition("-")[2]) for path in self.directory.glob("outbox-1-*.db"))
        with closing(sqlite3.connect(self.database(newest))) as connection:
            rows = connection.execute("SELECT id, state, reason FROM message_states WHERE destination = 'zenml'")
            return {id: (state, reason) for id, state, reason in rows}

    def generation(self) -> int:
        return self.outbox.header().generation


@pytest.fixture
def world(home: Path, server: FakeServer) -> World:
    return World(home, server)


@contextmanager
def edited(path: Path) -> Iterator[sqlite3.Connection]:
    """A connection to the closed database at *path*, which is left without a write-ahead log."""
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        yield connection


def overwrite(path: Path, offset: int, data: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(data)


def other_process(code: str, *arguments: str) -> None:
    """Do to the files of an open outbox what this process may not: opening them here would end SQLite's locks."""
    subprocess.run([sys.executable, "-c", code, *arguments], check=True, timeout=60)


TRASH = "import sys; f = open(sys.argv[1], 'r+b'); f.write(b'trash ' * 2000)"


# Ways to damage a closed file


def with_text(path: Path) -> None:
    path.write_text("this is no database\n" * 500)


def with_other_sqlite_file(path: Path) -> None:
    path.unlink()
    with edited(path) as connection:
        connection.execute("CREATE TABLE things (name TEXT)")
        connection.execute("INSERT INTO things VALUES ('a')")


def with_directory(path: Path) -> None:
    path.unlink()
    path.mkdir()


def emptied(path: Path) -> None:
    os.truncate(path, 0)


def deleted(path: Path) -> None:
    path.unlink()


def header_page(path: Path) -> None:
    overwrite(path, 0, os.urandom(100))


def cursor(path: Path) -> None:
    with edited(path) as connection:
        connection.execute("UPDATE cursors SET id = id + 5")


def schema(path: Path) -> None:
    with edited(path) as connection:
        connection.execute("PRAGMA writable_schema = ON")
        connection.execute("UPDATE sqlite_schema SET sql = 'CREATE RUBBISH' WHERE name = 'messages'")


def table_of_cursors(path: Path) -> None:
    with edited(path) as connection:
        (root,) = connection.execute("SELECT rootpage FROM sqlite_schema WHERE name = 'cursors'").fetchone()
    overwrite(path, (root - 1) * PAGE, b"\xee" * PAGE)


def root_of_gaps(path: Path) -> None:
    root_page(path, "gaps", "deliveries")


def root_of_cursors(path: Path) -> None:
    root_page(path, "cursors", "exceptions")


def root_page(path: Path, table: str, other: str) -> None:
    with edited(path) as connection:
        connection.execute("PRAGMA writable_schema = ON")
        (root,) = connection.execute("SELECT rootpage FROM sqlite_schema WHERE name = ?", (other,)).fetchone()
        connection.execute("UPDATE sqlite_schema SET rootpage = ? WHERE name = ?", (root, table))


KEEPS_MESSAGES = (header_page, cursor, schema, root_of_gaps, root_of_cursors, table_of_cursors)
TAKES_ALL = (with_text, with_other_sqlite_file, with_directory, emptied, deleted)


@pytest.mark.parametrize("damage", KEEPS_MESSAGES, ids=lambda damage: damage.__name__)
def test_what_waits_in_a_damaged_file_is_delivered_in_order_under_its_own_ids(
    damage: Callable[[Path], None], world: World
) -> None:
    world.fill()
    world.tray.close()
    damage(world.database())
    inode = world.database().stat().st_ino
    world.track(1)
    world.flush()
    assert world.received() == list(range(SETTLED, SETTLED + WAITING + 1)), "each waiting one once, nothing settled"
    assert not world.server.repeats
    ledger = world.ledger()
    assert (ledger["file_damaged"], ledger["salvaged"]) == (1, WAITING + 3 + (damage is cursor)), (
        "with the dead, deferred and local one, and the one that came in before the cursor was read"
    )
    assert "lost" not in ledger
    assert ledger.get("lost_unknown", 0) == (damage in (cursor, table_of_cursors))
    states = world.states()
    assert states[DEAD] == ("dead", "too odd")
    assert states[DEFERRED] == ("deferred", "later")
    assert states[SETTLED + WAITING + 1][0] == "local"
    assert world.database().stat().st_ino == inode, "the damaged file is left where it is"
    assert world.generation() == 1


@pytest.mark.parametrize("damage", TAKES_ALL, ids=lambda damage: damage.__name__)
def test_what_a_file_no_longer_holds_is_counted_as_lost(damage: Callable[[Path], None], world: World) -> None:
    world.fill()
    world.tray.close()
    damage(world.database())
    world.track(1)
    world.flush()
    assert world.received() == [SETTLED + WAITING]
    ledger = world.ledger()
    assert ledger["file_damaged"] == 1
    assert ledger["lost"] == WAITING + 1, "what the header says is missing: all that waited, and the local one"
    assert "salvaged" not in ledger
    assert ledger["lost_unknown"] == 1, "whether dead or deferred ones were in it, nobody knows"
    world.flush()
    assert world.ledger() == ledger


LEFT_BY_A_KILL = """
import os, sys, outtray
outtray.configure(app="hurt", url=sys.argv[1], flush="manual")
for number in range(int(sys.argv[2]), int(sys.argv[2]) + int(sys.argv[3])):
    assert outtray.track("event", {"number": number})
os.kill(os.getpid(), 9)
"""


@pytest.mark.parametrize("damage", [*TAKES_ALL[:1], *TAKES_ALL[2:]], ids=lambda damage: damage.__name__)
def test_what_stands_in_the_log_of_a_lost_database_is_saved(
    damage: Callable[[Path], None], world: World, run_python: Run
) -> None:
    killed = run_python("-c", LEFT_BY_A_KILL, world.server.url, "0", "40")
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    damage(world.database())
    world.numbers = 40
    world.track(1)
    world.flush()
    ledger = world.ledger()
    assert world.received() == list(range(41)), ledger
    assert ledger["salvaged"] == 40
    assert ledger.get("lost", 0) == 0


def test_a_leaf_that_was_overwritten_takes_its_own_messages_and_they_are_counted(world: World) -> None:
    world.fill()
    world.tray.close()
    data = world.database().read_bytes()
    leaves = [
        n for n in range(1, len(data) // PAGE) if data[n * PAGE] == 0x0D and b'"number"' in data[n * PAGE :][:PAGE]
    ]
    hit = leaves[len(leaves) // 2]
    count = int.from_bytes(data[hit * PAGE + 3 : hit * PAGE + 5], "big")
    assert count
    overwrite(world.database(), hit * PAGE, b"\xff" * PAGE)
    world.track(1)
    world.flush()
    world.flush()
    received = world.received()
    assert len(received) == WAITING + 1 - count
    assert received == sorted(received)
    ledger = world.ledger()
    assert ledger["lost"] == count
    assert ledger["salvaged"] + ledger["lost"] >= WAITING + 3


def test_damage_that_is_met_while_an_answer_is_awaited_sends_nothing_again(home: Path, server: FakeServer) -> None:
    world = World(home, server)
    world.tray = outtray.Tray(app="hurt", url=server.url, flush="manual", max_batch_count=20)
    world.track(60, text="x" * 600)
    world.tray.close()
    data = world.database().read_bytes()
    at = data.find(b'"number":30,')
    assert at > 0
    overwrite(world.database(), at // PAGE * PAGE, b"\xff" * PAGE)
    world.flush()
    world.flush()
    assert not server.repeats
    assert set(range(20)) <= set(world.received())
    assert world.ledger()["lost"] == 60 - len(world.received())


def test_a_flipped_bit_in_the_log_loses_one_message_and_the_others_come_back(world: World, run_python: Run) -> None:
    run_python("-c", LEFT_BY_A_KILL, world.server.url, "0", "100")
    wal = world.database().with_name("outbox-1-0.db-wal")
    data = bytearray(wal.read_bytes())
    at = data.rfind(b'"number":50')
    assert at > 0
    frame = (at - 32) // (PAGE + 24)
    data[32 + frame * (PAGE + 24) + 20] ^= 4  # in the frame's checksum: SQLite drops it and all later ones
    wal.write_bytes(data)
    world.numbers = 100
    world.track(1)
    world.flush()
    assert sorted(world.received()) == list(range(101))
    assert not world.server.repeats
    ledger = world.ledger()
    assert ledger["salvaged"] > 0
    assert ledger.get("lost", 0) == 0
    assert "file_damaged" not in ledger
    assert world.generation() == 0


def test_a_second_accident_is_read_though_the_log_of_the_first_was_cleared_away(world: World, run_python: Run) -> None:
    def lose_all_behind(number: int) -> None:
        data = bytearray(wal.read_bytes())
        at = data.rfind(b'"number":%d' % number)
        assert at > 0
        data[32 + (at - 32) // (PAGE + 24) * (PAGE + 24) + 20] ^= 4  # SQLite drops that frame and all later ones
        wal.write_bytes(data)

    wal = world.database().with_name("outbox-1-0.db-wal")
    run_python("-c", LEFT_BY_A_KILL, world.server.url, "0", "100")
    lose_all_behind(50)
    world.numbers = 100
    world.flush()
    sources.clear_away(world.outbox, retention=0)
    assert not list(world.directory.glob("*.lost-wal"))
    world.tray.close()
    run_python("-c", LEFT_BY_A_KILL, world.server.url, "100", "100")
    lose_all_behind(150)
    world.flush()
    assert sorted(world.received()) == list(range(200))
    assert world.ledger().get("lost", 0) == 0


def test_rows_that_the_header_knows_and_no_log_has_are_counted_once(world: World, run_python: Run) -> None:
    run_python("-c", LEFT_BY_A_KILL, world.server.url, "0", "30")
    wal = world.database().with_name("outbox-1-0.db-wal")
    os.truncate(wal, wal.stat().st_size // 2)
    world.numbers = 30
    world.track(1)
    world.flush()
    ledger = world.ledger()
    assert 0 < ledger["lost"] == 31 - len(world.received())
    world.tray.close()
    world.track(1)
    world.flush()
    assert world.ledger()["lost"] == ledger["lost"]


def test_a_damaged_header_beside_a_damaged_database_begins_the_next_generation(world: World) -> None:
    world.fill()
    world.tray.close()
    overwrite(world.directory / "outbox-1.gate", 0, b"\xff" * 64)
    header_page(world.database())
    world.track(1)
    world.flush()
    assert world.received() == list(range(SETTLED, SETTLED + WAITING + 1))
    assert world.generation() == 1
    assert world.states()[DEAD] == ("dead", "too odd")


def test_a_message_whose_mark_cannot_be_read_any_more_is_sent_and_not_lost(world: World) -> None:
    world.fill()
    world.tray.close()
    with edited(world.database()) as connection:
        connection.execute("PRAGMA journal_mode = DELETE")
        connection.execute("UPDATE exceptions SET state = 'd\x01ad' WHERE id = ?", (DEAD,))
    header_page(world.database())
    world.track(1)
    world.flush()
    assert world.received() == [DEAD - 1, *range(SETTLED, SETTLED + WAITING + 1)]
    assert world.ledger().get("lost", 0) == 0


@pytest.mark.parametrize(
    ("text", "instead"),
    [
        (b"destination TEXT NOT NULL,\n        first_id", b"destinatyon TEXT NOT NULL,\n        first_id"),
        (b"'retry'", b"'rftry'"),
    ],
    ids=["a column of deliveries", "a word of the view"],
)
def test_a_flipped_bit_in_the_text_of_the_schema_is_damage(text: bytes, instead: bytes, world: World) -> None:
    world.fill()
    world.tray.close()
    data = world.database().read_bytes()
    assert data.count(text) == 1
    world.database().write_bytes(data.replace(text, instead))
    world.flush()
    assert world.generation() == 1
    assert world.received() == list(range(SETTLED, SETTLED + WAITING))
    assert world.states()[DEAD] == ("dead", "too odd")


@pytest.mark.parametrize(("place", "bit"), [(18, 3), (47, 7)], ids=["not to be written", "of an unknown format"])
def test_a_flipped_bit_in_the_header_of_the_database_that_forbids_its_use_is_damage(
    place: int, bit: int, world: World
) -> None:
    world.track(20)
    world.tray.close()
    overwrite(world.database(), place, bytes([world.database().read_bytes()[place] ^ 1 << bit]))
    world.track(1)
    world.flush()
    assert world.received() == list(range(21))
    assert world.ledger().get("lost", 0) == 0


def test_the_third_damage_in_a_row_still_gives_everything_back(world: World) -> None:
    world.server.set_mode("refuse")
    for number in range(3):
        world.track(20)
        world.tray.close()
        header_page(world.database(number))
    world.track(1)
    assert world.generation() == 3
    world.server.set_mode("ok")
    world.flush()
    assert world.received() == list(range(61))
    ledger = world.ledger()
    assert (ledger["file_damaged"], ledger["salvaged"]) == (3, 60)
    assert ledger.get("lost", 0) == 0


def test_what_the_first_of_two_damages_took_is_counted_after_the_second(world: World) -> None:
    world.track(30)
    world.tray.close()
    os.truncate(world.database(), PAGE)  # all messages
    world.track(5)
    world.tray.close()
    header_page(world.database(1))
    world.track(1)
    world.flush()
    ledger = world.ledger()
    assert world.received() == list(range(30, 36))
    assert (ledger["lost"], ledger["salvaged"]) == (30, 5)


@pytest.mark.parametrize("is_log_left", [False, True])
@pytest.mark.parametrize("is_gate_left", [True, False])
def test_a_deleted_database_is_an_accident_and_not_an_outbox_that_never_was(
    is_gate_left: bool, is_log_left: bool, world: World, run_python: Run
) -> None:
    run_python("-c", KILLED)
    world.database().unlink()
    log = world.directory / "outbox-1-0.db-wal"
    if not is_log_left:
        log.unlink()
    if not is_gate_left:
        (world.directory / "outbox-1.gate").unlink()
    if not is_log_left and not is_gate_left:
        return  # nothing tells that there was one
    status = run_python("-m", "outtray", "status", "--app", "hurt")
    assert status.returncode != 0
    assert "gone" in status.stderr
    world.numbers = 50
    done = run_python("-m", "outtray", "flush", "--all", "--app", "hurt", OUTTRAY_URL=world.server.url)
    assert (done.returncode, done.stderr) == (0, "")
    assert world.received() == (list(range(50)) if is_log_left else [])
    ledger = world.ledger()
    assert (ledger.get("salvaged", 0), ledger.get("lost", 0)) == ((50, 0) if is_log_left else (0, 50))


def test_forget_after_the_database_was_deleted_leaves_no_text_in_its_log(world: World, run_python: Run) -> None:
    run_python("-c", KILLED)
    world.database().unlink()
    done = run_python("-m", "outtray", "forget", "--yes", "--app", "hurt")
    assert done.returncode == 0, done.stderr
    assert all(b'"number"' not in path.read_bytes() for path in world.directory.iterdir())


@pytest.mark.parametrize("is_header_lost", [False, True])
def test_where_the_newest_file_is_gone_or_empty_what_waits_in_the_older_one_is_delivered(
    is_header_lost: bool, world: World, run_python: Run
) -> None:
    world.track(20)
    world.tray.close()
    header_page(world.database())
    world.track(3)
    world.tray.close()
    if is_header_lost:
        emptied(world.database(1))
        emptied(world.directory / "outbox-1.gate")
    else:
        world.database(1).unlink()
    done = run_python("-m", "outtray", "flush", "--all", "--app", "hurt", OUTTRAY_URL=world.server.url)
    assert (done.returncode, done.stderr) == (0, "")
    assert world.received() == list(range(20))
    ledger = world.ledger()
    assert ledger.get("lost", 0) == (0 if is_header_lost else 3)
    assert ledger["lost_unknown"] == 2, "the newest file also told how many the older one must have"
    world.track(1)
    world.flush()
    assert world.received() == [*range(20), 23]


def test_a_gate_that_was_deleted_is_noticed_by_the_program_that_has_it_open(world: World, run_python: Run) -> None:
    world.track(3)
    (world.directory / "outbox-1.gate").unlink()
    world.track(1)
    assert (world.directory / "outbox-1.gate").exists()
    assert run_python("-m", "outtray", "consent", "off", "--app", "hurt").returncode == 0
    assert not world.tray.track("event"), "two gates would keep the choice from it"
    assert world.ledger()["withdrawn"] == 4


def with_an_old_header(world: World) -> None:
    """Leave two generations, of 10 and of 5 messages, and the header of the first."""
    world.track(10)
    world.tray.close()
    gate = world.directory / "outbox-1.gate"
    old = gate.read_bytes()
    header_page(world.database())
    world.track(5)
    world.tray.close()
    gate.write_bytes(old)


def test_an_old_header_out_of_a_backup_does_not_begin_a_generation_anew(world: World) -> None:
    with_an_old_header(world)
    world.track(1)
    assert world.generation() == 1
    world.flush()
    assert world.received() == list(range(16))
    assert world.ledger().get("lost", 0) == 0


def test_an_old_header_beside_a_damaged_newer_file_deletes_nothing(world: World) -> None:
    with_an_old_header(world)
    header_page(world.database(1))
    world.track(1)
    assert world.generation() == 2
    world.flush()
    assert world.received() == list(range(16))
    assert world.ledger().get("lost", 0) == 0


def test_a_generation_that_was_never_complete_is_not_gone_on_with(world: World) -> None:
    world.track(10)
    world.tray.close()
    open_database(
        str(world.database(1)), FileLock(str(world.directory / "any.lock"))
    ).close()  # as a kill leaves it, before the header names it
    world.track(1)
    assert world.generation() == 0
    world.flush()
    assert world.received() == list(range(11))


def test_a_journal_of_a_generation_that_was_just_being_made_is_no_end_of_the_outbox(
    world: World, tmp_path: Path
) -> None:
    world.track(10)
    world.tray.close()
    header_page(world.database())
    made, copy = tmp_path / "made.db", tmp_path / "copy.db"
    with edited(made) as connection:
        connection.execute("CREATE TABLE made (something)")
        connection.execute("PRAGMA cache_size = 1")
        connection.execute("BEGIN")
        connection.execute("INSERT INTO made VALUES (zeroblob(100000))")
        other_process(
            "import shutil, sys; [shutil.copy(sys.argv[1] + e, sys.argv[2] + e) for e in ('', '-journal')]",
            str(made),
            str(copy),
        )
    copy.rename(world.database(1))  # as a kill leaves it: SQLite would roll it back, but not for who only reads
    Path(f"{copy}-journal").rename(f"{world.database(1)}-journal")
    world.track(1)
    world.flush()
    assert world.received() == list(range(11))


def test_what_comes_back_while_a_batch_is_on_its_way_is_not_passed_over(world: World) -> None:
    world.track(20)
    world.tray.close()
    header_page(world.database())
    world.track(5)
    batch = world.outbox.pending("zenml", after_id=0, max_count=500, max_bytes=MIB)
    assert batch is not None
    recovery.salvage(world.outbox)
    assert not world.outbox.settle(batch, status=200, seconds=0.1), "it would move the cursor over the other 20"
    world.flush()
    assert world.received() == list(range(25))


def test_a_salvaged_outbox_that_is_damaged_too_gives_its_messages_back_a_second_time(world: World) -> None:
    world.fill()
    world.tray.close()
    header_page(world.database())
    world.track(1)
    assert recovery.salvage(world.outbox) == WAITING + 3
    world.tray.close()
    header_page(world.database(1))
    world.track(1)
    world.flush()
    assert world.received() == list(range(SETTLED, SETTLED + WAITING + 2))
    assert not world.server.repeats
    assert world.states()[DEAD] == ("dead", "too odd")
    assert world.ledger().get("lost", 0) == 0


def test_what_was_purged_between_two_damages_does_not_come_back(world: World) -> None:
    world.fill()
    world.tray.close()
    header_page(world.database())
    world.track(1)
    recovery.salvage(world.outbox)
    assert upkeep.purge(world.outbox, state="deferred", before=time.time() + 1) == 1
    world.tray.close()
    header_page(world.database(1))
    world.track(1)
    recovery.salvage(world.outbox)
    states = world.states()
    assert DEFERRED not in states
    assert states[DEAD][0] == "dead"
    assert world.ledger().get("lost", 0) == 0


KILLED = """
import os, outtray
outtray.configure(app="hurt", flush="manual")
assert all([outtray.track("event", {"number": n}) for n in range(50)])
os.kill(os.getpid(), 9)
"""


@pytest.mark.parametrize("gate", ["sound", "empty"])
def test_who_looks_at_an_emptied_database_leaves_its_log_and_the_next_message_saves_it(
    gate: str, world: World, run_python: Run
) -> None:
    run_python("-c", KILLED)
    emptied(world.database())
    if gate == "empty":
        emptied(world.directory / "outbox-1.gate")
    log = world.directory / "outbox-1-0.db-wal"
    before = log.read_bytes()
    for command in ("status", "list", "doctor"):
        run_python("-m", "outtray", command, "--app", "hurt")
        assert log.read_bytes() == before, command
    world.numbers = 50
    world.track(1)
    world.flush()
    assert world.received() == list(range(51))


@pytest.mark.parametrize("next_message", ["none", "local"])
def test_flush_from_cron_brings_back_what_waits_in_a_damaged_file(
    next_message: str, world: World, run_python: Run
) -> None:
    world.track(5)
    world.tray.close()
    header_page(world.database())
    if next_message == "local":
        run_python("-c", "import outtray; outtray.Tray(app='hurt', flush='manual').track('x')", OUTTRAY_CONSENT="local")
    done = run_python("-m", "outtray", "flush", "--all", "--app", "hurt", OUTTRAY_URL=world.server.url)
    assert (done.returncode, done.stderr) == (0, "")
    assert world.received() == list(range(5))


def test_salvaging_twice_saves_nothing_twice(world: World) -> None:
    world.fill()
    world.tray.close()
    header_page(world.database())
    world.track(1)
    assert recovery.salvage(world.outbox) == WAITING + 3
    ledger = world.ledger()
    assert recovery.salvage(world.outbox) == 0
    with world.outbox.writing() as transaction:
        transaction.execute("DELETE FROM meta WHERE key = ?", (SALVAGED,))  # as if it had not come to its end
    assert recovery.salvage(world.outbox) == 0
    assert world.ledger()["salvaged"] == ledger["salvaged"]
    world.flush()
    assert not world.server.repeats


def test_what_was_salvaged_delivered_and_pruned_is_not_saved_again(world: World) -> None:
    world.track(30)
    world.tray.close()
    header_page(world.database())
    world.track(1)
    world.flush()
    upkeep.prune(world.outbox, retention=0)
    with world.outbox.writing() as transaction:
        transaction.execute("DELETE FROM meta WHERE key = ?", (SALVAGED,))
    assert recovery.salvage(world.outbox) == 0


@pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")
def test_a_salvage_that_is_killed_goes_on_where_it_was(
    world: World, environment: dict[str, str], tmp_path: Path, run_python: Run
) -> None:
    world.track(1600)
    world.tray.close()
    header_page(world.database())
    world.track(1)
    world.tray.close()
    world.server.set_mode("refuse")
    killed = 0
    for when in (3, 30, 120, 300, 500):
        command = ["strace", "-f", "-o", "/dev/null", "-e", "trace=pwrite64", "-e"]
        command += [f"inject=pwrite64:signal=KILL:when={when}", sys.executable, "-m", "outtray", "flush"]
        done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, timeout=120, check=False)
        killed += done.returncode == -signal.SIGKILL
    assert killed >= 3
    world.server.set_mode("ok")
    flushed = run_python("-m", "outtray", "flush", "--all")
    assert flushed.returncode == 0, flushed.stderr
    assert world.received() == list(range(1601))
    assert not world.server.repeats
    ledger = world.ledger()
    assert (ledger["salvaged"], ledger["file_damaged"], ledger.get("lost", 0)) == (1600, 1, 0)


APPEND_ON_DEMAND = """
import sys, outtray
outtray.configure(app="hurt", url=sys.argv[1], flush="manual")
for line in sys.stdin:
    print(outtray.track("event", {"number": int(line)}), flush=True)
"""


def test_another_process_with_the_old_file_open_moves_over_by_itself(world: World, environment: dict[str, str]) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", APPEND_ON_DEMAND, world.server.url],
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as other:
        assert other.stdin is not None
        assert other.stdout is not None

        def there() -> str:
            assert other.stdin is not None
            assert other.stdout is not None
            other.stdin.write(f"{world.numbers}\n")
            other.stdin.flush()
            world.numbers += 1
            return other.stdout.readline().strip()

        assert there() == "True"
        world.track(5)
        world.tray.close()
        other_process(TRASH, str(world.database()))
        world.track(1)
        before = world.database().stat()
        assert there() == "True"
        other.stdin.close()
        assert other.wait(60) == 0
    assert world.generation() == 1
    assert world.database().stat().st_ino == before.st_ino
    world.flush()
    received = world.received()
    assert received == list(range(8)), world.ledger()
    assert not world.server.repeats


def test_a_batch_of_the_old_generation_settles_nothing_in_the_new_one(world: World) -> None:
    world.track(10)
    batch = world.outbox.pending("zenml", after_id=0, max_count=10, max_bytes=MIB)
    assert batch is not None
    world.tray.close()
    header_page(world.database())
    world.track(1)
    assert world.generation() == 1
    assert not world.outbox.settle(batch, status=200, seconds=0.1)
    assert world.outbox.cursor("zenml").id == 0
    assert world.outbox.cursor("zenml").delivered == 0


def test_a_drainer_in_mid_request_during_the_switch_skips_nothing(
    world: World, environment: dict[str, str], tmp_path: Path
) -> None:
    world.track(10)
    world.tray.close()
    world.server.set_mode("ok", delay=2)
    drainer = subprocess.Popen(
        [sys.executable, "-m", "outtray", "flush"], env=environment, cwd=tmp_path, stderr=subprocess.PIPE, text=True
    )
    try:
        assert wait_until(lambda: world.server.requests)
        overwrite(world.database(), 0, b"trash " * 2000)  # this process has it closed
        world.track(1)
        world.server.set_mode("ok")
        _, errors = drainer.communicate(timeout=60)
        assert drainer.returncode == 0, errors
    finally:
        drainer.kill()
        drainer.wait()
        assert drainer.stderr is not None
        drainer.stderr.close()
    world.flush()
    assert world.received() == list(range(11))


# What the user had removed


SECRET = "very-private-word"


def text_left(directory: Path) -> list[str]:
    return [
        path.name for path in sorted(directory.rglob("*")) if path.is_file() and SECRET.encode() in path.read_bytes()
    ]


@pytest.mark.parametrize("is_salvaged", [False, True], ids=["before the salvage", "after the salvage"])
@pytest.mark.parametrize("command", ["withdraw", "forget", "purge"])
def test_what_is_erased_after_a_damage_leaves_no_text(command: str, is_salvaged: bool, world: World) -> None:
    world.track(20, text=SECRET)
    world.tray.close()
    header_page(world.database())
    world.track(1, text=SECRET)
    if is_salvaged:
        recovery.salvage(world.outbox)
    assert text_left(world.directory)
    if command == "withdraw":
        erasure.keep_choice(str(world.directory), "denied")
        erasure.withdraw(world.outbox)
    elif command == "forget":
        erasure.forget(world.outbox)
    else:
        upkeep.purge(world.outbox, state="pending", before=time.time() + 10)
    world.tray.close()
    assert text_left(world.directory) == []
    world.flush() if command != "withdraw" else world.tray.flush(5)
    assert world.received() == []


@pytest.mark.parametrize("command", [("forget", "--yes"), ("consent", "off")], ids=["forget", "consent"])
def test_what_is_erased_while_it_is_brought_back_does_not_come_back(
    command: tuple[str, ...], world: World, run_python: Run
) -> None:
    world.track(1200)
    world.tray.close()
    header_page(world.database())
    world.track(1)
    world.outbox.close()
    ends = []

    def erase() -> bool:
        if not ends:
            ends.append(run_python("-m", "outtray", *command, "--app", "hurt").returncode)
            ends.append(run_python("-m", "outtray", "consent", "on", "--app", "hurt").returncode)
        return True

    assert recovery.salvage(world.outbox, erase) == 500
    assert ends == [0, 0]
    world.flush()
    assert world.received() == []
    world.tray.close()
    assert all(b'"number"' not in path.read_bytes() for path in world.directory.iterdir() if path.suffix != ".reserve")


def test_files_that_were_salvaged_go_when_the_retention_is_over(world: World) -> None:
    world.tray = outtray.Tray(app="hurt", url=world.server.url, flush="manual", retention=0)
    world.track(5)
    world.tray.close()
    header_page(world.database())
    world.track(1)
    assert world.database().exists()
    world.flush()
    assert world.received() == list(range(6))
    assert [path.name for path in world.directory.glob("outbox-1-*.db")] == ["outbox-1-1.db"]


def test_files_that_were_salvaged_stay_until_the_retention_is_over(world: World) -> None:
    world.track(5)
    world.tray.close()
    header_page(world.database())
    world.track(1)
    world.flush()
    assert world.database().exists()


# Sizes


def test_a_message_of_a_megabyte_comes_back_whole(world: World) -> None:
    text = "0123456789abcdef" * 65_000
    world.track(1, text=text)
    world.track(2)
    world.tray.close()
    header_page(world.database())
    world.track(1)
    world.flush()
    assert world.received() == [0, 1, 2, 3]
    assert world.server.received[0]["properties"]["text"] == text


def test_twenty_thousand_waiting_messages_come_back_in_reasonable_time(world: World) -> None:
    outbox = world.outbox
    for number in range(20_000):
        body = json.dumps({"message_id": f"m{number}", "type": "track", "properties": {"number": number}})
        outbox.append(body, accepted_at=time.time())
    world.tray.close()
    header_page(world.database())
    world.track(1)
    started = time.monotonic()
    assert recovery.salvage(world.outbox) == 20_000
    assert time.monotonic() - started < 60
    assert world.ledger().get("lost", 0) == 0


# Where the disk is full


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 3 MiB."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=3m,mode=0700", "tmpfs", str(place)]
    if os.geteuid() or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("only root can mount a file system")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


def test_a_switch_on_a_full_disk_is_refused_and_done_when_there_is_room(small_disk: Path, server: FakeServer) -> None:
    tray = outtray.Tray(app="hurt", dir=str(small_disk), url=server.url, flush="manual")
    for number in range(20):
        assert tray.track("event", {"number": number})
    tray.close()
    database = Path(tray.settings.directory, "outbox-1-0.db")
    header_page(database)
    ballast = small_disk / "ballast"
    with ballast.open("wb", buffering=0) as file:
        while True:
            try:
                if not file.write(b"x" * 4096):
                    break
            except OSError:
                break
    assert not tray.track("event", {"number": 20})
    ballast.unlink()
    assert tray.track("event", {"number": 21})
    report = tray.flush(60)
    assert report.outcome == "drained", report
    assert [message["properties"]["number"] for message in server.received] == [*range(20), 21]
    found = tray.status()["ledger"]
    assert found["disk_full"] == 1
    assert (found["file_damaged"], found["salvaged"], found.get("lost", 0)) == (1, 20, 0)
    tray.close()


@pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")
def test_the_new_generation_is_synced_into_the_header_before_the_message_is_stored(
    world: World, environment: dict[str, str], tmp_path: Path
) -> None:
    world.track(3)
    world.tray.close()
    header_page(world.database())
    output = tmp_path / "trace"
    code = f'import outtray; outtray.configure(app="hurt", url={world.server.url!r}, flush="manual"); '
    command = ["strace", "-f", "-y", "-s", "40", "-o", str(output), "-e", "trace=fsync,fdatasync,pwrite64"]
    done = subprocess.run(
        [*command, sys.executable, "-c", code + 'assert outtray.track("event")'],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    lines = output.read_text().splitlines()
    gate_writes = [n for n, line in enumerate(lines) if "pwrite64(" in line and "outbox-1.gate>" in line]
    named = gate_writes[0]  # the first header that is written names the new generation
    synced = next(n for n, line in enumerate(lines) if n > named and "sync(" in line and "outbox-1.gate>" in line)
    assert not [line for line in lines[named:synced] if "pwrite64(" in line and "outbox-1-1.db-wal>" in line]


# What two accidents at once, or two programs at once, could hide


GATE_LOSSES: dict[str, Callable[[Path], None]] = {
    "deleted": deleted,
    "emptied": emptied,
    "a flipped bit": lambda path: overwrite(path, 20, bytes([path.read_bytes()[20] ^ 1])),
}


@pytest.mark.parametrize("loss", GATE_LOSSES)
def test_a_flipped_bit_in_the_log_loses_nothing_though_the_header_is_lost_too(loss: str, world: World) -> None:
    code = (
        "import os, outtray\n"
        f"tray = outtray.Tray(app='hurt', flush='manual', url={world.server.url!r})\n"
        "assert all([tray.track('event', {'number': number}) for number in range(300)])\n"
        "os.kill(os.getpid(), 9)"
    )
    subprocess.run([sys.executable, "-c", code], timeout=60, check=False)
    log = Path(f"{world.database()}-wal")
    place = log.stat().st_size // 3
    overwrite(log, place, bytes([log.read_bytes()[place] ^ 1]))
    GATE_LOSSES[loss](world.directory / "outbox-1.gate")
    world.numbers = 300
    world.track(1)
    world.flush()
    assert sorted(world.received()) == list(range(301))
    assert not world.server.repeats
    assert world.ledger()["salvaged"] > 100
    assert world.ledger()["lost"] == 0


def test_what_another_thread_brings_back_while_a_generation_begins_is_not_taken_off_the_lost(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.track(50)
    threads = []
    keep_wal = generation.keep_wal

    def slow(directory: str, lock: FileLock, number: int) -> str | None:
        kept = keep_wal(directory, lock, number)
        thread = threading.Thread(target=recovery.salvage, args=(world.outbox,))
        thread.start()  # it finds what was kept, and not yet that it belongs to a file that is left
        threads.append(thread)
        time.sleep(0.3)
        return kept

    monkeypatch.setattr(generation, "keep_wal", slow)
    other_process("import os, sys; os.unlink(sys.argv[1])", str(world.database()))
    world.track(1)
    for thread in threads:
        thread.join(20)
    assert len(threads) == 1
    monkeypatch.undo()
    world.flush()
    assert sorted(world.received()) == list(range(51))
    assert world.ledger() == {"file_damaged": 1, "salvaged": 50}


def test_a_message_that_lies_behind_its_place_is_not_passed_over(world: World) -> None:
    world.server.set_mode("refuse")
    world.track(14)
    with world.outbox.writing() as transaction:
        transaction.mark("zenml", 4, "retry")
        transaction.execute("UPDATE cursors SET id = 8, mirror = -8")
    world.outbox.empty_wal()
    world.tray.close()
    with edited(world.database()) as connection:
        (body,) = connection.execute("SELECT body FROM messages WHERE id = 9").fetchone()
    data = world.database().read_bytes()
    assert data.count(body.encode()) == 1
    start = data.index(body.encode())
    place = data.rindex(b"\x09\x06\x00\x07", 0, start)  # its id, before its columns' kinds
    overwrite(world.database(), place, b"\x0d")
    with edited(world.database()) as connection:
        rows = connection.execute("SELECT id FROM messages").fetchall()
    assert [id for (id,) in rows[8:]] == [13, 10, 11, 12, 13, 14]
    world.server.set_mode("ok")
    world.flush()
    assert set(world.received()) >= {3, *range(9, 14)}
    assert world.ledger().get("lost", 0) <= 1, "the ninth, if at all"
