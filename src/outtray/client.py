"""The client: a message is built, encoded and appended to the outbox; the flusher is woken."""

from __future__ import annotations

import json
import sys
import time

from outtray import consent, forking, identity, journal
from outtray import settings as settings_module
from outtray.delivery import flusher
from outtray.encoding import (
    as_text,
    clock_text,
    encode,
    encoded_dict,
    new_message_id,
    quoted,
    stamped,
    timestamp_text,
    valid,
)
from outtray.errors import MessageTooLarge, OutboxDenied, OuttrayError
from outtray.outbox import shared
from outtray.outbox.transaction import DELIVERY_SETTINGS

TYPE_CHECKING = False
if TYPE_CHECKING:
    from datetime import datetime
    from typing import Any
    from uuid import UUID

    from outtray.consent import Consent
    from outtray.enums import AnalyticsEvent
    from outtray.settings import Settings


MOST_BYTES = 4
"""Bytes of a character in UTF-8, at most."""


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
            self._journal_problems(settings)
        return consent.decide(settings, afresh=self._line is None)

    def _journal_problems(self, settings: Settings) -> None:
        self._journaled = settings
        for problem in settings.problems:
            journal.setting_passed_over(problem)

    def identify(
        self,
        user_id: UUID,
        traits: dict[Any, Any] | None,
        *,
        message_id: str | None = None,
        timestamp: datetime | float | str | None = None,
    ) -> tuple[bool, str]:
        """Attach *traits* to a user."""
        return self._store("identify", user_id, f'"traits":{encoded_dict(traits)}', message_id, timestamp)

    def alias(
        self,
        user_id: UUID,
        previous_id: UUID,
        *,
        message_id: str | None = None,
        timestamp: datetime | float | str | None = None,
    ) -> tuple[bool, str]:
        """Say that *previous_id* is the same user as *user_id*."""
        members = f'"previous_id":{encode(previous_id)}'
        return self._store("alias", user_id, members, message_id, timestamp)

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
        text = encoded_dict(properties)
        return self.track_encoded(user_id, event, text, message_id, timestamp, despite_denial)

    def track_encoded(
        self,
        user_id: UUID,
        event: AnalyticsEvent | str,
        properties: str,
        message_id: str | None,
        timestamp: datetime | float | str | None,
        despite_denial: bool,
    ) -> tuple[bool, str]:
        """Do what `track` does with *properties* that are already encoded."""
        name = event if type(event) is str else as_text(event)
        members = f'"event":{quoted(name)},"properties":{properties}'
        return self._store("track", user_id, members, message_id, timestamp, despite_denial)

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
        members = f'"group_id":{encode(group_id)},"traits":{encoded_dict(traits)}'
        return self._store("group", user_id, members, message_id, timestamp)

    def store_foreign(self, message: dict[str, Any]) -> tuple[bool, str]:
        """Store a message that another client made, with the id and timestamp that it may lack."""
        now, settings = time.time(), self.settings
        whole = {"debug": settings.debug, **message, "message_id": _id_or_new(message.get("message_id"))}
        whole["timestamp"] = _moment_text(message.get("timestamp"), now)
        return self._keep(settings, encode(whole), now)

    def _store(
        self,
        kind: str,
        user_id: UUID | str,
        members: str,
        message_id: str | None,
        timestamp: datetime | float | str | None,
        despite_denial: bool = False,
    ) -> tuple[bool, str]:
        """Store a message of this *kind* with these encoded *members*; each step less is less that a call costs."""
        now, settings = time.time(), self._given or settings_module.current()
        id, moment = stamped(now)
        if message_id is not None:
            id = _id_or_new(message_id)
        if timestamp is not None:
            moment = _moment_text(timestamp, now)
        user = quoted(user_id) if type(user_id) is str else encode(user_id)
        debug = "true" if settings.debug else "false"
        common = f'"type":"{kind}","debug":{debug},"message_id":{quoted(id)},"timestamp":"{moment}"'
        return self._keep(settings, f'{{"user_id":{user},{members},{common}}}', now, despite_denial)

    def _keep(self, settings: Settings, text: str, now: float, despite_denial: bool = False) -> tuple[bool, str]:
        """Store the message *text* if consent allows it."""
        if not text.isascii():
            text = valid(text)
        if not self.send:
            return True, text
        line = self._line
        if self._journaled is not settings:
            self._journal_problems(settings)
        agreed = consent.decide(settings, afresh=line is None)
        state = agreed.state
        if consent.disabled.get() or (state == consent.DENIED and not despite_denial):
            return False, text
        if line is None or line.settings is not settings:
            line = self._line = _Line(settings)
        follows_choice = agreed.follows_choice and not despite_denial
        return line.store(text, now, is_local=state == consent.LOCAL, follows_choice=follows_choice)


class _Line:
    """What the messages of one application go through: its outbox and the flusher behind it."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.last_id: int | None = None
        self._told: int | None = None
        self._outbox = shared.of(settings)
        self._flusher = flusher.shared(self._outbox, settings)

    def store(self, text: str, now: float, *, is_local: bool, follows_choice: bool) -> tuple[bool, str]:
        """Commit the message, wake the flusher, and return True; False, and counted, where it is not taken.

        Not counted where the user denied consent. Returns the text too, as it was stored.
        """
        outbox = self._outbox
        depth = forking.depth
        try:
            if len(text) * MOST_BYTES > self.settings.max_message_bytes:
                self._require_size(text)
            epoch = outbox.epoch  # as it was before the id was put in, which may be forgotten from then on
            text, is_kept = identity.with_latest_id(outbox.directory, text)
            epoch = epoch if is_kept else 0
            id = outbox.append(
                text,
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
        if epoch != outbox.epoch:  # the id in it may have been replaced
            text, _ = identity.with_latest_id(outbox.directory, text)
        return True, text

    def _require_size(self, text: str) -> None:
        limit = self.settings.max_message_bytes
        if (size := len(text.encode())) > limit:
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


def _id_or_new(given: str | None) -> str:
    """Return the caller's message_id as text; a new one where there is none, or none that can be read."""
    try:
        return new_message_id() if given is None or not given else valid(as_text(str(given)))
    except Exception as error:  # the object's own code
        journal.failed("reading a message_id", error)
        return new_message_id()


def _moment_text(given: datetime | float | str | None, now: float) -> str:
    """Return the caller's timestamp in our form; *now* where it is none."""
    if given is None:
        return clock_text(now)
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
