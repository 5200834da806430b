"""Reading records out of the bytes of SQLite's files: all of sound ones, and what is left of damaged ones."""

from __future__ import annotations

import os
import random
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import time
import tracemalloc
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from outtray.outbox import pages, shared
from outtray.outbox.pages import Record, records
from outtray.outbox.records import Mark, checksum
from outtray.outbox.store import Outbox

MIB = 1024 * 1024
PAGE_SIZES = (512, 1024, 4096, 8192, 65536)

KILLED = """
import os, sys
from outtray.outbox import shared
outbox = shared.at(sys.argv[1], destination="zenml", max_bytes=2**30)
for number in range(int(sys.argv[2])):
    outbox.append(f"{number}:" + "x" * int(sys.argv[3]), accepted_at=1.5)
os._exit(9)
"""


def sizes() -> list[int]:
    """Around every bound at which a record stays in its page or spills, and far beyond."""
    return [1, 2, 60, 126, 127, 128, 400, 440, 470, 3950, 4060, 4061, 4062, 8200, 65500, 66000, MIB]


def body_of(size: int) -> str:
    text = ("ä€😀" + f"{size} letters ") * (size // 10 + 1)
    return text.encode()[:size].decode("utf-8", "ignore") or "x"


@contextmanager
def left_open(directory: Path) -> Iterator[tuple[Outbox, Path]]:
    """An outbox as a killed process leaves it, once `copied` is called: with its WAL."""
    outbox = shared.at(str(directory), destination="zenml", max_bytes=2**30)
    yield outbox, directory / "outbox-1-0.db"
    outbox.close()


def copied(database: Path, place: Path) -> tuple[str, str]:
    """Copy the files in another process: this one must not open them beside SQLite."""
    place.mkdir()
    names = [str(database), f"{database}-wal"]
    subprocess.run(["cp", *[name for name in names if os.path.exists(name)], str(place)], check=True, timeout=60)
    return str(place / database.name), str(place / f"{database.name}-wal")


def messages(found: Iterator[Record]) -> dict[int, tuple[object, ...]]:
    """The columns by id of what has the shape of a message and its checksum."""
    return {
        each.rowid: each.values[1:]
        for each in found
        if each.rowid is not None and len(each.values) == 4 and is_intact(each)
    }


def is_intact(record: Record) -> bool:
    body = record.values[3]
    return isinstance(body, bytes) and checksum(record.rowid or 0, body) == record.values[2]


def row(id: int, accepted_at: float, body: str) -> tuple[object, ...]:
    data = body.encode()
    return accepted_at, checksum(id, data), data


# Sound files of the outbox


def test_every_message_is_found_in_the_database_file_and_in_the_wal(tmp_path: Path) -> None:
    expected = {}
    with left_open(tmp_path / "app") as (outbox, database):
        for number, size in enumerate([*sizes(), *reversed(sizes())]):
            accepted_at, body = 1.7e9 + number + 0.25, body_of(size)
            id = outbox.append(body, accepted_at=accepted_at)
            expected[id] = row(id, accepted_at, body)
            if number == len(sizes()):
                outbox.empty_wal()
        database_path, wal_path = copied(database, tmp_path / "copy")
    both = messages(records(database_path, wal_path))
    in_database = messages(records(database_path, None))
    in_wal = messages(records(None, wal_path))
    assert both == expected
    assert len(in_database) == len(sizes()) + 1
    assert in_database | in_wal == expected
    assert set(expected) - set(in_database) <= set(in_wal)


def test_every_message_is_found_when_there_is_no_wal(tmp_path: Path) -> None:
    expected = {}
    with left_open(tmp_path / "app") as (outbox, database):
        for number, size in enumerate(sizes() * 3):
            accepted_at, body = 1.7e9 + number, body_of(size)
            id = outbox.append(body, accepted_at=accepted_at)
            expected[id] = row(id, accepted_at, body)
    assert not os.path.exists(f"{database}-wal")
    assert messages(records(str(database), None)) == expected


def test_tables_without_rowids_are_read_too(tmp_path: Path) -> None:
    with left_open(tmp_path / "app") as (outbox, database):
        for number in range(3):
            outbox.append("{}", accepted_at=1.5, local=number == 2)
        batch = outbox.pending("zenml", after_id=0, max_count=2, max_bytes=MIB)
        assert batch is not None
        dead = Mark(batch.messages[0], "dead", status=400, reason="400 Bad Request", excerpt="x" * 3000)
        outbox.settle(batch, [dead], status=200, seconds=0.1)
        outbox.set_meta("key", "value " * 2000)
        outbox.count("full", 3)
        database_path, wal_path = copied(database, tmp_path / "copy")
    found = {each.values for each in records(database_path, wal_path) if each.rowid is None}
    assert any(values[:3] == (b"zenml", 3, 1) for values in found)  # the cursor
    assert (b"zenml", 1, b"dead", 0, 1, 400, b"400 Bad Request", b"x" * 3000) in found
    assert (b"zenml", 3, b"local", 0, 0, None, None, None) in found
    assert (b"key", b"value " * 2000) in found
    assert (b"full", 3) in found


def test_what_a_killed_process_left_in_the_wal_is_read(tmp_path: Path) -> None:
    program = [sys.executable, "-c", KILLED, str(tmp_path / "app"), "40", "3000"]
    environment = {**os.environ, "PYTHONPATH": str(Path(pages.__file__).parents[2])}
    assert subprocess.run(program, env=environment, timeout=60, check=False).returncode == 9
    database = str(tmp_path / "app" / "outbox-1-0.db")
    assert messages(records(database, None)) == {}
    assert len(messages(records(database, f"{database}-wal"))) == 40


# Sound files of SQLite's, of other shapes


@pytest.mark.parametrize("page_size", PAGE_SIZES)
def test_all_kinds_of_values_come_back_from_pages_of_every_size(tmp_path: Path, page_size: int) -> None:
    integers = [0, 1, -1, *(sign * (2**bits + add) for bits in (7, 15, 23, 31, 47, 62) for sign in (1, -1)
                            for add in (-1, 0, 1)), 2**63 - 1, -(2**63)]  # fmt: skip
    others = [None, 0.5, -1e300, float("inf"), "", "text", "ü" * 700, b"", b"\0\xff" * 3000, "x" * 200_000, 7.0]
    ids = [1, 2, 127, 128, 16_384, 2**40, 2**62, 2**63 - 1, -1, -(2**63)]
    rows = [(integers[n % len(integers)], others[n % len(others)]) for n in range(150)]
    path = tmp_path / "x.db"
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute(f"PRAGMA page_size = {page_size}")
        connection.execute("CREATE TABLE t (id INTEGER PRIMARY KEY, i INTEGER, v)")
        connection.execute("CREATE TABLE w (i INTEGER, v, n INTEGER PRIMARY KEY) WITHOUT ROWID")
        for n, values in enumerate(rows):
            connection.execute("INSERT INTO t VALUES (?, ?, ?)", (ids[n] if n < len(ids) else n + 1000, *values))
            connection.execute("INSERT INTO w VALUES (?, ?, ?)", (*values, n))
        in_t = connection.execute("SELECT id, i, v FROM t").fetchall()
    found = list(records(str(path), None))
    as_bytes = [(i, v.encode() if isinstance(v, str) else v) for i, v in rows]
    found_t = {each.rowid: each.values for each in found if each.rowid is not None and len(each.values) == 3}
    assert found_t == {id: (None, i, v.encode() if isinstance(v, str) else v) for id, i, v in in_t}
    found_w = {each.values[0]: each.values[1:] for each in found if each.rowid is None}
    assert found_w == dict(enumerate(as_bytes))


def test_an_overflow_page_that_was_used_again_does_not_hide_the_older_record(tmp_path: Path) -> None:
    path = tmp_path / "x.db"
    old, new = b"o" * 50_000, b"n" * 50_000
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("CREATE TABLE t (id INTEGER PRIMARY KEY, v)")
        connection.execute("INSERT INTO t VALUES (1, ?)", (old,))
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        connection.execute("DELETE FROM t")
        connection.execute("INSERT INTO t VALUES (2, ?)", (new,))
        connection.execute("DELETE FROM t")
        connection.execute("INSERT INTO t VALUES (3, ?)", (old[::-1] + b"!",))
        database_path, wal_path = copied(path, tmp_path / "copy")
    found = {(each.rowid, each.values[1]) for each in records(database_path, wal_path) if len(each.values) == 2}
    assert {(1, old), (2, new), (3, old[::-1] + b"!")} <= found


def test_the_bytes_that_another_build_keeps_free_in_each_page_are_heeded(tmp_path: Path) -> None:
    path = tmp_path / "x.db"
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("CREATE TABLE t (id INTEGER PRIMARY KEY, v)")
        connection.execute("DROP TABLE t")
    data = bytearray(path.read_bytes())
    data[20] = 12  # there is no SQL for it
    path.write_bytes(data)
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("VACUUM")
        connection.execute("CREATE TABLE t (id INTEGER PRIMARY KEY, v)")
        rows = {n: body_of(size).encode() for n, size in enumerate(sizes())}
        connection.executemany("INSERT INTO t VALUES (?, ?)", rows.items())
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    assert path.read_bytes()[20] == 12
    found = [each for each in records(str(path), None) if len(each.values) == 2]
    assert {n: rows[n] for n in rows} == {
        each.rowid: each.values[1] for each in found if each.rowid is not None and rows[each.rowid] == each.values[1]
    }


# Damage


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, bytes, dict[int, tuple[object, ...]]]:
    """A database file, its WAL, and the messages in them, some of them long."""
    folder = tmp_path_factory.mktemp("sound")
    with left_open(folder / "app") as (outbox, database):
        for number in range(40):
            outbox.append(body_of(9000 if number % 9 == 8 else 200), accepted_at=1.5)
            if number == 20:
                outbox.empty_wal()
        paths = copied(database, folder / "copy")
    data, wal = (Path(path).read_bytes() for path in paths)
    return data, wal, messages(records(*paths))


