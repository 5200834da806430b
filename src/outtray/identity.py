"""The client id: a random UUID per application, made with the first accepted message."""

from __future__ import annotations

import os

from outtray.settings import make_directory

FILE_NAME = "client_id"


_known: dict[str, str] = {}


def client_id(directory: str) -> str:
    """Return the client id kept in *directory*; both are made if missing.

    Where it cannot be written, the one returned holds for this process: an event is worth more than its client id.
    """
    known = _known.get(directory)
    if known is None:
        known = _known[directory] = _kept(directory)
    return known


def _kept(directory: str) -> str:
    path = os.path.join(directory, FILE_NAME)
    kept = _read(path)
    if kept is not None:
        return kept
    new = _random_uuid()
    temporary = f"{path}.{os.getpid()}.{new[:8]}"
    try:
        make_directory(directory)
        with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(new)
        _publish(temporary, path)
    except OSError:
        return new
    return _read(path) or new


def reset(directory: str) -> None:
    """Forget the client id; the next message makes a new one. Raises OSError if its file cannot be removed."""
    path = os.path.join(directory, FILE_NAME)
    if os.path.lexists(path):
        os.unlink(path)
    _known.pop(directory, None)


def _publish(temporary: str, path: str) -> None:
    """Give *temporary* the name *path* unless another process was first: its id is the one to keep."""
    try:
        os.link(temporary, path)
    except OSError:  # it exists, or this file system has no hard links
        if _read(path) is None:  # damaged or missing: nothing that could be kept
            os.replace(temporary, path)
    finally:
        if os.path.exists(temporary):
            os.unlink(temporary)


def _read(path: str) -> str | None:
    try:
        with open(path, encoding="ascii") as file:
            text = file.read(64).strip()
    except (OSError, UnicodeDecodeError):
        return None
    return text if len(text) == 36 and text.count("-") == 4 else None


def _random_uuid() -> str:
    digits = os.urandom(16).hex()
    return f"{digits[:8]}-{digits[8:12]}-4{digits[13:16]}-a{digits[17:20]}-{digits[20:]}"
