"""What the messages take on the disk, and what is left when all are delivered and removed."""

from __future__ import annotations

import statistics
import subprocess
import sys
from functools import partial
from operator import itemgetter
from pathlib import Path

from bench import sink
from bench.events import SHAPES
from bench.protocol import Case, Check, Contender, Row, Sample, child, environment, take_turns
from outtray.outbox.look import size

COUNT, QUICK_COUNT = 100_000, 5_000

FIGURES = ("message MB", "file by message bytes", "while it is open", "delivered and pruned MB")


def disk(*, quick: bool) -> Row:
    """The bytes of all files of an outbox, its reserve apart, by the bytes of its messages, when its program has ended.

    Then all is delivered to nginx and pruned (`retention` 0) by the command line's flush.
    """
    if sink.MISSING:
        return Row("disk", [], sink.MISSING)
    count = QUICK_COUNT if quick else COUNT
    return Row("disk", [_case(shape, count) for shape in SHAPES])


def _case(shape: str, count: int) -> Case:
    with sink.running() as url:
        samples = take_turns([Contender("outtray", partial(_sample, shape, count, url))], 1)
    figures = {
        what: statistics.median(map(itemgetter(place), samples["outtray"])) for place, what in enumerate(FIGURES)
    }
    checks = [
        Check(FIGURES[1], figures[FIGURES[1]], 1.25),
        Check(FIGURES[3], figures[FIGURES[3]], 5),
    ]
    return Case(f"{shape}, {count:,} messages", {"outtray": figures}, checks)


def _sample(shape: str, count: int, url: str, folder: Path) -> Sample:
    """Return what `FIGURES` names."""
    message_bytes, open_bytes, directory = child("disk_child.py", shape, count, folder=folder)
    closed_bytes = size(directory)
    subprocess.run(
        [sys.executable, "-m", "outtray", "flush", "--url", url],
        env=environment(folder) | {"OUTTRAY_RETENTION": "0"},
        cwd=folder,
        capture_output=True,
        check=True,
    )
    return [message_bytes / 1e6, closed_bytes / message_bytes, open_bytes / message_bytes, size(directory) / 1e6]