def written(folder: Path, data: bytes | None, wal: bytes | None) -> tuple[str | None, str | None]:
    for name, content in (("d", data), ("w", wal)):
        if content is not None:
            (folder / name).write_bytes(content)
    return str(folder / "d") if data is not None else None, str(folder / "w") if wal is not None else None


def flipped(data: bytes, bit: int) -> bytes:
    changed = bytearray(data)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


def test_one_flipped_bit_anywhere_takes_one_message_at_most(
    tmp_path: Path, sound: tuple[bytes, bytes, dict[int, tuple[object, ...]]]
) -> None:
    data, wal, expected = sound
    assert len(expected) == 40
    choice = random.Random(4)
    for _ in range(400):
        bit = choice.randrange(8 * (len(data) + len(wal)))
        in_data = bit < 8 * len(data)
        damaged = (flipped(data, bit), wal) if in_data else (data, flipped(wal, bit - 8 * len(data)))
        found = messages(records(*written(tmp_path, *damaged)))
        missing = [id for id in expected if id not in found or found[id][1:] != expected[id][1:]]
        assert len(missing) <= 1, bit
        assert not {id for id in found if found[id][1:] not in {row[1:] for row in expected.values()}}, bit


def test_no_bit_of_the_header_of_a_page_takes_a_message_and_none_of_its_pointers_more_than_one(tmp_path: Path) -> None:
    with left_open(tmp_path / "app") as (outbox, database):
        for _ in range(20):
            outbox.append(body_of(200), accepted_at=1.5)
    data = database.read_bytes()
    leaves = [at for at in range(4096, len(data), 4096) if b"200 letters" in data[at : at + 4096]]
    assert len(leaves) == 2
    for leaf in leaves:
        count = int.from_bytes(data[leaf + 3 : leaf + 5], "big")
        for bit in range(8 * (8 + 2 * count)):
            found = messages(records(*written(tmp_path, flipped(data, 8 * leaf + bit), None)))
            assert len(found) >= 20 - (bit >= 8 * 8), bit


