"""Looking into any outbox file, also one that was copied from another machine or is damaged, without touching it.

The files are copied into a temporary folder first, and only the copy is opened: SQLite writes beside what it reads.
"""

from __future__ import annotations

import os
import re
import shutil
import sqlite3
import stat
import tempfile
import time
import zlib
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from outtray.outbox import sql
from outtray.outbox.filelock import FileLock
from outtray.outbox.files import MAJOR
from outtray.outbox.gate import Header
from outtray.outbox.look import Look, counted
from outtray.outbox.records import is_intact

if TYPE_CHECKING:
    from collections.abc import Iterator

NAME = re.compile(r"outbox-(\d+)-(\d+)\.db", re.ASCII)

SQLITE_MAGIC = b"SQLite format 3\0"

GATE_BYTES = 16 * 1024 * 1024
"""Bytes that are copied under the gate, at most: writers wait for some milliseconds. More is copied beside it."""

TRIES = 3
"""Copies of an outbox that changes meanwhile, before the last one is taken as it is."""

TORN = "it was written to while it was copied: what is shown may be torn"
"""The problem of a copy that may not be what the files are."""

OF_MESSAGES = "messages without their checksum"
"""How the problem of single messages begins."""

BAD_HEADER = "the header of the gate is damaged; outtray rebuilds it from the database"
"""The problem of a gate that says nothing."""


class Unreadable(Exception):
    """There is no outbox in what was named; the text says why."""


class Unstarted(Unreadable):
    """It was made, and nothing was stored in it, as its creator was killed or had no room: the next use begins anew."""


def find_databases(path: str) -> list[str]:
    """Return the database files that *path* means: itself, those in the folder, or in the folders right below it.

    Raises Unreadable if there is none.
    """
    for suffix in ("-wal", "-shm"):
        path = path.removesuffix(suffix)
    if not os.path.lexists(path):
        raise Unreadable(f"{path} does not exist")
    if not os.path.isdir(path):
        return [path]
    folders = [path, *sorted(entry.path for entry in os.scandir(path) if entry.is_dir())]
    found = [os.path.join(folder, name) for folder in folders for name in sorted(os.listdir(folder))]
    databases = [each for each in found if NAME.fullmatch(os.path.basename(each))]
    if not databases:
        raise Unreadable(f"{path} holds no outbox: no file is named like outbox-1-0.db")
    return databases


def inspect(path: str, *, messages: int = 0) -> dict[str, Any]:
    """Return what the database file *path* holds, with the newest *messages* messages.

    The keys: `path, format {major, minor, application_id}, generation, wal_bytes, header, messages {count, first_id,
    last_id}, states {destination: {state: count}}, cursors, ledger, meta, integrity, damaged {count, ids},
    wrong_cursors, wrong_marks, missing, unaccounted, newest, problems`. What could not be read is None,
    and `problems` says why; an empty `problems` means a sound outbox.
    Raises Unreadable if it is no outbox at all, OSError.
    """
    problems: list[str] = []
    with tempfile.TemporaryDirectory(prefix="outtray-inspect-") as folder:
        copy = _copy(path, folder, problems)
        _require_sqlite(copy, path)
        connection = sqlite3.connect(copy, isolation_level=None)
        try:
            wal_bytes = _size(f"{copy}-wal")
            return _Inspection(path, f"{copy}.gate", connection, problems, wal_bytes=wal_bytes).report(messages)
        except sqlite3.DatabaseError as error:
            raise Unreadable(f"{path} cannot be read: {error}") from error
        finally:
            connection.close()


