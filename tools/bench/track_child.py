"""One contender of the rows `client` and `context`: prints the seconds of each call."""

from __future__ import annotations

import json
import sqlite3
import sys
import time
from collections.abc import Callable
from typing import Any

from bench.events import SHAPES, USER

WARM_UP = 300
"""Calls before the first that is timed."""


def outtray_client() -> Callable[[dict[str, Any]], object]:
    import outtray
    from outtray.client import default_client

    outtray.configure(app="bench")

    def call(properties: dict[str, Any]) -> object:
        return default_client.track(USER, "report made", properties)

    return call


def outtray_track() -> Callable[[dict[str, Any]], object]:
    import outtray

    outtray.configure(app="bench")

    def call(properties: dict[str, Any]) -> object:
        return outtray.track("report made", properties)

    return call


def segment() -> Callable[[dict[str, Any]], object]:
    from segment.analytics.client import Client

    client = Client("a-write-key", send=False)

    def call(properties: dict[str, Any]) -> object:
        return client.track(USER, "report made", properties)

    return call


def floor() -> Callable[[dict[str, Any]], object]:
    connection = sqlite3.connect("floor.db", isolation_level=None)
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = NORMAL")
    connection.execute("CREATE TABLE messages (id INTEGER PRIMARY KEY, body TEXT)")

    def call(properties: dict[str, Any]) -> object:
        message = {
            "user_id": USER,
            "event": "report made",
            "properties": properties,
            "type": "track",
            "message_id": "019ab0d2-4f5e-7c3a-8b1d-2f4e6a8c0b1d",
            "timestamp": "2026-01-31T23:59:59.250Z",
        }
        return connection.execute("INSERT INTO messages (body) VALUES (?)", (json.dumps(message),))

    return call


CONTENDERS = {"outtray client": outtray_client, "outtray track": outtray_track, "Segment": segment, "floor": floor}


def main() -> None:
    name, shape, pause, count = sys.argv[1], sys.argv[2], float(sys.argv[3]), int(sys.argv[4])
    call = CONTENDERS[name]()
    properties = SHAPES[shape]
    for _ in range(WARM_UP):
        call(properties)
    seconds = []
    clock = time.perf_counter
    for _ in range(count):
        if pause:
            time.sleep(pause)
        start = clock()
        call(properties)
        seconds.append(clock() - start)
    print(json.dumps(seconds))


if __name__ == "__main__":
    main()
