"""Draining in the foreground, with a bound: what `outtray.flush()` and `python -m outtray flush` do."""

from __future__ import annotations

import time
from contextlib import closing

from outtray import consent, journal
from outtray.delivery.drain import Drain
from outtray.delivery.lock import DrainLock
from outtray.delivery.report import FlushReport
from outtray.delivery.target import delivery_settings
from outtray.errors import Held, OutboxBusy, OutboxDamaged, OutboxError, SettingsError
from outtray.outbox import recovery
from outtray.outbox.upkeep import tidy

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from outtray.outbox.store import Outbox
    from outtray.settings import Settings

MAX_DAMAGES = 3
"""Times that one flush goes on after its outbox was found damaged."""

POLL = 0.02
"""Seconds between two looks at what another drainer does."""


class _Run:
    """One foreground flush; see `flush` for the arguments."""

    def __init__(
        self,
        outbox: Outbox,
        settings: Settings,
        *,
        timeout: float | None,
        until_id: int | None,
        heed_wait: bool,
        sleep_through: bool,
        limit: int | None,
        progress: Callable[[int], None] | None,
    ) -> None:
        self._outbox = outbox
        self._settings = settings
        self._end = float("inf") if timeout is None else time.monotonic() + timeout
        self._until_id = until_id
        self._heed_wait = heed_wait
        self._sleep_through = sleep_through
        self._limit = limit
        self._progress = progress
        self._lock = DrainLock(outbox.directory)
        self._delivered = 0
        self._dead = 0

    def go(self) -> FlushReport:
        given = self._settings
        damages = 0
        try:
            while True:
                try:
                    self._settings = given.over(delivery_settings(self._outbox))
                    other = self._wait_for_lock()
                    if other is not None:
                        return other
                    recovery.salvage_if_possible(self._outbox, go_on=self._may_go_on)
                    self._settings = given.over(delivery_settings(self._outbox))  # which may have been salvaged
                    self._outbox.max_bytes = self._settings.max_bytes
                    report = self._drain()
                except OutboxDamaged:
                    damages += 1
                    if damages == MAX_DAMAGES:
                        raise
                    report = None
                if report is not None:
                    self._prune()
                    return report
                self._lock.release()  # the outbox was removed or damaged: go on with the one that is there now
        except SettingsError as error:
            return self._report("not configured", str(error))
        except OutboxBusy as error:
            return self._report("postponed", str(error))
        except (OutboxError, OSError) as error:
            return self._report("failed", str(error))
        finally:
            self._lock.release()

    def _wait_for_lock(self) -> FlushReport | None:
        """Take the lock and return None, or the report where another drainer has it."""
        patience = 2 * self._settings.timeout
        beat, still_since = None, time.monotonic()
        while not self._lock.try_acquire():
            pid, latest = self._lock.holder()
            now = time.monotonic()
            if self._is_settled():
                return self._report("drained")
            if beat is not None and latest != beat and self._until_id is None:
                return self._report("busy", f"process {pid} is delivering", pid=pid)
            if latest != beat:
                beat, still_since = latest, now
            if now - still_since >= patience:
                return self._report("stalled", f"process {pid} holds the drain lock and does not move", pid=pid)
            if now >= self._end:
                return self._report("timeout", f"process {pid} is still delivering", pid=pid)
            time.sleep(POLL)
        return None

    def _drain(self) -> FlushReport | None:
        """Deliver until there is something to report; None if the right to drain was lost."""
        heed_wait = self._heed_wait
        slept_out: float | None = None
        while not self._is_settled():
            drain = Drain(
                self._outbox,
                self._settings,
                heed_wait=heed_wait,
                slept_out=slept_out,
                deadline=self._end,
                limit=None if self._limit is None else self._limit - self._delivered - self._dead,
                go_on=self._may_go_on,
            )
            heed_wait = True
            with closing(drain):
                wait = self._steps(drain)
            self._delivered += drain.delivered
            self._dead += drain.dead
            if wait is None:
                return self._report("limit" if self._is_limit_reached() else "drained")
            if self._is_settled():
                break
            agreed = consent.decide(self._settings, afresh=True)
            if agreed.state != consent.GRANTED:
                return self._report("denied", f"consent is {agreed.state} ({agreed.reason})")
            if not self._lock.beat():
                return None
            if wait == 0.0:
                return self._report("timeout", "the time is over")
            cursor = self._outbox.cursor(self._settings.destination)
            held = isinstance(drain.stopped_by, Held) or cursor.held
            if held or not self._sleep_through or time.monotonic() + wait > self._end:
                reason = drain.stopped_by.reason if drain.stopped_by else cursor.reason or ""
                return self._report("held" if held else "postponed", reason, wait=wait)
            self._sleep(wait)
            slept_out = drain.waits_until
        return self._report("drained")

    def _steps(self, drain: Drain) -> float | None:
        """Step until there is a wait or nothing left; 0 if what was to be delivered is, or the run may not go on."""
        until_id = float("inf") if self._until_id is None else self._until_id
        wait = drain.step()
        while wait == 0.0:
            if self._progress is not None:
                self._progress(self._delivered + drain.delivered + self._dead + drain.dead)
            if (drain.reached_id >= until_id and self._is_settled()) or not self._may_go_on():
                return 0.0
            wait = drain.step()
        return wait

    def _may_go_on(self) -> bool:
        is_granted = consent.decide(self._settings, afresh=True).state == consent.GRANTED
        return self._lock.beat() and is_granted and time.monotonic() < self._end

    def _sleep(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            self._lock.beat()
            time.sleep(min(left, 0.2))

    def _is_settled(self) -> bool:
        return self._until_id is not None and self._outbox.is_settled(self._settings.destination, self._until_id)

    def _prune(self) -> None:
        try:
            tidy(self._outbox, retention=self._settings.retention)
        except (OutboxError, OSError) as error:  # the next flush does it; what was delivered is delivered
            journal.failed("removing delivered messages that are past their retention", error)

    def _is_limit_reached(self) -> bool:
        return self._limit is not None and self._delivered + self._dead >= self._limit

    def _report(
        self, outcome: str, reason: str = "", *, wait: float | None = None, pid: int | None = None
    ) -> FlushReport:
        return FlushReport(outcome, self._delivered, self._dead, reason, wait, pid)


def flush(
    outbox: Outbox,
    settings: Settings,
    *,
    timeout: float | None = None,
    until_id: int | None = None,
    heed_wait: bool = True,
    sleep_through: bool = False,
    limit: int | None = None,
    progress: Callable[[int], None] | None = None,
) -> FlushReport:
    """Deliver what is due in this thread and report; never raises for what the outbox or the receiver does.

    *timeout* in seconds bounds all of it. With *until_id* it ends when that message is settled,
    and waits for another drainer to settle it; without, another drainer at work ends it. *heed_wait* False
    passes a stored wait over, *sleep_through* sleeps through the waits that fit into *timeout*, *limit* bounds
    the number of messages, *progress* is called after each batch with the number done.
    """
    return _Run(
        outbox,
        settings,
        timeout=timeout,
        until_id=until_id,
        heed_wait=heed_wait,
        sleep_through=sleep_through,
        limit=limit,
        progress=progress,
    ).go()
