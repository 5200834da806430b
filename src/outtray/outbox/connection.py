"""The edge to SQLite: opening and creating the database file, and foreign errors made our own."""

from __future__ import annotations

import os
import sqlite3

from outtray.errors import OutboxBusy, OutboxError, OutboxUnusable
from outtray.outbox import sql

OUTSIDER_PATIENCE = 1.0
"""Seconds that SQLite waits for a lock of somebody who does not know the gate, such as a `sqlite3` shell."""


def open_database(path: str) -> sqlite3.Connection:
    """Return a connection to the outbox database at *path*, created if missing or still empty; only inside the gate.

    Raises OutboxUnusable if the file is no outbox, sqlite3.Error and OSError.
    """
    if not os.path.exists(path):
        _create_private(path)
    connection = _connect(path)
    try:
        _require_outbox(connection, path)
        for pragma in sql.CONNECTION:
            connection.execute(pragma)
    except BaseException:
        connection.close()
        raise
    return connection


def open_for_reading(path: str, *, immutable: bool) -> sqlite3.Connection:
    """Return a read-only connection; *immutable* leaves no file behind and needs one that nobody writes and no WAL.

    Raises OutboxUnusable if the file is no outbox, sqlite3.Error.
    """
    from urllib.parse import quote

    connection = _connect(f"file:{quote(path)}?mode=ro" + ("&immutable=1" if immutable else ""), uri=True)
    try:
        _require_format(connection, path)
    except BaseException:
        connection.close()
        raise
    return connection


def translated(error: sqlite3.Error | OSError, path: str) -> OutboxError:
    """Return our error for one of SQLite's or of the system's."""
    if isinstance(error, sqlite3.OperationalError) and "locked" in str(error):
        return OutboxBusy(f"{path} is locked by another program ({error})")
    return OutboxUnusable(f"{path} cannot be used: {error}")


def sync_directory(path: str) -> None:
    """Have the directory's entries on the disk; nothing to do where directories cannot be opened (Windows)."""
    if os.name == "nt":
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _create_private(path: str) -> None:
    """Create the empty file with mode 0600 whatever the umask; SQLite gives its -wal and -shm the same mode."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
    os.close(descriptor)
    os.chmod(path, 0o600)


def _connect(path: str, *, uri: bool = False) -> sqlite3.Connection:
    return sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=OUTSIDER_PATIENCE, uri=uri)


def _require_outbox(connection: sqlite3.Connection, path: str) -> None:
    if connection.execute(sql.IS_EMPTY).fetchone()[0]:
        _create(connection, path)
    else:
        _require_format(connection, path)


def _require_format(connection: sqlite3.Connection, path: str) -> None:
    application_id, _ = connection.execute(sql.FORMAT).fetchone()
    if application_id == 0:
        raise OutboxUnusable(f"{path} is damaged, or was not finished when it was made; it was left as it is")
    if application_id != sql.APPLICATION_ID:
        raise OutboxUnusable(f"{path} is an SQLite file but no outbox of outtray; it was left as it is")


def _create(connection: sqlite3.Connection, path: str) -> None:
    (mode,) = connection.execute(sql.USE_WAL).fetchone()
    if mode != "wal":
        raise OutboxUnusable(
            f"{path} cannot have a write-ahead log (a network file system?): set OUTTRAY_DIR elsewhere"
        )
    connection.execute(sql.BEGIN)  # killed in here, the next opener finds an empty file and begins again
    for statement in sql.SETUP:
        connection.execute(statement)
    connection.execute(sql.SET_META, ("salt", os.urandom(16).hex()))
    connection.execute(sql.COMMIT)
    # The tables must not stand in the WAL alone: a flipped bit there would take all of the outbox, not its end.
    connection.execute(sql.TRUNCATE_WAL)
    sync_directory(os.path.dirname(path))
