"""`outtray status`: what waits, and why."""

from __future__ import annotations

import time

from outtray.cli import outboxes
from outtray.cli.arguments import add_json_argument, add_outbox_arguments
from outtray.cli.exits import DONE
from outtray.cli.output import age_text, count_text, size_text, write, write_json
from outtray.delivery.status import status

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    from typing import Any

HELP = """Say what waits in an outbox, and why. The first line answers "why is nothing being sent?"."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    add_outbox_arguments(parser)
    add_json_argument(parser, "one JSON object; durations are seconds, moments Unix seconds, sizes bytes")


def run(arguments: argparse.Namespace) -> int:
    """Print the status. Returns the exit code; raises OutboxError, UsageError."""
    found = status(outboxes.the_one(arguments))
    if arguments.json:
        write_json(found)
    else:
        for line in _lines(found):
            write(line)
    return DONE


def _lines(found: dict[str, Any]) -> list[str]:
    rows = [
        ("app", found["app"]),
        ("pending", _pending(found)),
        *([("unsalvaged", _unsalvaged(found))] if found["unsalvaged"] else []),
        *((state, str(found[state])) for state in ("deferred", "delivered")),
        ("dead", _dead(found)),
        *((state, str(found[state])) for state in ("local", "refused")),
        ("destination", f"{found['destination']} at {found['url'] or 'no url'}"),
        ("next attempt", _next_attempt(found)),
        ("consent", f"{found['consent']['state']} ({found['consent']['reason']})"),
        ("size", f"{size_text(found['bytes'])} in {found['directory']}"),
        ("ledger", ", ".join(f"{reason} {count}" for reason, count in found["ledger"].items()) or "empty"),
    ]
    width = max(len(name) for name, _ in rows)
    return [found["why"], *(f"  {name:{width}}  {value}" for name, value in rows)]


def _pending(found: dict[str, Any]) -> str:
    age = found["oldest_pending_age"]
    return str(found["pending"]) + ("" if age is None else f", the oldest for {age_text(age)}")


def _unsalvaged(found: dict[str, Any]) -> str:
    return f"{count_text(found['unsalvaged'], 'damaged file')}, not brought back yet"


def _dead(found: dict[str, Any]) -> str:
    if not found["dead"]:
        return "0"
    return f"{found['dead']} (look: list --state dead; make them pending again: retry --all)"


def _next_attempt(found: dict[str, Any]) -> str:
    if found["next_attempt_at"] is None:
        return "no wait is stored"
    wait = found["next_attempt_at"] - time.time()
    when = f"in {age_text(wait)}" if wait > 0 else "due now"
    return f"{when}, after {count_text(found['attempts'], 'failure')} in a row: {found['waiting_for']}"
