"""The outbox by itself: append, pending, settle, size, retention, ledger, and what happens to its files."""

from __future__ import annotations

import errno
import os
import shutil
import sqlite3
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from outtray.errors import OutboxBusy, OutboxDamaged, OutboxFull, OutboxUnusable
from outtray.outbox import gate as gate_module
from outtray.outbox import look, shared, sql, upkeep
from outtray.outbox.filelock import FileLock
from outtray.outbox.gate import Gate, Header
from outtray.outbox.records import Batch, Mark
from outtray.outbox.store import Outbox

MIB = 1024 * 1024
BODY = '{"text": "' + "x" * 480 + '"}'


@pytest.fixture
def directory(tmp_path: Path) -> str:
    return str(tmp_path / "app")


@pytest.fixture
def outbox(directory: str) -> Outbox:
    return shared.at(directory, destination="zenml", max_bytes=64 * MIB)


def fill(outbox: Outbox, count: int, *, body: str = BODY, local: bool = False) -> list[int]:
    return [outbox.append(body, accepted_at=time.time(), local=local) for _ in range(count)]


def take(outbox: Outbox, count: int = 100) -> Batch:
    batch = outbox.pending("zenml", after_id=0, max_count=count, max_bytes=MIB)
    assert batch is not None
    return batch


def nothing_pending(outbox: Outbox) -> bool:
    return outbox.pending("zenml", after_id=0, max_count=1, max_bytes=MIB) is None


def counts(outbox: Outbox) -> dict[str, int]:
    with look.look(outbox.directory) as view:
        return dict(vars(view.counts("zenml")))


# Order and ids


def test_messages_come_out_in_the_order_in_which_they_went_in(outbox: Outbox) -> None:
    ids = fill(outbox, 250)
    out: list[int] = []
    while not nothing_pending(outbox):
        batch = take(outbox)
        out += [message.id for message in batch.messages]
        assert outbox.settle(batch, status=200, seconds=0.1)
    assert out == ids == list(range(1, 251))
    assert counts(outbox)["delivered"] == 250


def test_an_id_is_never_given_twice_whatever_was_deleted(outbox: Outbox) -> None:
    fill(outbox, 10)
    outbox.settle(take(outbox), status=200, seconds=0.1)
    assert upkeep.prune(outbox, retention=0) == 10
    outbox.close()
    assert fill(outbox, 1) == [11]
    assert counts(outbox)["pending"] == 1


def test_a_header_that_lags_is_caught_up(outbox: Outbox, directory: str) -> None:
    fill(outbox, 5)
    gate = Gate(os.path.join(directory, "outbox-1.gate"))
    gate.enter(sys._getframe())
    header = gate.read()
    assert header is not None
    header.last_id = 2  # as if its writers had died between the commit and the header
    gate.write(header)
    gate.leave(sys._getframe())
    gate.file.close()
    assert fill(outbox, 2) == [6, 7]


@pytest.mark.parametrize("damage", [b"", b"x" * 44, b"short"])
def test_a_damaged_header_is_rebuilt_from_the_database(outbox: Outbox, directory: str, damage: bytes) -> None:
    fill(outbox, 5)
    Path(directory, "outbox-1.gate").write_bytes(damage)
    assert fill(outbox, 2) == [6, 7]
    assert len(take(outbox).messages) == 7


def test_rows_that_are_missing_are_counted_once(outbox: Outbox, directory: str) -> None:
    fill(outbox, 5)
    outbox.close()
    with sqlite3.connect(os.path.join(directory, "outbox-1-0.db")) as connection:
        connection.execute("DELETE FROM messages WHERE id > 3")
    connection.close()
    for _ in range(2):
        assert fill(outbox, 1)[0] >= 6
        outbox.close()
    with look.look(directory) as view:
        assert view.ledger() == {"lost": 2}


# Settling


