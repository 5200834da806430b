"""What is waiting, and why: one dict for `Tray.status` and `python -m outtray status`."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Any

from outtray import consent
from outtray.delivery.drain import required_key
from outtray.errors import SettingsError
from outtray.outbox import look, store
from outtray.outbox.files import exists
from outtray.settings import without_credentials

if TYPE_CHECKING:
    from outtray.settings import Settings

EMPTY: dict[str, Any] = {
    "pending": 0,
    "deferred": 0,
    "delivered": 0,
    "dead": 0,
    "local": 0,
    "refused": 0,
    "oldest_pending_age": None,
    "next_attempt_at": None,
    "attempts": 0,
    "waiting_for": None,
    "held": None,
    "ledger": {},
}


def status(settings: Settings) -> dict[str, Any]:
    """Return counts, ages (seconds), moments (Unix seconds), sizes (bytes) and the reasons behind them.

    Nothing is written. Where there is no outbox yet the counts are 0. Raises OutboxError.
    """
    agreed = consent.decide(settings)
    found, size, stored = dict(EMPTY), 0, {}
    if exists(settings.directory):
        with look.look(settings.directory) as view:
            stored = json.loads(view.meta(store.DELIVERY_SETTINGS) or "{}")
            settings = settings.over(stored)
            found = look.status(view, settings.destination)
        size = look.size(settings.directory)
    result = {
        "app": settings.app,
        **found,
        "destination": settings.destination,
        "url": without_credentials(settings.url),
        "consent": {"state": agreed.state, "reason": agreed.reason},
        "bytes": size,
        "directory": settings.directory,
        "not_configured": _missing(settings, bool(stored.get("needs_key"))),
    }
    return {**result, "why": why(result)}


def why(found: dict[str, Any]) -> str:
    """Return the line that answers "why is nothing being sent?"."""
    waiting = found["pending"]
    if not waiting:
        return "nothing is waiting"
    messages = f"{waiting} message{'s' if waiting != 1 else ''} waiting"
    agreed = found["consent"]
    if agreed["state"] != consent.GRANTED:
        return f"{messages}: consent is {agreed['state']} ({agreed['reason']})"
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
    if settings.url is None:
        return "no url is set (configure(url=...), OUTTRAY_URL or --url)"
    try:
        required_key(needs_key, settings)
    except SettingsError as error:
        return str(error)
    return None
