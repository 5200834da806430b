"""What is in an outbox, whether it is as it was stored, and where it goes."""

from __future__ import annotations

import os
import time

from outtray import consent
from outtray.cli.examination import NOT_EXAMINED
from outtray.cli.output import age_text, count_text, size_text
from outtray.delivery.target import read_delivery_settings
from outtray.errors import Postponed
from outtray.outbox import sources
from outtray.outbox.files import database_path, is_blank, is_no_file
from outtray.outbox.generation import is_missing
from outtray.outbox.inspect import BAD_HEADER, OF_MESSAGES, TORN, Unreadable, Unstarted, inspect
from outtray.outbox.transaction import DELIVERY_SETTINGS, ERASING
from outtray.settings import without_credentials

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from outtray.cli.examination import Examination
    from outtray.settings import Settings

WAL_BYTES = 16 * 1024 * 1024
"""Bytes of a write-ahead log above which something keeps it from being emptied."""

CLOCK_TOLERANCE = 60.0
"""Seconds that the newest message may be ahead of the clock."""

EARLIEST_NOW = 1_577_836_800.0
"""The beginning of 2020, Unix seconds: a clock before it was never set."""

LOSSES = {
    "lost": "messages that were stored and are gone",
    "lost_unknown": "files that did not tell any more what had been delivered of them",
    "unknown": "messages that the disk did not confirm: delivered, or lost",
    "file_damaged": "times that the database was found damaged, and a new file begun",
    "unclean_restart": "times that the system went down in the middle of it: its last second may be gone",
}
"""The ledger's words that mean a loss, or that there may have been one, in words."""

_SALVAGE = "run `outtray doctor --salvage` or `outtray flush`, which bring back what can be saved"
_ONE_BY_ONE = (
    "run `outtray flush`, which sets aside what cannot be sent; `outtray purge` removes what was delivered, and "
    "`outtray purge --state dead --yes` all that was set aside"
)
_NEXT_USE = "the next message or flush does it"
_PUT_BACK = "put the file back, if there is a copy; else `outtray flush` begins a new one and counts what is lost"


