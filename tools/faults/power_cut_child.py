"""What runs on the volume whose power is cut: appenders in full load, and the first program after the cut.

    power_cut_child.py ROLE '{"dir": ..., "app": ..., "url": ..., "flush": ..., "durability": ... or null}'

ROLE `load` tracks from `threads` threads, with pauses of up to `pause` seconds, until stdin ends. `short` tracks a few
messages and exits as any program does. Both write a line to `log`, which lies on another file system, for each call
that returned True: message id, monotonic times of call and return. `reopen` tracks one message, delivers everything and
prints what it saw.
"""

from __future__ import annotations

import json
import os
import random
import sys
import threading
import time
import zlib
from typing import Any

import outtray
from outtray.tray import default_tray

MESSAGES_OF_A_SHORT_PROGRAM = 5

TICK = 0.02  # seconds


def text_of(message_id: str) -> str:
    """Return the text that the message of this id carries: most are short, one in a hundred fills pages of its own."""
    number = zlib.crc32(message_id.encode())
    length = 9_000 if number % 100 == 0 else 40 + number % 600
    return (message_id + "/") * (length // (len(message_id) + 1) + 1)


def main() -> int:
    role, options = sys.argv[1], json.loads(sys.argv[2])
    names = ("app", "dir", "url", "flush", "durability")
    outtray.configure(**{name: options[name] for name in names if options[name] is not None})
    return ROLES[role](options)


def load(options: dict[str, Any]) -> int:
    log = _open(options["log"])
    stopped = threading.Event()
    names = [f"{options['name']}-{number}" for number in range(options["threads"])]
    threads = [
        threading.Thread(target=_track_until, args=(stopped, log, name, options["pause"]), daemon=True)
        for name in names
    ]
    threads.append(threading.Thread(target=_measure_lateness, args=(stopped, log), daemon=True))
    for thread in threads:
        thread.start()
    sys.stdin.buffer.read()
    stopped.set()
    for thread in threads:
        thread.join(5.0)
    os._exit(0)  # the power is cut: there is nothing left to close


def short(options: dict[str, Any]) -> int:
    log = _open(options["log"])
    for number in range(MESSAGES_OF_A_SHORT_PROGRAM):
        _track(log, f"{options['name']}-{number}")
    return 0


def reopen(options: dict[str, Any]) -> int:
    stored = outtray.track("after the cut", message_id=options["name"])
    id = default_tray.client.last_id
    report = outtray.flush(timeout=60.0)
    seen = {"stored": stored, "id": id, "flush": f"{report.outcome} {report.reason}"}
    print(json.dumps({**seen, **outtray.status()}))
    return 0


def _track_until(stopped: threading.Event, log: int, name: str, pause: float) -> None:
    chance = random.Random(name)
    number = 0
    while not stopped.is_set():
        _track(log, f"{name}-{number}")
        number += 1
        if pause:
            stopped.wait(chance.uniform(0.0, pause))


def _track(log: int, message_id: str) -> None:
    metadata = {"text": text_of(message_id)}
    called_at = time.monotonic()
    if outtray.track("power cut", metadata, message_id=message_id):
        os.write(log, f"{message_id} {called_at:.6f} {time.monotonic():.6f}\n".encode())


def _measure_lateness(stopped: threading.Event, log: int) -> None:
    """Write down how much too late a sleeping thread of this process was woken, at worst: the flusher sleeps too."""
    worst = 0.0
    while not stopped.is_set():
        asleep_at = time.monotonic()
        time.sleep(TICK)
        late = time.monotonic() - asleep_at - TICK
        if late > worst:
            worst = late
            os.write(log, f"late {worst:.6f}\n".encode())


def _open(log: str) -> int:
    return os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)


ROLES = {"load": load, "short": short, "reopen": reopen}

if __name__ == "__main__":
    sys.exit(main())
