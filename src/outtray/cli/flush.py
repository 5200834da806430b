"""`outtray flush`: deliver what waits."""

from __future__ import annotations

import os
import time

from outtray import consent
from outtray.cli import outboxes
from outtray.cli.arguments import add_json_argument, add_outbox_arguments, count, destination, seconds, setting
from outtray.cli.exits import DONE, FINDINGS, KEPT, NOT_CONFIGURED
from outtray.cli.output import age_text, count_text, is_interactive, say, size_text, write, write_json
from outtray.delivery.outlook import Outlook, outlook
from outtray.delivery.report import FlushReport
from outtray.errors import OutboxBusy, OutboxDamaged, OutboxError, SettingsError
from outtray.outbox import look
from outtray.outbox.files import exists, is_alone, newest_generation
from outtray.settings import resolve

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    from typing import Any

    from outtray.settings import Settings

HELP = """Deliver what waits, of every outbox of this user or of one (--app).

Without a terminal, as in cron, it is silent when all went well, and while the receiver cannot be reached for
less than --warn-after. Dead letters, outboxes that are held or not configured, and that there is none where --app or
--dir says that there is one, are always told.

exit codes: 78 something is held, not configured or unusable; else 75 something is kept for later; else 1 new dead
letters; else 0. Where several are true, also of several outboxes, the first in this order counts."""

