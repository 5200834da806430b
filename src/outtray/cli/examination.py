"""One outbox, examined: each check says what it found, and what to do about what is wrong. Nothing is changed."""

from __future__ import annotations

import os
import re
import shlex
import sqlite3
import stat
import sys
import time
from typing import TYPE_CHECKING, Any

from outtray import consent
from outtray.cli import processes
from outtray.cli.output import age_text, count_text, size_text
from outtray.delivery.drain import read_delivery_settings
from outtray.errors import OutboxError, Postponed
from outtray.outbox import places, recovery, reserve
from outtray.outbox.files import MAJOR, database_path, drain_lock_path, gate_path, newest_generation, reserve_path
from outtray.outbox.gate import NO_ROOM, REWRITE_WAL, Header
from outtray.outbox.store import DELIVERY_SETTINGS
from outtray.outbox.transaction import ERASING
from outtray.settings import config_path, without_credentials
from outtray.testing.inspect import BAD_HEADER, TORN, Unreadable, inspect

if TYPE_CHECKING:
    from collections.abc import Callable

    from outtray.settings import Settings

WAL_BYTES = 16 * 1024 * 1024
"""Bytes of a write-ahead log above which something keeps it from being emptied."""

CLOCK_TOLERANCE = 60.0
"""Seconds that the newest message may be ahead of the clock."""

EARLIEST_NOW = 1_577_836_800.0
"""The beginning of 2020, Unix seconds: a clock before it was never set."""

WAL_RESET_BUG = ((3, 7, 0), (3, 51, 2))
"""The first and the last release of SQLite that has it."""

LOSSES = {
    "lost": "messages were stored and are gone",
    "lost_unknown": "times a damaged file did not tell any more what had been delivered of it",
    "unknown": "messages were not confirmed by the disk: they may be delivered, or lost",
    "file_damaged": "times the database was found damaged, and a new file begun",
}
"""The ledger's words that mean a loss, in words."""

_FILE = re.compile(r"outbox-(\d+)[-.]", re.ASCII)


