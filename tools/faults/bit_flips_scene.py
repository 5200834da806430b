"""An outbox as a killed process leaves it, for harnesses that damage it: messages in every state, and a WAL.

    python bit_flips_scene.py DIRECTORY COUNT DESTINATION (log | database)

makes one of COUNT messages and prints one line of JSON for each: `id, message_id, state, body`; then it ends like
`kill -9`. With "database" the WAL is empty by then, so that every byte of the database file counts.
"""

from __future__ import annotations

import json
import os
import sys
import time

from outtray.delivery import backoff
from outtray.outbox import shared, upkeep
from outtray.outbox.records import Mark, Message

STATES = ("delivered", "dead", "deferred", "retry", "retry in the WAL", "delivered", "delivered")
"""What becomes of the messages of the first half, in turn; of the others every sixth is local, and the rest waits."""

DEFERRED_FOR = 0.9 * backoff.LONGEST_WAIT
"""Seconds: few of them are due while a harness runs, and all wait no longer than any message may."""


def text_of(number: int) -> str:
    """A body of the usual size, and now and then one that spills over several pages."""
    size = 9_000 if number % 40 in (3, 7) else 120 + number % 50
    return json.dumps({"message_id": f"m-{number}", "text": f"body of {number}, ü, " + "x" * size})


def main() -> None:
    directory, count, destination = sys.argv[1], int(sys.argv[2]), sys.argv[3]
    outbox = shared.at(directory, destination=destination, max_bytes=2**30)
    made = {}

    def append(number: int, state: str) -> None:
        body = text_of(number)
        id = outbox.append(body, accepted_at=time.time(), local=state == "local")
        made[id] = {"id": id, "message_id": f"m-{number}", "state": state, "body": body}

    def retry(state: str) -> list[int]:
        ids = [id for id, message in made.items() if message["state"] == state]
        upkeep.retry(outbox, destination, ids=ids)
        return ids

    def mark_of(message: Message) -> Mark | None:
        state = made[message.id]["state"]
        if state == "deferred":
            until = time.time() + DEFERRED_FOR
            return Mark(message, state, next_attempt_at=until, status=429, reason="later")
        return None if state == "delivered" else Mark(message, "dead", status=400, reason="refused", excerpt="no")

    half = count // 2
    for number in range(half):
        append(number, STATES[number % len(STATES)])
    settled = 0
    while settled < half:  # in several deliveries
        batch = outbox.pending(destination, after_id=0, max_count=half // 3, max_bytes=2**24)
        assert batch is not None
        outbox.settle(batch, [mark for mark in map(mark_of, batch.messages) if mark], status=200, seconds=0.1)
        settled += len(batch.messages)
    retried = retry("retry")
    outbox.fill_reserve()  # once here, and not again in every copy
    outbox.count("full", 2)
    outbox.empty_wal()  # what came until here lies in the database file, the rest in the WAL

    for number in range(half, count):
        append(number, "local" if number % 6 == 5 else "waiting")
    batch = outbox.pending(destination, after_id=0, max_count=2, max_bytes=2**20, passed_over=retried)
    assert batch is not None
    assert batch.in_order
    assert outbox.settle(batch, status=200, seconds=0.1)
    for each in batch.messages:
        made[each.id]["state"] = "delivered"
    retry("retry in the WAL")
    if sys.argv[4] == "database":
        outbox.empty_wal()
    for message in made.values():
        print(json.dumps(message))
    sys.stdout.flush()
    os._exit(9)


if __name__ == "__main__":
    main()
