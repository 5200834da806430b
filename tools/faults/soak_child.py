"""A program that tracks in bursts until it or its parent is killed: `soak_child.py DIR URL LOG NAME FLUSH PAUSE SEED`.

Each call is a line of LOG before the next one begins: number, 1 or 0 for what it returned, start and end on the
monotonic clock. NAME is the beginning of the message ids, PAUSE the mean of the seconds between two bursts.
"""

from __future__ import annotations

import os
import random
import sys
import time

import outtray

MARKED_SHARE = 0.005
"""Share of messages that carry `MARKER`; the receiver refuses them in one of its modes."""

MARKER = "tulip"
LONGEST_BURST = 40


def main() -> None:
    directory, url, log_path, name, flush, pause, seed = sys.argv[1:]
    chance = random.Random(seed)
    outtray.configure(app="soak", dir=directory, url=url, flush=flush, flush_interval=0.05, timeout=1.0)
    log = os.open(log_path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    number, parent = 0, os.getppid()
    while os.getppid() == parent:  # a harness that was killed leaves nothing behind
        for _ in range(chance.randint(1, LONGEST_BURST)):
            number += 1
            note = MARKER if chance.random() < MARKED_SHARE else "x" * chance.randint(0, 400)
            begin = time.monotonic()
            taken = outtray.track("soak", {"number": number, "note": note}, message_id=f"{name}-{number}")
            end = time.monotonic()
            os.write(log, b"%d %d %.6f %.6f\n" % (number, taken, begin, end))
        time.sleep(chance.expovariate(1 / float(pause)))


if __name__ == "__main__":
    main()
