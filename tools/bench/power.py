"""What `durability="power"` costs: an append that is on the disk when it returns, of one thread and of eight."""

from __future__ import annotations

import statistics
from functools import partial
from pathlib import Path

from bench.protocol import Case, Check, Contender, Row, Sample, Samples, calls, child, ratio, take_turns

ROUNDS, CALLS, SECONDS = 7, 2_000, 3.0
QUICK_ROUNDS, QUICK_CALLS, QUICK_SECONDS = 2, 200, 0.3

THREADS = 8

SLOW = 0.001
"""Seconds that a sync takes longer where it is slowed."""

FAIR = 0.3
"""Least share of the fastest thread's calls that the slowest makes."""


def power(*, quick: bool) -> Row:
    """`Client.track` with 12 properties, in a hot loop.

    The floor appends one encoded message to a growing file and calls fdatasync. It encodes nothing. Several threads are
    measured by how many calls each made in a few seconds. Where a sync is to take 1 ms it sleeps so long before it.
    """
    rounds = QUICK_ROUNDS if quick else ROUNDS
    count = QUICK_CALLS if quick else CALLS
    contenders = [Contender(name, partial(_calls, name, count)) for name in ("outtray", "floor")]
    samples = take_turns(contenders, rounds)
    one = Case("1 thread", calls(samples), [Check("by floor", ratio(samples, "outtray", "floor"), 1.3)])
    seconds = QUICK_SECONDS if quick else SECONDS
    return Row(
        "power",
        [
            one,
            _threads("this disk", 0.0, 1.7, seconds, rounds),
            _threads("a sync of 1 ms", SLOW, 3, seconds, rounds),
        ],
    )


def _threads(name: str, slower: float, at_least: float, seconds: float, rounds: int) -> Case:
    contenders = [
        Contender(f"{threads} thread{'s' * (threads > 1)}", partial(_counts, threads, slower, seconds))
        for threads in (1, THREADS)
    ]
    samples = take_turns(contenders, rounds)
    many, single = f"{THREADS} threads", "1 thread"
    checks = [
        Check("rate by one thread", ratio(samples, many, single, sum), at_least, at_least=True),
        Check("slowest thread by fastest", statistics.median(map(_fairness, samples[many])), FAIR, at_least=True),
    ]
    return Case(f"{THREADS} threads, {name}", _rates(samples), checks)


def _calls(name: str, count: int, folder: Path) -> Sample:
    sample: Sample = child("power_child.py", name, count, folder=folder)
    return sample


def _counts(threads: int, slower: float, seconds: float, folder: Path) -> Sample:
    counts: list[int] = child("power_child.py", "threads", threads, slower, seconds, folder=folder)
    return [count / seconds for count in counts]


def _fairness(sample: Sample) -> float:
    return min(sample) / max(sample)


def _rates(samples: Samples) -> dict[str, dict[str, float]]:
    """Return the calls a second of all threads, and the worst round's slowest thread by its fastest."""
    figures = {}
    for name, rounds in samples.items():
        rates = [sum(sample) for sample in rounds]
        figures[name] = {
            "median /s": statistics.median(rates),
            "lowest /s": min(rates),
            "highest /s": max(rates),
            "slowest by fastest": min(map(_fairness, rounds)),
        }
    return figures
