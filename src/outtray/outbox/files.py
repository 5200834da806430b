"""Names of the files of an outbox: each has the format's major in it, a database its generation too."""

from __future__ import annotations

import os

MAJOR = 1
"""The format's major: a file of another one is not opened."""


def gate_path(directory: str) -> str:
    """Return the path of the gate's file."""
    return os.path.join(directory, f"outbox-{MAJOR}.gate")


def drain_lock_path(directory: str) -> str:
    """Return the path of the drain lock's file."""
    return os.path.join(directory, f"outbox-{MAJOR}.drain")


def database_path(directory: str, generation: int) -> str:
    """Return the path of the database of one generation."""
    return os.path.join(directory, f"outbox-{MAJOR}-{generation}.db")


def newest_generation(directory: str) -> int:
    """Return the highest generation that has a file in *directory*, 0 if there is none."""
    prefix = f"outbox-{MAJOR}-"
    names = [name for name in os.listdir(directory) if name.startswith(prefix) and name.endswith(".db")]
    parts = [name[len(prefix) : -len(".db")] for name in names]
    return max((int(part) for part in parts if part.isdecimal()), default=0)


def exists(directory: str) -> bool:
    """Tell whether there is an outbox in *directory*."""
    return os.path.exists(database_path(directory, newest_generation(directory) if os.path.isdir(directory) else 0))
