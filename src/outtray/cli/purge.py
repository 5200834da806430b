"""`outtray purge`: delete messages."""

from __future__ import annotations

from outtray.cli import outboxes
from outtray.cli.arguments import add_json_argument, add_outbox_arguments, moment
from outtray.cli.exits import DONE, UsageError
from outtray.cli.output import count_text, say, write_json
from outtray.outbox import upkeep
from outtray.outbox.files import exists

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse

    from outtray.settings import Settings

HELP = """Delete messages: delivered ones, unless --state says otherwise.

Anything that was not delivered is gone for good then, and needs --yes. The ledger counts it as "purged"."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument("--state", choices=upkeep.STATES, default="delivered", help="default %(default)s")
    parser.add_argument(
        "--before",
        type=moment,
        default=float("inf"),
        metavar="WHEN",
        help="only messages accepted before then: an ISO time, or an age such as 90s, 30m, 2h, 7d",
    )
    parser.add_argument("--yes", action="store_true", help="do delete what was not delivered")
    parser.add_argument("--dry-run", action="store_true", help="say how many would go, delete nothing")
    add_outbox_arguments(parser)
    add_json_argument(parser, "one JSON object with the counts")


def run(arguments: argparse.Namespace) -> int:
    """Purge and say how many. Returns the exit code; raises OutboxError, UsageError where --yes is missing."""
    settings = outboxes.the_one(arguments)
    state = arguments.state
    is_asked = state != "delivered"  # only such messages come back from damaged files, and are purged then
    if arguments.dry_run or (is_asked and not arguments.yes):
        count = _count(settings, state, arguments.before)
        what = count_text(count, f"{state} message") + (outboxes.unread(settings) if is_asked else "")
        if not arguments.dry_run:
            raise UsageError(f"{what} would be lost for good: add --yes if you mean it")
        _report(arguments, settings, removed=0, would_remove=count)
        say(f"{what} would be deleted")
        return DONE
    removed = 0
    if exists(settings.directory):
        with outboxes.opened(outboxes.effective(settings)) as outbox:
            removed = upkeep.purge(outbox, state=state, before=arguments.before)
    _report(arguments, settings, removed=removed, would_remove=removed)
    say(f"{count_text(removed, f'{state} message')} deleted")
    return DONE


def _count(settings: Settings, state: str, before: float) -> int:
    """Count without writing; a message counts once, however many destinations it has."""
    found = outboxes.newest_first(settings, state=state)
    return len({message.id for message in found if message.accepted_at < before})


def _report(arguments: argparse.Namespace, settings: Settings, *, removed: int, would_remove: int) -> None:
    if arguments.json:
        counts = {"removed": removed, "would_remove": would_remove}
        write_json({"app": settings.app, "state": arguments.state, **counts})
