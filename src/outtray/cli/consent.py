"""`outtray consent`: see and set the user's choice."""

from __future__ import annotations

import os

from outtray import consent
from outtray.cli import outboxes
from outtray.cli.arguments import add_json_argument, add_outbox_arguments
from outtray.cli.exits import DONE, KEPT, NOT_CONFIGURED
from outtray.cli.output import count_text, say, write, write_json
from outtray.delivery.lock import DrainLock
from outtray.delivery.target import delivery_settings
from outtray.errors import OutboxBusy, OutboxError
from outtray.outbox import erasure, look
from outtray.outbox.connection import translated
from outtray.outbox.files import drain_lock_path, exists, gate_path

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    from typing import Any

    from outtray.settings import Settings

HELP = """Say what is recorded and sent, and which rule decides; with a word, keep your choice.

on      record and send
local   record, send nothing; what waits stays
off     record nothing and send nothing; what was not delivered is erased, and of much that was delivered
        all but the newest 4 MB; programs that run stop at once

The choice holds for one application. What the application itself says, OUTTRAY_CONSENT and DO_NOT_TRACK come before
it; the config file comes after it."""

CHOICES = {"on": consent.GRANTED, "local": consent.LOCAL, "off": consent.DENIED}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument("choice", nargs="?", choices=tuple(CHOICES), help="what to keep; nothing: only look")
    add_outbox_arguments(parser)
    add_json_argument(
        parser,
        "one JSON object: state, reason, choice; with `off` how many were withdrawn, and whether that is finished",
    )


def run(arguments: argparse.Namespace) -> int:
    """Keep the choice if one is given, and say what holds. Returns the exit code; raises OutboxError, OSError."""
    settings = outboxes.the_application(arguments)
    changed: dict[str, Any] = {}
    code = DONE
    if arguments.choice is not None:
        _keep(settings.directory, CHOICES[arguments.choice])
        drainer = _drainer(settings.directory)
        try:
            changed = _apply(settings, CHOICES[arguments.choice])
        except OutboxError as error:
            code = KEPT if isinstance(error, OutboxBusy) else NOT_CONFIGURED
            why = outboxes.cause(error)
            say(f"your choice ({arguments.choice}) is kept, but not all is done: {why}. {_rest(arguments.choice)}")
            changed = {"withdrawn": None, "finished": False} if arguments.choice == "off" else {}
        if drainer and arguments.choice != "on":
            changed["delivering"] = drainer
            say(f"process {drainer} is delivering: the request that is on its way may still arrive")
    _show(arguments, settings, changed)
    return code


def _keep(directory: str, choice: str) -> None:
    """Have the choice on the disk. Raises OutboxError."""
    try:
        erasure.keep_choice(directory, choice)
    except OSError as error:
        say("your choice could not be kept")
        exists(directory)  # which says what is wrong with the place, where that is the reason
        raise translated(error, directory) from error


def _apply(settings: Settings, choice: str) -> dict[str, Any]:
    """Have the outbox follow the choice, and return what that did. Raises OutboxError."""
    directory = settings.directory
    withdrawn = 0
    if os.path.lexists(gate_path(directory)) or exists(directory):  # who makes an outbox reads the choice first
        left_out = outboxes.unread(settings) if choice == consent.DENIED else ""
        with outboxes.opened(settings) as outbox:
            if choice != consent.DENIED:
                erasure.apply_choice(outbox)
                return {}
            withdrawn = erasure.withdraw(outbox)
        say(f"{count_text(withdrawn)} that had not been delivered{left_out} erased")
    return {"withdrawn": withdrawn, "finished": True} if choice == consent.DENIED else {}


def _rest(choice: str) -> str:
    """Return words for what is left to be done where the outbox could not follow the choice."""
    if choice != "off":
        return "Programs that run may not know it yet: put that right, and run this again"
    return (
        "Programs that run may not know it yet, and text may be left on the disk: put that right, and the next "
        "`outtray flush`, or this again, goes on"
    )


def _drainer(directory: str) -> int | None:
    """Return the pid of whoever delivers just now; it begins no request any more that the choice forbids."""
    if not os.path.exists(drain_lock_path(directory)):
        return None
    lock = DrainLock(directory)
    try:
        return None if lock.try_acquire() else lock.holder()[0]
    finally:
        lock.release()


def _show(arguments: argparse.Namespace, settings: Settings, changed: dict[str, Any]) -> None:
    word = _word_of_host(settings)
    decided = consent.decide(settings, afresh=True)
    choice = consent.stored(settings.directory)
    found = {"app": settings.app, "state": decided.state, "reason": decided.reason, "choice": choice, **changed}
    if arguments.json:
        write_json({**found, "directory": settings.directory})
    else:
        write(f"{settings.app}: {decided.state} ({decided.reason})")
    if choice is not None and not decided.follows_choice:
        say(f"your choice is {choice}, but {decided.reason} comes before it here")
    if word is not None and word != choice:
        say(f"the application itself last said consent={word!r}, which comes before your choice while it runs")


def _word_of_host(settings: Settings) -> str | None:
    """Return what the application passed to `configure` or `Tray` when it last stored something, None for nothing.

    Raises OutboxUnusable where it could never store anything.
    """
    if not exists(settings.directory):
        return None
    try:
        with look.look(settings.directory) as view:
            word = delivery_settings(view).get("consent")
    except OutboxError as error:
        say(f"whether the application itself says something else cannot be told: {error}")
        return None
    return word if isinstance(word, str) else None