def test_a_batch_is_bounded_by_bytes_but_never_empty(outbox: Outbox) -> None:
    fill(outbox, 3, body='"' + "x" * 1000 + '"')
    batch = outbox.pending("zenml", after_id=0, max_count=10, max_bytes=2100)
    assert batch is not None
    assert len(batch.messages) == 2
    batch = outbox.pending("zenml", after_id=0, max_count=10, max_bytes=10)
    assert batch is not None
    assert len(batch.messages) == 1
    for max_bytes, count in ((3008, 2), (3009, 3), (1 << 40, 3)):
        batch = outbox.pending("zenml", after_id=0, max_count=10, max_bytes=max_bytes)
        assert batch is not None
        assert len(batch.ids) == count
    assert batch.bytes == 3009


def test_a_settle_from_before_a_purge_is_dropped(outbox: Outbox) -> None:
    fill(outbox, 10)
    batch = take(outbox)
    assert upkeep.purge(outbox, state="pending", before=float("inf")) == 10
    fill(outbox, 5)
    assert not outbox.settle(batch, status=200, seconds=0.1)
    assert counts(outbox)["pending"] == 5
    assert counts(outbox)["delivered"] == 0


def test_a_settle_from_before_the_directory_was_deleted_is_dropped(outbox: Outbox, directory: str) -> None:
    fill(outbox, 10)
    batch = take(outbox)
    shutil.rmtree(directory)
    fill(outbox, 4)
    assert not outbox.settle(batch, status=200, seconds=0.1)
    assert [message.id for message in take(outbox).messages] == [1, 2, 3, 4]


def test_a_dead_message_is_passed_and_comes_back_with_retry(outbox: Outbox) -> None:
    fill(outbox, 3)
    batch = take(outbox)
    assert outbox.settle(batch, [Mark(batch.messages[1], "dead", status=400, reason="400 no")], status=200, seconds=0.1)
    assert counts(outbox) == {"pending": 0, "deferred": 0, "delivered": 2, "dead": 1, "local": 0}
    assert upkeep.retry(outbox, "zenml", reason="nothing like it") == 0
    assert upkeep.retry(outbox, "zenml", reason="400") == 1
    assert counts(outbox)["pending"] == 1
    batch = take(outbox)
    assert ([message.id for message in batch.messages], batch.messages[0].attempts) == ([2], 1)
    assert outbox.settle(batch, status=200, seconds=0.1)
    assert counts(outbox) == {"pending": 0, "deferred": 0, "delivered": 3, "dead": 0, "local": 0}


def test_a_deferred_message_waits_for_its_own_time(outbox: Outbox) -> None:
    fill(outbox, 2)
    batch = take(outbox)
    later = Mark(batch.messages[0], "deferred", next_attempt_at=time.time() + 3600, reason="later")
    assert outbox.settle(batch, [later], status=200, seconds=0.1)
    assert counts(outbox)["deferred"] == 1
    assert nothing_pending(outbox)
    due = Mark(batch.messages[0], "deferred", next_attempt_at=time.time() - 1, reason="now")
    fill(outbox, 1)
    assert outbox.settle(take(outbox), [due], status=200, seconds=0.1)
    assert [message.id for message in take(outbox).messages] == [1]


def test_a_message_delivered_ahead_of_the_others_is_not_sent_again(outbox: Outbox) -> None:
    fill(outbox, 5)
    newest = outbox.newest("zenml", after_id=0)
    assert newest is not None
    assert outbox.settle(newest, status=200, seconds=0.1)
    assert counts(outbox) == {"pending": 4, "deferred": 0, "delivered": 1, "dead": 0, "local": 0}
    batch = take(outbox)
    assert [message.id for message in batch.messages] == [1, 2, 3, 4]
    assert outbox.settle(batch, status=200, seconds=0.1)
    assert counts(outbox) == {"pending": 0, "deferred": 0, "delivered": 5, "dead": 0, "local": 0}


def test_a_local_message_is_recorded_and_never_due(outbox: Outbox) -> None:
    fill(outbox, 2, local=True)
    fill(outbox, 1)
    assert [message.id for message in take(outbox).messages] == [3]
    assert counts(outbox) == {"pending": 1, "deferred": 0, "delivered": 0, "dead": 0, "local": 2}
    outbox.settle(take(outbox), status=200, seconds=0.1)
    assert nothing_pending(outbox)


