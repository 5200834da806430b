"""The edge to SQLite: opening and creating the database file, and foreign errors made our own."""

from __future__ import annotations

import errno
import os
import sqlite3
import zlib

from outtray import forking
from outtray.errors import DiskFull, OutboxBusy, OutboxError, OutboxUnusable
from outtray.outbox import sql
from outtray.outbox.sync import sync_directory

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import FrameType
    from typing import Any

    from outtray.outbox.filelock import FileLock

OUTSIDER_PATIENCE = 1.0
"""Seconds that SQLite waits for a lock of somebody who does not know the gate, such as a `sqlite3` shell."""


class DamageFound(OutboxUnusable):
    """What lies where the database should be is something else, or says what it cannot say."""


class Connection(sqlite3.Connection):
    """A connection to the file *identity* (device and inode), opened under *lock*, that a forked child never uses.

    SQLite believes in locks that the child does not have, for each connection to the same file: closing one there
    deletes a log that was written since, and what a new one writes may go into a log that is deleted.
    Nor does the garbage collection close it: a function of its own holds it, out of the collector's sight.
    """

    def __init__(self, path: str, identity: tuple[int, int] | None, lock: FileLock | None, **options: Any) -> None:
        super().__init__(path, **options)
        self.identity = identity
        self.lock = lock
        self.is_inherited = False
        self._pid = os.getpid()
        self.create_function("kept", 0, lambda: str(self))
        _open.add(self)

    def close(self) -> None:
        """Close it, unless it is another process's."""
        # The second look is right before the close, with no call between in which a signal handler could fork.
        if os.getpid() == self._pid and not self.is_inherited:
            sqlite3.Connection.close(self)
            _open.discard(self)

    def forbid(self) -> None:
        """Have no statement run any more, not even one that is prepared, or half done."""
        try:
            self.set_authorizer(lambda *_: sqlite3.SQLITE_DENY)
            self.interrupt()
        except sqlite3.ProgrammingError:  # it was just being closed, and is
            _open.discard(self)


_open: set[Connection] = set()
"""All that are open, in the end also those that were inherited."""


def _mark_inherited(_: FrameType) -> None:
    for connection in _open:
        connection.is_inherited = True


forking.in_child.append(_mark_inherited)


def forbid_all(lock: FileLock) -> None:
    """Forbid what was opened under *lock* to the call of this thread that goes on in a forked child.

    Only where no other thread was in SQLite when it was forked: that one's mutex stays locked.
    """
    for connection in list(_open):
        if connection.lock is lock:
            connection.forbid()


def open_database(path: str, lock: FileLock) -> Connection:
    """Return a connection to the outbox database at *path*, created if missing or still empty; only under *lock*.

    A file of an older minor format is brought to this one. Raises OutboxUnusable, sqlite3.Error and OSError.
    """
    if not os.path.exists(path):
        os.close(create_private(path, lock))
        os.chmod(path, 0o600)  # whatever the umask; SQLite gives its -wal and -shm the same mode
    connection = _connect(path, lock)
    try:
        _require_outbox(connection, path)
        for pragma in sql.CONNECTION:
            connection.execute(pragma)
        _require_writable(connection, path)
    except BaseException:
        connection.close()
        raise
    return connection


def open_for_reading(path: str, *, immutable: bool) -> Connection:
    """Return a read-only connection, to nothing but tables where nothing was stored yet.

    *immutable* leaves no file behind and needs one that nobody writes, and no WAL.
    Raises OutboxUnusable, sqlite3.Error.
    """
    if not os.path.exists(path):
        return _empty()
    connection = _connect(path, uri=f"file:{_in_uri(path)}?mode=ro" + ("&immutable=1" if immutable else ""))
    try:
        if connection.execute(sql.IS_EMPTY).fetchone()[0]:  # its creator was killed; the next opener begins again
            connection.close()
            connection = _empty()
        _require_schema(connection, path, _require_format(connection, path))
    except BaseException:
        connection.close()
        raise
    return connection


def is_damage(error: BaseException) -> bool:
    """Tell whether *error* says that the file is not, or no longer, what this library wrote.

    Our statements are constants, so a table or column that they miss was lost, and a constraint that they break
    was kept when the rows were written.
    """
    if not isinstance(error, sqlite3.DatabaseError):
        return isinstance(error, (DamageFound, UnicodeDecodeError))  # the latter: of a damaged name in SQLite's words
    if isinstance(error, sqlite3.IntegrityError):
        return True
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    is_said = str(error).startswith(("no such ", "malformed ", "unsupported file format"))
    return is_said or code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)


def translated(error: sqlite3.Error | OSError, path: str) -> OutboxError:
    """Return our error for one of SQLite's or of the system's."""
    if isinstance(error, sqlite3.OperationalError) and "locked" in str(error):
        return OutboxBusy(f"{path} is locked by another program ({error})")
    if isinstance(error, OSError):
        is_full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    else:
        code = getattr(error, "sqlite_errorcode", 0)
        is_full = code & 0xFF == sqlite3.SQLITE_FULL or code == sqlite3.SQLITE_IOERR_SHMSIZE  # no room for the -shm
    if is_full:
        return DiskFull(f"there is no room on the disk for {path}: {error}; what was stored before is kept")
    return OutboxUnusable(f"{path} cannot be used: {error}")


