"""What is waiting, and why: one dict for `Tray.status` and `python -m outtray status`."""

from __future__ import annotations

import os
import time

from outtray import consent
from outtray.delivery.target import delivery_settings, is_meant, required_key
from outtray.errors import SettingsError
from outtray.outbox import look, places
from outtray.outbox.files import exists, is_alone
from outtray.outbox.records import Cursor
from outtray.outbox.transaction import ERASING
from outtray.settings import without_credentials

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from outtray.settings import Settings

REFUSED = ("busy", "damaged", "disk_full", "error", "full", "too_large", "unusable")
"""The ledger's reasons that mean: a call returned False and nothing was stored."""


def _of_outbox(
    counts: look.Counts, cursor: Cursor, oldest_at: float | None, ledger: dict[str, int], unsalvaged: int
) -> dict[str, Any]:
    """Return the part of the status that the outbox itself knows."""
    return {
        **vars(counts),
        "unsalvaged": unsalvaged,
        "refused": sum(ledger.get(reason, 0) for reason in REFUSED),
        "oldest_pending_age": None if oldest_at is None else max(0.0, time.time() - oldest_at),
        "next_attempt_at": cursor.next_attempt_at if counts.pending else None,
        "attempts": cursor.attempts,
        "waiting_for": cursor.reason,
        "held": cursor.reason if cursor.held else None,
        "ledger": ledger,
    }


EMPTY = _of_outbox(look.Counts(), Cursor(), None, {}, 0)


def status(settings: Settings) -> dict[str, Any]:
    """Return counts, ages (seconds), moments (Unix seconds), sizes (bytes) and the reasons behind them.

    Nothing is written. Where there is no outbox yet the counts are 0. Raises OutboxError, also where there can be none.
    """
    agreed = consent.decide(settings, afresh=True)
    found, size, stored, is_erasing = EMPTY, 0, {}, False
    if exists(settings.directory):
        with look.look(settings.directory) as view:
            stored = delivery_settings(view)
            is_erasing = view.meta(ERASING) is not None
            settings = settings.over(stored)
            name = settings.destination
            counts, cursor, left = view.counts(name), view.cursor(name), unsalvaged(settings.directory, view)
            found = _of_outbox(counts, cursor, view.oldest_pending_at(name), view.ledger(), left)
            needs_key, salt = bool(stored.get("needs_key")), view.meta("salt") or ""
            if not is_meant(cursor.fingerprint, salt, settings, needs_key=needs_key):
                found |= {"next_attempt_at": None, "held": None}  # another url or key is due at once
        size = look.size(settings.directory)
    result = {
        "app": settings.app,
        **found,
        "destination": settings.destination,
        "url": without_credentials(settings.url),
        "consent": {"state": agreed.state, "reason": agreed.reason},
        "erasing": is_erasing,
        "bytes": size,
        "directory": settings.directory,
        "not_configured": _missing(settings, bool(stored.get("needs_key"))),
    }
    return {**result, "why": why(result)}


def unsalvaged(directory: str, view: look.Look) -> int:
    """Return how many damaged files hold messages that were not brought back yet. Raises OutboxError, OSError."""
    if is_alone(directory, view.generation):
        return 0
    from outtray.outbox import sources

    return len(sources.waiting(directory, view.generation, view.meta))


def why(found: dict[str, Any]) -> str:
    """Return the line that answers "why is nothing being sent?"."""
    is_granted = found["consent"]["state"] == consent.GRANTED
    count = found["unsalvaged"]
    if not count:
        return _why_pending(found, is_granted)
    files = f"{count} damaged file{'s' if count != 1 else ''} may hold messages that wait"
    when = "the next `python -m outtray flush` brings them back" + ("" if is_granted else " once consent is granted")
    return (f"{_why_pending(found, is_granted)}; " if found["pending"] else "") + f"{files}: {when}"


def _why_pending(found: dict[str, Any], is_granted: bool) -> str:
    waiting = found["pending"]
    if not waiting:
        kept = ", ".join(f"{found[state]} {state}" for state in ("deferred", "dead", "local") if found[state])
        return "nothing is waiting" + (f" to be sent; kept: {kept}" if kept else "")
    messages = f"{waiting} message{'s' if waiting != 1 else ''} waiting"
    if not is_granted:
        return f"{messages}: consent is {found['consent']['state']} ({found['consent']['reason']})"
    if found["not_configured"]:
        return f"{messages}: {found['not_configured']}"
    if found["held"]:
        return f"{messages}, held: {found['held']}"
    wait = (found["next_attempt_at"] or 0) - time.time()
    if wait > 0:
        return f"{messages}: {found['waiting_for']}; next attempt in {wait:.0f} s"
    if found["waiting_for"]:
        return f"{messages}: {found['waiting_for']}; due now"
    return f"{messages}, due now: run `python -m outtray flush`, or wait for the program's own thread"


def _missing(settings: Settings, needs_key: bool) -> str | None:
    if os.path.isdir(settings.directory) and (refused := places.refusal(settings.directory)) is not None:
        return ": ".join(refused)
    if settings.url is None:
        return "no url is set (configure(url=...), OUTTRAY_URL or --url)"
    try:
        required_key(needs_key, settings)
    except SettingsError as error:
        return str(error)
    return None
