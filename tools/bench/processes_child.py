"""One of the processes of the row `processes`: prints how many events it stored, and its longest call in seconds."""

from __future__ import annotations

import json
import sqlite3
import sys
import time
from collections.abc import Callable

from bench.events import TWELVE, USER


def outtray() -> Callable[[], object]:
    import outtray

    outtray.configure(app="bench", flush="manual")

    def call() -> object:
        assert outtray.track("report made", TWELVE)
        return None

    return call


def floor() -> Callable[[], object]:
    connection = sqlite3.connect("floor.db", isolation_level=None, timeout=60)
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = NORMAL")
    connection.execute("CREATE TABLE IF NOT EXISTS messages (id INTEGER PRIMARY KEY, body TEXT)")

    def call() -> object:
        message = {
            "user_id": USER,
            "event": "report made",
            "properties": TWELVE,
            "type": "track",
            "message_id": "019ab0d2-4f5e-7c3a-8b1d-2f4e6a8c0b1d",
            "timestamp": "2026-01-31T23:59:59.250Z",
        }
        return connection.execute("INSERT INTO messages (body) VALUES (?)", (json.dumps(message),))

    return call


CONTENDERS = {"outtray": outtray, "floor": floor}


def main() -> None:
    name, seconds = sys.argv[1], float(sys.argv[2])
    call = CONTENDERS[name]()
    call()
    print("ready", flush=True)
    sys.stdin.read()
    clock = time.perf_counter
    count, longest = 0, 0.0
    now = clock()
    end = now + seconds
    while now < end:
        before = now
        call()
        now = clock()
        count += 1
        longest = max(longest, now - before)
    print(json.dumps([count, longest]))


if __name__ == "__main__":
    main()
