"""The files of an outbox: their names, which are there, and opening one.

Each name has the format's major in it, that of a database its generation too.
"""

from __future__ import annotations

import os
import re

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


_OF_GENERATION = re.compile(rf"outbox-{MAJOR}-(\d{{1,8}})(?:\.db(?:-wal)?|-(\d{{1,8}}){re.escape(KEPT_WAL)})", re.ASCII)


def generations(directory: str) -> list[int]:
    """Return the generations of which *directory* has a database or a log, lowest first. Raises OSError."""
    found = filter(None, map(_OF_GENERATION.fullmatch, os.listdir(directory)))
    return sorted({int(name[1]) for name in found})


def newest_generation(directory: str) -> int:
    """Return the highest generation that has a file in *directory*, 0 if there is none. Raises OSError."""
    return max(generations(directory), default=0)


def kept_wal_path(directory: str, generation: int, number: int) -> str:
    """Return the path of a log of *generation* that was set aside, counted from 0."""
    return os.path.join(directory, f"outbox-{MAJOR}-{generation}-{number}{KEPT_WAL}")


def kept_wals(directory: str, generation: int) -> list[str]:
    """Return the paths of the logs of *generation* that were set aside, oldest first. Raises OSError."""
    found = filter(None, map(_OF_GENERATION.fullmatch, os.listdir(directory)))
    numbers = sorted(int(name[2]) for name in found if name[2] and int(name[1]) == generation)
    return [kept_wal_path(directory, generation, number) for number in numbers]


def is_alone(directory: str, generation: int) -> bool:
    """Tell whether *directory* has no database and no log but those of *generation*, as nearly always. Raises OSError.

    Then no damage has left anything in it from which something could be brought back.
    """
    return generations(directory) == [generation] and not kept_wals(directory, generation)


def open_descriptor(path: str, flags: int) -> int:
    """Return a descriptor of the file, made with mode 0600 if *flags* say so. Raises OSError.

    It is none of the first three: in a program that has closed stderr, what is printed there would go into the file.
    """
    descriptor = os.open(path, flags | getattr(os, "O_BINARY", 0), 0o600)
    low = []
    while descriptor < 3:
        low.append(descriptor)
        descriptor = os.dup(descriptor)
    for each in low:
        os.close(each)
    return descriptor


def has_outbox(directory: str) -> bool:
    """Tell whether *directory* has an outbox, sound or not, or what is left of one. Raises OSError."""
    if not os.path.isdir(directory):
        return False
    gate = gate_path(directory)
    return (os.path.exists(gate) and os.stat(gate).st_size > 0) or bool(generations(directory))


def is_blank(path: str) -> bool:
    """Tell whether there is no file at *path*, or nothing in it: SQLite would begin anew, and delete the log beside it.

    Raises OSError.
    """
    return os.path.islink(path) or not os.path.isfile(path) or os.stat(path).st_size == 0


def is_no_file(path: str) -> bool:
    """Tell whether what lies at *path* is something else than a file: a link, a pipe, a directory."""
    return os.path.lexists(path) and (os.path.islink(path) or not os.path.isfile(path))


def exists(directory: str) -> bool:
    """Tell whether *directory* has an outbox, as `has_outbox`. Raises OutboxUnusable where there could never be one."""
    place = directory
    while not os.path.lexists(place) and place != os.path.dirname(place):
        place = os.path.dirname(place)
    if not os.path.isdir(place):
        raise OutboxUnusable(f"{place} is not a directory, so there can be no outbox in {directory}")
    gate = gate_path(directory)
    if is_no_file(gate):
        raise OutboxUnusable(f"{gate} is not a regular file, so nothing can be stored or delivered in {directory}")
    try:
        if has_outbox(directory):
            return True
    except OSError as error:
        raise OutboxUnusable(f"{directory} cannot be read: {error}") from error
    if not os.access(place, os.W_OK | os.X_OK):
        raise OutboxUnusable(f"{place} cannot be written by this user, so there can be no outbox in {directory}")
    return False
