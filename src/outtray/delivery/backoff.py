"""How long to wait after a failure. Pure: no clock, no state."""

from __future__ import annotations

from outtray.outbox.records import LONGEST_WAIT

FIRST_WAIT = 1.0
"""Seconds: the longest wait after the first failure."""

OFFLINE_WAIT = 300.0
"""Seconds: the longest wait while the receiver cannot be reached or is overloaded."""


def wait(attempts: int, retry_after: float | None = None) -> float:
    """Return the seconds to wait after *attempts* failures in a row: exponential with full jitter.

    What the receiver asked for (*retry_after*) is obeyed up to `LONGEST_WAIT`, and never shortened.
    """
    from random import uniform  # takes 2 ms to load, and most runs of cron make no attempt

    longest = min(OFFLINE_WAIT, FIRST_WAIT * 2.0 ** min(attempts - 1, 20))
    jittered = uniform(0.0, longest)
    return jittered if retry_after is None else min(max(retry_after, jittered), LONGEST_WAIT)


def remaining(next_attempt_at: float | None, now: float) -> float:
    """Return the seconds left of a stored wait; one that ends later than any wait can (the clock jumped) is over."""
    if next_attempt_at is None or not now < next_attempt_at <= now + LONGEST_WAIT:
        return 0.0
    return next_attempt_at - now