_SEVERITY = (NOT_CONFIGURED, KEPT, FINDINGS, DONE)
_TELLING = ("held", "not configured", "stalled", "failed", "denied")
"""Outcomes that are said in cron too."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    add_outbox_arguments(parser)
    parser.add_argument("--url", type=setting("url"), help="where to deliver to, instead of what the program stored")
    parser.add_argument("--destination", type=destination, help="wire format, instead of the stored one")
    parser.add_argument("--limit", type=count, metavar="N", help="deliver so many messages at most")
    parser.add_argument(
        "--max-time",
        type=seconds,
        metavar="S",
        help="end after so many seconds; a request under way is cut off, and its messages go again later",
    )
    parser.add_argument("--wait", action="store_true", help="wait, and try again, until all is delivered")
    parser.add_argument("--all", action="store_true", help="do not heed a stored wait")
    parser.add_argument("--dry-run", action="store_true", help="say what would be sent, send nothing")
    parser.add_argument(
        "--warn-after",
        type=seconds,
        default=86_400.0,
        metavar="S",
        help="in cron, be silent about messages that wait for less (default %(default).0f s)",
    )
    parser.add_argument("--quiet", action="store_true", help="be as silent on a terminal as in cron")
    add_json_argument(parser, "a JSON array with one report for each outbox")


def run(arguments: argparse.Namespace) -> int:
    """Deliver and report. Returns the exit code, of several outboxes the most severe; raises OutboxError."""
    chosen = outboxes.chosen(arguments, url=arguments.url, destination=arguments.destination)
    if not chosen:
        is_named = arguments.app is not None or arguments.dir is not None
        if is_named or arguments.dry_run or (is_interactive() and not arguments.quiet):
            of = "" if arguments.app is None else f" for {arguments.app!r}"
            say(f"nothing to deliver: no outbox in {resolve({'dir': arguments.dir}).dir}{of}")
        if arguments.json:
            write_json([])
        return DONE
    if arguments.dry_run:
        return _dry_run(arguments, chosen)
    results = _Run(arguments, chosen).go()
    if arguments.json:
        write_json([result.to_dict() for result in results])
    codes = [result.code for result in results]
    return next(code for code in _SEVERITY if code in codes)


class _Result:
    """What came of one outbox: its report, and what waits now."""

    def __init__(self, app: str, report: FlushReport, found: Outlook) -> None:
        self.app = app
        self.report = report
        self.pending = found.pending
        self.deferred = found.deferred
        self.oldest_pending_age = found.oldest_pending_age

    def count_in(self, before: FlushReport) -> None:
        """Add what an earlier flush of the same outbox has done."""
        delivered, dead = self.report.delivered + before.delivered, self.report.dead + before.dead
        self.report = self.report._replace(delivered=delivered, dead=dead)

    @property
    def code(self) -> int:
        outcome = self.report.outcome
        if outcome in ("held", "not configured", "failed"):
            return NOT_CONFIGURED
        if outcome not in ("drained", "busy", "denied") or (outcome == "denied" and self.pending):
            return KEPT
        return FINDINGS if self.report.dead else DONE

    def to_dict(self) -> dict[str, Any]:
        waiting = {"pending": self.pending, "deferred": self.deferred, "oldest_pending_age": self.oldest_pending_age}
        return {"app": self.app, **self.report._asdict(), **waiting, "exit": self.code}


class _Run:
    """One run over the outboxes that share --max-time and --limit."""

    def __init__(self, arguments: argparse.Namespace, chosen: list[Settings]) -> None:
        self._arguments = arguments
        self._chosen = chosen
        self._end = None if arguments.max_time is None else time.monotonic() + arguments.max_time
        self._room: int | None = arguments.limit
        self._is_talking = is_interactive() and not arguments.quiet

    def go(self) -> list[_Result]:
        results = {settings.app: self._flush(settings, heed_wait=not self._arguments.all) for settings in self._chosen}
        while self._arguments.wait and (wait := self._next_wait(results)) is not None:
            if self._is_talking:
                for result in results.values():
                    if result.report.outcome == "postponed":
                        say(f"{result.app}: {result.report.reason}; waiting {age_text(wait)}")
            time.sleep(wait)
            for settings in self._chosen:
                before = results[settings.app]
                if before.report.outcome == "postponed":
                    results[settings.app] = after = self._flush(settings, heed_wait=True)
                    after.count_in(before.report)
        for result in results.values():
            self._say(result)
        return list(results.values())

    def _next_wait(self, results: dict[str, _Result]) -> float | None:
        """Return the seconds until an outbox is due again, None if none will be in time."""
        waits = [each.report.wait for each in results.values() if each.report.outcome == "postponed"]
        wait = min((wait for wait in waits if wait is not None), default=None)
        left = self._left()
        return None if wait is None or (left is not None and wait > left) else wait

    def _left(self) -> float | None:
        return None if self._end is None else max(0.0, self._end - time.monotonic())

    def _flush(self, settings: Settings, *, heed_wait: bool) -> _Result:
        report, found = FlushReport("drained", reason="nothing waits"), Outlook(settings)
        try:
            if settings.problems:
                raise SettingsError(f"{settings.problems[0]}; nothing was sent")
            if consent.stored(settings.directory) == consent.DENIED:
                _finish_erasure(settings)
            is_damaged = _has_damaged_files(settings)
            try:
                found = outlook(settings)
            except OutboxDamaged:  # the delivery goes on in a new file, and saves what it can
                is_damaged = True
            if found.pending or found.deferred or is_damaged:
                kept = self._kept(settings, found, heed_wait=heed_wait)
                report = kept or self._deliver(settings, found.pending, heed_wait=heed_wait)
                found = found if kept else outlook(settings)
            if found.is_erasing:  # after the delivery, which makes room on a full disk
                _finish_erasure(settings)
                found = outlook(settings)
        except SettingsError as error:
            report = FlushReport("not configured", reason=str(error))
        except OutboxBusy as error:
            report = report._replace(outcome="postponed", reason=str(error), wait=None)
        except (OutboxError, OSError) as error:
            report = report._replace(outcome="failed", reason=str(error))
        if report.outcome == "limit" and not found.pending:
            report = report._replace(outcome="drained")
        return _Result(settings.app, report, found)

    def _kept(self, settings: Settings, found: Outlook, *, heed_wait: bool) -> FlushReport | None:
        """Return the report where all is kept for now, as is known before any is delivered, else None."""
        agreed = consent.decide(settings)
        if agreed.state != consent.GRANTED:
            return FlushReport("denied", reason=f"consent is {agreed.state} ({agreed.reason})")
        if self._left() == 0.0:
            return FlushReport("timeout", reason="the time was over before its turn")
        if self._room == 0:
            return FlushReport("limit", reason="the limit was reached before its turn")
        return found.stored_wait() if heed_wait else None

    def _deliver(self, settings: Settings, pending: int, *, heed_wait: bool) -> FlushReport:
        from outtray.cli import progress  # with all that delivers: most runs of cron have nothing to deliver
        from outtray.delivery.flush import flush

        total = pending if self._room is None else min(pending, self._room)
        with (
            outboxes.opened(settings) as outbox,
            progress.shown(settings.app, total, wanted=self._is_talking) as advance,
        ):
            report = flush(
                outbox, settings, timeout=self._left(), heed_wait=heed_wait, limit=self._room, progress=advance
            )
        if _is_busy(report):
            from outtray.cli import processes

            report = report._replace(reason=str(processes.explained(OutboxBusy(report.reason), settings.directory)))
        if self._room is not None:
            self._room -= min(self._room, report.delivered + report.dead)
        return report

    def _say(self, result: _Result) -> None:
        report = result.report
        is_old = (result.oldest_pending_age or 0.0) >= self._arguments.warn_after and result.code == KEPT
        is_denied_in_vain = report.outcome == "denied" and not result.pending
        is_telling = _is_busy(report) or (report.outcome in _TELLING and not is_denied_in_vain)
        if self._is_talking or report.dead or is_old or is_telling:
            say(_line(result))


def _finish_erasure(settings: Settings) -> None:
    """Remove what `consent off` or `forget`, ended before it was through, has left. Raises OutboxError."""
    if exists(settings.directory):
        from outtray.outbox import erasure

        with outboxes.opened(settings) as outbox:
            erasure.finish(outbox)


def _is_busy(report: FlushReport) -> bool:
    """Tell whether it was not the receiver that could not be reached, but the outbox."""
    return report.outcome == "postponed" and report.wait is None


def _line(result: _Result) -> str:
    """Return what happened, what was kept and what to do, in one line."""
    report = result.report
    parts = [f"{count_text(report.delivered)} delivered"] if report.delivered or report.outcome == "drained" else []
    if report.dead:
        parts.append(
            f"{count_text(report.dead)} refused for good and kept as dead letters "
            "(look: outtray list --state dead; again: outtray retry --all)"
        )
    if report.outcome != "drained":
        parts.append(f"{report.outcome}: {report.reason}" if report.reason else report.outcome)
        if result.pending:
            age = result.oldest_pending_age
            since = "" if age is None else f", the oldest for {age_text(age)}"
            parts.append(f"{count_text(result.pending)} kept{since}")
        parts.append(_advice(report))
    return f"{result.app}: {'; '.join(part for part in parts if part)}"


def _advice(report: FlushReport) -> str:
    if report.outcome == "postponed" and report.wait is not None:
        return f"next attempt in {age_text(report.wait)}, or now with --all"
    if report.outcome == "held":
        return "put it right, then try at once with --all"
    if report.outcome == "stalled":
        from outtray.cli import processes

        return processes.Process(report.pid or 0).advice
    if report.outcome in ("timeout", "limit"):
        return "run it again for the rest"
    return ""


def _dry_run(arguments: argparse.Namespace, chosen: list[Settings]) -> int:
    """Say what a flush would send now."""
    plans = [_plan(arguments, settings) for settings in chosen]
    if arguments.json:
        write_json(plans)
    else:
        for plan in plans:
            target = f"{plan['destination']} at {plan['url'] or 'no url'}"
            size = ("about " if plan["bytes_estimated"] else "") + size_text(plan["bytes"])
            write(f"{plan['app']}: {count_text(plan['count'])}, {size}, to {target}; {plan['why']}")
    return DONE


def _has_damaged_files(settings: Settings) -> bool:
    """Tell whether there are files that a delivery brings messages back from, or did not long ago. Raises OSError."""
    directory = settings.directory
    if not os.path.isdir(directory) or is_alone(directory, newest := newest_generation(directory)):
        return False
    from outtray.outbox import sources

    return bool(sources.sources(directory, newest))


def _plan(arguments: argparse.Namespace, settings: Settings) -> dict[str, Any]:
    from outtray.delivery.status import status

    found = status(settings)
    count = found["pending"] if arguments.limit is None else min(found["pending"], arguments.limit)
    sizes: list[int] = []
    if count and exists(settings.directory):
        with look.look(settings.directory) as view:
            sizes = view.pending_sizes(found["destination"])[:count]
    is_estimate = len(sizes) < count
    size = round(count * sum(sizes) / len(sizes)) if sizes and is_estimate else sum(sizes)
    wait = max(0.0, (found["next_attempt_at"] or 0.0) - time.time())
    blocked = found["consent"]["state"] != consent.GRANTED or found["not_configured"]
    return {
        "app": settings.app,
        "count": count,
        "bytes": size,
        "bytes_estimated": is_estimate,
        "destination": found["destination"],
        "url": found["url"],
        "held_back": bool(blocked or (wait and not arguments.all)),
        "why": found["why"],
    }
