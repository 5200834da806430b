"""`outtray show`: one message and what became of it."""

from __future__ import annotations

import json
from datetime import UTC, datetime

from outtray.cli import outboxes
from outtray.cli.arguments import add_json_argument, add_outbox_arguments, text
from outtray.cli.exits import DONE, FINDINGS
from outtray.cli.listing import to_json
from outtray.cli.output import json_text, say, write, write_json
from outtray.outbox import look

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    from typing import Any

    from outtray.outbox.look import StoredMessage
    from outtray.settings import Settings

HELP = (
    """Show one message: its state, when it was delivered, or why not, what the receiver answered, and its content."""
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument("id", metavar="ID", type=text, help="the id that `list` shows, or a message_id")
    add_outbox_arguments(parser)
    add_json_argument(parser, "a JSON array with one object for each destination; its `message` is the content")


def run(arguments: argparse.Namespace) -> int:
    """Print the message. Returns the exit code, 1 if there is none; raises OutboxError, UsageError."""
    settings = outboxes.the_one(arguments)
    found = outboxes.find(settings, arguments.id)
    told = [(each, *_delivery(settings, each)) for each in found]
    if arguments.json:
        write_json([_to_json(*each) for each in told])
    else:
        for each in told:
            _write(*each)
    if not found:
        say(f"there is no message {arguments.id!r} in {settings.directory}")
        return FINDINGS
    return DONE


def _delivery(settings: Settings, message: StoredMessage) -> tuple[float | None, int | None]:
    """Return when a message was delivered, None if it was not or nobody knows, and its last answer's status."""
    with look.look(settings.directory) as view:
        return view.delivery(message) or (None, message.status)


def _to_json(message: StoredMessage, delivered_at: float | None, status: int | None) -> dict[str, Any]:
    facts = {**to_json(message), "status": status, "delivered_at": delivered_at}
    return {**facts, "excerpt": message.excerpt, "message": _content(message.body)}


def _write(message: StoredMessage, delivered_at: float | None, status: int | None) -> None:
    rows = [
        ("id", message.id),
        ("message_id", message.message_id),
        ("event", message.event),
        ("accepted", _moment_text(message.accepted_at)),
        ("destination", message.destination),
        ("state", message.state),
        ("delivered", _moment_text(delivered_at) if delivered_at else None),
        ("attempts", message.attempts),
        ("status", status),
        ("reason", message.reason),
        ("next attempt", _moment_text(message.next_attempt_at) if message.next_attempt_at else None),
        ("answer", message.excerpt),
    ]
    for name, value in rows:
        if value is not None:
            write(f"{name:12}  {value}")
    for line in _pretty(message.body).split("\n"):
        write(line)


def _content(body: str) -> Any:
    """Return the content as JSON, or as its text where that says more than this program can."""
    try:
        content = json.loads(body, parse_constant=_refuse)
        json.dumps(content, allow_nan=False)
    except (ValueError, RecursionError):
        return body
    return content


def _pretty(body: str) -> str:
    content = _content(body)
    return body if content is body else json_text(content)


def _refuse(constant: str) -> None:
    raise ValueError(constant)


def _moment_text(seconds: float) -> str:
    try:
        return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds")
    except (ValueError, OverflowError, OSError):
        return f"{seconds} s after 1970"
