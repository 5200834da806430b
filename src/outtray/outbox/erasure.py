"""What the user's word does to stored messages: a choice is kept, consent is withdrawn, all is forgotten.

An erasure begins with one transaction, after which nothing of what it concerns is settled, and, where consent was
withdrawn, nothing more is recorded. The rest follows in slices under the gate; where that is cut off, the mark
in `meta` says what is left to be done.
"""

from __future__ import annotations

import os
import re

from outtray import consent, identity
from outtray.outbox import places, sql
from outtray.outbox.files import KEPT_WAL, MAJOR
from outtray.outbox.sync import sync_directory
from outtray.outbox.transaction import ERASING, FORGOTTEN, ROWS_UNDER_THE_GATE, WITHDRAWN

TYPE_CHECKING = False
if TYPE_CHECKING:
    from outtray.outbox.store import Outbox

BYTES_REBUILT = 4 * 1024 * 1024
"""Bytes of delivered messages that an erasure leaves: programs wait while they are rebuilt, 16 ms for a megabyte."""

_WHAT = {WITHDRAWN: sql.UNDELIVERED, FORGOTTEN: sql.EVERYTHING}

_OLDER = re.compile(rf"outbox-{MAJOR}-(\d+)\.db(?:-wal|-shm|-journal)?")


def keep_choice(directory: str, choice: str) -> None:
    """Have the user's *choice* on the disk, in *directory*, which is made if missing.

    Raises OSError, and OutboxUnusable for a directory that is another user's, or a symbolic link.

    What runs already heeds it once `apply_choice` or `withdraw` has put it into the outbox.
    """
    places.prepare(directory)
    path = consent.choice_path(directory)
    temporary = f"{path}.{os.getpid()}"
    try:
        _write(temporary, f"{choice}\n".encode())
        os.replace(temporary, path)
    except OSError:
        if os.path.lexists(temporary):
            os.unlink(temporary)
        if choice != consent.DENIED:
            raise
        _write(path, b"")  # a full disk still has room for a name, and what cannot be read is a denial
    sync_directory(directory)
    consent.forget_known(directory)


def apply_choice(outbox: Outbox) -> None:
    """Have running processes heed the choice that is kept, one that allows to record. Raises OutboxError."""
    finish(outbox)
    with outbox.writing() as transaction:
        transaction.header.choice = consent.stored(outbox.directory)


def withdraw(outbox: Outbox) -> int:
    """Remove what is not delivered, as the user denied consent, and return how many messages. Raises OutboxError.

    Whoever runs already records nothing any more. Nothing of the text is left in the outbox's files; a
    batch on its way to the receiver may still arrive, and is not settled.
    """
    with outbox.writing() as transaction:
        transaction.header.choice = consent.stored(outbox.directory)
        transaction.begin_erasure(WITHDRAWN)
    return finish(outbox)


def forget(outbox: Outbox) -> int:
    """Erase the client id and all messages, also delivered ones, and return how many. Raises OutboxError, OSError.

    The ledger's counts, the delivery settings and the user's choice stay. Whoever runs already goes on with a new id.
    """
    with outbox.writing() as transaction:
        identity.reset(outbox.directory)
        transaction.begin_erasure(FORGOTTEN)
    return finish(outbox)


def finish(outbox: Outbox) -> int:
    """Do what is left of an erasure, until no text of it is on the disk; returns the number of messages removed.

    Raises OutboxError: then the rest is left for the next call.
    """
    mark = outbox.meta(ERASING)
    if mark is None:
        return 0
    count = remove_marked(outbox)
    with outbox.writing() as transaction:  # so that nobody has just begun to use an older file
        _remove_left_behind(outbox.directory, transaction.header.generation)
    _prune(outbox)
    outbox.empty_wal(rebuild=True)
    with outbox.writing() as transaction:
        transaction.execute(sql.DELETE_META, (ERASING, mark))
    return count


def remove_marked(outbox: Outbox) -> int:
    """Remove the messages that an erasure concerns, if one is under way; their text may be left in free space."""
    mark = outbox.meta(ERASING)
    if mark is None:
        return 0
    reason, _, until = mark.partition(" ")
    count = 0
    more = True
    while more:
        with outbox.writing() as transaction:
            execute = transaction.execute
            ids = [id for (id,) in execute(_WHAT[reason], (int(until), ROWS_UNDER_THE_GATE))]
            count += len(transaction.remove_waiting(ids, reason))
            more = bool(ids)
            if not more:
                execute(sql.DELETE_MARKS, (int(until),))  # of messages that are gone
            if not more and reason == FORGOTTEN:
                execute(sql.DELETE_DELIVERIES, (int(until),))
    return count


def _prune(outbox: Outbox) -> None:
    """Delete the oldest delivered messages, until what is left can be rebuilt in a moment."""
    more = True
    while more:
        with outbox.writing() as transaction:
            is_large = transaction.live_bytes() > BYTES_REBUILT
            more = is_large and bool(transaction.remove(transaction.prunable(transaction.header.last_id)))


def _remove_left_behind(directory: str, generation: int) -> None:
    """Delete what recoveries left: files of generations before *generation*, and logs that were set aside."""
    with os.scandir(directory) as entries:
        for entry in list(entries):
            older = _OLDER.fullmatch(entry.name)
            if entry.name.endswith(KEPT_WAL) or (older and int(older[1]) < generation):
                if entry.is_dir(follow_symlinks=False):
                    continue  # somebody put it in the place of a database: none of ours
                os.unlink(entry.path)


def _write(path: str, content: bytes) -> None:
    """Write and sync a file with mode 0600. Raises OSError."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
    descriptor = os.open(path, flags, 0o600)
    try:
        if hasattr(os, "fchmod"):
            os.fchmod(descriptor, 0o600)
        os.write(descriptor, content)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