class _Inspection:
    """One look into the copies of the file *path* and of its *gate*."""

    def __init__(
        self, path: str, gate: str, connection: sqlite3.Connection, problems: list[str], *, wal_bytes: int | None
    ) -> None:
        self._path = path
        self._gate = gate
        self._connection = connection
        self._problems = problems
        self._wal_bytes = wal_bytes  # of the copy before it was opened: closing empties it

    def report(self, messages: int) -> dict[str, Any]:
        application_id, minor = self._connection.execute(sql.FORMAT).fetchone()
        name = NAME.fullmatch(os.path.basename(self._path))
        if application_id == 0 and self._connection.execute(sql.IS_EMPTY).fetchone()[0]:
            raise Unstarted(f"{self._path} was not finished when it was made: it has no tables")
        if application_id == 0 and name:
            raise Unreadable(f"{self._path} is damaged, or was not finished when it was made")
        if application_id != sql.APPLICATION_ID:
            raise Unreadable(f"{self._path} is an SQLite file but no outbox of outtray")
        major, generation = (int(name[1]), int(name[2])) if name else (None, None)
        if major not in (None, MAJOR):
            self._problems.append(f"its format {major} is not the one that is known here ({MAJOR})")
        header = _read_header(self._gate)
        if header is not None and not (header["magic_ok"] and header["crc_ok"]):
            self._problems.append(BAD_HEADER)
        return {
            "path": self._path,
            "format": {"major": major, "minor": minor, "application_id": f"{application_id:#x}"},
            "generation": generation,
            "wal_bytes": self._wal_bytes,
            "header": header,
            "messages": self._rows("messages", sql.SPAN, lambda rows: dict(zip(_SPAN, rows[0], strict=True))),
            "states": self._rows("states", sql.STATE_COUNTS, _by_destination),
            "cursors": self._rows("cursors", sql.CURSORS, _cursors),
            "ledger": self._rows("ledger", sql.LEDGER, counted),
            "meta": self._rows("what it knows of itself", sql.ALL_META, dict),
            "integrity": self._integrity(),
            "damaged": self._damaged(),
            "wrong_cursors": self._wrong_cursors(),
            "wrong_marks": self._wrong_marks(),
            "unaccounted": self._unaccounted(),
            "missing": self._missing(header, generation),
            "newest": self._newest(generation or 0, messages),
            "problems": self._problems,
        }

    def _rows(self, what: str, statement: str, shape: Any) -> Any:
        try:
            return shape(self._connection.execute(statement).fetchall())
        except sqlite3.DatabaseError as error:
            self._problems.append(f"{what} cannot be read: {error}")
            return None

    def _integrity(self) -> list[str] | None:
        found: list[str] | None = self._rows("integrity", sql.INTEGRITY, lambda rows: [row[0] for row in rows])
        if found is not None and found != ["ok"]:
            self._problems.append(f"SQLite's integrity check fails: {found[0]}")
        return found

    def _damaged(self) -> dict[str, Any] | None:
        """Compare every body with its checksum."""
        try:
            rows = self._connection.execute(sql.CHECKSUMS)
            damaged = [id for id, crc, body in rows if not is_intact(id, body, crc)]
        except sqlite3.DatabaseError as error:
            self._problems.append(f"the checksums cannot all be compared: {error}")
            return None
        if damaged:
            self._problems.append(f"{OF_MESSAGES}: {len(damaged)}, the first is {damaged[0]}")
        return {"count": len(damaged), "ids": damaged}

    def _wrong_cursors(self) -> list[str] | None:
        """Return the destinations whose cursor is not what its mirror says."""
        wrong: list[str] | None = self._rows("cursors", sql.WRONG_CURSORS, lambda rows: [row[0] for row in rows])
        for destination in wrong or []:
            self._problems.append(f"the cursor of {destination!r} is not what its mirror says")
        return wrong

    def _wrong_marks(self) -> list[str] | None:
        """Return the states that messages are marked with though there are none such."""
        wrong: list[str] | None = self._rows("marks", sql.UNKNOWN_STATES, lambda rows: [row[0] for row in rows])
        for state in wrong or []:
            self._problems.append(f"messages are marked with the state {state!r}, which there is not")
        return wrong

    def _unaccounted(self) -> int | None:
        """Return how many ids have no message though nobody removed or passed over it."""
        count: int | None = self._rows(
            "gaps", sql.UNACCOUNTED, lambda rows: max(0, int(rows[0][0])) if rows and rows[0][0] is not None else 0
        )
        if count:
            self._problems.append(f"ids that have no message, though none of them was removed: {count}")
        return count

    def _missing(self, header: dict[str, Any] | None, generation: int | None) -> int | None:
        """Return how many messages the header knows of and the database lost, None where that cannot be told."""
        if header is None or not header["crc_ok"] or header["generation"] != generation:
            return None
        highest: int | None = self._rows("the highest id", sql.HIGHEST_ID, lambda rows: rows[0][0])
        if highest is None:
            return None
        missing = max(0, int(header["last_id"]) - highest)
        if missing:
            self._problems.append(f"messages that the header knows of, and that are not in the database: {missing}")
        return missing

    def _newest(self, generation: int, count: int) -> list[dict[str, Any]] | None:
        if not count:
            return []
        try:
            return [each.to_dict() for each in Look(self._connection, generation, 0).page(limit=count)]
        except sqlite3.DatabaseError as error:
            self._problems.append(f"the newest messages cannot be read: {error}")
            return None


