"""What 16 processes get that append to one outbox at once."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

from bench.protocol import BENCH, Case, Check, Contender, Row, Sample, environment, take_turns

PROCESSES = 16

ROUNDS, SECONDS = 5, 5.0
QUICK_ROUNDS, QUICK_SECONDS = 1, 1.0

FIGURES = ("events per second", "longest wait ms", "slowest by fastest", "WAL MB")


def processes(*, quick: bool) -> Row:
    """16 processes that call `outtray.track` for some seconds, without a pause.

    The floor is json.dumps and a bare INSERT under SQLite's own busy handler. Of all rounds the worst counts, but for
    the rate, of which it is the median.
    """
    contender = partial(_sample, seconds=QUICK_SECONDS if quick else SECONDS)
    names = ("outtray", "floor")
    contenders = [Contender(name, partial(contender, name)) for name in names]
    samples = take_turns(contenders, QUICK_ROUNDS if quick else ROUNDS)
    figures = {name: dict(zip(FIGURES, _worst(samples[name]), strict=True)) for name in names}
    rate, longest, fairness, wal = _worst(samples["outtray"])
    checks = [
        Check("events per second", rate, 10_000, at_least=True),
        Check("longest wait ms", longest, 300),
        Check("slowest by fastest", fairness, 0.3, at_least=True),
        Check("WAL MB", wal, 8),
    ]
    return Row("processes", [Case("12 properties, hot loop", figures, checks)])


def _worst(rounds: list[Sample]) -> tuple[float, float, float, float]:
    rates, waits, fairness, wals = zip(*rounds, strict=True)
    return statistics.median(rates), max(waits), min(fairness), max(wals)


def _sample(name: str, folder: Path, *, seconds: float) -> Sample:
    """Return what `FIGURES` names."""
    command = [sys.executable, str(BENCH / "processes_child.py"), name, str(seconds)]
    children = []
    try:
        for _ in range(PROCESSES):
            child = subprocess.Popen(
                command,
                env=environment(folder),
                cwd=folder,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            children.append(child)
            assert child.stdout is not None
            child.stdout.readline()  # ready: it has opened the outbox
        for child in children:
            assert child.stdin is not None
            child.stdin.close()
        wal = _highest_wal(folder, children)
        done = [json.load(child.stdout) for child in children if child.stdout is not None]
    finally:
        for child in children:
            child.kill()
            child.wait()
    counts = [count for count, _ in done]
    longest = max(wait for _, wait in done)
    return [sum(counts) / seconds, longest * 1e3, min(counts) / max(counts), wal / 1e6]


def _highest_wal(folder: Path, children: list[subprocess.Popen[str]]) -> int:
    """Return the most bytes that the log has until all *children* have ended."""
    highest = 0
    while any(child.poll() is None for child in children):
        for path in folder.rglob("*-wal"):
            try:
                highest = max(highest, os.stat(path).st_size)
            except FileNotFoundError:
                continue  # the last who closes it deletes it
        time.sleep(0.01)
    return highest
