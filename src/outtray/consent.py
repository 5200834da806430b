"""Consent: whether messages may be recorded and sent, and which rule says so."""

from __future__ import annotations

import os
from contextvars import ContextVar

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

    from outtray.settings import Settings

GRANTED, LOCAL, DENIED = "granted", "local", "denied"

disabled: ContextVar[int] = ContextVar("outtray-disabled", default=0)
"""How many `analytics_disabler` blocks this thread or task is in."""


class Consent:
    """*state* is "granted" (record and send), "local" (record only) or "denied" (neither); *reason* names the rule."""

    __slots__ = ("reason", "state")

    def __init__(self, state: str, reason: str) -> None:
        self.state = state
        self.reason = reason


def decide(settings: Settings, environ: Mapping[str, str] = os.environ) -> Consent:
    """Return the consent in force: the host's word, OUTTRAY_CONSENT, DO_NOT_TRACK, the config file, the default."""
    source = settings.sources["consent"]
    if source == "argument":
        return Consent(settings.consent, "the application says so")
    if source == "environment":
        return Consent(settings.consent, "OUTTRAY_CONSENT")
    if environ.get("DO_NOT_TRACK", "").strip().lower() not in ("", "0", "false"):
        return Consent(DENIED, "DO_NOT_TRACK")
    if source == "file":
        unreadable = settings.is_file_unreadable
        return Consent(settings.consent, "the config file cannot be read" if unreadable else "the config file")
    return Consent(settings.consent, "nobody said otherwise")
