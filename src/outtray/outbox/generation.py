"""Moving on from a damaged database: a new file under the gate, and what `recovery` needs of the old one kept.

A live database is never renamed, deleted or opened by any other way than SQLite's. Generation g gives ids from
g times 2**40, so that what is saved of the older ones keeps its ids, and with them its place.
"""

from __future__ import annotations

import errno
import json
import os
import sqlite3

from outtray import journal
from outtray.outbox import sql
from outtray.outbox.connection import DamageFound, create_private, is_damage, open_database, open_for_reading
from outtray.outbox.files import database_path, is_blank, kept_wal_path, kept_wals, newest_generation
from outtray.outbox.gate import Gate, Header, new_epoch
from outtray.outbox.records import whole_message

TYPE_CHECKING = False
if TYPE_CHECKING:
    from outtray.outbox.connection import Connection
    from outtray.outbox.filelock import FileLock

LEFT = "left {}"
"""Key in `meta`: what the header said of a generation when it was left, as JSON, empty if it was damaged too."""

SALVAGED = "salvaged"
"""Key in `meta`: the names of the sources that `recovery` read to their end, each with the moment, as JSON."""


def base_id(generation: int) -> int:
    """Return the id before the first one of *generation*."""
    return generation << 40


def numbers(text: str | None) -> dict[str, float]:
    """Return the numbers by name that *text* has, which stood under `LEFT` or `SALVAGED`, maybe in a damaged file."""
    try:
        found = json.loads(text or "{}").items()
    except (ValueError, AttributeError):
        return {}
    return {name: value for name, value in found if isinstance(value, (int, float))}


def is_missing(directory: str, number: int, header: Header | None) -> bool:
    """Tell whether the database of generation *number* is gone or empty, though it was there. Raises OSError.

    SQLite would begin anew in it, and delete the log beside it.
    """
    path = database_path(directory, number)
    was_there = number > 0 or (header is not None and header.last_id > 0) or _size(f"{path}-wal") > 0
    return was_there and is_blank(path)


def current(directory: str, header: Header | None) -> tuple[int, Header | None]:
    """Return the generation in use, and *header* if it is that one's. Raises sqlite3.Error and OSError.

    An older one comes out of a backup, or whoever began the newer generation was killed at the last step.
    """
    newest = newest_generation(directory)
    if header is None or (newest > header.generation and _is_begun(database_path(directory, newest))):
        return newest, None
    return header.generation, header


def _is_begun(path: str) -> bool:
    """Tell whether the database at *path*, of a generation after the first, was ever complete. Raises sqlite3.Error."""
    if is_blank(path) or os.path.lexists(f"{path}-journal"):  # the latter is there only while it is made
        return False
    try:
        connection = open_for_reading(path, immutable=False)
        try:
            return bool(connection.execute(sql.HAS_LEFT).fetchone()[0])
        finally:
            connection.close()
    except (sqlite3.Error, DamageFound) as error:
        if is_damage(error):
            return True
        raise


def begin(directory: str, gate: Gate, reason: object) -> tuple[Connection, Header]:
    """Begin the next generation and return its connection and header, which is still to be written and synced.

    Only inside *gate*. Raises sqlite3.Error, OSError and OutboxUnusable: then what its header says still holds.
    """
    previous, old = current(directory, gate.read())  # None where the header is damaged too
    keep_wal(directory, gate.file, previous)
    left = database_path(directory, previous)
    is_gone = not (os.path.isfile(left) or os.path.isfile(f"{left}-wal") or kept_wals(directory, previous))
    generation = previous + 1
    path = database_path(directory, generation)
    for leftover in (f"{path}-journal", path, f"{path}-wal", f"{path}-shm"):
        # Of an attempt that ended before the header named it; or of the parent, in a child forked just now.
        if os.path.lexists(leftover) and not gate.file.is_inherited:
            os.unlink(leftover)
    connection = open_database(path, gate.file)
    try:
        known = {} if old is None else {"last_id": old.last_id, "settled_id": old.settled_id}
        connection.execute(sql.BEGIN)
        connection.execute(sql.ADD_GAP, (1, base_id(generation)))
        connection.execute(sql.SET_META, (LEFT.format(previous), json.dumps(known)))
        connection.execute(sql.COUNT_IN_LEDGER, ("file_damaged", 1))
        if is_gone:  # there will be nothing to save from
            connection.execute(sql.COUNT_IN_LEDGER, ("lost_unknown", 1))
        if is_gone and old is not None:
            missing = old.last_id - max(old.settled_id, base_id(previous))
            connection.execute(sql.COUNT_IN_LEDGER, ("lost", max(0, missing)))
        connection.execute(sql.COMMIT)
        connection.execute(sql.TRUNCATE_WAL)  # which syncs it
    except BaseException:
        connection.close()
        raise
    journal.generation_began(path, reason)
    flags = old.flags if old is not None else 0
    return connection, Header(generation, new_epoch(), base_id(generation), flags=flags)


def keep_wal(directory: str, lock: FileLock, generation: int) -> str | None:
    """Set a copy of the write-ahead log aside, before the next write or close overwrites what SQLite dropped of it.

    Only under *lock*. Returns the copy's path, None if there is nothing to keep or no room for it: then the move goes
    on without.
    """
    path = f"{database_path(directory, generation)}-wal"  # SQLite keeps no locks on this file
    if not _size(path):
        return None
    number = 0
    while os.path.lexists(copy := kept_wal_path(directory, generation, number)):
        number += 1
    try:
        with open(path, "rb", buffering=0) as source, open(create_private(copy, lock), "wb", buffering=0) as target:
            # A child that a signal handler forks in here shares the offsets of both.
            while not lock.is_inherited and (data := source.read(1024 * 1024)) and not lock.is_inherited:
                if target.write(data) < len(data):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    except OSError as error:
        journal.failed("keeping a damaged write-ahead log", error)
        if os.path.lexists(copy) and not lock.is_inherited:
            os.unlink(copy)
        return None
    return copy


def highest_in_log(directory: str, number: int) -> int:
    """Return the highest id of a message that is whole in the log of generation *number*, 0 if there is none.

    SQLite may not show it any more: it drops what is behind a damaged frame. Raises OSError.
    """
    from outtray.outbox import pages

    path = f"{database_path(directory, number)}-wal"  # SQLite keeps no locks on this file
    if not _size(path):
        return 0
    messages = (whole_message(record) for record in pages.records(None, path))
    ids = (message[0] for message in messages if message is not None)
    return max((id for id in ids if base_id(number) < id <= base_id(number + 1)), default=0)


def _size(path: str) -> int:
    return os.stat(path).st_size if os.path.isfile(path) else 0