class Examination:
    """What was found in one outbox.

    *says* has a line for each check, *findings* what is wrong, as dicts of `check`, `text` and `do`. *content* is what
    `testing.inspect` says of the database in use, the one of *generation*, None where it cannot be read; *is_damaged*
    says that it must be left though it can be opened. Raises OutboxUnusable for an outbox of a newer release, OSError.
    """

    def __init__(self, settings: Settings, *, online: bool) -> None:
        self.app = settings.app
        self.directory = settings.directory
        self.says: dict[str, str] = {}
        self.findings: list[dict[str, str]] = []
        self.content: dict[str, Any] | None = None
        self.is_damaged = False
        self.generation = self._generation()
        self._settings = settings
        self._online = online
        self._check = ""
        self._unreadable = ""
        for name, check in self._checks().items():
            self._run(name, check)

    def to_dict(self) -> dict[str, Any]:
        """Return what `doctor --json` prints."""
        return {"app": self.app, "directory": self.directory, "findings": self.findings, "checks": self.says}

    def _checks(self) -> dict[str, Callable[[], str]]:
        checks = {
            "directory": self._examine_directory,
            "settings": self._examine_settings,
            "rights": self._examine_rights,
            "space": self._examine_space,
            "gate": self._examine_gate,
            "delivery": self._examine_drain_lock,
            "content": self._examine_content,
            "log": self._examine_wal,
            "versions": self._examine_versions,
            "recovery": self._examine_recovery,
            "ledger": self._examine_ledger,
            "clock": self._examine_clock,
            "consent": self._examine_consent,
        }
        return {**checks, "receiver": self._examine_receiver} if self._online else checks

    def _run(self, name: str, check: Callable[[], str]) -> None:
        self._check = name
        try:
            self.says[name] = check()
        except (OSError, OutboxError) as error:
            self.says[name] = "could not be examined"
            self._find(str(error), "put that right and run this again")

    def _find(self, text: str, do: str) -> None:
        self.findings.append({"check": self._check, "text": text, "do": do})

    # Where it lies

    def _examine_directory(self) -> str:
        directory = self.directory
        found = os.lstat(directory)
        if stat.S_ISLNK(found.st_mode):
            self._find(
                f"{directory} is a symbolic link, which somebody else may turn: nothing is stored there",
                "set OUTTRAY_DIR to a real directory",
            )
        kind = places.file_system(directory)
        if kind in places.NETWORK_FILE_SYSTEMS:
            self._find(
                f"{directory} is on a network file system ({kind}), on which several machines would damage the outbox",
                "set OUTTRAY_DIR to a local directory",
            )
        return directory + (f" ({kind})" if kind else "")

    def _examine_settings(self) -> str:
        path = config_path()
        for problem in self._settings.problems:
            self._find(problem, "correct it; until then the default stands")
        if not os.path.exists(path):
            return f"no config file ({path})"
        with open(path, encoding="utf-8", errors="replace") as file:
            has_key = "write_key" in file.read()
        if has_key and sys.platform != "win32" and os.stat(path).st_mode & 0o077:
            self._find(f"{path} holds a write key, and others can read it", f"chmod 600 {shlex.quote(path)}")
        return path

    def _examine_rights(self) -> str:
        if sys.platform == "win32":
            return "not examined on Windows"
        with os.scandir(self.directory) as entries:
            files = sorted(entry.path for entry in entries)
        for path, mode in ((self.directory, 0o700), *((path, 0o600) for path in files)):
            try:
                found = os.lstat(path)
            except FileNotFoundError:  # SQLite's own files come and go
                continue
            if found.st_uid != os.geteuid():
                self._find(
                    f"{path} belongs to user {found.st_uid}, not to {os.geteuid()} who runs this",
                    f"chown it, or run this as user {found.st_uid}",
                )
            if stat.S_ISLNK(found.st_mode):
                if path != self.directory:  # of which `directory` tells
                    self._find(f"{path} is a symbolic link, which is not followed", "put the file itself there")
            elif stat.S_IMODE(found.st_mode) & 0o077:
                self._find(
                    f"{path} has the mode {stat.S_IMODE(found.st_mode):04o}: others can get at it",
                    f"chmod {mode:o} {shlex.quote(path)}",
                )
        return f"the directory and {count_text(len(files), 'file')} looked at"

    def _examine_space(self) -> str:
        free, wanted = reserve.free_and_wanted(self.directory)
        path = reserve_path(self.directory)
        size = os.path.getsize(path) if os.path.exists(path) else 0
        if not reserve.has_room(self.directory):
            self._find(
                f"{size_text(free)} are free, which is too little for new messages beside the reserve",
                "make room on the disk",
            )
        elif 0 < size < wanted or (size == 0 and os.path.exists(path)):
            self._find(f"the reserve for a full disk is {size_text(size)} of {size_text(wanted)}", _NEXT_FLUSH)
        elif size == 0 and self._has_delivered():
            self._find("the reserve for a full disk is missing", _NEXT_FLUSH)
        whole = size_text(size) if size else "none, the first delivery makes it"
        return f"{size_text(free)} free; reserve: {whole}"

    def _has_delivered(self) -> bool:
        content = self._content()
        cursors = (content["cursors"] if content else None) or {}
        return any(cursor["delivered"] for cursor in cursors.values())

    # Who is at it

    def _examine_gate(self) -> str:
        path = gate_path(self.directory)
        if not os.path.lexists(path):
            return "there is none yet: the next use makes it"
        if os.path.islink(path) or not os.path.isfile(path):
            self._find(f"{path} is not a regular file: nothing can be stored or delivered", "move it away")
            return "not usable"
        header = (self._content() or {}).get("header") or {}
        flags = header.get("flags", 0) if header.get("crc_ok") else 0
        if flags & NO_ROOM:
            self._find(
                "the disk was full: new messages are refused until there is room, delivered ones are still noted",
                "make room; the next message or flush goes on",
            )
        if flags & REWRITE_WAL:
            self._find(
                "the disk did not confirm what was written: the log is written anew before anything else is stored",
                "look at the disk's health; the next message or flush writes it",
            )
        writer = header.get("pid", 0)
        holder = processes.holder(path, otherwise=lambda: writer)
        if holder is not None:
            self._find(
                f"{holder} keeps the gate: nothing can be stored or delivered meanwhile",
                holder.advice,
            )
            return f"held by {holder}"
        return "free" + (f", last passed by {processes.Process(writer)}" if writer else "")

    def _examine_drain_lock(self) -> str:
        path = drain_lock_path(self.directory)
        if not os.path.exists(path):
            return "nobody delivers, nobody did so far"
        drainer = processes.drainer(self.directory)
        if drainer is None:
            return "nobody delivers just now"
        process, is_moving = drainer
        if not is_moving:
            self._find(f"{process} has the right to deliver and does not move: nobody else can", process.advice)
        return f"{process} delivers"

    # What is in it

    def _content(self) -> dict[str, Any] | None:
        """Inspect a copy of the database in use, once."""
        if self.content is None and not self._unreadable:
            try:
                self.content = inspect(self._database(), messages=1)
            except Unreadable as error:
                self._unreadable = str(error)
            else:
                is_sound = self.content["integrity"] == ["ok"] and self.content["wrong_cursors"] == []
                self.is_damaged = not is_sound and TORN not in self.content["problems"]
        return self.content

    def _meta(self) -> dict[str, str]:
        content = self._content()
        return (content["meta"] if content else None) or {}

    def _database(self) -> str:
        return database_path(self.directory, self.generation)

    def _generation(self) -> int:
        """Return the generation in use."""
        number = newest_generation(self.directory)
        if os.path.isfile(gate := gate_path(self.directory)):
            with open(gate, "rb") as file:
                header = Header.from_bytes(file.read(Header.SIZE))
            number = header.generation if header else number
        return number

    def _examine_content(self) -> str:
        content = self._content()
        if content is None:
            self._find(self._unreadable, _SALVAGE)
            return "not readable"
        if TORN in content["problems"]:
            return "not compared: a program writes to it all the time (run this again when it writes less)"
        for problem in content["problems"]:
            self._find(problem, _NEXT_USE if problem == BAD_HEADER else _SALVAGE)
        if content["messages"] is None:
            return f"{os.path.basename(content['path'])} cannot be read to its end"
        count = content["messages"]["count"]
        return f"{os.path.basename(content['path'])}: {count_text(count)}, compared with their checksums"

    def _examine_wal(self) -> str:
        path = f"{self._database()}-wal"
        size = os.path.getsize(path) if os.path.exists(path) else 0
        if size > WAL_BYTES:
            self._find(
                f"the write-ahead log has {size_text(size)}: something keeps it from being emptied",
                "end programs that read the database for long, such as a `sqlite3` shell",
            )
        return f"{size_text(size)} of write-ahead log"

    def _examine_versions(self) -> str:
        majors = {int(found[1]) for name in os.listdir(self.directory) if (found := _FILE.match(name))}
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

    def _examine_recovery(self) -> str:
        found = recovery.sources(self.directory, self.generation)
        waiting = [source.name for source in recovery.waiting(self.directory, self.generation, self._meta().get)]
        if waiting:
            self._find(f"not brought back yet, from damaged files: {', '.join(waiting)}", _SALVAGE)
        kept = [source.name for source in found if source.name not in waiting]
        if kept:
            return f"brought back, and kept for a while: {', '.join(kept)}"
        return "damaged files wait" if waiting else "no damaged files"

    def _examine_ledger(self) -> str:
        content = self._content()
        ledger: dict[str, int] | None = content["ledger"] if content else None
        if ledger is None:
            return "not readable"
        for reason, words in LOSSES.items():
            if ledger.get(reason, 0) > 0:
                self._find(f"{reason} {ledger[reason]}: {words}", _LEDGER)
        return ", ".join(f"{reason} {count}" for reason, count in ledger.items()) or "empty"

    def _examine_clock(self) -> str:
        now = time.time()
        text = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(now))
        content = self._content()
        newest = (content["newest"] if content else None) or []
        ahead = newest[0]["accepted_at"] - now if newest else 0.0
        if now < EARLIEST_NOW:
            self._find(f"it is {text} by the clock, which was never set", "set the clock")
        if ahead > CLOCK_TOLERANCE:
            self._find(
                f"the newest message was accepted {age_text(ahead)} after now: the clock was, or is, wrong",
                "set the clock; messages are delivered all the same",
            )
        return text + (f", the newest message {age_text(max(0.0, -ahead))} before" if newest else "")

    def _examine_consent(self) -> str:
        agreed = consent.decide(self._settings, afresh=True)
        if ERASING in self._meta():
            self._find(
                "an erasure was begun and is not finished: text may be left on the disk",
                f"outtray flush --app {self.app}, or the command that was cut off, once more",
            )
        return f"{agreed.state} ({agreed.reason})"

    # Where it goes

    def effective_settings(self) -> Settings:
        """Return the settings with what the host stored for drainers, as far as that can be read."""
        return self._settings.over(read_delivery_settings(self._meta().get(DELIVERY_SETTINGS)))

    def _examine_receiver(self) -> str:
        from outtray.request import probe

        settings = self.effective_settings()
        if settings.url is None:
            self._find("no url is set, so that all waits", "set OUTTRAY_URL or call configure(url=...)")
            return "none"
        place = without_credentials(settings.url)
        try:
            answer = probe(settings.url, settings.timeout)
        except Postponed as error:
            self._find(f"{place} cannot be reached: {error.reason}", "look at the network, the url and any proxy")
            return f"{place}: no answer"
        if answer.is_redirect:
            target = without_credentials(answer.headers["location"])
            self._find(
                f"{place} answers with a redirect ({answer.status_code}) to {target}, which is not followed",
                "set the url to where batches are to go",
            )
        return f"{place} answers HEAD with {answer.status_code}; nothing was sent"


_SALVAGE = "outtray doctor --salvage, or the next flush, brings back what can be saved"
_NEXT_USE = "nothing: the next use does it"
_NEXT_FLUSH = "the next flush makes it whole"
_LEDGER = "the ledger keeps this count for good; nothing is left to be done"
