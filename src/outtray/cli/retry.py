"""`outtray retry`: dead messages become pending again."""

from __future__ import annotations

from outtray.cli import outboxes
from outtray.cli.arguments import add_json_argument, add_outbox_arguments, text
from outtray.cli.exits import DONE, FINDINGS, UsageError
from outtray.cli.output import count_text, say, write_json
from outtray.outbox import upkeep
from outtray.outbox.files import exists

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

    from outtray.settings import Settings

HELP = """Make dead messages pending again, under their own message_id. They are sent by the next flush."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument("ids", nargs="*", metavar="ID", type=text, help="ids that `list` shows, or message_ids")
    parser.add_argument("--all", action="store_true", help="every dead message")
    parser.add_argument("--reason", type=text, metavar="R", help="those whose reason has this text in it")
    add_outbox_arguments(parser)
    add_json_argument(parser, "one JSON object: how many were retried, and the ids that were not dead")


def run(arguments: argparse.Namespace) -> int:
    """Retry and say how many. Returns the exit code, 1 if an id is not of a dead message; raises OutboxError."""
    if bool(arguments.ids) + arguments.all + (arguments.reason is not None) != 1:
        raise UsageError("say what to retry, in one way: ids, --all, or --reason")
    settings = outboxes.the_one(arguments)
    retried, not_dead = 0, list(arguments.ids)
    if exists(settings.directory):
        settings = outboxes.effective(settings)
        ids, not_dead = _dead_ids(settings, arguments.ids)
        if ids or not arguments.ids:
            with outboxes.opened(settings) as outbox:
                only = ids if arguments.ids else None
                retried = upkeep.retry(outbox, settings.destination, ids=only, reason=arguments.reason)
    if arguments.json:
        write_json({"app": settings.app, "retried": retried, "not_dead": not_dead})
    say(f"{count_text(retried)} pending again" + ("; `outtray flush` sends them" if retried else ""))
    if not_dead:
        say(f"no dead message: {', '.join(not_dead)}")
        return FINDINGS
    return DONE


def _dead_ids(settings: Settings, given: Sequence[str]) -> tuple[list[int], list[str]]:
    """Return the ids of the dead messages that *given* names, and what names none."""
    ids: list[int] = []
    unknown: list[str] = []
    for name in given:
        messages = [each for each in outboxes.find(settings, name) if each.destination == settings.destination]
        found = [each.id for each in messages if each.state == "dead"]
        ids.extend(found)
        if not found:
            unknown.append(name)
    return list(dict.fromkeys(ids)), unknown
