"""Break the machine under outtray in every way one machine can be broken, and count what is lost.

    python tools/faults                     all harnesses, quick slices
    python tools/faults --whole             all of them, whole: about an hour
    python tools/faults kill_points clock   some of them
    python tools/faults --whole --write     and put the figures into the README's "What was tried"

Exit code 0 if no promise was broken, 1 if one was.
"""

from __future__ import annotations

import argparse
import importlib
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT / "src"))
sys.path.insert(0, str(ROOT / "tools"))

from faults.report import Report  # noqa: E402 - the paths come first

HARNESSES = {}
"""Module and what it tries, in the README's words."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="HARNESS", help=f"of {', '.join(HARNESSES)}")
    parser.add_argument("--whole", action="store_true", help="not only the quick slices")
    parser.add_argument("--write", action="store_true", help="write the figures into the README")
    chosen = parser.parse_args()
    unknown = set(chosen.names) - set(HARNESSES)
    if unknown:
        parser.error(f"no harness {', '.join(sorted(unknown))}; there are {', '.join(HARNESSES)}")
    failed = False
    for name in chosen.names or HARNESSES:
        start = time.monotonic()
        report = importlib.import_module(f"faults.{name}").run(whole=chosen.whole)
        print(f"{name}: {sentence(report)} [{time.monotonic() - start:.0f} s]", flush=True)
        for violation in report.violations:
            print(f"  VIOLATION {violation}", flush=True)
        failed = failed or bool(report.violations)
        if chosen.write:
            write_row(name, report)
    return 1 if failed else 0


def sentence(report: Report) -> str:
    if report.skipped:
        return f"not tried: {report.skipped}"
    counts = "".join(
        f"; {name} {value:,}" if isinstance(value, int) else f"; {name} {value}"
        for name, value in report.counts.items()
    )
    return f"{report.tried:,} {report.unit}, {len(report.violations)} violations{counts}"


def write_row(name: str, report: Report) -> None:
    """Put one row into the README's table, in place of the row that this harness had."""
    path = ROOT / "README.md"
    row = f"| `{name}` | {HARNESSES[name]} | {sentence(report)} |"
    lines = path.read_text(encoding="utf-8").splitlines()
    place = next(n for n, line in enumerate(lines) if line.startswith(f"| `{name}` |"))
    lines[place] = row
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
