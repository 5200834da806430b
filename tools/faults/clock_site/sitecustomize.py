"""Python imports this at its start in the programs of the clock harness: `time.sleep` as libfaketime does not break it.

Python sleeps until a moment of the monotonic clock; libfaketime (0.9.10) takes that for one of the faked clock, and
the call fails with EINVAL, whatever the program is.
"""

from __future__ import annotations

import select
import time


def _sleep(seconds: float) -> None:
    if seconds < 0:
        raise ValueError("sleep length must be non-negative")
    select.select([], [], [], seconds)


time.sleep = _sleep
