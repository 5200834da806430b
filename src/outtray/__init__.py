"""outtray: a durable, offline-first out-tray for events.

A call returns once its message is committed to a local outbox; delivery happens later, by a thread, a detached
process or ``python -m outtray flush``. The functions below never raise an Exception, never wait for the network and
never change what they are given.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from datetime import datetime
    from typing import Any
    from uuid import UUID

    from outtray.client import Client
    from outtray.context import AnalyticsContext
    from outtray.delivery.report import FlushReport
    from outtray.encoding import AnalyticsEncoder
    from outtray.enums import AnalyticsEvent, SourceContext, source_context
    from outtray.errors import AnalyticsAPIError, OuttrayError, SettingsError
    from outtray.models import AnalyticsTrackedModelMixin
    from outtray.request import post
    from outtray.tray import Tray, configure
    from outtray.utils import analytics_disabler, email_opt_int, track_decorator, track_handler

__version__ = "0.1.0"

_LAZY = {
    "AnalyticsAPIError": "errors",
    "AnalyticsContext": "context",
    "AnalyticsEncoder": "encoding",
    "AnalyticsEvent": "enums",
    "AnalyticsTrackedModelMixin": "models",
    "Client": "client",
    "FlushReport": "delivery.report",
    "OuttrayError": "errors",
    "SettingsError": "errors",
    "SourceContext": "enums",
    "Tray": "tray",
    "analytics_disabler": "utils",
    "configure": "tray",
    "email_opt_int": "utils",
    "post": "request",
    "source_context": "enums",
    "track_decorator": "utils",
    "track_handler": "utils",
}
"""Name to module: each is loaded when it is first used, so that importing outtray costs next to nothing."""

__all__ = [
    "AnalyticsAPIError",
    "AnalyticsContext",
    "AnalyticsEncoder",
    "AnalyticsEvent",
    "AnalyticsTrackedModelMixin",
    "Client",
    "FlushReport",
    "OuttrayError",
    "SettingsError",
    "SourceContext",
    "Tray",
    "alias",
    "analytics_disabler",
    "configure",
    "email_opt_int",
    "flush",
    "group",
    "identify",
    "post",
    "source_context",
    "status",
    "track",
    "track_decorator",
    "track_handler",
]


def track(
    event: AnalyticsEvent | str,
    metadata: dict[str, Any] | None = None,
    *,
    user_id: UUID | str | None = None,
    message_id: str | None = None,
    timestamp: datetime | float | str | None = None,
) -> bool:
    """Record an event with *metadata* as its properties; True once it is committed.

    `event_success` is True where *metadata* does not say. *message_id* and *timestamp* are by default a new
    UUIDv7 and now; *user_id* is by default the setting of that name, or the client id.
    """
    tray = _tray_if_it_loads()
    return tray is not None and tray.track(event, metadata, user_id=user_id, message_id=message_id, timestamp=timestamp)


def identify(
    metadata: dict[str, Any] | None = None,
    *,
    user_id: UUID | str | None = None,
    message_id: str | None = None,
    timestamp: datetime | float | str | None = None,
) -> bool:
    """Attach *metadata* to the user; True once it is committed, False for None. Keywords as in `track`."""
    tray = _tray_if_it_loads()
    return tray is not None and tray.identify(metadata, user_id=user_id, message_id=message_id, timestamp=timestamp)


def group(
    group_id: UUID,
    group_metadata: dict[str, Any] | None = None,
    *,
    user_id: UUID | str | None = None,
    message_id: str | None = None,
    timestamp: datetime | float | str | None = None,
) -> bool:
    """Put the user into a group that has *group_metadata*; True once it is committed. Keywords as in `track`."""
    tray = _tray_if_it_loads()
    return tray is not None and tray.group(
        group_id, group_metadata, user_id=user_id, message_id=message_id, timestamp=timestamp
    )


def alias(
    user_id: UUID,
    previous_id: UUID,
    *,
    message_id: str | None = None,
    timestamp: datetime | float | str | None = None,
) -> bool:
    """Say that *previous_id* is the same user as *user_id*; True once it is committed. Keywords as in `track`."""
    tray = _tray_if_it_loads()
    return tray is not None and tray.alias(user_id, previous_id, message_id=message_id, timestamp=timestamp)


def flush(timeout: float | None = 15.0) -> FlushReport:
    """Wait until what this process tracked is settled, *timeout* seconds at most (None: without bound), and report."""
    return _tray().flush(timeout)


def status() -> dict[str, Any]:
    """Return what ``python -m outtray status --json`` shows of this application."""
    return _tray().status()


_default: Tray | None = None


def _tray() -> Tray:
    global _default
    if _default is None:
        from outtray.forking import importing

        with importing:
            from outtray.tray import default_tray

        _default = default_tray
    return _default


def _tray_if_it_loads() -> Tray | None:
    try:
        return _tray()
    except Exception as error:  # of an import, such as in a Python that was built without SQLite
        from outtray import journal

        journal.failed("loading outtray", error)
        return None


def __getattr__(name: str) -> Any:
    module = _LAZY.get(name)
    if module is None:
        raise AttributeError(f"module 'outtray' has no attribute {name!r}")
    from importlib import import_module

    from outtray.forking import importing

    with importing:
        value = getattr(import_module(f"outtray.{module}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_LAZY})
