"""One contender of the row `tails`: prints the seconds of each call."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable

from bench import track_child
from bench.events import TWELVE, USER

WARM_UP = 300
"""Calls before the first that is timed."""


def manual() -> Callable[[], object]:
    import outtray

    outtray.configure(app="bench", flush="manual")
    return track()


def floor() -> Callable[[], object]:
    call = track_child.floor()
    return lambda: call(TWELVE)


def track() -> Callable[[], object]:
    from outtray.client import default_client

    return lambda: default_client.track(USER, "report made", TWELVE)


def until_drained(backlog: int, url: str) -> tuple[Callable[[], object], Callable[[], bool]]:
    """Return the call, once the thread has begun to deliver *backlog* messages, and whether some of them still wait."""
    import outtray
    from outtray.client import default_client
    from outtray.outbox import shared

    call = manual()
    for _ in range(backlog):
        call()
    last_id = default_client.last_id
    assert last_id is not None
    settings = outtray.configure(app="bench", flush="thread", url=url).settings
    call()  # which wakes the thread
    outbox = shared.of(settings)
    first_id = outbox.header().settled_id
    while outbox.header().settled_id == first_id:
        time.sleep(0.001)
    return call, lambda: outbox.header().settled_id < last_id


def timed(call: Callable[[], object], pause: float, count: int, goes_on: Callable[[], bool]) -> list[float]:
    seconds: list[float] = []
    clock = time.perf_counter
    while len(seconds) < count and goes_on():
        if pause:
            time.sleep(pause)
        start = clock()
        call()
        seconds.append(clock() - start)
    return seconds


def main() -> None:
    name, pause, count = sys.argv[1], float(sys.argv[2]), int(sys.argv[3])
    if name == "draining":
        call, goes_on = until_drained(int(sys.argv[4]), sys.argv[5])
    else:
        call, goes_on = {"outtray": manual, "floor": floor}[name](), lambda: True
        for _ in range(WARM_UP):
            call()
    print(json.dumps(timed(call, pause, count, goes_on)))


if __name__ == "__main__":
    main()