def test_no_bit_that_says_where_a_transaction_ends_takes_a_message(tmp_path: Path) -> None:
    with left_open(tmp_path / "app") as (outbox, database):
        for _ in range(4):
            outbox.append(body_of(9000), accepted_at=1.5)
        _, copy = copied(database, tmp_path / "copy")
    wal = Path(copy).read_bytes()
    for frame in range(len(wal) // 4120):
        for bit in range(32):
            damaged = flipped(wal, 8 * (32 + 4120 * frame + 4) + bit)
            assert len(messages(records(*written(tmp_path, None, damaged)))) == 4, (frame, bit)


@pytest.mark.parametrize("place", [0, 16, 512, 4096])
def test_a_zeroed_stretch_at_the_beginning_takes_only_what_stood_there(
    tmp_path: Path, sound: tuple[bytes, bytes, dict[int, tuple[object, ...]]], place: int
) -> None:
    data, wal, expected = sound
    end = max(place, 100) if place < 512 else place
    found = messages(records(*written(tmp_path, bytes(end) + data[end:], wal)))
    assert found == expected


def test_a_wal_without_a_database_file_and_a_torn_wal_give_what_they_hold(
    tmp_path: Path, sound: tuple[bytes, bytes, dict[int, tuple[object, ...]]]
) -> None:
    data, wal, expected = sound
    alone = messages(records(*written(tmp_path, None, wal)))
    assert set(range(22, 41)) <= set(alone)
    assert all(alone[id] == expected[id] for id in alone)
    half = messages(records(*written(tmp_path, data, wal[: len(wal) // 2])))
    assert set(range(1, 28)) <= set(half) < set(expected)


def test_frames_behind_one_that_sqlite_rejects_are_read(
    tmp_path: Path, sound: tuple[bytes, bytes, dict[int, tuple[object, ...]]]
) -> None:
    data, wal, expected = sound
    damaged = flipped(wal, 8 * (32 + 16))  # the checksum of the first frame
    paths = written(tmp_path, data, damaged)
    assert messages(records(*paths)) == expected
    shutil.copy(str(paths[0]), tmp_path / "s.db")
    shutil.copy(str(paths[1]), tmp_path / "s.db-wal")
    with closing(sqlite3.connect(tmp_path / "s.db")) as connection:
        assert connection.execute("SELECT max(id) FROM messages").fetchone()[0] < 40


@pytest.mark.parametrize("content", [b"", b"x", b"not a database\n" * 9999, bytes(70_000), b"\xff" * 70_000])
def test_a_file_that_is_no_database_holds_no_records(tmp_path: Path, content: bytes) -> None:
    assert list(records(*written(tmp_path, content, None))) == []
    assert list(records(*written(tmp_path, None, content))) == []
    assert list(records(*written(tmp_path, content, content))) == []


def test_a_file_that_cannot_be_opened_is_an_os_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        list(records(str(tmp_path / "missing"), None))
    with pytest.raises(IsADirectoryError):
        list(records(str(tmp_path), None))


def test_overflow_pages_that_go_round_in_a_circle_end(tmp_path: Path) -> None:
    path = tmp_path / "x.db"
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("CREATE TABLE t (id INTEGER PRIMARY KEY, v)")
        connection.execute("INSERT INTO t VALUES (1, ?)", (b"v" * 500_000,))
    data = bytearray(path.read_bytes())
    data[10 * 4096 : 10 * 4096 + 4] = (5).to_bytes(4, "big")
    assert [each for each in records(*written(tmp_path, bytes(data), None)) if len(each.values) == 2] == []


@settings(deadline=None, max_examples=60)
@given(content=st.binary(max_size=20_000), wal=st.binary(max_size=20_000), page=st.sampled_from([512, 4096, 65536]))
def test_whatever_the_files_hold_it_ends_without_an_exception(content: bytes, wal: bytes, page: int) -> None:
    head = b"SQLite format 3\0" + (1 if page == 65536 else page).to_bytes(2, "big") + bytes(82) + b"\x0d"
    with tempfile.TemporaryDirectory() as folder:
        list(records(*written(Path(folder), head + content, wal)))
        list(records(*written(Path(folder), b"\x0d" + content, bytes(8) + page.to_bytes(4, "big") + bytes(20) + wal)))


@settings(deadline=None, max_examples=60)
@given(seed=st.integers(0, 2**32))
def test_random_damage_of_real_files_never_changes_what_has_its_checksum(
    sound: tuple[bytes, bytes, dict[int, tuple[object, ...]]], seed: int
) -> None:
    data, wal, expected = sound
    choice = random.Random(seed)
    damaged = []
    for content in (data, wal):
        changed = bytearray(content)
        for _ in range(choice.choice([1, 10, 300])):
            place = choice.randrange(len(changed))
            size = choice.choice([1, 1, 2, 8, 512])
            changed[place : place + size] = choice.choice([bytes(size), choice.randbytes(size), b"\xff" * size])
        del changed[choice.choice([len(changed), choice.randrange(len(changed))]) :]
        damaged.append(bytes(changed))
    bodies = {values[-1] for values in expected.values()}
    with tempfile.TemporaryDirectory() as folder:
        found = messages(records(*written(Path(folder), *damaged)))
    assert all(values[-1] in bodies for values in found.values())


# Size


def test_a_large_file_is_read_page_by_page(tmp_path: Path) -> None:
    path = tmp_path / "x.db"
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("CREATE TABLE t (id INTEGER PRIMARY KEY, v)")
        connection.execute("BEGIN")
        connection.executemany("INSERT INTO t VALUES (?, ?)", ((n, bytes(900)) for n in range(12_000)))
        connection.execute("INSERT INTO t VALUES (-1, ?)", (bytes(MIB),))
        connection.execute("COMMIT")
    assert path.stat().st_size > 12 * MIB
    started = time.process_time()
    count = sum(len(each.values) == 2 for each in records(str(path), None))
    assert count == 12_001
    assert time.process_time() - started < 12_001 * 300e-6  # ten times what it should take
    tracemalloc.start()
    try:
        next(each for each in records(str(path), None) if each.rowid == -1)
        sum(1 for _ in records(str(path), None))
        assert tracemalloc.get_traced_memory()[1] < 8 * MIB
    finally:
        tracemalloc.stop()


def test_a_length_beyond_the_files_is_not_believed(tmp_path: Path) -> None:
    header = b"\x0d" + bytes(2) + (1).to_bytes(2, "big") + (4000).to_bytes(2, "big") + b"\0" + (4000).to_bytes(2, "big")
    cell = b"\xff" * 8 + b"\x01" + b"\x05" + b"\x03\x00" + b"\xff\xff\xff\x7f"
    page = (header + bytes(4096)).ljust(8192, b"\0")[:4000] + cell.ljust(96, b"\1")
    assert len(page) == 4096
    assert list(records(*written(tmp_path, bytes(4096) + page, None))) == []
