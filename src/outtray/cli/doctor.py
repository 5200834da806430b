"""`outtray doctor`: examine outboxes, and bring back what damaged files hold."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING, Any

from outtray import consent
from outtray.cli import outboxes
from outtray.cli.arguments import add_json_argument, add_outbox_arguments
from outtray.cli.examination import Examination
from outtray.cli.exits import DONE, FINDINGS, KEPT
from outtray.cli.output import count_text, say, write, write_json
from outtray.delivery.lock import DrainLock
from outtray.errors import OutboxBusy, OutboxDamaged
from outtray.outbox import recovery
from outtray.outbox.connection import DamageFound
from outtray.settings import resolve

if TYPE_CHECKING:
    import argparse

    from outtray.outbox.store import Outbox
    from outtray.settings import Settings

HELP = """Examine every outbox of this user, or one (--app), and say what is wrong and what to do about it.

Looked at are: place, rights, free space, who is at the gate and who delivers, each message and its checksum (on a
copy), the size of the log, files of damaged or newer outboxes, what the ledger says of losses, the clock, and consent.
Nothing is changed, but with --salvage.

exit codes: 0 all is well; 1 there are findings; 75 with --salvage, where somebody else delivers just now."""

MAX_DAMAGES = 3
"""Times that one salvage goes on after its outbox was found damaged."""

_WIDTH = 80


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument("--online", action="store_true", help="see whether the receiver answers; sends no message")
    parser.add_argument("--salvage", action="store_true", help="bring back what damaged files hold, then examine")
    add_outbox_arguments(parser)
    add_json_argument(parser, "a JSON array, an object for each outbox: app, directory, findings, checks")


def run(arguments: argparse.Namespace) -> int:
    """Examine and report. Returns the exit code; raises OutboxError, OSError."""
    chosen = outboxes.chosen(arguments)
    if not chosen:
        say(f"there is no outbox in {resolve({'dir': arguments.dir}).dir}")
    reports: list[dict[str, Any]] = []
    is_kept = False
    for settings in chosen:
        saved = _salvaged(settings) if arguments.salvage else None
        is_kept = is_kept or (arguments.salvage and saved is None)
        report = Examination(settings, online=arguments.online).to_dict()
        reports.append(report | ({} if saved is None else {"salvaged": saved}))
        if not arguments.json:
            _write(report)
    if arguments.json:
        write_json(reports)
    if is_kept:
        return KEPT
    return FINDINGS if any(report["findings"] for report in reports) else DONE


def _salvaged(settings: Settings) -> int | None:
    """Bring back what can be, and return how many messages; None, and said why, if somebody is in the way.

    Raises OutboxError, OSError.
    """
    before = Examination(settings, online=False)
    lock = DrainLock(settings.directory)
    try:
        if not lock.try_acquire():
            say(f"{settings.app}: process {lock.holder()[0]} delivers just now; nothing was brought back, try again")
            return None
        with outboxes.opened(before.effective_settings()) as outbox:
            saved = _salvage(outbox, before)
    except OutboxBusy as error:
        say(f"{settings.app}: {error}; nothing more was brought back, try again")
        return None
    finally:
        lock.release()
    if consent.stored(settings.directory) == consent.DENIED:
        say(f"{settings.app}: consent is denied, so nothing is brought back; `outtray consent off` erases what is left")
    else:
        say(f"{settings.app}: {count_text(saved)} brought back from damaged files")
    return saved


def _salvage(outbox: Outbox, before: Examination) -> int:
    for _ in range(MAX_DAMAGES):
        try:
            with outbox.writing():
                pass  # which begins a new generation, if the opening meets the damage
            if before.is_damaged and outbox.header().generation == before.generation:
                outbox.leave_damaged(DamageFound("its examination found it damaged"), before.generation)
            return recovery.salvage(outbox)
        except OutboxDamaged as error:
            damage = error
    raise damage


def _write(report: dict[str, Any]) -> None:
    findings = report["findings"]
    verdict = count_text(len(findings), "finding") if findings else "all is well"
    write(f"{report['app']}: {verdict}")
    width = max(map(len, report["checks"]))
    for name, text in report["checks"].items():
        found = [each for each in findings if each["check"] == name]
        _write_wrapped(f"  {'!!' if found else 'ok'}  {name:{width}}  ", text)
        for each in found:
            _write_wrapped(f"  {'':{width + 4}}  ! ", each["text"])
            _write_wrapped(f"  {'':{width + 4}}    > ", each["do"])


def _write_wrapped(beginning: str, text: str) -> None:
    lines = textwrap.wrap(
        text,
        _WIDTH,
        initial_indent=beginning,
        subsequent_indent=" " * len(beginning),
        break_long_words=False,
        break_on_hyphens=False,
    )
    for line in lines:
        write(line)
