"""Whether a directory can hold an outbox: a local one, of this user's own, that nobody else can enter."""

from __future__ import annotations

import os
import stat
import sys

from outtray.errors import OutboxUnusable
from outtray.outbox.sync import sync_directory
from outtray.settings import make_directory

NETWORK_FILE_SYSTEMS = frozenset(
    {
        *("afs", "beegfs", "ceph", "cifs", "coda", "fuse.glusterfs", "fuse.sshfs", "gfs2", "glusterfs", "gpfs"),
        *("lustre", "ncpfs", "nfs", "nfs4", "ocfs2", "smb2", "smb3", "smbfs"),
    }
)
"""Types, as Linux names them, on which the shared memory of a write-ahead log does not work between machines."""


def prepare(directory: str) -> None:
    """Make *directory* if it is missing, see that it can hold an outbox, and close it to others.

    Raises OutboxUnusable with the reason and what to do, OSError.
    """
    if not os.path.isdir(directory):
        make_directory(directory)
        sync_directory(os.path.dirname(directory))
    found = os.lstat(directory)
    if stat.S_ISLNK(found.st_mode):
        raise OutboxUnusable(
            f"{directory} is a symbolic link, which somebody else may turn: set OUTTRAY_DIR to a real directory"
        )
    if sys.platform != "win32":
        if found.st_uid != os.geteuid():
            raise OutboxUnusable(
                f"{directory} belongs to user {found.st_uid}, not to {os.geteuid()} who runs this: "
                "set OUTTRAY_DIR to a directory of your own"
            )
        if stat.S_IMODE(found.st_mode) & 0o077:
            os.chmod(directory, 0o700)
    kind = file_system(directory)
    if kind in NETWORK_FILE_SYSTEMS:
        raise OutboxUnusable(
            f"{directory} is on a network file system ({kind}), on which several machines would damage the outbox: "
            "set OUTTRAY_DIR to a local directory, such as /var/tmp/outtray of your own"
        )


def file_system(path: str, table: str = "/proc/self/mountinfo") -> str | None:
    """Return the type of the file system that holds *path*, None where that cannot be told (not on Linux)."""
    if not os.path.exists(table):
        return "smb2" if path.startswith("\\\\") else None  # on Windows a share's path begins so
    path = os.path.realpath(path)
    kind, longest = None, -1
    with open(table, encoding="utf-8", errors="surrogateescape") as file:
        for line in file:
            fields = line.split(" ")
            place = _unescaped(fields[4])
            if len(place) >= longest and (path == place or path.startswith(place.rstrip("/") + "/")):
                kind, longest = fields[fields.index("-", 6) + 1], len(place)  # the last mount of a place is seen
    return kind


def _unescaped(text: str) -> str:
    """Return a path of the mount table with its blanks and backslashes."""
    for escaped, character in (("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")):
        text = text.replace(escaped, character)
    return text
