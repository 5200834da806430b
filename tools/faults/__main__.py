"""Break the machine under outtray in every way one machine can be broken, and count what is lost.

    python tools/faults                     all harnesses, quick slices
    python tools/faults --whole             all of them, whole: about an hour
    python tools/faults kill_points clock   some of them
    python tools/faults races --only "rm -rf"   one case of a harness that has named ones
    python tools/faults --whole --write     and put the figures into the README's "What was tried"

Exit code 0 if no promise was broken, 1 if one was.
"""

from __future__ import annotations

import argparse
import importlib
import signal
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT / "src"))
sys.path.insert(0, str(ROOT / "tools"))

from faults.report import Report  # noqa: E402 - the paths come first

HARNESSES: dict[str, str] = {
    "kill_points": "SIGKILL before each system call (strace) of create, append, settle, postpone, hold, prune, purge, "
    "retry, a new generation and a salvage",
    "io_errors": "EIO, ENOSPC, EDQUOT and EMFILE at the k-th write, sync, open, truncate, unlink and lock, alone and "
    "from there on; a full tmpfs; RLIMIT_FSIZE",
    "power_cut": "the power cut (forced shutdown of an ext4 of its own, memory and journal dropped, another boot_id "
    "afterwards) in mid-append, in mid-delivery, at creation and right after a program's end; what the next program "
    "counts",
    "bit_flips": "each bit field of a small database, its log and the gate's header; bursts, cuts and foreign files in "
    "larger ones",
    "races": "purge, retry, consent, forget, `rm -rf`, a new generation, a second drainer and `kill -9`, each between "
    "a request and its settle; appends while the directory is deleted or replaced",
    "model": "random sequences of append, drain, answers, kill, clock jump, purge, retry, consent, forget and damage, "
    "each step checked against a model",
    "soak": "16 appenders, 4 drainers, a killer, an outside `sqlite3` shell that opens and closes, and a receiver that "
    "changes its mind every second, all at once",
    "network": "receivers and networks in every bad state (refused, DNS, TLS, resets, cut and wrong answers, "
    "half-open, portal, redirects, 429/503, proxy, flapping, nginx) while a program tracks; then they turn good",
    "forks": "every way in which a host program has several processes, ends, or stands still: fork, spawn, gunicorn, "
    "celery, subinterpreters, exits, signals, asyncio, SIGSTOP; a fork at each point at which a signal handler can "
    "come into a call",
    "clock": "the clock jumps by ten years either way, goes through summer time, stands still, or is decades off "
    "(libfaketime)",
    "planted": "bugs put into a copy of the source, one at a time: each must be caught by the harness that it is for",
}
"""Module and what it tries, in the README's words."""

WITH_CASES = ("kill_points", "races", "network", "forks", "clock", "planted")
"""Those whose cases have names."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="HARNESS", help=f"of {', '.join(HARNESSES)}")
    parser.add_argument("--whole", action="store_true", help="not only the quick slices")
    parser.add_argument(
        "--only", metavar="TEXT", help=f"cases with TEXT in their name, of one of {', '.join(WITH_CASES)}"
    )
    parser.add_argument("--write", action="store_true", help="write the figures into the README")
    chosen = parser.parse_args()
    unknown = set(chosen.names) - set(HARNESSES)
    if unknown:
        parser.error(f"no harness {', '.join(sorted(unknown))}; there are {', '.join(HARNESSES)}")
    if chosen.only and not (chosen.names and set(chosen.names) <= set(WITH_CASES)):
        parser.error("--only needs the name of a harness that has cases")
    options = {"only": chosen.only} if chosen.only else {}
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # so that mounts and processes are ended
    failed = False
    for name in chosen.names or HARNESSES:
        start = time.monotonic()
        report = importlib.import_module(f"faults.{name}").run(whole=chosen.whole, **options)
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
