"""Forks: what has to be done around one, in one order, and a lock that keeps forks away while something is imported.

A child that is forked while another thread imports a module waits for ever when it imports that module itself:
the import's lock is copied, the thread that would release it is not. So whatever outtray imports late, in a
thread of its own or of the host, it imports under `importing`.
"""

from __future__ import annotations

import os
import sys
import threading

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType
    from typing import Any

importing = threading.RLock()

depth = 0
"""How many forks lie between this process and the first one of the program.

Who finds another number than at its beginning was forked in its middle, by a signal handler that then returned: what
it was doing is its parent's to do.
"""

before: list[Callable[[FrameType], None]] = []
"""Called before a fork with the frame that forks, once no import of ours is under way."""

in_parent: list[Callable[[FrameType], None]] = []
"""Called after a fork in the parent, with the same frame."""

in_child: list[Callable[[FrameType], None]] = []
"""Called after a fork in the child, which has one thread, with the same frame."""


def _before_fork() -> None:
    lock = _logging_lock()
    is_taken = lock is not None and lock._is_owned()  # by logging's own hook, where that was registered after ours
    if not importing.acquire(blocking=False):
        if is_taken:  # whoever imports may be waiting for it, as a new module makes its logger
            lock.release()
        importing.acquire()
        if is_taken:
            lock.acquire()
    late = _logging_lock() if lock is None else None
    if late is not None:
        # It was imported while we waited: its own hook for before the fork comes too late to run, and the one
        # for afterwards would complain on stderr that the lock is not held.
        late.acquire()
    frame = sys._getframe(1)
    for hook in before:
        hook(frame)


def _after_fork_in_parent() -> None:
    frame = sys._getframe(1)
    for hook in in_parent:
        hook(frame)
    importing.release()


def _after_fork_in_child() -> None:
    global depth
    depth += 1
    frame = sys._getframe(1)
    for hook in in_child:
        hook(frame)
    importing.release()


def _logging_lock() -> Any:
    """Return the lock that logging takes around a fork, None while it is not loaded as far as its hooks."""
    logging: Any = sys.modules.get("logging")
    return logging._lock if hasattr(logging, "LogRecord") else None  # the first name behind its hooks


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork, after_in_parent=_after_fork_in_parent, after_in_child=_after_fork_in_child)
