"""How a row is measured, fixed before anything was tuned.

A row compares contenders: outtray, peers, and a floor, which is the least that any such program must do. Each sample
of a contender comes from a process of its own, in a new folder, after a warm-up. The contenders take turns, and the
order is turned round from round to round: in a fixed order one warms the machine for the next. A ratio is taken within
each round; the row's ratio is the median of those. Nothing is left out: the slowest calls are in the figures too.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent.parent
BENCH = Path(__file__).resolve().parent

Sample = list[float]
"""What one process measured: seconds of each call, or a single figure."""

Samples = dict[str, list[Sample]]
"""By contender, one sample for each round."""


@dataclass(frozen=True)
class Contender:
    """*sample* measures once, in the new folder that it is given, and returns what it measured."""

    name: str
    sample: Callable[[Path], Sample]


@dataclass(frozen=True)
class Check:
    """A figure and its budget: at most *limit*, or with *at_least* at least *limit*."""

    what: str
    value: float
    limit: float
    at_least: bool = False

    @property
    def holds(self) -> bool:
        """Whether the budget is kept."""
        return self.value >= self.limit if self.at_least else self.value <= self.limit

    @property
    def budget(self) -> str:
        """The limit in the words of the table."""
        return f"{'≥' if self.at_least else '≤'} {number(self.limit)}"

    def __str__(self) -> str:
        return f"{self.what} {number(self.value)} ({self.budget})"


@dataclass
class Case:
    """One line of a row: what was done, what each contender took, and the checks."""

    name: str
    figures: dict[str, dict[str, float]] = field(default_factory=dict)
    checks: list[Check] = field(default_factory=list)


@dataclass
class Row:
    """What a row found."""

    name: str
    cases: list[Case]
    skipped: str = ""

    @property
    def holds(self) -> bool:
        """Whether every check of every case holds; nothing measured is nothing held."""
        checks = [check for case in self.cases for check in case.checks]
        return bool(checks) and all(check.holds for check in checks)

    def to_dict(self) -> dict[str, Any]:
        """Return what goes into the JSON."""
        cases = [
            {
                "case": case.name,
                "figures": case.figures,
                "checks": [
                    {"what": each.what, "value": each.value, "limit": each.limit, "at_least": each.at_least}
                    for each in case.checks
                ],
            }
            for case in self.cases
        ]
        return {"row": self.name, "holds": self.holds, "skipped": self.skipped, "cases": cases}


def take_turns(contenders: Iterable[Contender], rounds: int) -> Samples:
    """Return *rounds* samples of each, taken in turn, the order turned round from round to round."""
    order = list(contenders)
    samples: Samples = {contender.name: [] for contender in order}
    for number in range(rounds):
        for contender in order if number % 2 == 0 else reversed(order):
            with tempfile.TemporaryDirectory(prefix="outtray-bench-") as folder:
                samples[contender.name].append(contender.sample(Path(folder)))
    return samples


def ratio(samples: Samples, one: str, other: str, figure: Callable[[Sample], float] = statistics.median) -> float:
    """Return the median, over the rounds, of *figure* of *one* by that of *other*."""
    pairs = zip(samples[one], samples[other], strict=True)
    return statistics.median(figure(mine) / figure(theirs) for mine, theirs in pairs)


def percentile(sample: Sample, percent: float) -> float:
    """Return the value below which *percent* of the sample lie."""
    ordered = sorted(sample)
    return ordered[min(len(ordered) - 1, int(len(ordered) * percent / 100))]


def calls(samples: Samples) -> dict[str, dict[str, float]]:
    """Return median and p99 in µs of the calls of all rounds, and the lowest and highest median of a round."""
    figures = {}
    for name, rounds in samples.items():
        every = [value for sample in rounds for value in sample]
        medians = [statistics.median(sample) * 1e6 for sample in rounds]
        figures[name] = {
            "median µs": statistics.median(every) * 1e6,
            "p99 µs": percentile(every, 99) * 1e6,
            "lowest round µs": min(medians),
            "highest round µs": max(medians),
        }
    return figures


def child(program: str, *arguments: object, folder: Path, seconds: float = 600.0, **variables: str) -> Any:
    """Return what *program* of this folder prints as JSON; its home and its temporary files lie in *folder*."""
    done = subprocess.run(
        [sys.executable, str(BENCH / program), *map(str, arguments)],
        env=environment(folder) | variables,
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=seconds,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"{program} {' '.join(map(str, arguments))} ended with {done.returncode}:\n{done.stderr}")
    return json.loads(done.stdout)


def environment(folder: Path) -> dict[str, str]:
    """Return the environment of a child: what it writes lies in *folder*."""
    paths = os.pathsep.join(str(ROOT / name) for name in ("src", "tools"))
    return {"HOME": str(folder), "TMPDIR": str(folder), "PATH": os.environ["PATH"], "PYTHONPATH": paths}


def machine(folder: Path) -> dict[str, str]:
    """Return what the figures depend on."""
    import platform
    import sqlite3
    from importlib import metadata

    def version(name: str) -> str:
        try:
            return metadata.version(name)
        except metadata.PackageNotFoundError:
            return "not installed"

    processor = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").exists():
        named = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
        processor = named[0].partition(":")[2].strip() if named else processor
    from outtray.outbox.places import mount

    return {
        "processor": f"{os.cpu_count()} x {processor}",
        "system": platform.platform(),
        "file system": mount(str(folder))[1] or "unknown",
        "python": platform.python_version(),
        "sqlite": sqlite3.sqlite_version,
        "segment": version(PEER),
        "load before": f"{os.getloadavg()[0]:.2f}" if hasattr(os, "getloadavg") else "unknown",
        "at": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
    }


PEER = "segment-analytics-python"
"""The distribution that is measured beside outtray."""


def number(value: float) -> str:
    """Return *value* as the tables show it."""
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}" if value >= 0.001 or value == 0 else f"{value:.1e}"
