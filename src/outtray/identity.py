"""The client id: a random UUID per application, given out in memory and written down with the first stored message."""

from __future__ import annotations

import os

from outtray.paths import make_directory, without_waiting

FILE_NAME = "client_id"


class _ClientId:
    """*offered* is what messages were given before the file was written, *id* what holds since then."""

    __slots__ = ("id", "is_kept", "offered")

    def __init__(self, id: str, *, is_kept: bool) -> None:
        self.id = self.offered = id
        self.is_kept = is_kept


_known: dict[str, _ClientId] = {}


def client_id(directory: str) -> str:
    """Return the client id kept in *directory*, or a new one, which `keep` writes down; this writes nothing."""
    known = _known.get(directory)
    if known is None:
        kept = _read(_path(directory))
        known = _known.setdefault(directory, _ClientId(kept or _random_uuid(), is_kept=kept is not None))
    return known.id


def with_kept_id(directory: str, text: str) -> str:
    """Return *text*, a message that is about to be stored, with the id that is kept in *directory* from now on.

    Another process may have written one down since this process made up its own: then that one replaces it.
    Where nothing can be written the made-up one stays: an event is worth more than its client id.
    """
    known = _known.get(directory)
    if known is None:
        return text  # nobody asked for it, so it is not in there
    if not known.is_kept:
        keep(directory)  # where that fails it is tried again with the next message
    return with_latest_id(directory, text)[0]


def with_valid_id(directory: str, text: str, *, forgettable: bool) -> str:
    """Return *text* as `with_kept_id` does, with a new id where the kept one was forgotten; only inside the gate.

    Where it is not *forgettable* a missing file means that the whole directory was lost: then the id stays.
    """
    known = _known.get(directory)
    if known is not None and known.is_kept and forgettable and _read(_path(directory)) != known.id:
        known.offered, known.id, known.is_kept = known.id, _random_uuid(), False
    return with_kept_id(directory, text)


def with_latest_id(directory: str, text: str) -> tuple[str, bool]:
    """Return *text* with the id that holds in this process, and whether none was given out that is not written down.

    Another thread may have learnt of another id meanwhile.
    """
    known = _known.get(directory)
    if known is None:
        return text, True
    return text if known.id == known.offered else text.replace(known.offered, known.id), known.is_kept


def keep(directory: str) -> bool:
    """Write the id that this process gave out into its file, unless one is there: then that one holds from now on.

    Returns False where it cannot be written.
    """
    known = _known.get(directory)
    if known is None:
        return True
    path = _path(directory)
    try:
        id = _read(path) or _written(directory, path, known.id)
    except OSError:
        return False
    if known.is_kept and known.id != id:
        known.offered = id  # what was kept before was somebody's id, and may be meant where it stands
    known.id, known.is_kept = id, True
    return True


def reset(directory: str) -> None:
    """Forget the client id; the next message makes a new one. Raises OSError if its file cannot be removed."""
    if os.path.isdir(directory):
        for name in os.listdir(directory):
            if name == FILE_NAME or name.startswith(f"{FILE_NAME}."):  # the second is left by a killed process
                _shred(os.path.join(directory, name))
    _known.pop(directory, None)


def _shred(path: str) -> None:
    """Overwrite and remove a file; of a link, a pipe or the like only the name."""
    if os.path.isfile(path) and not os.path.islink(path):
        with open(path, "r+b") as file:
            file.write(b"\0" * os.fstat(file.fileno()).st_size)
            file.flush()
            os.fsync(file.fileno())
    os.unlink(path)


def _path(directory: str) -> str:
    return os.path.join(directory, FILE_NAME)


def _written(directory: str, path: str, id: str) -> str:
    """Write *id* down, unless another process or thread was first, and return what is in the file. Raises OSError."""
    temporary = f"{path}.{os.getpid()}.{os.urandom(4).hex()}"
    make_directory(directory)
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with open(descriptor, "wb") as file:
            file.write(id.encode())
        os.chmod(temporary, 0o600)  # whatever the umask took away
        _publish(temporary, path)
    finally:
        if os.path.exists(temporary):  # it was published as another link, or there was no room for it
            os.unlink(temporary)
    return _read(path) or id


def _publish(temporary: str, path: str) -> None:
    """Give *temporary* the name *path* unless another process was first: its id is the one to keep."""
    try:
        os.link(temporary, path)
    except OSError:  # it exists, or this file system has no hard links
        if _read(path) is None:  # damaged or missing: nothing that could be kept
            os.replace(temporary, path)


def _read(path: str) -> str | None:
    try:
        # Bytes: a text file's codec may be imported first, and a child forked meanwhile would wait for that for ever.
        with open(path, "rb", opener=without_waiting) as file:
            text = file.read(64).decode("ascii").strip()
    except (OSError, UnicodeDecodeError):
        return None
    return text if len(text) == 36 and text.count("-") == 4 else None


def _random_uuid() -> str:
    digits = os.urandom(16).hex()
    return f"{digits[:8]}-{digits[8:12]}-4{digits[13:16]}-a{digits[17:20]}-{digits[20:]}"
