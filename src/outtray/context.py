"""The analytics context: consent, identity, and what each event is enriched with."""

from __future__ import annotations

import os

from outtray import client as client_module
from outtray import consent, environment, identity, journal
from outtray.encoding import as_properties, as_text, encode
from outtray.enums import AnalyticsEvent

TYPE_CHECKING = False
if TYPE_CHECKING:
    from datetime import datetime
    from types import TracebackType
    from typing import Any
    from uuid import UUID

    from outtray.client import Client

CONSENT_EVENTS = frozenset({AnalyticsEvent.OPT_IN_ANALYTICS.value, AnalyticsEvent.OPT_OUT_ANALYTICS.value})
"""The only events that can pass a denied consent, and only where the setting `consent_events` says so."""


class AnalyticsContext:
    """A context manager in which messages are stored if consent allows it; no Exception leaves it.

    *client* is by default the default application's, *user_id* the setting of that name, or the client id.
    """

    def __init__(self, *, client: Client | None = None, user_id: UUID | str | None = None) -> None:
        self._client = client or client_module.default_client
        self.analytics_opt_in = False
        self.user_id: UUID | str | None = user_id
        self.client_id: str | None = None

    def __enter__(self) -> AnalyticsContext:
        try:
            self._prepare()
        except Exception as error:  # tracking must not hurt the host, whatever is wrong here
            self.analytics_opt_in = False
            journal.failed("preparing to track", error)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool:
        if isinstance(error, Exception):
            journal.failed("tracking", error)
            return True
        return error is None

    @property
    def in_server(self) -> bool:
        """Whether the environment variable named by the setting `server_variable` says that this is a server."""
        value = os.environ.get(self._client.settings.server_variable, "")
        return value.strip().lower() in ("1", "true", "yes", "on", "y")

    def identify(self, traits: dict[str, Any] | None = None, **own: Any) -> bool:
        """Attach *traits* to the user; True if that was stored. *own* is the message's message_id and timestamp."""
        if not self.analytics_opt_in or self.user_id is None:
            return False
        return self._client.identify(self._user, traits, **own)[0]

    def alias(self, user_id: UUID, previous_id: UUID, **own: Any) -> bool:
        """Say that two ids are one user; True if that was stored. *own* as in `identify`."""
        if not self.analytics_opt_in:
            return False
        return self._client.alias(user_id, previous_id, **own)[0]

    def group(self, group_id: UUID, traits: dict[str, Any] | None = None, **own: Any) -> bool:
        """Put the user into a group; True if that was stored. *own* as in `identify`."""
        if not self.analytics_opt_in or self.user_id is None:
            return False
        return self._client.group(self._user, group_id, traits, **own)[0]

    def track(
        self,
        event: AnalyticsEvent | str,
        properties: dict[str, Any] | None = None,
        *,
        message_id: str | None = None,
        timestamp: datetime | float | str | None = None,
    ) -> bool:
        """Record an event with *properties* and the facts of the environment; True if that was stored.

        The caller's dict stays as it is, and its values win over ours.
        """
        passes = not self.analytics_opt_in and self._is_consent_event(event)
        if not (self.analytics_opt_in or passes):
            return False
        if passes:
            self._identify_client()
        client, user_id = self._client, self.user_id
        settings = client.settings
        version = settings.version or environment.package_version(settings.app)
        user = user_id if type(user_id) is str else as_text(user_id)
        own = (environment.timezone(), version, self.client_id, user)
        text = _enriched(own, properties if type(properties) is dict else as_properties(properties))
        return client.track_encoded(self._user, event, text, message_id, timestamp, passes)[0]

    @property
    def _user(self) -> Any:
        return self.user_id

    def _prepare(self) -> None:
        if consent.disabled.get():
            return
        self.analytics_opt_in = self._client.decide_consent().state != consent.DENIED
        if self.analytics_opt_in:
            self._identify_client()

    def _identify_client(self) -> None:
        settings = self._client.settings
        self.client_id = identity.client_id(settings.directory)
        if self.user_id is None:
            self.user_id = settings.user_id or self.client_id

    def _is_consent_event(self, event: AnalyticsEvent | str) -> bool:
        if consent.disabled.get() or not self._client.settings.consent_events:
            return False
        return (event.value if isinstance(event, AnalyticsEvent) else event) in CONSENT_EVENTS


_known: tuple[tuple[str | None, ...], dict[str, Any], str] = ((), {}, "")


def _enriched(own: tuple[str | None, ...], properties: dict[Any, Any]) -> str:
    """Return the facts and *properties* as one JSON object; a property wins over the fact of its name.

    *own* is the time zone, the version, the client id and the user id; the facts are encoded anew when they change.
    """
    global _known
    before, facts, text = _known
    if own != before:
        timezone, version, client_id, user_id = own
        facts = {
            **environment.facts(),
            "timezone": timezone,
            "version": version,
            "client_id": client_id,
            "user_id": user_id,
        }
        text = encode(facts)
        _known = (own, facts, text)
    if not facts.keys().isdisjoint(properties):
        return encode({**facts, **properties})
    own_text = encode(properties)
    if not own_text.startswith("{"):  # nothing of them could be read
        return encode({**facts, "value": properties})
    return f"{text[:-1]},{own_text[1:]}" if properties else text
