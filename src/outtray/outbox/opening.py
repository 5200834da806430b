"""Opening what the gate's header names, or the next generation where that is damaged; all of it inside the gate."""

from __future__ import annotations

import json
import os
import sqlite3

from outtray import consent, journal
from outtray.errors import OutboxUnusable
from outtray.outbox import generation, sql
from outtray.outbox.connection import Connection, DamageFound, is_damage, open_database
from outtray.outbox.files import database_path
from outtray.outbox.gate import Gate, Header, boot_number, new_epoch
from outtray.outbox.transaction import WITHDRAWN, Transaction


def open_current(directory: str, gate: Gate, header: Header | None) -> tuple[Connection, Header]:
    """Return the connection that *header* means (None: it is missing or damaged), and the header as it is written.

    Raises OutboxUnusable, sqlite3.Error and OSError for what is no damage.
    """
    try:
        return _open(directory, gate, header)
    except (sqlite3.Error, OutboxUnusable, UnicodeDecodeError) as error:
        if not is_damage(error):
            raise
        return open_next(directory, gate, error)


def open_next(directory: str, gate: Gate, reason: BaseException) -> tuple[Connection, Header]:
    """Begin the next generation for *reason*; its header is on the disk before anything is stored in it."""
    connection, header = generation.begin(directory, gate, reason)
    try:
        _heed_choice(directory, connection, header)
        gate.write(header)
        gate.file.sync()
    except BaseException:
        connection.close()
        raise
    return connection, header


def _open(directory: str, gate: Gate, header: Header | None) -> tuple[Connection, Header]:
    number, header = generation.current(directory, header)
    path = database_path(directory, number)
    if generation.is_missing(directory, number, header):
        raise DamageFound(f"{path} is gone, empty or no file, though messages were stored in it")
    # Who closes it last leaves no log, and SQLite syncs the log's beginning before it takes the first row.
    was_left_open = os.path.exists(f"{path}-wal") and os.stat(f"{path}-wal").st_size > 0
    connection = open_database(path, gate.file)
    try:
        highest = max(connection.execute(sql.HIGHEST_ID).fetchone()[0], generation.base_id(number))
        is_rebuilt = header is None
        if header is None:
            header = Header(number, new_epoch(), highest)
            header.settled_id = connection.execute(sql.LOWEST_CURSOR).fetchone()[0]
            was_left_open = was_left_open and highest > generation.base_id(number)  # else its creator was killed
            header.last_id = max(highest, generation.highest_in_log(directory, number))
        if header.last_id > highest:  # before anything is written to the log, which may still have them
            _count_missing(directory, gate, connection, number, highest, header.last_id)
        if was_left_open and header.boot != boot_number() != 0:
            _count_unclean_restart(directory, connection)
        header.last_id = max(header.last_id, highest)
        _heed_choice(directory, connection, header)
        gate.write(header)
        if is_rebuilt:
            gate.file.sync()  # a power cut leaves it as it was at some moment, and not empty
    except BaseException:
        connection.close()
        raise
    return connection, header


def _heed_choice(directory: str, connection: sqlite3.Connection, header: Header) -> None:
    """Have the user's choice in the header; a denial that is not there yet was ended before it had withdrawn."""
    choice = consent.stored(directory)
    if choice == consent.DENIED != header.choice and header.last_id:
        Transaction(connection, header).begin_erasure(WITHDRAWN)
    header.choice = choice


def _count_missing(
    directory: str, gate: Gate, connection: sqlite3.Connection, number: int, highest: int, last_id: int
) -> None:
    """Count messages that the header knows and the database lost, once; some may be in what is kept of the log."""
    kept = generation.keep_wal(directory, gate.file, number)
    missing = last_id - highest
    journal.rows_missing(missing, directory)
    connection.execute(sql.BEGIN)
    if kept is not None:
        _forget_namesake(connection, os.path.basename(kept))
    connection.execute(sql.ADD_GAP, (highest + 1, last_id))
    connection.execute(sql.COUNT_IN_LEDGER, ("lost", missing))
    connection.execute(sql.COMMIT)


def _forget_namesake(connection: sqlite3.Connection, name: str) -> None:
    """Have the log *name* read, though one of that name was, and was cleared away since."""
    row = connection.execute(sql.META, (generation.SALVAGED,)).fetchone()
    others = {each: moment for each, moment in generation.numbers(row and row[0]).items() if each != name}
    connection.execute(sql.SET_META, (generation.SALVAGED, json.dumps(others)))


def _count_unclean_restart(directory: str, connection: sqlite3.Connection) -> None:
    """Count that the system went down while somebody had the file open: what the last second held may be gone.

    How much that was nobody can know: what is newer than the last sync is not on the disk, nor is its count. Without
    a header nobody knows of the restart either, and it is taken for one.
    """
    journal.restart_was_unclean(directory)
    connection.execute(sql.COUNT_IN_LEDGER, ("unclean_restart", 1))
