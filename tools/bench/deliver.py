"""What delivery costs: from the call on, of what waits already, and to a receiver that is far away.

Of Segment and of the bare loop the rate is what counts, so where outtray delivers very many they deliver fewer.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit

from faults import relay

from bench import sink
from bench.protocol import Case, Check, Contender, Row, Sample, Samples, child, ratio, take_turns

ROUNDS, FAR_ROUNDS, QUICK_ROUNDS = 7, 3, 2

AWAY = 0.2
"""Seconds that the far receiver's answer takes more than the near one's."""


def delivered(*, quick: bool) -> Row:
    """One process tracks events in a hot loop and flushes; until the last is delivered, by the thread or the flush.

    The peer is Segment's client with its own thread and batches of 100, flushed in the end, and with a queue that is
    long enough: with its own of 10,000 it drops the rest. Both have delivered one event before.
    """
    if sink.MISSING:
        return Row("delivered", [], sink.MISSING)
    count = 2_000 if quick else 30_000
    with sink.running() as url:
        contenders = [_contender("outtray", "tracked", url, count), _contender("Segment", "segment", url, count)]
        samples = take_turns(contenders, QUICK_ROUNDS if quick else ROUNDS)
    checks = [Check("rate by Segment", ratio(samples, "Segment", "outtray"), 3, at_least=True)]
    return Row("delivered", [Case(f"12 properties, {count:,} events, hot loop", _rates(samples), checks)])


def drain(*, quick: bool) -> Row:
    """`flush` of what waits in the outbox, at the default batch size.

    The floor posts bodies of as many messages, prepared before, one after the other over one session of requests. The
    peer is Segment's client as in `delivered`, with 10,000 events.
    """
    if sink.MISSING:
        return Row("drain", [], sink.MISSING)
    count, segments = (10_000, 1_000) if quick else (200_000, 10_000)
    with sink.running() as url:
        contenders = [
            _contender("outtray", "waiting", url, count),
            _contender("bare loop", "bare", url, count),
            _contender("Segment", "segment", url, segments),
        ]
        samples = take_turns(contenders, QUICK_ROUNDS if quick else ROUNDS)
    checks = [
        Check("rate by the bare loop", ratio(samples, "bare loop", "outtray"), 0.8, at_least=True),
        Check("rate by Segment", ratio(samples, "Segment", "outtray"), 15, at_least=True),
    ]
    return Row("drain", [Case(f"12 properties, {count:,} waiting", _rates(samples), checks)])


def far(*, quick: bool) -> Row:
    """`flush` of what waits, to a receiver 200 ms away: nginx behind a relay that passes its answer on so much later.

    How long bytes take on such a way, and that TCP begins slowly on it, is not in it. The peer is the bare loop of
    `drain`, which posts bodies of the default batch size one at a time; 20 of them say its rate.
    """
    if sink.MISSING:
        return Row("far", [], sink.MISSING)
    count, bodies = (10_000, 5) if quick else (100_000, 20)
    with sink.running() as near, _far_from(near) as url:
        contenders = [
            _contender("outtray", "waiting", url, count),
            _contender("one at a time", "bare", url, bodies * 500),
        ]
        samples = take_turns(contenders, QUICK_ROUNDS if quick else FAR_ROUNDS)
    checks = [Check("rate by one at a time", ratio(samples, "one at a time", "outtray"), 4, at_least=True)]
    return Row("far", [Case(f"12 properties, {count:,} waiting", _rates(samples), checks)])


@contextmanager
def _far_from(near: str) -> Iterator[str]:
    def pass_on_late(exchange: relay.Exchange) -> bool:
        request = exchange.request()
        answer = exchange.forward(request)
        time.sleep(AWAY)
        exchange.connection.sendall(answer)
        exchange.answered(request)
        return True

    with relay.Relay(urlsplit(near).port or 0) as between:
        between.spoil = pass_on_late
        yield between.url


def _contender(name: str, way: str, url: str, count: int) -> Contender:
    return Contender(name, partial(_sample, way, url, count))


def _sample(way: str, url: str, count: int, folder: Path) -> Sample:
    seconds: float = child("deliver_child.py", way, url, count, folder=folder)
    return [seconds / count]


def _rates(samples: Samples) -> dict[str, dict[str, float]]:
    """Return the messages a second, of samples of seconds for each."""
    figures = {}
    for name, rounds in samples.items():
        rates = [1 / seconds for (seconds,) in rounds]
        figures[name] = {"median /s": statistics.median(rates), "lowest /s": min(rates), "highest /s": max(rates)}
    return figures
