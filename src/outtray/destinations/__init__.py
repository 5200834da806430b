"""Where batches go. One small module per destination, found by name in a table or as an entry point.

A package adds its own with an entry point of the group "outtray.destinations" that names a class with the
shape of `Destination`.
"""

from __future__ import annotations

from importlib import import_module

from outtray.errors import SettingsError
from outtray.forking import importing

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from outtray.outbox.records import Batch
    from outtray.settings import Settings

ENTRY_POINTS = "outtray.destinations"

DESTINATIONS = {
    "zenml": "outtray.destinations.zenml:ZenML",
}
"""Name to "module:class"; a module is loaded when its destination is used."""


class Destination:
    """The shape of a destination, which need not be a subclass: a wire format, a transport, a way to read answers."""

    title: str
    """The name for people, as in the brackets of an error."""

    def __init__(self, settings: Settings, key: str | None) -> None:
        """Take url and key; the url is set."""

    def deliver(self, batch: Batch, timeout: float, meanwhile: Callable[[], None]) -> int:
        """Deliver the messages, all or none, and return the status of the answer.

        `batch.array` is the JSON array of all, and each of `batch.messages` has its *body*. *timeout* is the total
        deadline in seconds; *meanwhile* is called now and then while the answer is awaited. Raises Postponed, Held
        or Rejected.
        """
        raise NotImplementedError

    def close(self) -> None:
        """End what delivering began, such as threads."""


def place(name: str) -> str:
    """Return the "module:class" of the destination called *name*. Raises SettingsError that lists the known ones."""
    return DESTINATIONS.get(name) or _added(name)


def load(place: str) -> type[Destination]:
    """Return the class at *place*."""
    module, _, attribute = place.partition(":")
    with importing:
        found: type[Destination] = getattr(import_module(module), attribute)
    return found


def _added(name: str) -> str:
    """Return the "module:class" of a destination that another package adds."""
    from importlib.metadata import entry_points

    added = {point.name: point.value for point in entry_points(group=ENTRY_POINTS)}
    if name not in added:
        raise SettingsError(f"unknown destination {name!r}; known are {', '.join(sorted({*added, *DESTINATIONS}))}")
    return added[name]
