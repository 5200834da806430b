"""One contender of the row `exit`: stores 20 events, pauses, and prints the moment of its last statement."""

from __future__ import annotations

import atexit
import os
import sys
import time
from collections.abc import Callable

from bench.events import TWELVE, USER

EVENTS = 20


def outtray(url: str) -> Callable[[], object]:
    import outtray

    outtray.configure(app="bench", url=url, flush="thread", flush_interval=0.2)
    return lambda: outtray.track("report made", TWELVE)


def without(_: str) -> Callable[[], object]:
    return lambda: None


def synced(_: str) -> Callable[[], object]:
    file = open("events", "wb")
    atexit.register(lambda: (file.flush(), os.fsync(file.fileno())))
    return lambda: file.write(b"x" * 700)


def segment(url: str) -> Callable[[], object]:
    import segment.analytics as analytics

    analytics.write_key, analytics.host = "a-write-key", url
    return lambda: analytics.track(USER, "report made", TWELVE)


CONTENDERS = {"outtray": outtray, "without": without, "without, one sync": synced, "Segment": segment}


def main() -> None:
    name, url, pause = sys.argv[1], sys.argv[2], float(sys.argv[3])
    call = CONTENDERS[name](url)
    for _ in range(EVENTS):
        call()
    time.sleep(pause)
    print(time.monotonic(), flush=True)


if __name__ == "__main__":
    main()