class ExaminedContent:
    """The checks of the content, of which a copy is made and read once."""

    def __init__(self, examination: Examination) -> None:
        self._examination = examination
        self._find = examination.find
        self._directory = examination.directory
        self._path = database_path(self._directory, examination.generation)
        self._content: dict[str, Any] | None = None
        self._unreadable: tuple[str, str] | None = None  # why, and what to do
        self._read()

    def _read(self) -> None:
        path = self._path
        try:
            if is_missing(self._directory, self._examination.generation, self._examination.header):
                self._unreadable = f"{path} is gone or empty, though messages were stored in it", _PUT_BACK
                if is_no_file(path):
                    self._unreadable = f"{path} is not a regular file", f"move {path} away, then {_PUT_BACK}"
            elif not is_blank(path):
                self._content = inspect(path, messages=1)
        except Unstarted as error:
            header = self._examination.header
            if header is not None and header.last_id:
                self._unreadable = str(error), _SALVAGE
        except Unreadable as error:
            self._unreadable = str(error), _SALVAGE
        except OSError as error:  # such as no room for the copy
            self._unreadable = f"{path} could not be examined: {error}", "put that right and run this again"

    @property
    def is_damaged(self) -> bool:
        """Whether the file in use must be left, though it can be opened."""
        if self._content is None or TORN in self._content["problems"]:
            return False
        wrong = ("wrong_cursors", "wrong_marks", "unaccounted")
        is_unreadable = any(self._content[each] is None for each in ("messages", "states", "ledger", "meta", "newest"))
        is_wrong = any(self._content[each] not in ([], 0) for each in wrong)
        return is_unreadable or is_wrong or self._content["integrity"] != ["ok"]

    def checks(self, *, online: bool) -> dict[str, Callable[[], str]]:
        """Return the checks by name; *online* sees whether the receiver answers, too."""
        checks = {
            "content": self._examine,
            "log": self._log,
            "recovery": self._recovery,
            "ledger": self._ledger,
            "clock": self._clock,
            "consent": self._consent,
        }
        return {**checks, "receiver": self._receiver} if online else checks

    def effective_settings(self) -> Settings:
        """Return the settings with what the host stored for drainers, as far as that can be read."""
        return self._examination.settings.over(read_delivery_settings(self._meta().get(DELIVERY_SETTINGS)))

    def _meta(self) -> dict[str, str]:
        return (self._content["meta"] if self._content else None) or {}

    def _examine(self) -> str:
        content = self._content
        if self._unreadable is not None:
            self._find(*self._unreadable)
            return "cannot be read"
        if content is None:
            return "nothing was stored yet"
        if TORN in content["problems"]:
            return "not compared: a program writes to it all the time (run this again when it writes less)"
        for problem in content["problems"]:
            self._find(problem, _advice(problem))
        if content["messages"] is None:
            return f"{os.path.basename(self._path)} cannot be read to its end"
        count = content["messages"]["count"]
        return f"{os.path.basename(self._path)}: {count_text(count)}, compared with the checksums"

    def _log(self) -> str:
        path = f"{self._path}-wal"
        size = os.path.getsize(path) if os.path.exists(path) else 0
        if size > WAL_BYTES:
            self._find(
                f"the write-ahead log has {size_text(size)}: something keeps it from being emptied",
                "end programs that read the database for long, such as a `sqlite3` shell",
            )
        return f"{size_text(size)} of write-ahead log"

    def _recovery(self) -> str:
        found = sources.sources(self._directory, self._examination.generation)
        generation = self._examination.generation
        waiting = [source.name for source in sources.waiting(self._directory, generation, self._meta().get)]
        if waiting and self._unreadable is not None:
            return f"{NOT_EXAMINED}the content, which tells what was brought back, cannot be read"
        if waiting:
            self._find(f"not brought back yet, from damaged files: {', '.join(waiting)}", _SALVAGE)
            return "damaged files wait"
        if found:
            return f"brought back, and kept for a while: {', '.join(source.name for source in found)}"
        return "no damaged files"

    def _ledger(self) -> str:
        ledger: dict[str, int] | None = self._content["ledger"] if self._content else {}
        if ledger is None or self._unreadable is not None:
            return f"{NOT_EXAMINED}the content cannot be read"
        counts = {reason: count for reason, count in ledger.items() if count > 0}
        other = ", ".join(f"{reason} {count}" for reason, count in counts.items() if reason not in LOSSES)
        past = [f"{reason} {counts[reason]} ({words})" for reason, words in LOSSES.items() if reason in counts]
        losses = f"in the past: {', '.join(past)}" if past else ""
        return "; ".join(filter(None, (other, losses))) or "empty"

    def _clock(self) -> str:
        now = time.time()
        text = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(now))
        if now < EARLIEST_NOW:
            self._find(f"it is {text} by the clock, which was never set", "set the clock")
        newest = (self._content["newest"] if self._content else None) or []
        accepted_at = newest[0]["accepted_at"] if newest else None
        if not isinstance(accepted_at, (int, float)):  # nothing there, or a damaged row
            return text
        if accepted_at - now > CLOCK_TOLERANCE:
            self._find(
                f"the newest message was accepted {age_text(accepted_at - now)} after now: the clock was, or is, wrong",
                "set the clock; messages are delivered all the same",
            )
        return f"{text}, the newest message {age_text(max(0.0, now - accepted_at))} before"

    def _consent(self) -> str:
        agreed = consent.decide(self._examination.settings, afresh=True)
        if ERASING in self._meta():
            self._find(
                "an erasure was begun and is not finished: text may be left on the disk",
                f"run `outtray flush --app {self._examination.settings.app}`, or again what was cut off",
            )
        return f"{agreed.state} ({agreed.reason})"

    def _receiver(self) -> str:
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


def _advice(problem: str) -> str:
    if problem == BAD_HEADER:
        return _NEXT_USE
    return _ONE_BY_ONE if problem.startswith(OF_MESSAGES) else _SALVAGE
