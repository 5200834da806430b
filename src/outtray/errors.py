"""Every error of outtray.

::

    OuttrayError
    ├── SettingsError            a setting cannot be right; the text names the setting, its value and the fix
    ├── OutboxError              the message was not stored; ``reason`` is the ledger's word for it
    │   ├── OutboxBusy           another process or thread kept the gate longer than the deadline
    │   ├── OutboxFull           ``max_bytes`` is reached and nothing delivered is left to remove
    │   ├── DiskFull             the disk, or this user's share of it, is full
    │   ├── OutboxUnusable       the directory or the file cannot be used
    │   ├── OutboxDamaged        the file was damaged and another was begun: try again
    │   ├── SyncFailed           the disk did not confirm the message: it may be delivered, or lost with the power
    │   ├── OutboxDenied         the user denied consent meanwhile; not counted in the ledger
    │   └── MessageTooLarge      the message is above ``max_message_bytes``
    ├── DeliveryError            the batch was not delivered; ``status`` is the HTTP status or None
    │   ├── Postponed            all stays pending, try again after a wait
    │   ├── Held                 all stays pending until url, key or receiver are put right
    │   └── Rejected             the receiver refuses this batch as it is
    └── AnalyticsAPIError        what ``post`` raises, as upstream's does

Nothing else leaves the library, and only ``configure()``, ``Tray()``, ``post()`` and the classes below
``outtray.outbox`` and ``outtray.delivery`` raise at all.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable


class OuttrayError(Exception):
    """The root of the tree."""


class SettingsError(OuttrayError, ValueError):
    """A setting that cannot be right."""


class OutboxError(OuttrayError):
    """The outbox could not do it; nothing was stored by the call that got this."""

    reason = "error"


class OutboxBusy(OutboxError):
    """The gate was not free within the deadline."""

    reason = "busy"


class OutboxFull(OutboxError):
    """The outbox holds ``max_bytes`` of undelivered messages."""

    reason = "full"


class DiskFull(OutboxError):
    """There is no room on the disk, or none that this user may take."""

    reason = "disk_full"


class OutboxUnusable(OutboxError):
    """The directory or its files cannot be used as an outbox."""

    reason = "unusable"


class OutboxDamaged(OutboxError):
    """The file was found damaged; a new generation has begun, in which the same call will work."""

    reason = "damaged"


class SyncFailed(OutboxError):
    """With ``durability="power"``: the message is stored, but whether it outlives a power cut is unknown."""

    reason = "unknown"


class OutboxDenied(OutboxError):
    """The user's choice is that nothing is recorded."""

    reason = "denied"


class MessageTooLarge(OutboxError):
    """One message is larger than the limit that the error names."""

    reason = "too_large"


class DeliveryError(OuttrayError):
    """A batch that was not delivered.

    *reason* is one line for people, *status* the HTTP status where there was an answer.
    """

    def __init__(self, reason: str, *, status: int | None = None) -> None:
        super().__init__(reason)
        self.reason = reason
        self.status = status

    def conceal(self, without_secrets: Callable[[str], str]) -> None:
        """Put what *without_secrets* leaves of them in place of the texts that come from the receiver."""
        self.reason = without_secrets(self.reason)
        self.args = (self.reason,)


class Postponed(DeliveryError):
    """The receiver cannot be reached or asks for patience; *retry_after* is in seconds, where it said so."""

    def __init__(self, reason: str, *, status: int | None = None, retry_after: float | None = None) -> None:
        super().__init__(reason, status=status)
        self.retry_after = retry_after


class Held(DeliveryError):
    """A fault of configuration (url, key, redirect): no message is to blame and none is buried."""


class Rejected(DeliveryError):
    """The receiver refuses the batch, for a message in it or for all; *excerpt* is the beginning of its answer."""

    def __init__(self, reason: str, *, status: int | None = None, excerpt: str = "") -> None:
        super().__init__(reason, status=status)
        self.excerpt = excerpt

    def conceal(self, without_secrets: Callable[[str], str]) -> None:
        """See `DeliveryError.conceal`."""
        super().conceal(without_secrets)
        self.excerpt = without_secrets(self.excerpt)


class AnalyticsAPIError(OuttrayError):
    """A post that failed: *status* is the HTTP status, 0 where no answer came; *message* the answer's text."""

    def __init__(self, status: int, message: str, *, destination: str = "ZenML Analytics") -> None:
        super().__init__(status, message)
        self.status = status
        self.message = message
        self.destination = destination

    def __str__(self) -> str:
        return f"[{self.destination}] {self.status}: {self.message}"
