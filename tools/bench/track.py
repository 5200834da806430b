"""What one call costs: `Client.track`, and `outtray.track` through the context, while the thread has nothing to do."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from bench.events import SHAPES
from bench.protocol import Case, Check, Contender, Row, Sample, calls, child, ratio, take_turns

IDLE = {"hot loop": 0.0, "1 ms between calls": 0.001}
"""Seconds between two calls: what is called now and then finds cold caches."""

ROUNDS, CALLS = 7, 2_000
QUICK_ROUNDS, QUICK_CALLS = 2, 200


def client(*, quick: bool) -> Row:
    """`Client.track` against Segment's, which only builds the message (send=False), and against the floor."""
    cases = []
    for shape in SHAPES:
        for pause in IDLE:
            case = _case(["outtray client", "Segment", "floor"], shape, pause, quick=quick)
            cases.append(case)
    return Row("client", cases)


def context(*, quick: bool) -> Row:
    """`outtray.track`, which adds consent, identity and a dozen facts of the environment to each event."""
    return Row(
        "context",
        [_case(["outtray track", "Segment"], shape, pause, quick=quick) for shape in SHAPES for pause in IDLE],
    )


LIMITS = {("outtray client", "Segment"): 0.9, ("outtray client", "floor"): 1.35, ("outtray track", "Segment"): 1.1}


def _case(names: list[str], shape: str, pause: str, *, quick: bool) -> Case:
    count = QUICK_CALLS if quick else CALLS
    contenders = [Contender(name, partial(_sample, name, shape, IDLE[pause], count)) for name in names]
    samples = take_turns(contenders, QUICK_ROUNDS if quick else ROUNDS)
    ours, *others = names
    checks = [Check(f"by {other}", ratio(samples, ours, other), LIMITS[ours, other]) for other in others]
    return Case(f"{shape}, {pause}", calls(samples), checks)


def _sample(name: str, shape: str, pause: float, count: int, folder: Path) -> Sample:
    sample: Sample = child("track_child.py", name, shape, pause, count, folder=folder)
    return sample
