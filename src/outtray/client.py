"""The client: a message is built, encoded and appended to the outbox; the flusher is woken."""

from __future__ import annotations

import json
import sys
import time

from outtray import consent, forking, identity, journal
from outtray import settings as settings_module
from outtray.delivery import flusher
from outtray.encoding import as_properties, as_text, clock_text, encode, new_message_id, timestamp_text
from outtray.errors import MessageTooLarge, OutboxDenied, OuttrayError
from outtray.outbox import shared
from outtray.outbox.store import DELIVERY_SETTINGS

TYPE_CHECKING = False
if TYPE_CHECKING:
    from datetime import datetime
    from typing import Any
    from uuid import UUID

    from outtray.consent import Consent
    from outtray.enums import AnalyticsEvent
    from outtray.settings import Settings


class Client:
    """Stores messages for one application.

    With *send* False messages are encoded and returned but not stored. *timeout* is upstream's argument: no
    call waits for the network here, the deadline of a request is the setting of that name. *settings* are by
    default the ones of the default application, as `configure` left them.

    Each method returns whether the message was committed, and the encoded message. Keyword arguments that
    upstream does not have: *message_id* (text, by default a new UUIDv7) and *timestamp* (a datetime, Unix
    seconds or ISO text, by default now).
    """

    def __init__(self, send: bool = True, timeout: int = 15, *, settings: Settings | None = None) -> None:
        self.send = send
        self.timeout = timeout
        self._given = settings
        self._line: _Line | None = None
        self._journaled: Settings | None = None

    @property
    def settings(self) -> Settings:
        """The settings in force."""
        return self._given or settings_module.current()

    @property
    def last_id(self) -> int | None:
        """The id of the message that this client stored last, None before the first."""
        return self._line.last_id if self._line is not None else None

    def decide_consent(self) -> Consent:
        """Return the consent in force at this moment, with which rule decided it.

        Before the first message no outbox says that a choice is an old one.
        """
        settings = self.settings
        if self._journaled is not settings:
            self._journaled = settings
            for problem in settings.problems:
                journal.setting_passed_over(problem)
        return consent.decide(settings, afresh=self._line is None)

    def identify(
        self,
        user_id: UUID,
        traits: dict[Any, Any] | None,
        *,
        message_id: str | None = None,
        timestamp: datetime | float | str | None = None,
    ) -> tuple[bool, str]:
        """Attach *traits* to a user."""
        message = {"user_id": user_id, "traits": as_properties(traits), "type": "identify"}
        return self._store(message, "identify", message_id, timestamp)

    def alias(
        self,
        user_id: UUID,
        previous_id: UUID,
        *,
        message_id: str | None = None,
        timestamp: datetime | float | str | None = None,
    ) -> tuple[bool, str]:
        """Say that *previous_id* is the same user as *user_id*."""
        message = {"user_id": user_id, "previous_id": previous_id, "type": "alias"}
        return self._store(message, "alias", message_id, timestamp)

    def track(
        self,
        user_id: UUID,
        event: AnalyticsEvent | str,
        properties: dict[Any, Any] | None,
        *,
        message_id: str | None = None,
        timestamp: datetime | float | str | None = None,
        despite_denial: bool = False,
    ) -> tuple[bool, str]:
        """Record an event. *despite_denial* lets it pass a denied consent; see the setting `consent_events`."""
        name = as_text(event)
        message = {"user_id": user_id, "event": name, "properties": as_properties(properties), "type": "track"}
        return self._store(message, name, message_id, timestamp, despite_denial)

    def group(
        self,
        user_id: UUID,
        group_id: UUID,
        traits: dict[Any, Any] | None,
        *,
        message_id: str | None = None,
        timestamp: datetime | float | str | None = None,
    ) -> tuple[bool, str]:
        """Put a user into a group that has *traits*."""
        message = {"user_id": user_id, "group_id": group_id, "traits": as_properties(traits), "type": "group"}
        return self._store(message, "group", message_id, timestamp)

    def store_foreign(self, message: dict[str, Any]) -> tuple[bool, str]:
        """Store a message that another client made, with the id and timestamp that it may lack."""
        kind = message.get("type", "message")
        event = message.get("event", kind)
        return self._store(dict(message), as_text(event), message.get("message_id"), message.get("timestamp"))

    def _store(
        self,
        message: dict[str, Any],
        event: str,
        message_id: str | None,
        timestamp: datetime | float | str | None,
        despite_denial: bool = False,
    ) -> tuple[bool, str]:
        settings = self.settings
        now = time.time()
        message.setdefault("debug", settings.debug)
        message["message_id"] = message_id = _given_id(message_id)
        message["timestamp"] = clock_text(now) if timestamp is None else _given_timestamp(timestamp, now)
        text = encode(message)
        if not self.send:
            return True, text
        agreed = self.decide_consent()
        is_denied = agreed.state == consent.DENIED
        if consent.disabled.get() or (is_denied and not despite_denial):
            return False, text
        line = self._line
        if line is None or line.settings is not settings:
            line = self._line = _Line(settings)
        is_local, follows_choice = agreed.state == consent.LOCAL, agreed.follows_choice and not despite_denial
        return line.store(message_id, event, text, now, is_local=is_local, follows_choice=follows_choice)


