"""What a large backlog costs: appending, draining, opening and looking, and the memory of draining all of it."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from functools import partial
from operator import itemgetter
from pathlib import Path
from tempfile import TemporaryDirectory

from bench import sink
from bench.protocol import Case, Check, Contender, Row, Sample, Samples, child, environment, ratio, take_turns

SMALL, BIG, QUICK_BIG = 1_000, 5_000_000, 50_000
ROUNDS, CYCLES = 7, 40
QUICK_ROUNDS, QUICK_CYCLES = 2, 8

DRAINED, QUICK_DRAINED = 1_000_000, 20_000
MEMORY_ROUNDS = 3

LOOKS = 5
"""Starts of `outtray status` in each sample, after one that is not timed."""

STATISTICS = Path("/proc/self/statm")


def growth(*, quick: bool) -> Row:
    """An outbox with millions of waiting messages against one with a thousand, which is the floor.

    The big one is built once, for all rounds. In a sample 500 messages are appended and a batch of 500 is read and
    settled, again and again, so that as many wait as before. Opening is that of a new process; `status` is the whole
    command, from its start to its end.
    """
    count = QUICK_BIG if quick else BIG
    cycles = QUICK_CYCLES if quick else CYCLES
    small, big = f"{SMALL:,} waiting", f"{count:,} waiting"
    with TemporaryDirectory(prefix="outtray-bench-big-") as folder:
        _build(Path(folder), count)
        contenders = [
            Contender(small, partial(_small, cycles)),
            Contender(big, lambda _: _sample(cycles, Path(folder))),
        ]
        samples = take_turns(contenders, QUICK_ROUNDS if quick else ROUNDS)
    checks = [
        Check("append", ratio(samples, big, small, itemgetter(0)), 1.25),
        Check("batch-drain", ratio(samples, big, small, itemgetter(2)), 1.25),
        Check("open ms", _median(samples, big, 4), 10),
        Check("status ms", _median(samples, big, 5), 100),
    ]
    figures = {name: {what: _median(samples, name, place) for place, what in enumerate(FIGURES)} for name in samples}
    return Row("growth", [Case("12 properties, batches of 500", figures, checks)])


FIGURES = ("append µs", "append p99 µs", "batch-drain ms", "batch-drain p99 ms", "open ms", "status ms")


def memory(*, quick: bool) -> Row:
    """Draining a million messages to nginx: the highest level of memory over that after the first delivered batch."""
    missing = sink.MISSING or ("" if STATISTICS.exists() else "there is no /proc here")
    if missing:
        return Row("memory", [], missing)
    count = QUICK_DRAINED if quick else DRAINED
    with sink.running() as url:
        samples = take_turns([Contender("outtray", partial(_drained, count, url))], 1 if quick else MEMORY_ROUNDS)
    whats = ("after the first batch MB", "highest MB", "at the end MB")
    figures = {"outtray": {what: _median(samples, "outtray", place) for place, what in enumerate(whats)}}
    more = max(highest - first for first, highest, _ in samples["outtray"])
    return Row("memory", [Case(f"{count:,} messages", figures, [Check("MB more", more, 30)])])


def _small(cycles: int, folder: Path) -> Sample:
    _build(folder, SMALL)
    return _sample(cycles, folder)


def _build(folder: Path, count: int) -> None:
    child("backlog_child.py", "build", count, folder=folder)


def _sample(cycles: int, folder: Path) -> Sample:
    """Return what `FIGURES` names."""
    found: Sample = child("backlog_child.py", "measure", cycles, folder=folder)
    return [*found, statistics.median([_status(folder) for _ in range(1 + LOOKS)][1:])]


def _status(folder: Path) -> float:
    start = time.perf_counter()
    command = [sys.executable, "-m", "outtray", "status", "--json"]
    subprocess.run(command, env=environment(folder), cwd=folder, capture_output=True, check=True)
    return (time.perf_counter() - start) * 1e3


def _drained(count: int, url: str, folder: Path) -> Sample:
    _build(folder, count)
    sample: Sample = child("backlog_child.py", "drain", url, folder=folder)
    return sample


def _median(samples: Samples, name: str, place: int) -> float:
    return statistics.median(sample[place] for sample in samples[name])
