"""A stateful model: whatever is done to an outbox, in any order, each message is where the model says it must be.

A run is a list of steps drawn by chance from a seed; of one that fails, the steps that are not needed for it are
left out as far as that goes. The outbox is used by processes of their own (`model_child`), which are killed at rest
and in mid-step; the receiver is a real one; the harness only looks at the files.
"""

from __future__ import annotations

import os
import random
import tempfile
import time
from pathlib import Path
from typing import Any

from faults.model_steps import Steps, draw
from faults.model_world import Nursery, World
from faults.programs import Programs
from faults.report import Report
from outtray.testing import FakeServer

WHOLE_STEPS = 5_000
QUICK_STEPS = 300
STEPS_IN_A_ROW = 60
"""Steps on one outbox; the next ones begin with a new one."""

SEED = 4_711

SHORTEN_WITHIN = 60.0
"""Seconds for leaving steps out of a run that fails."""

Step = tuple[str, dict[str, Any]]


def run(*, whole: bool, steps: int | None = None, seed: int = SEED) -> Report:
    """Do at least *steps* steps, by default `WHOLE_STEPS` or `QUICK_STEPS`, beginning with *seed*."""
    report = Report("steps")
    if not hasattr(os, "pidfd_open"):
        report.skipped = "only Linux tells when a process that is not a child is dead"
        return report
    goal = steps or (WHOLE_STEPS if whole else QUICK_STEPS)
    with (
        tempfile.TemporaryDirectory(prefix="outtray-model-") as folder,
        FakeServer() as server,
        Programs(Path(folder)) as programs,
        Nursery(programs, Path(folder) / "nursery") as nursery,
    ):
        runner = _Runner(server, nursery, Path(folder))
        while report.tried < goal and not report.violations:
            chance = random.Random(seed)
            drawn = [draw(chance) for _ in range(STEPS_IN_A_ROW)]
            failure = runner.failure(drawn, report)
            report.add("runs")
            if failure:
                report.violated(f"seed {seed}: {failure}\n{runner.shortened(drawn, failure)}")
            seed += 1
    return report


class _Runner:
    """Does runs, each on an outbox of its own in *folder*."""

    def __init__(self, server: FakeServer, nursery: Nursery, folder: Path) -> None:
        self._server = server
        self._nursery = nursery
        self._folder = folder
        self._runs = 0

    def failure(self, drawn: list[Step], report: Report) -> str:
        """Do the steps and return what went wrong, empty if nothing did."""
        self._runs += 1
        self._server.set_mode("ok")
        self._server.clear()
        world = World(self._server, self._nursery, self._folder / str(self._runs))
        steps = Steps(world, report)
        number = 0
        try:
            for name, arguments in drawn:
                getattr(steps, name)(**arguments)
                number += 1
            steps.deliver_what_is_left()
        except Exception as error:  # whatever it is, the steps led to it
            return f"{type(error).__name__}: {error} (in step {number + 1} of {len(drawn)})"
        finally:
            world.end_process(kill=True)
        return ""

    def shortened(self, drawn: list[Step], failure: str) -> str:
        """Leave out steps as long as it still fails, and return those that are left, one a line."""
        end = time.monotonic() + SHORTEN_WITHIN
        size = len(drawn) // 2
        while size:
            start = 0
            while start < len(drawn) and time.monotonic() < end:
                shorter = drawn[:start] + drawn[start + size :]
                if again := self.failure(shorter, Report("steps")):
                    drawn, failure = shorter, again
                else:
                    start += size
            size //= 2
        lines = [f"{name}({', '.join(f'{key}={value!r}' for key, value in given.items())})" for name, given in drawn]
        return "\n".join(["shortened:", *(f"  {line}" for line in lines), f"  fails with {failure}"])
