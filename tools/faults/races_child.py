"""A program that obeys: a JSON object a line on standard input, each answered with one on standard output.

``{"do": "configure", …}`` takes settings, ``{"do": "track", "ids": […]}`` tracks and says which were taken,
``{"do": "flush", "timeout": S}`` calls `outtray.flush` and says what came of it, ``{"do": "close"}`` closes. With
arguments `LOG NAME DIR` it tracks in a tight loop instead, until it is killed or its parent is, and writes a line for
each call to LOG: the number, 1 or 0 for what it returned, and when it began, on the monotonic clock.
"""

from __future__ import annotations

import json
import os
import sys
import time
from typing import Any

import outtray
from outtray.tray import default_tray


def obey(do: str, **arguments: Any) -> dict[str, Any]:
    """Do one order and return its answer. Raises ValueError for one that is unknown."""
    if do == "configure":
        outtray.configure(**arguments)
        return {}
    if do == "track":
        return {"taken": [name for name in arguments["ids"] if outtray.track("race", message_id=name)]}
    if do == "flush":
        return {"outcome": outtray.flush(arguments["timeout"]).outcome}
    if do == "close":
        default_tray.close()
        return {}
    raise ValueError(f"no order {do}")


def track_for_ever(log_path: str, name: str, directory: str) -> None:
    """Track and write down what each call returned."""
    outtray.configure(app="race", dir=directory, flush="manual")
    log = os.open(log_path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    number, parent = 0, os.getppid()
    while os.getppid() == parent:  # a harness that was killed leaves nothing behind
        number += 1
        begin = time.monotonic()
        taken = outtray.track("race", message_id=f"{name}-{number}")
        os.write(log, b"%d %d %.7f\n" % (number, taken, begin))
        time.sleep(0.0003)  # about a thousand a second: enough for a race, and little to compare


def main() -> None:
    if len(sys.argv) > 1:
        track_for_ever(*sys.argv[1:])
    for line in sys.stdin:
        print(json.dumps(obey(**json.loads(line))), flush=True)


if __name__ == "__main__":
    main()
