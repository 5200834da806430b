"""A lock that keeps forks away while outtray imports something.

A child that is forked while another thread imports a module waits for ever when it imports that module itself:
the import's lock is copied, the thread that would release it is not. So whatever outtray imports late, in a
thread of its own or of the host, it imports under `importing`.
"""

from __future__ import annotations

import os
import threading

importing = threading.RLock()

if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=importing.acquire, after_in_parent=importing.release, after_in_child=importing.release)
