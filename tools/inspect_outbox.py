"""Look into an outbox file or directory, also one copied from another machine, without writing to it.

    python tools/inspect_outbox.py ~/.local/state/outtray
    python tools/inspect_outbox.py outbox-1-0.db --messages 5 --json

The files are copied into a temporary folder and the copy is opened. Exit code 0 if all is sound, 1 if something is
damaged, missing, unreadable or no outbox.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "src"))

from outtray.cli import arguments, output
from outtray.outbox.inspect import Unreadable, find_databases, inspect


def main() -> int:
    """Inspect what the command line names. Returns 0, or 1 if anything is wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("paths", nargs="+", metavar="PATH", help="a database file, its directory, or the one above")
    parser.add_argument("--json", action="store_true", help="print a JSON array, one object for each file")
    parser.add_argument("--messages", type=arguments.count, default=0, metavar="N", help="show the newest N too")
    chosen = parser.parse_args()
    output.prepare()
    reports, wrong = [], False
    for path in chosen.paths:
        found, error = _inspected(path, chosen.messages)
        reports += found
        if error is not None:
            output.say(error)
        wrong = wrong or error is not None or any(report["problems"] for report in found)
    try:
        _print(reports, as_json=chosen.json)
        output.finish()
    except BrokenPipeError:
        output.give_up()
    except OSError as error:
        output.give_up()
        output.say(f"could not write: {error}")
        return 1
    return 1 if wrong else 0


def _inspected(path: str, messages: int) -> tuple[list[dict[str, Any]], str | None]:
    """Return the reports on the files that *path* means, and the first reason why one could not be made."""
    reports, error = [], None
    try:
        for database in find_databases(path):
            try:
                reports.append(inspect(database, messages=messages))
            except Unreadable as unreadable:
                error = error or str(unreadable)
    except (Unreadable, OSError) as unreadable:
        error = str(unreadable)
    return reports, error


def _print(reports: list[dict[str, Any]], *, as_json: bool) -> None:
    if as_json:
        output.write_json(reports)
        return
    for report in reports:
        for line in _lines(report):
            output.write(line)


def _lines(report: dict[str, Any]) -> list[str]:
    form = report["format"]
    wal = "no WAL" if report["wal_bytes"] is None else f"WAL of {output.size_text(report['wal_bytes'])}"
    rows = [
        ("format", f"{form['major']}.{form['minor']}, application id {form['application_id']}"),
        ("generation", report["generation"]),
        ("files", wal),
        ("header", _header(report["header"])),
        ("messages", _pairs(report["messages"])),
        *((f"to {destination}", _pairs(states)) for destination, states in (report["states"] or {}).items()),
        *((f"cursor {destination}", _pairs(cursor)) for destination, cursor in (report["cursors"] or {}).items()),
        ("ledger", _pairs(report["ledger"])),
        ("integrity", "; ".join(report["integrity"] or ["unknown"])),
        ("bad checksum", _damaged(report["damaged"])),
        ("missing", "unknown" if report["missing"] is None else report["missing"]),
        *(("problem", problem) for problem in report["problems"]),
        *(
            ("message", f"{each['id']} {each['message_id']} {each['state']} {each['event']} {each['body'][:200]}")
            for each in report["newest"] or []
        ),
    ]
    width = max(len(name) for name, _ in rows)
    return [report["path"], *(f"  {name:{width}}  {value}" for name, value in rows)]


def _header(header: dict[str, Any] | None) -> str:
    if header is None:
        return "none"
    magic, crc = ("ok" if header[name] else "WRONG" for name in ("magic_ok", "crc_ok"))
    return (
        f"magic {magic}, crc {crc}, generation {header['generation']}, epoch {header['epoch']}, "
        f"last id {header['last_id']}, last written by process {header['pid']}"
    )


def _damaged(damaged: dict[str, Any] | None) -> str:
    if damaged is None:
        return "unknown"
    return f"{damaged['count']}" + (f": {', '.join(map(str, damaged['ids'][:20]))}" if damaged["ids"] else "")


def _pairs(values: dict[str, Any] | None) -> str:
    if values is None:
        return "unknown"
    return ", ".join(f"{name} {value}" for name, value in values.items() if value is not None) or "none"


if __name__ == "__main__":
    sys.exit(main())
