"""Every log line of the library, one function per fact, at most one a minute of each.

They go to the logger "outtray", which has a NullHandler: without the host's own logging nothing is printed.
`logging` is loaded with the first line, not before.
"""

from __future__ import annotations

import time

from outtray.forking import importing

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

MIN_INTERVAL = 60.0
"""Seconds between two lines of the same fact; those between are counted and named in the next line."""

_last: dict[str, float] = {}
_skipped: dict[str, int] = {}


def refused(reason: str, error: Exception) -> None:
    """One message was not stored; the ledger counts it under *reason*."""
    _say("refused", "WARNING", "outtray did not store a message (%s): %s", reason, error)


def failed(what: str, error: BaseException) -> None:
    """A fault in tracking was kept from the host program."""
    _say(
        f"failed {what}", "WARNING", "outtray: %s failed and was passed over: %s: %s", what, type(error).__name__, error
    )


def setting_passed_over(problem: str) -> None:
    """A value in the environment or in the config file cannot be right; *problem* says what holds instead."""
    _say(f"setting {problem}", "WARNING", "outtray: %s", problem)


def rows_missing(count: int, directory: str) -> None:
    """The gate's header knows of *count* messages that the database does not have."""
    _say("rows_missing", "ERROR", "outtray: %d messages are missing from the outbox in %s", count, directory)


def restart_was_unclean(directory: str) -> None:
    """The system went down, by a power cut or the like, while the outbox was in use, or its header is gone."""
    _say(
        "restart_was_unclean",
        "WARNING",
        "outtray: %s was in use when the system went down (or the header of its gate was lost); what was accepted in "
        "the last second before may be missing",
        directory,
    )


def generation_began(path: str, reason: object) -> None:
    """A damaged file was left as it is; *path* is where messages go from now on."""
    _say(
        "generation_began",
        "ERROR",
        "outtray: the outbox was damaged (%s); %s takes its place, and the next delivery saves what can be saved",
        reason,
        path,
    )


def salvaged(count: int, lost: int, path: str) -> None:
    """Undelivered messages were brought back from a damaged file."""
    _say("salvaged", "WARNING", "outtray: %d messages were saved from %s, %d were lost", count, path, lost)


def delivered(count: int, seconds: float) -> None:
    """A batch was delivered."""
    _say("delivered", "DEBUG", "outtray delivered %d messages in %.3f s", count, seconds)


def postponed(reason: str, wait: float) -> None:
    """All stays pending; the next attempt is *wait* seconds away."""
    _say("postponed", "INFO", "outtray keeps its messages for %.0f s: %s", wait, reason)


def held(reason: str) -> None:
    """All stays pending until somebody puts a setting right."""
    _say("held", "WARNING", "outtray holds its messages: %s", reason)


def buried(count: int, reason: str) -> None:
    """Messages were refused for good; they are kept as dead letters."""
    _say("buried", "WARNING", "outtray: the receiver refused %d messages for good: %s", count, reason)


def _say(fact: str, level: str, text: str, *values: Any) -> None:
    now = time.monotonic()
    if now - _last.get(fact, -MIN_INTERVAL) < MIN_INTERVAL:
        _skipped[fact] = _skipped.get(fact, 0) + 1
        return
    _last[fact] = now
    with importing:
        import logging

    logger = logging.getLogger("outtray")
    if not logger.handlers:
        logger.addHandler(logging.NullHandler())
    skipped = _skipped.pop(fact, 0)
    try:
        logger.log(getattr(logging, level), text + (f" (and {skipped} more like this)" if skipped else ""), *values)
    except Exception:  # a handler of the host's: it must not reach the call that tracked; the line counts as unsaid
        _skipped[fact] = skipped + 1
