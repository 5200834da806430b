"""Where an outbox lies, how much room it has, and which processes are at it."""

from __future__ import annotations

import os
import re
import shlex
import sqlite3
import stat
import sys

from outtray import consent, identity
from outtray.cli import processes
from outtray.cli.output import count_text, size_text
from outtray.outbox import places, reserve
from outtray.outbox.files import (
    MAJOR,
    database_path,
    drain_lock_path,
    gate_path,
    generations,
    is_no_file,
    reserve_path,
)
from outtray.outbox.gate import NO_ROOM, REWRITE_WAL
from outtray.paths import config_path

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from outtray.cli.examination import Examination

WAL_RESET_BUG = ((3, 7, 0), (3, 51, 2))
"""The first and the last release of SQLite that has it."""

_FILE = re.compile(r"outbox-(\d+)[-.]", re.ASCII)

_NEXT_FLUSH = "run `outtray flush`, which makes it whole"


class ExaminedPlace:
    """The checks of the place. *is_usable* says whether the others can be made, once `directory` was."""

    def __init__(self, examination: Examination) -> None:
        self.is_usable = True
        self._examination = examination
        self._directory = examination.directory
        self._find = examination.find

    def checks(self) -> dict[str, Callable[[], str]]:
        """Return the checks by name, but for `directory`."""
        return {
            "rights": self._rights,
            "space": self._space,
            "versions": self._versions,
            "gate": self._gate,
            "delivery": self._drain_lock,
        }

    def directory(self) -> str:
        """See whether there is a directory that outtray uses."""
        directory = self._directory
        is_directory = os.path.isdir(directory)
        self.is_usable = is_directory and os.access(directory, os.R_OK | os.X_OK)
        if (refused := places.refusal(directory)) is not None:
            self._find(*refused)
        elif not is_directory:
            self._find(f"{directory} is not a directory, so nothing can be stored", f"move {directory} away")
        elif not self.is_usable:
            self._find(f"{directory} cannot be read by this user", f"chmod 700 {shlex.quote(directory)}")
        elif not os.access(directory, os.W_OK):
            self._find(
                f"{directory} cannot be written by this user: nothing can be stored or delivered",
                f"chmod 700 {shlex.quote(directory)}, or mount the disk for writing if it is not",
            )
        _, kind = places.mount(directory)
        return directory + (f" ({kind})" if kind else "")

    def config(self) -> str:
        """See whether the settings can be read, and by whom."""
        path = config_path()
        for problem in self._examination.settings.problems:
            self._find(problem, "correct it; until then `outtray flush` sends nothing")
        if not os.path.exists(path):
            return f"no config file ({path})"
        if not os.path.isfile(path):  # which is one of the problems
            return path
        with open(path, encoding="utf-8", errors="replace") as file:
            has_key = "write_key" in file.read()
        if has_key and sys.platform != "win32" and os.stat(path).st_mode & 0o077:
            self._find(f"{path} holds a write key, and others can read it", f"chmod 600 {shlex.quote(path)}")
        return path

    def _rights(self) -> str:
        if sys.platform == "win32":
            return "not looked at on Windows"
        with os.scandir(self._directory) as entries:
            files = sorted(entry.path for entry in entries)
        examined_elsewhere = (gate_path(self._directory), database_path(self._directory, self._examination.generation))
        for path in (self._directory, *files):  # `directory` tells whose the first is, and whether it is a link
            try:
                found = os.lstat(path)
            except FileNotFoundError:  # SQLite's own files come and go
                continue
            if found.st_uid != os.geteuid() and path != self._directory:
                self._find(
                    f"{path} belongs to user {found.st_uid}, not to {os.geteuid()} who runs this",
                    f"run this as user {found.st_uid}, or give it to this one (chown)",
                )
            if stat.S_ISLNK(found.st_mode):
                if path != self._directory:
                    self._find(f"{path} is a symbolic link, which is not followed", "put the file itself there")
            elif not stat.S_ISREG(found.st_mode) and path != self._directory:
                if _is_ours(path) and path not in examined_elsewhere:
                    self._find(f"{path} is not a regular file, and is in the way of one", f"move {path} away")
            elif (mode := stat.S_IMODE(found.st_mode)) & 0o077:
                self._find(
                    f"{path} has the mode {mode:04o}: others can get at it",
                    f"chmod -R go= {shlex.quote(self._directory)}",
                )
            elif _is_ours(path) and mode & 0o600 != 0o600:
                self._find(
                    f"{path} has the mode {mode:04o}: its owner cannot read and write it",
                    f"chmod 600 {shlex.quote(path)}",
                )
        return f"the directory and {count_text(len(files), 'file')} looked at"

    def _space(self) -> str:
        free, wanted = reserve.free_and_wanted(self._directory)
        path = reserve_path(self._directory)
        size = os.path.getsize(path) if os.path.isfile(path) else 0
        header = self._examination.header
        if hasattr(os, "statvfs"):
            disk = os.statvfs(self._directory)
            if disk.f_files and not disk.f_favail:  # a file system that counts none has no bound
                self._find(
                    "no inodes are left on the disk: no file can be made", "delete files that nobody needs on it"
                )
        if is_no_file(path):
            return f"{size_text(free)} free; no reserve for a full disk"
        if not reserve.has_room(self._directory):
            self._find(
                f"{size_text(free)} are free, which is too little for new messages beside the reserve",
                "make room on the disk",
            )
        elif 0 < size < wanted or (size == 0 and os.path.exists(path)):
            self._find(f"the reserve for a full disk is {size_text(size)} of {size_text(wanted)}", _NEXT_FLUSH)
        elif size == 0 and header is not None and header.settled_id:
            self._find("the reserve for a full disk is missing", _NEXT_FLUSH)
        whole = size_text(size) if size else "none, a delivery makes it"
        return f"{size_text(free)} free; reserve: {whole}"

    def _versions(self) -> str:
        majors = {int(found[1]) for name in os.listdir(self._directory) if (found := _FILE.match(name))}
        for major in sorted(major for major in majors if major > MAJOR):
            self._find(
                f"there are files of format {major}, of a newer release than this one (format {MAJOR})",
                "use the newer release: it delivers what waits in the older files too",
            )
        first, last = WAL_RESET_BUG
        release = f"SQLite {sqlite3.sqlite_version}"
        if first <= sqlite3.sqlite_version_info <= last:
            return f"{release}, which has the WAL-reset bug; the gate keeps it away"
        return release

    def _gate(self) -> str:
        path = gate_path(self._directory)
        if not os.path.lexists(path) and generations(self._directory):
            self._find(
                f"{path} was deleted: until they notice, with their next call, programs that run now have another lock "
                "than those that start",
                "watch programs that run; the next message or flush makes it anew",
            )
            return "it was deleted"
        if not os.path.lexists(path):
            return "there is none yet: the next use makes it"
        if is_no_file(path):
            self._find(f"{path} is not a regular file: nothing can be stored or delivered", f"move {path} away")
            return "not usable"
        if self._examination.no_header:
            self._find(self._examination.no_header, "put that right; until then nothing is stored or delivered")
            return "not usable"
        header = self._examination.header
        flags, writer = (header.flags, header.pid) if header else (0, 0)
        if flags & NO_ROOM:
            self._find(
                "the disk was full: new messages are refused until there is room, delivered ones are still noted",
                "make room on the disk; the next message or flush goes on",
            )
        if flags & REWRITE_WAL:
            self._find(
                "the disk did not confirm what was written: the log is written anew before anything else is stored",
                "look at the disk's health; the next message or flush writes it",
            )
        holder = processes.holder(path, otherwise=lambda: writer)
        if holder is not None:
            self._find(f"{holder} keeps the gate: nothing can be stored or delivered meanwhile", holder.advice)
            return f"kept by {holder}"
        return "free" + (f", last passed by {processes.Process(writer)}" if writer else "")

    def _drain_lock(self) -> str:
        path = drain_lock_path(self._directory)
        if not os.path.lexists(path):
            return "nobody delivers, nobody did so far"
        if is_no_file(path):
            return "nobody can deliver"
        drainer = processes.drainer(self._directory)
        if drainer is None:
            return "nobody delivers just now"
        process, is_moving = drainer
        if not is_moving:
            self._find(f"{process} has the right to deliver and does not move: nobody else can", process.advice)
            return f"kept by {process}"
        return f"{process} delivers"


def _is_ours(path: str) -> bool:
    """Tell whether *path* has a name that outtray gives to its files."""
    name = os.path.basename(path)
    return name in (identity.FILE_NAME, consent.FILE_NAME) or _FILE.match(name) is not None