def test_messages_that_are_read_as_one_are_what_each_of_them_is(outbox: Outbox) -> None:
    bodies = ["{}", '{"text": "é, ☃"}', '["][", ","]', BODY, "\n\0,", BODY]
    for body in bodies:
        fill(outbox, 1, body=body)
    for count in (6, 5, 2, 1):
        batch = take(outbox, count)
        assert batch.array == f"[{','.join(bodies[:count])}]".encode()
        assert [message.body.decode() for message in batch.messages] == bodies[:count]
        assert [message.id for message in batch.messages] == list(batch.ids) == list(range(1, count + 1))
        assert batch.bytes == sum(len(body.encode()) + 1 for body in bodies[:count])
        assert not batch.unfit


def test_a_message_that_is_tried_again_goes_before_those_that_could_be_read_as_one(outbox: Outbox) -> None:
    fill(outbox, 3)
    batch = take(outbox)
    assert outbox.settle(batch, [Mark(batch.messages[1], "dead", status=400, reason="400 no")], status=200, seconds=0.1)
    assert upkeep.retry(outbox, "zenml") == 1
    fill(outbox, 5)
    assert list(take(outbox).ids) == [2]
    assert outbox.settle(take(outbox), status=200, seconds=0.1)
    assert list(take(outbox).ids) == [4, 5, 6, 7, 8]


def test_a_damaged_cursor_passes_no_message_over_although_those_behind_it_are_sound(outbox: Outbox) -> None:
    fill(outbox, 10)
    with outbox.writing() as transaction:
        transaction.execute("UPDATE cursors SET id = 4")
    with pytest.raises(OutboxDamaged, match="the cursor says 4"):
        take(outbox)


@pytest.mark.parametrize("id", [1, 3, 5])
@pytest.mark.parametrize(
    ("change", "is_damage"),
    [
        ("body = replace(body, 'xx', 'xy')", True),
        ("body = body || ' '", True),
        ("body = 7", True),
        ("crc = crc + 1", True),
        ("crc = 'x'", True),
        ("crc = 9223372036854775807", True),
        ("body = CAST(body AS BLOB)", False),
    ],
)
def test_a_damaged_message_is_found_among_those_that_are_read_as_one(
    outbox: Outbox, id: int, change: str, is_damage: bool
) -> None:
    fill(outbox, 5)
    with outbox.writing() as transaction:
        transaction.execute(f"UPDATE messages SET {change} WHERE id = ?", (id,))
    assert [message.id for message in take(outbox).unfit] == ([id] if is_damage else [])


def test_two_damaged_messages_do_not_make_up_for_one_another(outbox: Outbox) -> None:
    fill(outbox, 5)
    with outbox.writing() as transaction:
        crcs = transaction.execute("SELECT crc FROM messages WHERE id IN (2, 3) ORDER BY id").fetchall()
        for id, (crc,) in zip((3, 2), crcs, strict=True):
            transaction.execute("UPDATE messages SET crc = ? WHERE id = ?", (crc, id))
    assert [message.id for message in take(outbox).unfit] == [2, 3]


def test_a_local_message_is_found_among_those_that_are_read_as_one(outbox: Outbox) -> None:
    fill(outbox, 2)
    fill(outbox, 2, local=True)
    with outbox.writing() as transaction:
        transaction.execute("DELETE FROM exceptions")
    assert [(message.id, message.local) for message in take(outbox).unfit] == [(3, True), (4, True)]


def test_a_message_whose_checksum_does_not_hold_is_not_intact(outbox: Outbox, directory: str) -> None:
    fill(outbox, 2)
    outbox.close()
    with sqlite3.connect(os.path.join(directory, "outbox-1-0.db")) as connection:
        connection.execute("UPDATE messages SET body = replace(body, 'x', 'y') WHERE id = 1")
    connection.close()
    assert [message.intact for message in take(outbox).messages] == [False, True]


def test_the_view_shows_each_message_with_its_state(outbox: Outbox, directory: str) -> None:
    fill(outbox, 1, local=True)
    fill(outbox, 3)
    batch = take(outbox, 2)
    outbox.settle(batch, [Mark(batch.messages[0], "dead", reason="no")], status=200, seconds=0.1)
    outbox.close()
    connection = sqlite3.connect(os.path.join(directory, "outbox-1-0.db"))
    rows = connection.execute("SELECT id, destination, state FROM message_states ORDER BY id").fetchall()
    connection.close()
    assert rows == [(1, "zenml", "local"), (2, "zenml", "dead"), (3, "zenml", "delivered"), (4, "zenml", "pending")]