def forked(path: str) -> OutboxUnusable:
    """Return what to raise in a child that was forked out of a call that used *path*, or past a gate that was shut."""
    return OutboxUnusable(f"this process was forked while {path} was in use; it cannot use it")


def create_private(path: str, lock: FileLock) -> int:
    """Create the empty file with mode 0600 and return its descriptor. Raises OutboxUnusable, OSError."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
    if lock.is_inherited:  # it is the parent's to create; no signal handler can come in between this and the next line
        raise forked(path)
    return os.open(path, flags, 0o600)


def _connect(path: str, lock: FileLock | None = None, *, uri: str = "") -> Connection:
    """Return a connection to the file at *path*, or at *uri*. Raises OutboxUnusable where a fork forbids it."""
    identity = _identity(path)
    if identity is not None and identity in [other.identity for other in _open if other.is_inherited]:
        raise forked(path)
    journal = f"{path}-journal"  # SQLite looks into it before anything else, and waits for ever at a pipe
    if os.path.lexists(journal) and not os.path.isfile(journal):
        raise OutboxUnusable(f"{journal} is not a regular file: move it away")
    options = {"isolation_level": None, "check_same_thread": False, "timeout": OUTSIDER_PATIENCE, "uri": bool(uri)}
    connection = Connection(uri or path, identity, lock, **options)
    if lock is not None and lock.is_inherited:  # a signal handler forked just now
        connection.forbid()
        raise forked(path)
    connection.text_factory = _decoded
    _require_json(connection)
    return connection


def _require_json(connection: Connection) -> None:
    """See that SQLite has the functions that the view uses, before their lack looks like damage."""
    try:
        connection.execute(sql.USE_JSON)
    except sqlite3.OperationalError as error:
        connection.close()
        raise OutboxUnusable(
            f"the SQLite {sqlite3.sqlite_version} of this Python was built without the JSON functions that the outbox "
            f"needs ({error}): use another Python; what was stored before is kept"
        ) from error


def _empty() -> Connection:
    connection = _connect(":memory:")
    for statement in sql.SETUP:
        connection.execute(statement)
    return connection


def _in_uri(path: str) -> str:
    """Return *path* as SQLite reads it in a URI. `urllib.parse` would do, but takes 3 ms to load."""
    return path.replace("%", "%25").replace("?", "%3f").replace("#", "%23")


def _identity(path: str) -> tuple[int, int] | None:
    """Return device and inode, None where there is no such file."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _decoded(data: bytes) -> str:
    """Return text; where a damaged file has other bytes, with replacements: one message must not stop the others."""
    return data.decode("utf-8", "replace")


def _require_outbox(connection: sqlite3.Connection, path: str) -> None:
    if connection.execute(sql.IS_EMPTY).fetchone()[0]:
        _create(connection, path)
        return
    minor = _require_format(connection, path)
    if minor < min(sql.MIGRATIONS, default=sql.MINOR):
        raise DamageFound(f"{path} says it has the format {minor}, which there never was")
    while minor < sql.MINOR:
        connection.execute(sql.BEGIN)
        for statement in sql.MIGRATIONS[minor]:
            connection.execute(statement)
        minor += 1
        connection.execute(sql.SET_MINOR.format(minor))
        connection.execute(sql.COMMIT)
    _require_schema(connection, path, minor)
    _require_sound_frame(connection)


def _require_sound_frame(connection: sqlite3.Connection) -> None:
    """Read what few statements would meet: the schema and the small tables. Raises sqlite3.Error."""
    for statement in sql.PROBES:
        connection.execute(statement).fetchone()


def _require_schema(connection: sqlite3.Connection, path: str, minor: int) -> None:
    """See that the schema is what was made, unless it has a newer *minor*, which this release does not know.

    Raises DamageFound.
    """
    if minor > sql.MINOR:
        return
    schema = connection.execute(sql.SCHEMA).fetchone()[0] or ""
    if zlib.crc32(schema.encode()) != sql.SCHEMA_CRC:
        raise DamageFound(f"the schema of {path} is not what was made")


def _require_writable(connection: sqlite3.Connection, path: str) -> None:
    """See that the file does not forbid writing by its own header. Raises DamageFound, sqlite3.Error."""
    try:
        connection.execute(sql.WRITE_NOTHING)
    except sqlite3.OperationalError as error:
        is_refused = getattr(error, "sqlite_errorcode", 0) == sqlite3.SQLITE_READONLY
        if is_refused and os.access(path, os.W_OK) and os.access(os.path.dirname(path), os.W_OK):
            raise DamageFound(f"{path} says that it is not to be written") from error
        raise


def _require_format(connection: sqlite3.Connection, path: str) -> int:
    """Return the minor format."""
    application_id, minor = connection.execute(sql.FORMAT).fetchone()
    if application_id == 0:
        raise DamageFound(f"{path} is damaged, or was not finished when it was made")
    if application_id != sql.APPLICATION_ID:
        raise DamageFound(f"{path} is an SQLite file but no outbox of outtray")
    return int(minor)


def _create(connection: sqlite3.Connection, path: str) -> None:
    # In one step of Python: it is still writing while its row is fetched, and a signal handler may fork in between.
    connection.executescript(sql.USE_WAL)
    (mode,) = connection.execute(sql.JOURNAL_MODE).fetchone()
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
