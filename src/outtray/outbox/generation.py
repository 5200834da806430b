"""Moving on from a damaged database: a new file under the gate, and what `recovery` needs of the old one kept.

A live database is never renamed, deleted or opened by any other way than SQLite's. Generation g gives ids from
g times 2**40, so that what is saved of the older ones keeps its ids, and with them its place.
"""

from __future__ import annotations

import json
import os

from outtray import journal
from outtray.outbox import sql
from outtray.outbox.connection import open_database
from outtray.outbox.files import KEPT_WAL, MAJOR, database_path, newest_generation
from outtray.outbox.gate import Header, new_epoch

TYPE_CHECKING = False
if TYPE_CHECKING:
    from outtray.outbox.connection import Connection

PREVIOUS = "previous"
"""Key in `meta`: what the header said of the generation before, as JSON, without ids if it was damaged too."""


def base_id(generation: int) -> int:
    """Return the id before the first one of *generation*."""
    return generation << 40


def begin(directory: str, old: Header | None, reason: object) -> tuple[Connection, Header]:
    """Begin the generation after *old* and return its connection and header, which is still to be written and synced.

    *old* is None where the header is damaged too. Raises sqlite3.Error and OSError: then *old* still holds.
    """
    previous = old.generation if old is not None else newest_generation(directory)
    keep_wal(directory, previous)
    left = database_path(directory, previous)
    is_gone = not os.path.isfile(left) and not os.path.exists(f"{left}-wal")  # nothing to save from, later on
    generation = previous + 1
    path = database_path(directory, generation)
    for leftover in (path, f"{path}-wal", f"{path}-shm"):
        if os.path.lexists(leftover):  # of an attempt that ended before the header named it
            os.unlink(leftover)
    connection = open_database(path)
    try:
        known = {"generation": previous}
        if old is not None:
            known |= {"last_id": old.last_id, "settled_id": old.settled_id}
        connection.execute(sql.BEGIN)
        connection.execute(sql.ADD_GAP, (1, base_id(generation)))
        connection.execute(sql.SET_META, (PREVIOUS, json.dumps(known)))
        connection.execute(sql.COUNT_IN_LEDGER, ("file_damaged", 1))
        if is_gone:
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


def keep_wal(directory: str, generation: int) -> None:
    """Set a copy of the write-ahead log aside, before the next write or close overwrites what SQLite dropped of it.

    Where there is no room for it the move goes on without.
    """
    path = f"{database_path(directory, generation)}-wal"  # SQLite keeps no locks on this file
    number = 0
    while os.path.lexists(copy := os.path.join(directory, f"outbox-{MAJOR}-{generation}-{number}{KEPT_WAL}")):
        number += 1
    try:
        with open(path, "rb") as source:
            if not os.fstat(source.fileno()).st_size:
                return
            with open(os.open(copy, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as target:
                while data := source.read(1024 * 1024):
                    target.write(data)
    except FileNotFoundError:
        return
    except OSError as error:
        journal.failed("keeping a damaged write-ahead log", error)
        if os.path.lexists(copy):
            os.unlink(copy)
