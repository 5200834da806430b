"""A host program with a flusher thread: tracks, says what was accepted, and how long its longest call took.

    python network_child.py PREFIX COUNT SECONDS OPTIONS-AS-JSON

It prints one line for each accepted message, its message_id, as soon as the call returned; then one line of JSON
with `longest_call` (seconds) and `ended_at` (seconds on the monotonic clock, which all processes share).
"""

from __future__ import annotations

import json
import os
import sys
import time

import outtray

MARKER = "unwelcome"
"""In every sixtieth message, for receivers that refuse some."""

LARGE_BYTES = 6_000
"""Size of every seventieth message, for receivers that take small ones only."""


def main() -> None:
    prefix, count, seconds = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
    outtray.configure(**json.loads(sys.argv[4]))
    longest = 0.0
    for number in range(count):
        message_id = f"{prefix}-{number:06d}"
        text = MARKER if number % 60 == 30 else "x" * (LARGE_BYTES if number % 70 == 35 else 300)
        began = time.monotonic()
        is_accepted = outtray.track("tick", {"number": number, "text": text}, message_id=message_id)
        longest = max(longest, time.monotonic() - began)
        if is_accepted:
            os.write(1, f"{message_id}\n".encode())
        time.sleep(seconds / count)
    print(json.dumps({"longest_call": longest, "ended_at": time.monotonic()}), flush=True)


if __name__ == "__main__":
    main()