class _Line:
    """What the messages of one application go through: its outbox and the flusher behind it."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.last_id: int | None = None
        self._told: int | None = None
        self._outbox = shared.of(settings)
        self._flusher = flusher.shared(self._outbox, settings)

    def store(
        self, message_id: str, event: str, text: str, now: float, *, is_local: bool, follows_choice: bool
    ) -> tuple[bool, str]:
        """Commit the message, wake the flusher, and return True; False, and counted, where it is not taken.

        Not counted where the user denied consent. Returns the text too, as it was stored.
        """
        outbox = self._outbox
        depth = forking.depth
        epoch = outbox.epoch if identity.is_kept(outbox.directory) else 0
        try:
            self._require_size(text)
            id = outbox.append(
                _searchable(message_id),
                _searchable(event),
                identity.with_latest_id(outbox.directory, text),
                accepted_at=now,
                local=is_local,
                follows_choice=follows_choice,
                epoch=epoch,
            )
        except OutboxDenied:
            consent.forget_known(outbox.directory)
            return False, text
        except OuttrayError as error:
            reason = getattr(error, "reason", "error")
            journal.refused(reason, error)
            if forking.depth == depth:  # or the call ends in the parent, which counts it if need be
                outbox.count(reason)
            return False, text
        if self._told != outbox.openings:
            self._told = outbox.openings if self._tell_others() else None
        self.last_id = id
        self._flusher.wake()
        return True, identity.with_latest_id(outbox.directory, text)

    def _require_size(self, text: str) -> None:
        limit = self.settings.max_message_bytes
        if len(text) * 4 > limit and (size := len(text.encode())) > limit:
            raise MessageTooLarge(f"a message of {size} bytes is above max_message_bytes={limit}")

    def _tell_others(self) -> bool:
        """Write down what other processes need beside the messages, and return True, or False if it is to be repeated.

        The outbox is another one once it was opened anew: somebody may have deleted the directory.
        """
        known = self.settings.to_store()
        try:
            is_kept = self._outbox.keep_identity()
            if known:
                self._outbox.set_meta(DELIVERY_SETTINGS, json.dumps(known, sort_keys=True))
        except OuttrayError as error:
            journal.failed("storing what other processes need", error)
            return False
        return is_kept


def _searchable(text: str) -> str:
    """Return *text* as it stands in the encoded message, so that it can be stored and found."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


def _given_id(given: str | None) -> str:
    """Return the caller's message_id as text; a new one where it gave none, or one that cannot be read."""
    try:
        return as_text(str(given)) if given else new_message_id()
    except Exception as error:  # the object's own code
        journal.failed("reading a message_id", error)
        return new_message_id()


def _given_timestamp(given: datetime | float | str, now: float) -> str:
    """Return the caller's timestamp in our form; *now* where it is none."""
    datetime_module = sys.modules["datetime"]  # sqlite3 has loaded it
    try:
        if isinstance(given, str):
            given = datetime_module.datetime.fromisoformat(given)
        if isinstance(given, datetime_module.datetime):
            given = given.timestamp()
        return timestamp_text(float(given))  # type: ignore[arg-type]
    except Exception as error:  # it is no moment, or the object's own code failed
        journal.failed("reading a timestamp", error)
        return clock_text(now)


default_client = Client()
