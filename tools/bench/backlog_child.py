"""What the rows `growth` and `memory` do in processes of their own: `build COUNT`, `measure CYCLES`, `drain URL`."""

from __future__ import annotations

import json
import os
import re
import statistics
import sys
import time
from pathlib import Path

from bench.events import TWELVE, USER
from bench.protocol import percentile
from outtray.client import Client
from outtray.outbox import shared, sql
from outtray.outbox.records import checksum
from outtray.outbox.store import Outbox
from outtray.settings import resolve

BATCH, BATCH_BYTES = 500, 4 * 1024 * 1024
ROWS_AT_ONCE = 20_000
WARM_UP = 4
"""Cycles before the first that is timed."""

SETTINGS = resolve({"app": "bench", "flush": "manual", "max_bytes": 64 * 2**30})
_, TEMPLATE = Client(send=False).track(USER, "report made", TWELVE)
TEMPLATE_ID = json.loads(TEMPLATE)["message_id"]


def message(id: int) -> str:
    """Return the body of a message."""
    return TEMPLATE.replace(TEMPLATE_ID, f"019ab0d2-4f5e-7c3a-8b1d-{id:012x}")


def build(count: int) -> None:
    """Store *count* waiting messages as appending would, but many in one transaction."""
    outbox = shared.of(SETTINGS)
    for first in range(1, count + 1, ROWS_AT_ONCE):
        with outbox.writing() as transaction:
            transaction.execute(sql.ADD_CURSOR, (SETTINGS.destination, 0))
            for id in range(first, min(first + ROWS_AT_ONCE, count + 1)):
                body = message(id)
                transaction.execute(sql.APPEND, (id, time.time(), checksum(id, body.encode()), body))
                transaction.header.last_id = id
    outbox.close()
    print("null")


def measure(cycles: int) -> None:
    """Print the figures of appending, of draining in batches, and of opening."""
    outbox = shared.of(SETTINGS)
    clock = time.perf_counter
    start = clock()
    with outbox.reading():
        opened = clock() - start
    appends: list[float] = []
    drains: list[float] = []
    for cycle in range(WARM_UP + cycles):
        if cycle == WARM_UP:
            appends.clear()
            drains.clear()
        for number in range(BATCH):
            body = message(cycle * BATCH + number)
            now = time.time()
            start = clock()
            outbox.append(body, accepted_at=now)
            appends.append((clock() - start) * 1e6)
        start = clock()
        drain_one(outbox)
        drains.append((clock() - start) * 1e3)
    outbox.close()
    figures = [statistics.median(appends), percentile(appends, 99), statistics.median(drains), percentile(drains, 99)]
    print(json.dumps([*figures, opened * 1e3]))


def drain_one(outbox: Outbox) -> None:
    batch = outbox.pending(SETTINGS.destination, after_id=0, max_count=BATCH, max_bytes=BATCH_BYTES)
    assert batch is not None
    assert len(batch.messages) == BATCH
    assert outbox.settle(batch, status=200, seconds=0.1)


def drain(url: str) -> None:
    """Print the megabytes of memory after the first batch, the most that there were, and those at the end."""
    from outtray.delivery.flush import flush

    levels: list[float] = []
    settings = resolve({"app": "bench", "url": url, "max_bytes": SETTINGS.max_bytes})
    report = flush(shared.of(settings), settings, progress=lambda _: levels.append(resident()))
    assert report.outcome == "drained", report
    highest = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert highest is not None
    print(json.dumps([levels[0], int(highest[1]) * 1024 / 1e6, resident()]))


def resident() -> float:
    """Return the megabytes of memory that this process has."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


if __name__ == "__main__":
    command, argument = sys.argv[1:]
    if command == "drain":
        drain(argument)
    else:
        {"build": build, "measure": measure}[command](int(argument))
