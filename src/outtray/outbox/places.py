"""Whether a directory can hold an outbox: a local one, of this user's own, that nobody else can enter."""

from __future__ import annotations

import os
import stat
import sys

from outtray.errors import OutboxUnusable
from outtray.outbox.sync import sync_directory
from outtray.paths import make_directory

MOUNTS = "/proc/self/mountinfo"
"""The table of what is mounted, on Linux."""

NETWORK_FILE_SYSTEMS = frozenset(
    {
        *("afs", "beegfs", "ceph", "cifs", "coda", "davfs", "gfs2", "glusterfs", "gpfs", "lustre", "ncpfs", "nfs"),
        *("nfs4", "ocfs2", "orangefs", "smb2", "smb3", "smbfs"),
        *("fuse.blobfuse", "fuse.blobfuse2", "fuse.ceph", "fuse.ceph-fuse", "fuse.curlftpfs", "fuse.davfs"),
        *("fuse.gcsfuse", "fuse.glusterfs", "fuse.goofys", "fuse.gvfsd-fuse", "fuse.juicefs", "fuse.kio-fuse"),
        *("fuse.mfs", "fuse.rclone", "fuse.s3fs", "fuse.seaweedfs", "fuse.smbnetfs", "fuse.sshfs"),
    }
)
"""Types, as Linux names them, of file systems that several machines use at once.

SQLite's documentation of the write-ahead log (sqlite.org/wal.html): "All processes using a database must be on the
same host computer; WAL does not work over a network filesystem", as they share the log's index by mapping it into
their memory. Nor do locks hold everywhere between machines (sqlite.org/howtocorrupt.html). Nothing of this raises an
error before the damage is done, so it takes a list. Of FUSE only what is known to reach another machine is on it: as
local as a disk are `fuseblk`, fuse-overlayfs (the root of many containers), mergerfs, gocryptfs.
"""

HOST_FILE_SYSTEMS = frozenset(
    {
        *("9p", "drvfs", "fakeowner", "fuse.grpcfuse", "fuse.osxfs", "fuse.vmhgfs-fuse", "prl_fs", "vboxsf"),
        *("virtiofs", "vmhgfs"),
    }
)
"""Types by which a virtual machine reaches into its host: /mnt/c of WSL, shared folders, bind mounts of Docker Desktop.

Host and guest are two machines with two memories and two tables of locks, so SQLite's words above hold here too, and
many of these map no shared memory at all (then SQLite says so itself, when it is to begin a log). The root of a guest
that has nothing else (gVisor, Kata) is its own, and is used.
"""


def prepare(directory: str) -> None:
    """Make *directory* if it is missing, see that it can hold an outbox, and close it to others.

    Raises OutboxUnusable with the reason and what to do, OSError.
    """
    if not os.path.isdir(directory):
        make_directory(directory)
        sync_directory(os.path.dirname(directory))
    if (refused := refusal(directory)) is not None:
        raise OutboxUnusable(": ".join(refused))
    if sys.platform != "win32" and stat.S_IMODE(os.stat(directory).st_mode) & 0o077:
        os.chmod(directory, 0o700)


def refusal(directory: str) -> tuple[str, str] | None:
    """Return why *directory*, which is there, cannot hold an outbox, and what to do; None if it can. Raises OSError."""
    found = os.lstat(directory)
    if stat.S_ISLNK(found.st_mode):
        return f"{directory} is a symbolic link, which somebody else may turn", "set OUTTRAY_DIR to a real directory"
    if sys.platform != "win32" and found.st_uid != os.geteuid():
        return (
            f"{directory} belongs to user {found.st_uid}, not to {os.geteuid()} who runs this",
            "set OUTTRAY_DIR to a directory of your own",
        )
    if (reason := why_not_alone(directory)) is not None:
        return reason, "set OUTTRAY_DIR to a local directory, such as /var/tmp/outtray of your own"
    return None


def why_not_alone(directory: str, table: str = MOUNTS) -> str | None:
    """Return why another machine may be at the files in *directory*, None if only this one is, or nobody knows."""
    place, kind = mount(directory, table)
    if kind in NETWORK_FILE_SYSTEMS:
        return f"{directory} is on a network file system ({kind}), on which several machines would damage the outbox"
    if kind in HOST_FILE_SYSTEMS and place != "/":
        return f"{directory} is shared with the host of this machine ({kind}), and used by both it would be damaged"
    return None


def mount(path: str, table: str = MOUNTS) -> tuple[str, str]:
    """Return where the file system that holds *path* is mounted, and its type; both are empty where nobody can tell."""
    try:
        with open(table, encoding="utf-8", errors="surrogateescape") as file:
            lines = file.readlines()
    except OSError:  # not on Linux
        return "", "smb2" if path.startswith("\\\\") else ""  # on Windows a share's path begins so
    path = os.path.realpath(path)
    found = kind = ""
    for line in lines:
        before, _, after = line.partition(" - ")
        fields, facts = before.split(" "), after.split()
        if len(fields) < 6 or not facts:
            continue  # of some other shape, it tells nothing
        place = _unescaped(fields[4])
        if len(place) >= len(found) and (path == place or path.startswith(place.rstrip("/") + "/")):
            found, kind = place, facts[0]  # the last mount of a place is seen
    return found, kind


def _unescaped(text: str) -> str:
    """Return a path of the mount table with its blanks and backslashes."""
    for escaped, character in (("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")):
        text = text.replace(escaped, character)
    return text
