"""What the end of a program costs that has just tracked something which cannot be delivered."""

from __future__ import annotations

import json
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import partial
from pathlib import Path

from bench.protocol import BENCH, Case, Check, Contender, Row, Sample, environment, take_turns

ROUNDS, QUICK_ROUNDS = 9, 1

MOMENTS = {"at once": 0.0, "as delivery begins": 0.25, "in mid-delivery": 1.0}
"""Seconds from the 20th event to the program's last statement; the thread begins to deliver 0.2 s after the first."""

LIMIT = 50.0
"""Milliseconds."""


@contextmanager
def refusing() -> Iterator[str]:
    """Give the url of a port on which nobody listens."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        yield _url(free)


@contextmanager
def hanging() -> Iterator[str]:
    """Give the url of a receiver that takes connections and never answers."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(64)
        yield _url(listener)


@contextmanager
def gone() -> Iterator[str]:
    """Give the url of a receiver from which no packet comes back: its queue of connections is full."""
    with ExitStack() as stack:
        listener = stack.enter_context(socket.socket())
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        for _ in range(4):
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(listener.getsockname())
        yield _url(listener)


def _url(bound: socket.socket) -> str:
    return f"http://127.0.0.1:{bound.getsockname()[1]}"


RECEIVERS = (refusing, hanging, gone)


def exit(*, quick: bool) -> Row:
    """From the last statement of a program to its end, against the same program without outtray's calls.

    That program writes as many bytes to a file and syncs it at its end: the one sync that is apart. Segment, which
    tries again at exit, is beside it where the receiver refuses, and has no budget.
    """
    cases = [_case(receiver, moment, quick=quick) for receiver in RECEIVERS for moment in MOMENTS]
    return Row("exit", cases)


def _case(receiver: Callable[[], AbstractContextManager[str]], moment: str, *, quick: bool) -> Case:
    names = ["outtray", "without, one sync", "without"]
    if (receiver, moment) == (refusing, "at once"):
        names.append("Segment")
    with receiver() as url:
        contenders = [Contender(name, partial(_sample, name, url, MOMENTS[moment])) for name in names]
        samples = take_turns(contenders, QUICK_ROUNDS if quick else ROUNDS)
    ours, synced = samples["outtray"], samples["without, one sync"]
    more = statistics.median(mine[0] - theirs[0] for mine, theirs in zip(ours, synced, strict=True))
    figures = {}
    for name in names:
        ends = [sample[0] for sample in samples[name]]
        figures[name] = {"median ms": statistics.median(ends), "slowest ms": max(ends)}
    return Case(f"{receiver.__name__}, {moment}", figures, [Check("ms more than without", more, LIMIT)])


def _sample(name: str, url: str, pause: float, folder: Path) -> Sample:
    """Return the milliseconds from the last statement to the end, of a program that is not the first."""
    _end(name, url, 0.0, folder)
    return [_end(name, url, pause, folder)]


def _end(name: str, url: str, pause: float, folder: Path) -> float:
    with subprocess.Popen(
        [sys.executable, str(BENCH / "leaving_child.py"), name, url, str(pause)],
        env=environment(folder),
        cwd=folder,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        last_statement: float = json.loads(process.stdout.read())
        process.wait()
        seconds = time.monotonic() - last_statement
    if process.returncode:
        raise RuntimeError(f"{name} ended with {process.returncode}")
    return seconds * 1e3
