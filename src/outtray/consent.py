"""Consent: whether messages may be recorded and sent, and which rule says so."""

from __future__ import annotations

import os
from contextvars import ContextVar

from outtray.paths import without_waiting

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

    from outtray.settings import Settings

GRANTED, LOCAL, DENIED = "granted", "local", "denied"

CHOICES = (None, GRANTED, LOCAL, DENIED)
"""What a user can have chosen; the place of each is its number in the header of the gate. None: nothing yet."""

FILE_NAME = "consent"
"""The file with the user's choice, in the application's directory."""

disabled: ContextVar[int] = ContextVar("outtray-disabled", default=0)
"""How many `analytics_disabler` blocks this thread or task is in."""


class Consent:
    """*state* is "granted" (record and send), "local" (record only) or "denied" (neither); *reason* names the rule.

    *follows_choice* tells that no rule before the user's stored choice decided.
    """

    __slots__ = ("follows_choice", "reason", "state")

    def __init__(self, state: str, reason: str, *, follows_choice: bool = False) -> None:
        self.state = state
        self.reason = reason
        self.follows_choice = follows_choice


BY_DEFAULT = Consent(GRANTED, "nobody said otherwise", follows_choice=True)


def decide(settings: Settings, environ: Mapping[str, str] = os.environ, *, afresh: bool = False) -> Consent:
    """Return the consent in force.

    The first of these that says something decides: the host's word, OUTTRAY_CONSENT, DO_NOT_TRACK, the user's
    choice, the config file, the default. A choice that is no denial is read once per process, as the outbox stops
    whoever knows an old one; *afresh* reads it again.
    """
    source = settings.sources["consent"]
    if source == "argument":
        return Consent(settings.consent, "the application says so")
    if source == "environment":
        return Consent(settings.consent, "OUTTRAY_CONSENT")
    # `os.environ` raises two errors to say that a variable is not set: 3 µs of each call.
    is_set = _key in _variables if environ is os.environ else "DO_NOT_TRACK" in environ
    if is_set and environ.get("DO_NOT_TRACK", "").strip().lower() not in ("", "0", "false"):
        return Consent(DENIED, "DO_NOT_TRACK")
    directory = settings.directory
    choice = _known.get(directory, DENIED)
    if choice == DENIED or afresh or settings.consent == DENIED:  # so the end of a denial is noticed
        choice = _known[directory] = stored(directory)
    if choice is not None:
        return Consent(choice, "your choice, see `outtray consent`", follows_choice=True)
    if source == "file":
        unreadable = settings.is_file_unreadable
        reason = "the config file cannot be read" if unreadable else "the config file"
        return Consent(settings.consent, reason, follows_choice=True)
    return BY_DEFAULT


_variables = getattr(os.environ, "_data", os.environ)
_key = os.environ.encodekey("DO_NOT_TRACK") if _variables is not os.environ else "DO_NOT_TRACK"


def choice_path(directory: str) -> str:
    """Return the path of the file that holds the user's choice."""
    return os.path.join(directory, FILE_NAME)


def stored(directory: str) -> str | None:
    """Return the user's choice as it lies in *directory*, None if there is none; what cannot be read is a denial."""
    try:
        descriptor = without_waiting(choice_path(directory), os.O_RDONLY)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError:
        return DENIED
    try:
        word = os.read(descriptor, 64).decode("ascii", "replace").strip()
    except OSError:
        return DENIED
    finally:
        os.close(descriptor)
    return word if word in (GRANTED, LOCAL) else DENIED


_known: dict[str, str | None] = {}


def forget_known(directory: str) -> None:
    """Have the next decision read the choice in *directory* again."""
    _known.pop(directory, None)