_SPAN = ("count", "first_id", "last_id")
_CURSOR = ("id", "delivered", "next_attempt_at", "attempts", "status", "reason", "held")


def _by_destination(rows: list[tuple[str, str, int]]) -> dict[str, dict[str, int]]:
    found: dict[str, dict[str, int]] = {}
    for destination, state, count in rows:
        found.setdefault(destination, {})[state] = count
    return found


def _cursors(rows: list[tuple[Any, ...]]) -> dict[str, dict[str, Any]]:
    return {row[0]: dict(zip(_CURSOR, row[1:], strict=True)) for row in rows}


def _read_header(path: str) -> dict[str, Any] | None:
    """Return the fields of the gate's header, whether sound or not; None if there is none."""
    try:
        with open(path, "rb") as file:
            data = file.read(Header.SIZE)
    except FileNotFoundError:
        return None
    body = data[: Header.LAYOUT.size].ljust(Header.LAYOUT.size, b"\0")
    magic, major, flags, generation, epoch, last_id, settled_id, pid, _ = Header.LAYOUT.unpack(body)
    crc_ok = len(data) == Header.SIZE and zlib.crc32(body).to_bytes(4, "little") == data[Header.LAYOUT.size :]
    fields = {"flags": flags, "generation": generation, "epoch": epoch, "last_id": last_id, "settled_id": settled_id}
    return {"magic_ok": magic == Header.MAGIC, "crc_ok": crc_ok, "major": major, **fields, "pid": pid}


def _require_sqlite(copy: str, path: str) -> None:
    with open(copy, "rb") as file:
        beginning = file.read(len(SQLITE_MAGIC))
    if not beginning and not _size(f"{copy}-wal"):
        raise Unstarted(f"{path} is empty: nothing was ever stored in it")
    if beginning and beginning != SQLITE_MAGIC:
        raise Unreadable(f"{path} is no SQLite file, or its beginning is damaged")


def _copy(path: str, folder: str, problems: list[str]) -> str:
    """Copy the database and its WAL, together as they were at one moment; returns the path of the copy."""
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise Unreadable(f"{path} is not a regular file")
    copy = os.path.join(folder, "copy.db")
    for _ in range(TRIES):
        before = _state(path)
        with _gate_held(path, wanted=sum(size for size, _ in before) <= GATE_BYTES) as held:
            before = _state(path)
            # The header first: beside the gate it then lags behind the rows, which is no loss.
            _copy_if_there(_gate_of(path), f"{copy}.gate")
            _copy_if_there(path, copy)
            _copy_if_there(f"{path}-wal", f"{copy}-wal")
            if held or _state(path) == before:
                return copy
    problems.append(TORN)
    return copy


def _copy_if_there(path: str, copy: str) -> None:
    if os.path.isfile(path):
        shutil.copyfile(path, copy)
    elif os.path.exists(copy):
        os.unlink(copy)  # of an earlier try


def _state(path: str) -> list[tuple[int, int]]:
    found = []
    for each in (path, f"{path}-wal"):
        try:
            facts = os.stat(each)
        except FileNotFoundError:
            found.append((0, 0))
        else:
            found.append((facts.st_size, facts.st_mtime_ns))
    return found


def _gate_of(path: str) -> str:
    """Return the path of the gate beside the database *path*."""
    name = NAME.fullmatch(os.path.basename(path))
    return os.path.join(os.path.dirname(path), f"outbox-{name[1] if name else MAJOR}.gate")


@contextmanager
def _gate_held(path: str, *, wanted: bool) -> Iterator[bool]:
    """Keep writers out where there is a gate that can be had within a second; tells whether that is so."""
    gate = FileLock(_gate_of(path))
    if not wanted or not NAME.fullmatch(os.path.basename(path)) or not _is_open(gate):
        yield False
        return
    try:
        yield _is_acquired(gate)
    finally:
        gate.close()


def _is_open(gate: FileLock) -> bool:
    try:
        gate.open(create=False)
    except OSError:  # not there, or on a medium that cannot be written
        return False
    return True


def _is_acquired(gate: FileLock) -> bool:
    end = time.monotonic() + 1.0
    while not gate.try_acquire():
        if time.monotonic() >= end:
            return False
        time.sleep(0.001)  # whoever asks less often than the writers does not get in
    return True


def _size(path: str) -> int | None:
    return os.path.getsize(path) if os.path.exists(path) else None