# Size and retention


def test_delivered_messages_go_first_and_then_the_newest_is_refused(directory: str) -> None:
    outbox = shared.at(directory, destination="zenml", max_bytes=600_000)
    fill(outbox, 200)
    outbox.settle(take(outbox, 200), status=200, seconds=0.1)
    with pytest.raises(OutboxFull, match="max_bytes=600000"):
        fill(outbox, 10_000)
    with look.look(directory) as view:
        pending = view.counts("zenml").pending
        assert view.find("1") == []
    assert pending > 400
    assert os.path.getsize(os.path.join(directory, "outbox-1-0.db")) < 1_500_000
    batch = take(outbox, 100)
    assert batch.messages[0].id == 201  # nothing that waits was removed
    outbox.settle(batch, status=200, seconds=0.1)
    assert fill(outbox, 1)  # what was delivered makes room


def test_retention_counts_from_the_delivery(outbox: Outbox) -> None:
    outbox.append(BODY, accepted_at=time.time() - 30 * 86_400)
    outbox.settle(take(outbox), status=200, seconds=0.1)
    assert upkeep.prune(outbox, retention=7 * 86_400) == 0
    assert upkeep.prune(outbox, retention=0) == 1


def test_delivered_messages_keep_to_an_eighth_of_the_bound(directory: str) -> None:
    outbox = shared.at(directory, destination="zenml", max_bytes=8 * 100_000)
    fill(outbox, 700)
    while not nothing_pending(outbox):
        outbox.settle(take(outbox, 50), status=200, seconds=0.1)
    removed = upkeep.prune(outbox, retention=7 * 86_400)
    assert 400 < removed < 600
    assert counts(outbox)["delivered"] == 700


@pytest.mark.parametrize("state", upkeep.STATES)
def test_purge_removes_one_state_and_no_other(state: str, outbox: Outbox) -> None:
    fill(outbox, 2, local=True)
    fill(outbox, 6)
    batch = take(outbox, 4)
    marks = [
        Mark(batch.messages[0], "dead", reason="no"),
        Mark(batch.messages[1], "deferred", next_attempt_at=time.time() + 99, reason="later"),
    ]
    outbox.settle(batch, marks, status=200, seconds=0.1)
    before = counts(outbox)
    assert before == {"pending": 2, "deferred": 1, "delivered": 2, "dead": 1, "local": 2}
    assert upkeep.purge(outbox, state=state, before=0.0) == 0
    assert upkeep.purge(outbox, state=state, before=float("inf")) == before[state]
    after = counts(outbox)
    gone = {state: 0} if state != "delivered" else {}  # delivered is the lifetime's count
    assert after == {**before, **gone}
    with look.look(outbox.directory) as view:
        assert not view.page(state=state)
        assert view.ledger() == ({"purged": before[state]} if state != "delivered" else {})


@pytest.mark.parametrize("state", upkeep.STATES)
def test_no_message_changes_its_state_between_the_look_of_a_purge_and_its_end(state: str, outbox: Outbox) -> None:
    test_purge_removes_one_state_and_no_other("dead", outbox)  # so that there are some of the others
    gate = FileLock(outbox._gate.file.path)
    gate.open(create=False)
    is_free = []

    def trace(statement: str) -> None:
        if "DISTINCT m.id" in statement or "FROM message_states" in statement:
            is_free.append(gate.try_acquire())

    with outbox.reading() as connection:
        connection.set_trace_callback(trace)
    upkeep.purge(outbox, state=state, before=float("inf"))
    gate.close()
    assert is_free
    assert not any(is_free)


def test_a_purge_of_the_undelivered_leaves_no_byte_of_the_text(outbox: Outbox, directory: str) -> None:
    for number in range(300):
        outbox.append(f'{{"secret": "tulip-{number}-{"z" * 3000}"}}', accepted_at=1.0)
    assert upkeep.purge(outbox, state="pending", before=float("inf")) == 300
    for path in Path(directory).iterdir():
        assert b"tulip" not in path.read_bytes(), path.name


