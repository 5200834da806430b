"""The outboxes of this process: one for each directory, and what they do around a fork."""

from __future__ import annotations

from outtray import forking
from outtray.outbox.store import Outbox

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import FrameType

    from outtray.settings import Settings

_shared: dict[str, Outbox] = {}


def at(directory: str, *, destination: str, max_bytes: int, sync_each: bool = False) -> Outbox:
    """Return this process's one `Outbox` for *directory*: two would end each other's locks."""
    outbox = _shared.get(directory)
    if outbox is None:
        outbox = _shared.setdefault(directory, Outbox(directory, destination=destination, max_bytes=max_bytes))
    outbox.destination, outbox.max_bytes, outbox.sync_each = destination, max_bytes, sync_each
    return outbox


def of(settings: Settings) -> Outbox:
    """Return this process's outbox as *settings* want it."""
    return at(
        settings.directory,
        destination=settings.destination,
        max_bytes=settings.max_bytes,
        sync_each=settings.durability == "power",
    )


def _before_fork(frame: FrameType) -> None:
    for outbox in list(_shared.values()):
        outbox.before_fork(frame)


def _after_fork_in_parent(frame: FrameType) -> None:
    for outbox in list(_shared.values()):
        outbox.after_fork_in_parent(frame)


def _after_fork_in_child(frame: FrameType) -> None:
    for outbox in list(_shared.values()):
        outbox.after_fork_in_child(frame)


forking.before.append(_before_fork)
forking.in_parent.append(_after_fork_in_parent)
forking.in_child.append(_after_fork_in_child)
