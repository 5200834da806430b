"""What damage left in an outbox's directory: databases of older generations, and logs that were set aside."""

from __future__ import annotations

import os
import time

from outtray.outbox import pages
from outtray.outbox.files import database_path, generations, kept_wals
from outtray.outbox.generation import SALVAGED, numbers

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from outtray.outbox.store import Outbox


class Source:
    """The database of a generation that *is_left*, with its *wals*, oldest first; or one log of the generation in use.

    *path* is that of the database; *database* is the same, None where there is none to read.
    """

    def __init__(self, generation: int, path: str, wals: list[str], *, is_left: bool) -> None:
        self.generation = generation
        self.path = path
        self.database = path if is_left and os.path.isfile(path) else None
        self.wals = wals
        self.is_left = is_left

    @property
    def name(self) -> str:
        """What the source is called in `SALVAGED`, and to people."""
        return os.path.basename(self.path if self.is_left else self.wals[0])

    @property
    def files(self) -> list[str]:
        """The paths of all its files."""
        own = [self.path, f"{self.path}-wal", f"{self.path}-shm"] if self.is_left else []
        return [path for path in dict.fromkeys([*own, *self.wals]) if os.path.isfile(path)]

    def newest(self) -> Iterator[pages.Record]:
        """Give the records of the newest image of each page."""
        return pages.records(self.database, self.wals[-1] if self.wals else None, newest_only=True)

    def all(self) -> Iterator[pages.Record]:
        """Give the records of all images of all pages, also those that SQLite would not show any more."""
        yield from pages.records(self.database, self.wals[0] if self.wals else None)
        for wal in self.wals[1:]:
            yield from pages.records(None, wal)


def sources(directory: str, generation: int) -> list[Source]:
    """Return the damaged files in *directory*, where *generation* is in use, newest first. Raises OSError."""
    found = []
    for number in reversed(generations(directory)):
        path = database_path(directory, number)
        wals = kept_wals(directory, number)
        if number < generation:
            log = [f"{path}-wal"] if os.path.isfile(f"{path}-wal") and not wals else []
            found.append(Source(number, path, wals + log, is_left=True))
        elif number == generation:
            found += [Source(number, path, [wal], is_left=False) for wal in wals]
    return [source for source in found if source.database or source.wals]


def waiting(directory: str, generation: int, meta: Callable[[str], str | None]) -> list[Source]:
    """Return the sources that were not brought back yet; *meta* is that of the outbox. Raises OutboxError, OSError."""
    found = sources(directory, generation)
    read = numbers(meta(SALVAGED)) if found else {}
    return [source for source in found if source.name not in read]


def clear_away(outbox: Outbox, *, retention: float) -> None:
    """Delete the files of sources that were brought back more than *retention* seconds ago.

    Raises OutboxError, OSError.
    """
    found = sources(outbox.directory, outbox.header().generation)
    read = numbers(outbox.meta(SALVAGED)) if found else {}
    for source in found:
        if read.get(source.name, float("inf")) <= time.time() - retention:
            for path in source.files:
                os.unlink(path)