def test_a_message_is_accepted_though_the_header_behind_it_cannot_be_written(
    outbox: Outbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(outbox, 2)

    def fail(self: FileLock, data: bytes) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as patched:
        patched.setattr(FileLock, "write", fail)
        assert outbox.append("{}", accepted_at=1.0) == 3
    assert outbox.append("{}", accepted_at=1.0) == 4
    assert counts(outbox)["pending"] == 4


@pytest.mark.parametrize("is_coarse", [False, True], ids=["milliseconds", "whole seconds"])
def test_a_file_that_is_replaced_within_a_tick_of_the_clock_is_noticed(
    is_coarse: bool, outbox: Outbox, directory: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(outbox, 1)
    real, moment = os.stat(directory), time.time() - (1.5 if is_coarse else 0.0)
    nanoseconds = int(moment) * 10**9 if is_coarse else int(moment * 10**9) | 1
    now = SimpleNamespace(st_mtime=moment, st_ctime=moment, st_mtime_ns=nanoseconds, st_ctime_ns=nanoseconds)
    now.st_dev, now.st_ino = real.st_dev, real.st_ino
    stat = os.stat
    monkeypatch.setattr(
        os, "stat", lambda path, **more: now if path == directory else stat(path, **more)
    )  # it never seems to change
    fill(outbox, 1)
    code = "import os, shutil, sys; shutil.copy(sys.argv[1], sys.argv[2]); os.replace(sys.argv[2], sys.argv[1])"
    database = str(Path(directory, "outbox-1-0.db"))
    subprocess.run([sys.executable, "-c", code, database, f"{database}.copy"], check=True, timeout=60)
    openings = outbox.openings
    fill(outbox, 1)
    assert outbox.openings > openings


# The ledger


def test_what_could_not_be_counted_is_counted_with_the_next_write(outbox: Outbox, directory: str) -> None:
    outbox.count("busy", 3)  # there is no directory yet
    assert not os.path.exists(directory)
    fill(outbox, 1)
    outbox.count("too_large")
    outbox.close()
    with look.look(directory) as view:
        assert view.ledger() == {"busy": 3, "too_large": 1}


# Files


def test_files_are_private_whatever_the_umask(directory: str) -> None:
    before = os.umask(0o777)
    try:
        outbox = shared.at(directory, destination="zenml", max_bytes=MIB)
        fill(outbox, 1)
    finally:
        os.umask(before)
    assert stat.S_IMODE(os.stat(directory).st_mode) == 0o700
    names = {path.name: stat.S_IMODE(path.stat().st_mode) for path in Path(directory).iterdir()}
    assert set(names.values()) == {0o600}, names
    assert {"outbox-1-0.db", "outbox-1.gate"} <= set(names)


@pytest.mark.parametrize("what", ["directory", "database", "renamed directory"])
def test_a_message_never_goes_into_a_deleted_file(what: str, outbox: Outbox, directory: str) -> None:
    fill(outbox, 5)
    if what == "directory":
        shutil.rmtree(directory)
    elif what == "database":
        for suffix in ("", "-wal", "-shm"):
            os.unlink(os.path.join(directory, f"outbox-1-0.db{suffix}"))
    else:
        os.rename(directory, directory + "-elsewhere")
    outbox.append('{"message_id": "after"}', accepted_at=1.0)
    outbox.close()
    with look.look(directory) as view:
        assert [message.message_id for message in view.page()] == ["after"]


def test_a_message_goes_into_the_outbox_that_another_program_put_in_its_place(
    outbox: Outbox, directory: str, environment: dict[str, str]
) -> None:
    fill(outbox, 5)
    shutil.rmtree(directory)
    code = (
        "import sys; from outtray.outbox.shared import at\n"
        "outbox = at(sys.argv[1], destination='zenml', max_bytes=1 << 26)\n"
        """outbox.append('{"message_id": "theirs"}', accepted_at=1.0)"""
    )
    subprocess.run([sys.executable, "-c", code, directory], env=environment, check=True)
    outbox.append('{"message_id": "ours"}', accepted_at=1.0)
    outbox.close()
    with look.look(directory) as view:
        assert [message.message_id for message in view.page()] == ["ours", "theirs"]


def test_a_foreign_sqlite_file_is_left_as_it_is(outbox: Outbox, directory: str) -> None:
    os.makedirs(directory)
    path = os.path.join(directory, "outbox-1-0.db")
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE mine (x)")
    connection.close()
    before = Path(path).read_bytes()
    assert fill(outbox, 1) == [2**40 + 1], "in a file of its own"
    assert Path(path).read_bytes() == before


@pytest.mark.parametrize("place", ["a file", "below a file"])
def test_a_directory_that_cannot_be_is_a_clear_error(place: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    path = tmp_path / "file" if place == "a file" else tmp_path / "file" / "app"
    with pytest.raises(OutboxUnusable, match="cannot be used"):
        fill(shared.at(str(path), destination="zenml", max_bytes=MIB), 1)
    assert (tmp_path / "file").read_text() == "mine"


def test_an_sqlite_without_json_functions_is_a_clear_error_and_no_damage(
    outbox: Outbox, directory: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(outbox, 1)
    outbox.close()
    with monkeypatch.context() as patched:
        patched.setattr(sql, "USE_JSON", "SELECT no_json_valid('{}')")
        with pytest.raises(OutboxUnusable, match="built without the JSON functions"):
            fill(outbox, 1)
        with pytest.raises(OutboxUnusable, match="built without the JSON functions") as refused, look.look(directory):
            pass
        assert not isinstance(refused.value, OutboxDamaged)
        other = shared.at(f"{directory}-new", destination="zenml", max_bytes=MIB)
        with pytest.raises(OutboxUnusable, match="built without the JSON functions"):
            fill(other, 1)
    assert fill(outbox, 1) == [2], "in the same file"
    assert fill(other, 1) == [1]


def test_a_file_that_was_never_finished_is_finished_by_the_next_opener(outbox: Outbox, directory: str) -> None:
    os.makedirs(directory)
    Path(directory, "outbox-1-0.db").touch()
    assert fill(outbox, 1) == [1]


def test_looking_leaves_no_trace(outbox: Outbox, directory: str) -> None:
    fill(outbox, 5)
    outbox.close()
    before = {path.name: (path.stat().st_mtime_ns, path.read_bytes()) for path in Path(directory).iterdir()}
    with look.look(directory) as view:
        assert view.counts("zenml").pending == 5
    assert before == {path.name: (path.stat().st_mtime_ns, path.read_bytes()) for path in Path(directory).iterdir()}


def test_an_outside_shell_does_not_lose_the_messages(outbox: Outbox, directory: str) -> None:
    path = os.path.join(directory, "outbox-1-0.db")
    for _ in range(20):
        fill(outbox, 5)
        code = f"import sqlite3; sqlite3.connect({path!r}).execute('SELECT count(*) FROM messages').fetchone()"
        subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
    outbox.close()
    assert len(take(outbox, 200).messages) == 100


# The gate


def test_a_held_gate_costs_one_deadline_and_then_nothing(
    outbox: Outbox, directory: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(outbox, 1)
    code = (
        "import fcntl, os, sys, time; fd = os.open(sys.argv[1], os.O_RDWR); fcntl.flock(fd, fcntl.LOCK_EX);"
        "print('held', flush=True); time.sleep(60)"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", code, os.path.join(directory, "outbox-1.gate")], stdout=subprocess.PIPE
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == b"held\n"
    began = time.monotonic()
    with pytest.raises(OutboxBusy, match="nothing was stored"):
        fill(outbox, 1)
    assert time.monotonic() - began >= gate_module.DEADLINE * 0.9
    began = time.monotonic()
    for _ in range(20):
        with pytest.raises(OutboxBusy):
            fill(outbox, 1)
    assert time.monotonic() - began < gate_module.DEADLINE
    holder.kill()
    holder.wait()
    holder.stdout.close()
    assert fill(outbox, 1) == [2]  # the kernel has let go


def test_an_append_inside_an_append_of_the_same_thread_is_refused_and_does_not_hang(outbox: Outbox) -> None:
    fill(outbox, 1)
    with outbox.writing(), pytest.raises(OutboxBusy, match="inside another call"):
        fill(outbox, 1)
    assert fill(outbox, 1) == [2]


def test_threads_append_side_by_side(outbox: Outbox) -> None:
    def work() -> None:
        for _ in range(200):
            outbox.append(BODY, accepted_at=1.0)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert counts(outbox)["pending"] == 1600
    assert outbox.last_id == 1600


def test_processes_append_side_by_side(directory: str, environment: dict[str, str]) -> None:
    code = (
        "import sys; from outtray.outbox import shared\n"
        "o = shared.at(sys.argv[1], destination='zenml', max_bytes=1 << 26)\n"
        "for n in range(300): o.append(f'[{sys.argv[2]}, {n}]', accepted_at=1.0)\n"
    )
    running = [
        subprocess.Popen([sys.executable, "-c", code, directory, str(number)], env=environment) for number in range(6)
    ]
    assert [process.wait(60) for process in running] == [0] * 6
    with look.look(directory) as view:
        page = view.page(limit=5000)
        assert view.last_id == 1800
    assert [message.id for message in page] == list(range(1800, 0, -1))
    for number in range(6):
        own = [message.body for message in reversed(page) if message.body.startswith(f"[{number},")]
        assert own == [f"[{number}, {n}]" for n in range(300)]


def test_the_header_survives_every_single_flipped_bit() -> None:
    header = Header(generation=3, epoch=2**40, last_id=2**60, settled_id=2**59, pid=77, flags=5)
    data = header.to_bytes()
    read = Header.from_bytes(data)
    assert read is not None
    assert (read.generation, read.epoch, read.last_id, read.pid, read.flags) == (3, 2**40, 2**60, 77, 5)
    for position in range(len(data)):
        for bit in range(8):
            flipped = bytearray(data)
            flipped[position] ^= 1 << bit
            assert Header.from_bytes(bytes(flipped)) is None, (position, bit)


def test_the_wal_stays_small_under_steady_load(outbox: Outbox, directory: str) -> None:
    largest = 0
    for _ in range(60):
        fill(outbox, 100)
        largest = max(largest, os.path.getsize(os.path.join(directory, "outbox-1-0.db-wal")))
    assert largest < 8 * MIB


def store_and_leave_it_open(directory: str) -> None:
    """Have a program store a message and end like one that is killed."""
    code = (
        "import os, sys\nfrom outtray.outbox import shared\n"
        "shared.at(sys.argv[1], destination='zenml', max_bytes=1 << 26).append('{}', accepted_at=1.0)\n"
        "os._exit(9)"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent / "src")}
    subprocess.run([sys.executable, "-c", code, directory], env=environment, check=False)


def test_the_first_opener_after_an_unclean_restart_counts_that_something_may_be_missing(
    outbox: Outbox, directory: str
) -> None:
    store_and_leave_it_open(directory)
    gate = Path(directory, "outbox-1.gate")
    header = Header.from_bytes(gate.read_bytes())
    assert header is not None
    header.boot ^= 1  # as another start of the system would have written it
    gate.write_bytes(header.to_bytes())
    for _ in range(2):
        assert fill(outbox, 1)
        outbox.close()
    with look.look(directory) as view:
        assert view.ledger() == ({"unclean_restart": 1} if sys.platform == "linux" else {})


@pytest.mark.parametrize("is_left_open", [True, False])
def test_a_header_that_is_gone_counts_as_an_unclean_restart_where_somebody_had_the_file_open(
    outbox: Outbox, directory: str, is_left_open: bool
) -> None:
    if is_left_open:
        store_and_leave_it_open(directory)
    else:
        fill(outbox, 1)
        outbox.close()
    Path(directory, "outbox-1.gate").unlink()
    for _ in range(2):
        assert fill(outbox, 1)
        outbox.close()
    with look.look(directory) as view:
        is_counted = is_left_open and sys.platform == "linux"
        assert view.ledger() == ({"unclean_restart": 1} if is_counted else {})
