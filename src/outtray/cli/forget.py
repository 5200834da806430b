"""`outtray forget`: erase identity and messages."""

from __future__ import annotations

import os

from outtray import identity
from outtray.cli import outboxes
from outtray.cli.arguments import add_json_argument, add_outbox_arguments
from outtray.cli.exits import DONE, KEPT, NOT_CONFIGURED, Unfinished, UsageError
from outtray.cli.output import count_text, say, write_json
from outtray.errors import OutboxBusy, OutboxDamaged, OutboxError
from outtray.outbox import erasure
from outtray.outbox.files import exists

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse

    from outtray.settings import Settings

HELP = """Erase the client id and all messages of an application, delivered or not. Needs --yes.

No text of a message and no client id is left in any file of its directory; the next message makes a new id.
The counts of the ledger, where to deliver, and your choice of consent stay."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument("--yes", action="store_true", help="do erase")
    parser.add_argument("--dry-run", action="store_true", help="say what would go, erase nothing")
    add_outbox_arguments(parser)
    add_json_argument(parser, "one JSON object with the counts")


def run(arguments: argparse.Namespace) -> int:
    """Erase and say what went. Returns the exit code; raises OutboxError, OSError, UsageError without --yes.

    Unfinished is raised where the erasure has begun, and goes on with a later call.
    """
    settings = outboxes.the_application(arguments)
    has_id = os.path.lexists(os.path.join(settings.directory, identity.FILE_NAME))
    rest = f"{' and the client id' if has_id else ''} of {settings.app!r}{outboxes.unread(settings)}"
    if arguments.dry_run or not arguments.yes:
        count = _count(settings)
        if not arguments.dry_run:
            raise UsageError(f"{count_text(count)}{rest} would be erased for good: add --yes if you mean it")
        _report(arguments, settings, forgotten=0, would_forget=count)
        say(f"{count_text(count)}{rest} would be erased")
        return DONE
    forgotten = 0
    if exists(settings.directory):
        forgotten = _forget(settings)
    else:
        identity.reset(settings.directory)
    _report(arguments, settings, forgotten=forgotten, would_forget=forgotten)
    say(f"{count_text(forgotten)}{rest} erased")
    return DONE


def _forget(settings: Settings) -> int:
    """Erase and return how many messages. Raises Unfinished where that has begun, OutboxError, OSError."""
    try:
        with outboxes.opened(settings) as outbox:
            return erasure.forget(outbox)
    except OutboxError as error:
        if not _may_have_begun(settings):
            raise
        raise Unfinished(
            f"{outboxes.cause(error)}; the erasure has begun: none of it is delivered any more, but text may be left "
            "on the disk. Put that right: the next `outtray flush`, or this again, goes on",
            KEPT if isinstance(error, OutboxBusy) else NOT_CONFIGURED,
        ) from error


def _may_have_begun(settings: Settings) -> bool:
    try:
        return outboxes.is_erasing(settings)
    except OutboxError:
        return True


def _count(settings: Settings) -> int:
    """Count without writing; a message counts once, however many destinations it has, and one in a damaged file not."""
    try:
        return len({message.id for message in outboxes.newest_first(settings)})
    except OutboxDamaged:
        return 0


def _report(arguments: argparse.Namespace, settings: Settings, *, forgotten: int, would_forget: int) -> None:
    if arguments.json:
        write_json({"app": settings.app, "forgotten": forgotten, "would_forget": would_forget})
