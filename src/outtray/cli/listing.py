"""`outtray list`: messages, newest first."""

from __future__ import annotations

import time
from itertools import islice

from outtray.cli import outboxes
from outtray.cli.arguments import add_json_argument, add_outbox_arguments, count, moment, text
from outtray.cli.exits import DONE
from outtray.cli.output import age_text, say, size_text, write_json_array, write_table
from outtray.outbox.upkeep import STATES

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    from typing import Any

    from outtray.outbox.look import StoredMessage

HELP = """List messages, newest first: id, state, age, size, event, and the reason of the state where there is one."""

DEFAULT_LIMIT = 50


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    add_outbox_arguments(parser)
    parser.add_argument("--state", choices=STATES, help="only messages in this state")
    parser.add_argument("--event", type=text, help="only messages of this event (or type, where they have no event)")
    parser.add_argument(
        "--since",
        type=moment,
        default=0.0,
        metavar="WHEN",
        help="only messages accepted since then: an ISO time, or an age such as 90s, 30m, 2h, 7d",
    )
    parser.add_argument(
        "--limit", type=count, default=DEFAULT_LIMIT, metavar="N", help="at most so many (default %(default)s)"
    )
    add_json_argument(parser, "a JSON array, one object a line; moments are Unix seconds")


def run(arguments: argparse.Namespace) -> int:
    """Print the list. Returns the exit code; raises OutboxError, UsageError."""
    settings = outboxes.the_one(arguments)
    found = outboxes.newest_first(settings, state=arguments.state, event=arguments.event, since=arguments.since)
    if arguments.json:
        write_json_array(to_json(message) for message in islice(found, arguments.limit))
        return DONE
    messages = list(islice(found, arguments.limit + 1))
    write_table(("ID", "STATE", "AGE", "SIZE", "EVENT", "REASON"), map(_row, messages[: arguments.limit]))
    if len(messages) > arguments.limit:
        say(f"and more: these are the newest {arguments.limit}; --limit shows more")
    return DONE


def to_json(message: StoredMessage) -> dict[str, Any]:
    """Return what `list --json` says of a message: all but its content and the answer, which `show` has."""
    fields = message.to_dict()
    body = fields.pop("body")
    fields.pop("excerpt")
    return {**fields, "bytes": len(body.encode())}


def _row(message: StoredMessage) -> tuple[str, ...]:
    return (
        str(message.id),
        message.state,
        age_text(max(0.0, time.time() - message.accepted_at)),
        size_text(len(message.body.encode())),
        message.event,
        message.reason or "",
    )
