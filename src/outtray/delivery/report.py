"""What a flush tells of itself."""

from __future__ import annotations

from collections import namedtuple

# Of `collections`, with the types for whoever checks them: one of `typing` takes 7 ms, to load that and to be made.


class FlushReport(namedtuple("FlushReport", "outcome delivered dead reason wait pid", defaults=(0, 0, "", None, None))):
    """What a flush did.

    *outcome* is "drained" (nothing is due any more), "timeout", "limit", "postponed", "held" (url, key or
    receiver must be put right), "not configured", "busy" (another drainer is at work), "stalled" (it is
    stopped; *pid* names it), "denied" (consent forbids sending) or "failed" (the outbox cannot be used).
    *delivered* and *dead* count messages of this flush; *reason* is a line for people; *wait* the seconds
    until the next attempt.
    """

    __slots__ = ()

    outcome: str
    delivered: int
    dead: int
    reason: str
    wait: float | None
    pid: int | None

    @property
    def settled(self) -> bool:
        """Whether all that the flush was to deliver is settled."""
        return self.outcome == "drained"
