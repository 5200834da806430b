"""The slowest calls of `Client.track`: while nothing is delivered, and while the thread delivers a backlog."""

from __future__ import annotations

import statistics
from functools import partial
from pathlib import Path

from bench import sink
from bench.protocol import Case, Check, Contender, Row, Sample, Samples, child, percentile, take_turns
from bench.track import IDLE

ROUNDS, CALLS, BACKLOG = 7, 20_000, 100_000
QUICK_ROUNDS, QUICK_CALLS, QUICK_BACKLOG = 2, 500, 5_000

PAUSED = 5_000
"""Calls, at most, where there is a pause between two."""

LIMIT_MS = 5.0


def tails(*, quick: bool) -> Row:
    """`Client.track` with 12 properties; the percentile is of each round, and the median of the rounds is the row's.

    The floor (json.dumps and a bare INSERT) shows what of it is the machine's. Without a drain is the manual mode. With
    one, only calls are counted that began while part of the backlog still waited to be delivered to nginx.
    """
    if sink.MISSING:
        return Row("tails", [], sink.MISSING)
    rounds, calls, backlog = (QUICK_ROUNDS, QUICK_CALLS, QUICK_BACKLOG) if quick else (ROUNDS, CALLS, BACKLOG)
    cases = []
    with sink.running() as url:
        for pause, seconds in IDLE.items():
            count = min(calls, PAUSED) if seconds else calls
            alone = [Contender(name, partial(_sample, name, seconds, count, 0, "")) for name in ("outtray", "floor")]
            cases.append(_case(f"no drain, {pause}", take_turns(alone, rounds), 99.9))
            drained = [Contender("outtray", partial(_sample, "draining", seconds, count, backlog, url))]
            cases.append(_case(f"{backlog:,} drained, {pause}", take_turns(drained, rounds), 99))
    return Row("tails", cases)


def _case(name: str, samples: Samples, percent: float) -> Case:
    value = statistics.median(percentile(sample, percent) for sample in samples["outtray"]) * 1e3
    figures = {contender: _slowest(rounds) for contender, rounds in samples.items()}
    return Case(name, figures, [Check(f"p{percent:g} in ms", value, LIMIT_MS)])


def _slowest(rounds: list[Sample]) -> dict[str, float]:
    """Return, in ms, p99 and p99.9 of the calls of all rounds together, and the slowest call."""
    every = [value * 1e3 for sample in rounds for value in sample]
    return {
        "calls": len(every),
        "median ms": statistics.median(every),
        "p99 ms": percentile(every, 99),
        "p99.9 ms": percentile(every, 99.9),
        "slowest ms": max(every),
    }


def _sample(name: str, pause: float, count: int, backlog: int, url: str, folder: Path) -> Sample:
    sample: Sample = child("tails_child.py", name, pause, count, backlog, url, folder=folder)
    return sample
