"""`outtray doctor`: examine outboxes, and bring back what damaged files hold."""

from __future__ import annotations

import textwrap

from outtray import consent
from outtray.cli import outboxes, processes
from outtray.cli.arguments import add_json_argument, add_outbox_arguments
from outtray.cli.examination import NOT_EXAMINED, Examination
from outtray.cli.examined_content import ExaminedContent
from outtray.cli.examined_place import ExaminedPlace
from outtray.cli.exits import DONE, FINDINGS, KEPT
from outtray.cli.output import count_text, say, write, write_json
from outtray.delivery.lock import DrainLock
from outtray.errors import OutboxBusy, OutboxDamaged, OutboxError
from outtray.outbox import recovery
from outtray.outbox.connection import DamageFound
from outtray.outbox.files import exists
from outtray.settings import resolve

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    from typing import Any

    from outtray.outbox.store import Outbox
    from outtray.settings import Settings

HELP = """Examine every outbox of this user, or one (--app), and say what is wrong and what to do about it.

Looked at are: place, rights, free space, files of newer releases, who is at the gate and who delivers, each message and
its checksum (on a copy), the size of the log, damaged files, the ledger, the clock, and consent. What was lost in the
past is said and is no finding, as nothing can be done about it. Nothing is changed, but with --salvage.

exit codes: 0 nothing is to be done; 1 there are findings; 75 with --salvage, where somebody else is in the way;
78 there can be no outbox at all."""

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
    """Examine and report. Returns the exit code; raises OutboxUnusable where there could never be an outbox."""
    chosen = outboxes.to_examine(arguments)
    if not chosen:
        say(f"there is no outbox in {resolve({'dir': arguments.dir}).dir}")
    reports: list[dict[str, Any]] = []
    is_kept = is_failed = False
    for settings in chosen:
        saved, failure = _salvaged(settings) if arguments.salvage else (None, None)
        report = _examined(settings, online=arguments.online).to_dict()
        if arguments.salvage:
            report["salvaged"] = saved
        if isinstance(failure, OutboxBusy):
            say(f"{settings.app}: {failure}; nothing more was brought back, try again")
            is_kept = True
        elif failure is not None:
            say(f"{settings.app}: {failure}; nothing more was brought back, put that right and try again")
            is_failed = True
        reports.append(report)
        if not arguments.json:
            _write(report)
    if arguments.json:
        write_json(reports)
    if is_kept:
        return KEPT
    return FINDINGS if is_failed or any(report["findings"] for report in reports) else DONE


def _examined(settings: Settings, *, online: bool) -> Examination:
    examination = Examination(settings)
    place = ExaminedPlace(examination)
    examination.run({"directory": place.directory, "settings": place.config})
    if place.is_usable:
        examination.run(place.checks())
        examination.run(ExaminedContent(examination).checks(online=online))
    return examination


def _salvaged(settings: Settings) -> tuple[int | None, Exception | None]:
    """Bring back what can be; returns how many messages, or what was in the way."""
    try:
        if not exists(settings.directory):
            return 0, None
        saved = _salvage_alone(settings)
    except (OutboxError, OSError) as error:
        return None, error
    if consent.stored(settings.directory) == consent.DENIED:
        say(f"{settings.app}: consent is denied, so nothing is brought back; `outtray consent off` erases what is left")
    else:
        say(f"{settings.app}: {count_text(saved)} brought back from damaged files")
    return saved, None


def _salvage_alone(settings: Settings) -> int:
    """Salvage with the right to deliver. Raises OutboxBusy where another has it, OutboxError, OSError."""
    examination = Examination(settings)
    content = ExaminedContent(examination)
    lock = DrainLock(settings.directory)
    try:
        if not lock.try_acquire():
            process = processes.Process(lock.holder()[0])
            raise OutboxBusy(f"{process} delivers" + (f": {process.advice}" if process.is_stopped else ""))
        with outboxes.opened(content.effective_settings()) as outbox:
            return _salvage(outbox, content.is_damaged, examination.generation)
    finally:
        lock.release()


def _salvage(outbox: Outbox, is_damaged: bool, generation: int) -> int:
    for _ in range(MAX_DAMAGES):
        try:
            with outbox.writing():
                pass  # which begins a new generation, if the opening meets the damage
            if is_damaged and outbox.header().generation == generation:
                outbox.leave_damaged(DamageFound("its examination found it damaged"), generation)
            return recovery.salvage(outbox)
        except OutboxDamaged as error:
            damage = error
    raise damage


def _write(report: dict[str, Any]) -> None:
    findings = report["findings"]
    write(f"{report['app']}: {count_text(len(findings), 'finding') if findings else 'all is well'}")
    width = max(map(len, report["checks"]))
    for name, text in report["checks"].items():
        found = [each["text"] for each in findings if each["check"] == name]
        sign = "!!" if found else "--" if text.startswith(NOT_EXAMINED) else "ok"
        _write_wrapped(f"  {sign}  {name:{width}}  ", text)
        for each in dict.fromkeys(found):
            _write_wrapped(f"  {'':{width + 4}}  ! ", each)
    if findings:
        write("  to do:")
    for do in dict.fromkeys(each["do"] for each in findings):
        checks = dict.fromkeys(each["check"] for each in findings if each["do"] == do)
        write(f"    {', '.join(checks)}: {do}")  # in one line, however long: it may be a command to copy


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
