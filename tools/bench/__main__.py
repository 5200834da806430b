"""Measure outtray beside its peers and the floor.

    python tools/bench                      all rows: about an hour on two cores
    python tools/bench client cold          some of them
    python tools/bench --quick              a glance at each, whose figures say little
    python tools/bench --json FILE          and keep all figures
    python tools/bench --write              and put the figures into the README's "What it costs"

How it is measured is said in `tools/bench/protocol.py`. Exit code 0 if all rows hold, 1 if one does not.
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT / "src"))
sys.path.insert(0, str(ROOT / "tools"))

from bench.protocol import Check, Row, machine, number  # noqa: E402 - the paths come first

ROWS: dict[str, tuple[str, str]] = {
    "client": ("track", "`Client.track`, the thread idle, median"),
    "context": ("track", "`outtray.track` through the context, median"),
    "cold": ("starts", "a new interpreter that tracks one event, over a bare one"),
    "flush_idle": ("starts", "`python -m outtray flush` with nothing due"),
    "exit": ("leaving", "the end of a program, the receiver refusing, hanging or gone"),
    "processes": ("processes", "16 processes that append at once"),
    "growth": ("backlog", "5,000,000 waiting messages against 1,000"),
    "memory": ("backlog", "the memory of draining 1,000,000"),
    "disk": ("disk", "file bytes by message bytes, and after everything is delivered and pruned"),
    "tails": ("tails", "the slowest calls, without a drain and during one"),
    "power": ("power", '`durability="power"`, 1 and 8 threads'),
    "delivered": ("deliver", "append to delivered, 30,000 events, one process"),
    "drain": ("deliver", "draining 200,000 waiting messages"),
    "far": ("deliver", "draining 100,000 to a receiver 200 ms away"),
}
"""Name to the module that measures it, in a function of that name, and what it measures in the README's words."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="ROW", help=f"of {', '.join(ROWS)}")
    parser.add_argument("--quick", action="store_true", help="few calls and rounds: shows that it runs")
    parser.add_argument("--write", action="store_true", help="write the figures into the README")
    parser.add_argument("--json", metavar="FILE", type=Path, help="write all figures there")
    chosen = parser.parse_args()
    unknown = set(chosen.names) - set(ROWS)
    if unknown:
        parser.error(f"no row {', '.join(sorted(unknown))}; there are {', '.join(ROWS)}")
    found = machine(Path(tempfile.gettempdir()))
    print("\n".join(f"{name}: {value}" for name, value in found.items()), flush=True)
    rows = []
    for name in chosen.names or ROWS:
        start = time.monotonic()
        module, what = ROWS[name]
        row: Row = getattr(importlib.import_module(f"bench.{module}"), name)(quick=chosen.quick)
        rows.append(row)
        verdict = f"not measured: {row.skipped}" if row.skipped else "holds" if row.holds else "DOES NOT HOLD"
        print(f"\n{name}: {what}: {verdict} [{time.monotonic() - start:.0f} s]")
        for case in row.cases:
            print(f"  {case.name}: {'; '.join(str(check) for check in case.checks)}")
            for contender, figures in case.figures.items():
                words = ", ".join(f"{figure} {number(value)}" for figure, value in figures.items())
                print(f"    {contender:16} {words}")
        sys.stdout.flush()
        if chosen.write:
            write_row(row, what, found)
    if chosen.json:
        chosen.json.write_text(json.dumps({"machine": found, "rows": [row.to_dict() for row in rows]}, indent=1) + "\n")
    return 0 if all(row.holds for row in rows) else 1


def sentence(row: Row) -> str:
    """Return what the README's table says of *row*: each budget once, with the figures of all cases."""
    if row.skipped:
        return f"not measured: {row.skipped}"
    figures: dict[str, list[Check]] = {}
    for check in (check for case in row.cases for check in case.checks):
        figures.setdefault(f"{check.what} %s ({check.budget})", []).append(check)
    words = [text % " ".join(number(check.value) for check in checks) for text, checks in figures.items()]
    return f"{'holds' if row.holds else 'does not hold'}: {'; '.join(words)}"


def write_row(row: Row, what: str, found: dict[str, str]) -> None:
    """Put one row into the README's table, in place of the one of that name, and the machine above it."""
    path = ROOT / "README.md"
    lines = path.read_text(encoding="utf-8").splitlines()
    place = next(n for n, line in enumerate(lines) if line.startswith(f"| `{row.name}` |"))
    lines[place] = f"| `{row.name}` | {what} | {sentence(row)} |"
    place = next(n for n, line in enumerate(lines) if line.startswith("Measured on "))
    lines[place] = f"Measured on {', '.join(found[name] for name in ('processor', 'system', 'file system'))};"
    lines[place + 1] = f"Python {found['python']}, SQLite {found['sqlite']}, Segment {found['segment']}."
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
