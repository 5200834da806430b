"""Names of the files of an outbox: each has the format's major in it, a database its generation too."""

from __future__ import annotations

import os

from outtray.errors import OutboxUnusable

MAJOR = 1
"""The format's major: a file of another one is not opened."""

KEPT_WAL = ".lost-wal"
"""How the name of a write-ahead log ends that was set aside: `outbox-1-0-3.lost-wal` is the fourth of generation 0."""


def gate_path(directory: str) -> str:
    """Return the path of the gate's file."""
    return os.path.join(directory, f"outbox-{MAJOR}.gate")


def drain_lock_path(directory: str) -> str:
    """Return the path of the drain lock's file."""
    return os.path.join(directory, f"outbox-{MAJOR}.drain")


def reserve_path(directory: str) -> str:
    """Return the path of the file whose room is given back when the disk is full."""
    return os.path.join(directory, f"outbox-{MAJOR}.reserve")


def database_path(directory: str, generation: int) -> str:
    """Return the path of the database of one generation."""
    return os.path.join(directory, f"outbox-{MAJOR}-{generation}.db")


def generations(directory: str) -> list[int]:
    """Return the generations that have a database file in *directory*, lowest first. Raises OSError."""
    prefix = f"outbox-{MAJOR}-"
    names = [name for name in os.listdir(directory) if name.startswith(prefix) and name.endswith(".db")]
    parts = [name[len(prefix) : -len(".db")] for name in names]
    return sorted(int(part) for part in parts if part.isascii() and part.isdecimal() and len(part) < 9)


def newest_generation(directory: str) -> int:
    """Return the highest generation that has a file in *directory*, 0 if there is none. Raises OSError."""
    return max(generations(directory), default=0)


def kept_wals(directory: str) -> list[str]:
    """Return the paths of the logs that were set aside as SQLite dropped a part of them. Raises OSError."""
    prefix, suffix = f"outbox-{MAJOR}-", KEPT_WAL
    names = sorted(name for name in os.listdir(directory) if name.startswith(prefix) and name.endswith(suffix))
    return [os.path.join(directory, name) for name in names]


def has_database(directory: str) -> bool:
    """Tell whether there is the database of an outbox in *directory*. Raises OSError."""
    return os.path.exists(database_path(directory, newest_generation(directory) if os.path.isdir(directory) else 0))


def is_emptied(path: str) -> bool:
    """Tell whether the database at *path* is gone, empty or no file, and its log is not: SQLite would delete that."""
    try:
        has_log = os.stat(f"{path}-wal").st_size > 0
    except OSError:
        return False
    return has_log and (os.path.islink(path) or not os.path.isfile(path) or os.stat(path).st_size == 0)


def exists(directory: str) -> bool:
    """Tell whether there is an outbox in *directory*. Raises OutboxUnusable where there could never be one."""
    place = directory
    while not os.path.lexists(place) and place != os.path.dirname(place):
        place = os.path.dirname(place)
    if not os.path.isdir(place):
        raise OutboxUnusable(f"{place} is not a directory, so there can be no outbox in {directory}")
    gate = gate_path(directory)
    if os.path.lexists(gate) and (os.path.islink(gate) or not os.path.isfile(gate)):
        raise OutboxUnusable(f"{gate} is not a regular file, so nothing can be stored or delivered in {directory}")
    try:
        if has_database(directory):
            return True
    except OSError as error:
        raise OutboxUnusable(f"{directory} cannot be read: {error}") from error
    if not os.access(place, os.W_OK | os.X_OK):
        raise OutboxUnusable(f"{place} cannot be written by this user, so there can be no outbox in {directory}")
    return False
