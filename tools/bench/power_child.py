"""One contender of the row `power`: prints the seconds of each call, or the calls that each thread made."""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections.abc import Callable

from bench.events import TWELVE, USER

WARM_UP = 100
"""Calls before the first that is timed."""


def outtray() -> Callable[[], object]:
    import outtray
    from outtray.client import default_client

    outtray.configure(app="bench", flush="manual", durability="power")

    def call() -> object:
        is_committed, _ = default_client.track(USER, "report made", TWELVE)
        assert is_committed

    return call


def floor() -> Callable[[], object]:
    from outtray.client import Client

    line = Client(send=False).track(USER, "report made", TWELVE)[1].encode() + b"\n"
    descriptor = os.open("floor.jsonl", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    sync = getattr(os, "fdatasync", os.fsync)  # macOS has none

    def call() -> object:
        os.write(descriptor, line)
        sync(descriptor)

    return call


def timed(call: Callable[[], object], count: int) -> list[float]:
    seconds = []
    clock = time.perf_counter
    for _ in range(count):
        start = clock()
        call()
        seconds.append(clock() - start)
    return seconds


def in_threads(call: Callable[[], object], threads: int, seconds: float) -> list[int]:
    """Return how many calls each of the *threads* made within *seconds*."""
    begin = threading.Barrier(threads)
    counts = [0] * threads

    def run(number: int) -> None:
        begin.wait()
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            call()
            counts[number] += 1

    running = [threading.Thread(target=run, args=[number]) for number in range(threads)]
    for thread in running:
        thread.start()
    for thread in running:
        thread.join()
    return counts


def slow_down(seconds: float) -> None:
    """Let each sync of the log sleep for *seconds* before."""
    from outtray.outbox import sync

    fsync = sync._fsync

    def slow(descriptor: int) -> None:
        time.sleep(seconds)
        fsync(descriptor)

    sync._fsync = slow


def main() -> None:
    name = sys.argv[1]
    call = floor() if name == "floor" else outtray()
    for _ in range(WARM_UP):
        call()
    if name == "threads":
        threads, slower, seconds = int(sys.argv[2]), float(sys.argv[3]), float(sys.argv[4])
        if slower:
            slow_down(slower)
        print(json.dumps(in_threads(call, threads, seconds)))
    else:
        print(json.dumps(timed(call, int(sys.argv[2]))))


if __name__ == "__main__":
    main()
