"""How far a flush is, on a terminal: a bar if rich is installed, else one line that is written again."""

from __future__ import annotations

import os
import sys
import time
from contextlib import contextmanager

from outtray.cli.output import is_interactive

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_BETWEEN_LINES = 0.1
"""Seconds between two updates of the plain line."""


@contextmanager
def shown(label: str, total: int, *, wanted: bool) -> Iterator[Callable[[int], None] | None]:
    """Give a function that takes the number of messages done, or None where no progress is to be seen."""
    if not (wanted and total and is_interactive()) or os.environ.get("TERM") == "dumb":
        yield None
        return
    try:
        import rich.progress as bars
        from rich.console import Console
    except ImportError:
        yield from _plain(label, total)
        return
    columns = (
        bars.TextColumn("{task.description}", markup=False),
        bars.BarColumn(),
        bars.MofNCompleteColumn(),
        bars.TimeRemainingColumn(),
    )
    with bars.Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(label, total=total)
        yield lambda done: progress.update(task, completed=done, total=max(total, done))


def _plain(label: str, total: int) -> Iterator[Callable[[int], None]]:
    next_at = 0.0

    def advance(done: int) -> None:
        nonlocal next_at
        if time.monotonic() >= next_at or done >= total:
            next_at = time.monotonic() + _BETWEEN_LINES
            sys.stderr.write(f"\r{label} {done}/{max(total, done)}")
            sys.stderr.flush()

    advance(0)
    try:
        yield advance
    finally:
        sys.stderr.write("\r\x1b[K")
        sys.stderr.flush()
