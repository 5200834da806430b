"""What a start costs: a program that tracks one event, and `python -m outtray flush` that finds nothing to do."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

from bench.protocol import Case, Check, Contender, Row, Sample, Samples, environment, percentile, ratio, take_turns

ROUNDS, STARTS = 7, 20
QUICK_ROUNDS, QUICK_STARTS = 2, 4

BARE = ("-c", "pass")
TRACK = ("-c", 'import outtray; outtray.track("x")')
SEGMENT = ("-c", "import segment.analytics")
FLUSH = ("-m", "outtray", "flush")

STORE = """
import outtray
from outtray.testing import FakeServer
with FakeServer() as server:
    server.set_mode({mode})
    outtray.configure(app="default", url=server.url, flush="manual")
    outtray.track("x")
    outtray.flush(10)
"""
"""Leaves an outbox behind: all delivered, or all waiting for an hour as the receiver asked for."""

STATES = {
    "no outbox": "pass",
    "all delivered": STORE.format(mode="'ok'"),
    "all waits": STORE.format(mode="'429', retry_after='3600'"),
}


def cold(*, quick: bool) -> Row:
    """A new interpreter that tracks one event, from its start to its end, against one that imports Segment alone.

    The floor is a bare interpreter, whose time is taken off both. The end includes the one sync of a normal exit.
    """
    start = partial(_sample, quick=quick)
    bare = Contender("bare interpreter", partial(start, BARE))
    existing = _turns(
        [bare, Contender("outtray", partial(start, TRACK)), Contender("Segment", partial(start, SEGMENT))], quick
    )
    first = _turns([bare, Contender("outtray", partial(start, TRACK, anew=True))], quick)
    by_segment = statistics.median(
        (_median(mine) - _median(bare)) / (_median(theirs) - _median(bare))
        for mine, theirs, bare in zip(
            existing["outtray"], existing["Segment"], existing["bare interpreter"], strict=True
        )
    )
    return Row(
        "cold",
        [
            Case("an outbox is there", _figures(existing), [Check("by Segment, both over bare", by_segment, 0.2)]),
            Case("the outbox is made", _figures(first)),
        ],
    )


def flush_idle(*, quick: bool) -> Row:
    """`python -m outtray flush` with nothing due against a bare interpreter."""
    cases = []
    for state, setup in STATES.items():
        bare = Contender("bare interpreter", partial(_sample, BARE, quick=quick))
        flush = Contender("outtray flush", partial(_sample, FLUSH, setup=setup, quick=quick))
        samples = _turns([bare, flush], quick)
        by_bare = ratio(samples, "outtray flush", "bare interpreter")
        cases.append(Case(state, _figures(samples), [Check("by bare", by_bare, 3.3)]))
    return Row("flush_idle", cases)


def _turns(contenders: list[Contender], quick: bool) -> Samples:
    return take_turns(contenders, QUICK_ROUNDS if quick else ROUNDS)


def _sample(
    arguments: tuple[str, ...], folder: Path, *, setup: str = "pass", anew: bool = False, quick: bool
) -> Sample:
    """Return the seconds of starts in *folder*, after *setup* and one that is not timed; *anew*: without an outbox."""
    _start(("-c", setup), folder, 0)
    count = 1 + (QUICK_STARTS if quick else STARTS)
    return [_start(arguments, folder, number if anew else 0) for number in range(count)][1:]


def _start(arguments: tuple[str, ...], folder: Path, place: int) -> float:
    variables = {"OUTTRAY_FLUSH": "manual", "OUTTRAY_DIR": str(folder / f"outboxes-{place}")}
    start = time.perf_counter()
    done = subprocess.run(
        [sys.executable, *arguments],
        env=environment(folder) | variables,
        cwd=folder,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    seconds = time.perf_counter() - start
    if done.returncode not in (0, 75):  # 75: what waits is kept for later
        raise RuntimeError(f"{arguments} ended with {done.returncode}:\n{done.stderr}")
    return seconds


def _median(sample: Sample) -> float:
    return statistics.median(sample)


def _figures(samples: Samples) -> dict[str, dict[str, float]]:
    figures = {}
    for name, rounds in samples.items():
        every = [seconds * 1e3 for sample in rounds for seconds in sample]
        figures[name] = {"median ms": statistics.median(every), "p99 ms": percentile(every, 99)}
    return figures
