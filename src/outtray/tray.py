"""A tray: one application's settings, consent, outbox and flusher together; the package's functions are one too."""

from __future__ import annotations

from outtray import client as client_module
from outtray import consent, identity, journal, remembering
from outtray import settings as settings_module
from outtray.client import Client
from outtray.context import AnalyticsContext
from outtray.encoding import as_properties
from outtray.errors import SettingsError
from outtray.forking import importing
from outtray.outbox import shared
from outtray.outbox.files import exists

TYPE_CHECKING = False
if TYPE_CHECKING:
    from datetime import datetime
    from typing import Any
    from uuid import UUID

    from outtray.delivery.report import FlushReport
    from outtray.enums import AnalyticsEvent
    from outtray.outbox.store import Outbox
    from outtray.settings import Settings


class Tray:
    """The out-tray of one application, for a library that lives in somebody else's process.

    *options* are the settings (README, "Settings"); *app* is the only one needed. *remember_key* keeps the
    write key in the user's config file, mode 0600, for drainers such as cron. Two trays of different apps never mix
    settings, outboxes or consent; those of one app share its outbox and its delivery, which follows the tray that
    began to track last. Raises SettingsError for an argument that cannot be right; the methods raise no Exception.
    """

    def __init__(self, *, app: str, remember_key: bool = False, **options: Any) -> None:
        settings = settings_module.resolve({"app": app, **options})
        if remember_key:
            remembering.remember_key(settings.app, settings.write_key)
        self._client = Client(settings=settings)

    @property
    def client(self) -> Client:
        """What builds and stores this tray's messages."""
        return self._client

    @property
    def settings(self) -> Settings:
        """The settings in force."""
        return self._client.settings

    def track(
        self,
        event: AnalyticsEvent | str,
        metadata: dict[str, Any] | None = None,
        *,
        user_id: UUID | str | None = None,
        message_id: str | None = None,
        timestamp: datetime | float | str | None = None,
    ) -> bool:
        """Record an event; True once it is committed. `event_success` is True where *metadata* does not say."""
        with AnalyticsContext(client=self._client, user_id=user_id) as analytics:
            given = metadata if type(metadata) is dict else as_properties(metadata)
            properties = {"event_success": True, **given}
            return analytics.track(event, properties, message_id=message_id, timestamp=timestamp)
        return False

    def identify(
        self,
        metadata: dict[str, Any] | None = None,
        *,
        user_id: UUID | str | None = None,
        message_id: str | None = None,
        timestamp: datetime | float | str | None = None,
    ) -> bool:
        """Attach *metadata* to the user; True once it is committed, False for None."""
        if metadata is None:
            return False
        with AnalyticsContext(client=self._client, user_id=user_id) as analytics:
            return analytics.identify(metadata, message_id=message_id, timestamp=timestamp)
        return False

    def group(
        self,
        group_id: UUID,
        group_metadata: dict[str, Any] | None = None,
        *,
        user_id: UUID | str | None = None,
        message_id: str | None = None,
        timestamp: datetime | float | str | None = None,
    ) -> bool:
        """Put the user into a group; True once it is committed."""
        with AnalyticsContext(client=self._client, user_id=user_id) as analytics:
            return analytics.group(group_id, group_metadata, message_id=message_id, timestamp=timestamp)
        return False

    def alias(
        self,
        user_id: UUID,
        previous_id: UUID,
        *,
        message_id: str | None = None,
        timestamp: datetime | float | str | None = None,
    ) -> bool:
        """Say that *previous_id* is the same user as *user_id*; True once it is committed."""
        with AnalyticsContext(client=self._client) as analytics:
            return analytics.alias(user_id, previous_id, message_id=message_id, timestamp=timestamp)
        return False

    def flush(self, timeout: float | None = 15.0) -> FlushReport:
        """Wait until what this process tracked is settled, whoever delivers it, *timeout* seconds at most.

        A stored wait that is longer than that ends the flush at once; the report says why and how long. None
        as *timeout* is without bound. Raises nothing.
        """
        with importing:
            from outtray.delivery.report import FlushReport

        try:
            return self._flush(timeout)
        except Exception as error:  # a destination from elsewhere, or `requests`, may raise anything
            journal.failed("flushing", error)
            return FlushReport("failed", reason=f"{type(error).__name__}: {error}")

    def _flush(self, timeout: float | None) -> FlushReport:
        with importing:
            from outtray.delivery.flush import flush
            from outtray.delivery.report import FlushReport

        settings = self.settings
        agreed = consent.decide(settings, afresh=True)
        if agreed.state != consent.GRANTED:
            return FlushReport("denied", reason=f"consent is {agreed.state}: {agreed.reason}")
        if not exists(settings.directory):
            return FlushReport("drained", reason="nothing was ever stored")
        return flush(self._outbox(), settings, timeout=timeout, until_id=self._client.last_id, sleep_through=True)

    def status(self) -> dict[str, Any]:
        """Return what `python -m outtray status --json` shows of this application.

        Raises nothing: where the outbox cannot be looked at, "error" says why (it is None otherwise) and what
        could not be found out is None.
        """
        with importing:
            from outtray.delivery.status import EMPTY, status

        app = directory = None
        try:
            settings = self.settings
            app, directory = settings.app, settings.directory
            return {**status(settings), "error": None}
        except Exception as error:
            journal.failed("looking at the outbox", error)
            known = {"app": app, "directory": directory, "why": f"the outbox cannot be looked at: {error}"}
            return {**dict.fromkeys(EMPTY), **known, "error": str(error)}

    def reset_identity(self) -> bool:
        """Forget the client id and return True; the next message makes a new one. Messages that wait keep theirs.

        False where the file that keeps it cannot be removed: then it stays the same.
        """
        try:
            identity.reset(self.settings.directory)
        except OSError as error:
            journal.failed("forgetting the client id", error)
            return False
        return True

    def close(self) -> None:
        """Sync and close the outbox and end the thread; the next message opens and starts them again."""
        from outtray.delivery import flusher

        flusher.shared(self._outbox(), self.settings).stop()

    def _outbox(self) -> Outbox:
        settings = self.settings
        return shared.of(settings)


class _DefaultTray(Tray):
    """The tray of the process's own application: its client follows `configure`."""

    def __init__(self) -> None:
        self._client = client_module.default_client


default_tray: Tray = _DefaultTray()


def configure(*, remember_key: bool = False, **options: Any) -> Tray:
    """Set the default tray's settings (README, "Settings") and return it; *remember_key* as in `Tray`.

    A later call for the same application replaces the settings. Raises SettingsError for an argument that
    cannot be right, and for another *app* than before: a second application takes a `Tray` of its own. What is
    wrong in the environment or the config file raises nothing, is journaled with the first message, and is
    passed over (for the consent it is "denied").
    """
    before = settings_module.configured_app()
    app = settings_module.resolve(options).app
    if before is not None and app != before:
        raise SettingsError(
            f"this process is configured for app={before!r}; for {app!r} make a tray of its own: "
            f"outtray.Tray(app={app!r}, ...)"
        )
    settings = settings_module.use(options)
    if remember_key:
        remembering.remember_key(settings.app, settings.write_key)
    return default_tray
