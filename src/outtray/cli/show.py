"""`outtray show`: one message and what became of it."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from outtray.cli import outboxes
from outtray.cli.arguments import add_json_argument, add_outbox_arguments, text
from outtray.cli.exits import DONE, FINDINGS
from outtray.cli.listing import to_json
from outtray.cli.output import json_text, say, write, write_json

if TYPE_CHECKING:
    import argparse

    from outtray.outbox.look import StoredMessage

HELP = """Show one message: its state, the reason for it, the beginning of the receiver's answer, and its content."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument("id", metavar="ID", type=text, help="the id that `list` shows, or a message_id")
    add_outbox_arguments(parser)
    add_json_argument(parser, "a JSON array with one object for each destination; its `message` is the content")


def run(arguments: argparse.Namespace) -> int:
    """Print the message. Returns the exit code, 1 if there is none; raises OutboxError, UsageError."""
    settings = outboxes.the_one(arguments)
    found = outboxes.find(settings, arguments.id)
    if arguments.json:
        write_json([{**to_json(each), "excerpt": each.excerpt, "message": _content(each.body)} for each in found])
    else:
        for each in found:
            _write(each)
    if not found:
        say(f"there is no message {arguments.id!r} in {settings.directory}")
        return FINDINGS
    return DONE


def _write(message: StoredMessage) -> None:
    rows = [
        ("id", message.id),
        ("message_id", message.message_id),
        ("event", message.event),
        ("accepted", _moment_text(message.accepted_at)),
        ("destination", message.destination),
        ("state", message.state),
        ("attempts", message.attempts),
        ("status", message.status),
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
