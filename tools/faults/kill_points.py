"""Kill a program at each of its system calls, and look whether what it was promised is there."""

from __future__ import annotations

import shutil
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from faults.promises import Promised, Received, Stored, broken, go_on, stored
from faults.report import Report
from faults.templates import Worker, shared_out, workers_with_templates
from faults.traced import Outcome, cannot_trace

AT_ONCE = 2
"""Points tried at the same time."""

QUICK_POINTS = 2
"""Points of each job in the quick slice."""

CHANGING = ("pwrite64", "write", "fsync", "fdatasync", "ftruncate", "unlink", "mkdir", "openat", "flock")
"""System calls between which most happens: the quick slice kills at some of them."""


DAMAGED = "app/outbox-1-0.db is damaged"
"""What who looks is told, until somebody has used the outbox."""


@dataclass(frozen=True)
class Job:
    """One job to kill: *work* on what *template* left (functions of `jobs_child`), while the receiver is in *mode*.

    *lost* messages were lost before, and must be counted; what *work* removes is counted in the ledger as *counted*.
    With *salvaged* the database is found damaged, and all of its messages are brought back.
    """

    name: str
    template: str
    work: str
    mode: str = "ok"
    lost: int = 0
    counted: str = ""
    salvaged: bool = False


JOBS = (
    Job("create", "nothing", "append"),
    Job("append", "filled", "append"),
    Job("append behind a killed program", "killed", "append"),
    Job("append behind a lost row", "with_newest_row_gone", "append", lost=1),
    Job("settle", "filled", "drain"),
    Job("settle behind a killed program", "killed", "drain"),
    Job("settle with bad messages", "filled", "drain", mode="refuse_marked"),
    Job("postpone", "filled", "drain", mode="503"),
    Job("hold", "filled", "drain", mode="401"),
    Job("prune", "with_many", "drain_and_prune"),
    Job("purge what waits", "with_many", "purge", counted="purged"),
    Job("purge what is delivered", "with_many", "purge_delivered"),
    Job("retry", "with_dead", "retry"),
    Job("begin a generation", "damaged", "append", salvaged=True),
    Job("bring back", "damaged", "drain", salvaged=True),
)


@dataclass(frozen=True)
class Point:
    """The *occurrence*, counted from 1, of one system call in a job."""

    job: Job
    call: str
    occurrence: int


@dataclass
class Tried:
    """Whether the program was killed at a point, and what was found then."""

    point: Point
    is_killed: bool
    violations: list[str]
    unanswered: int = 0
    repeats: int = 0


def run(*, whole: bool, only: str = "") -> Report:
    """Kill at every system call, or at some, of all jobs, or of those with *only* in their name."""
    report = Report("points", skipped=cannot_trace())
    if report.skipped:
        return report
    jobs = [job for job in JOBS if only in job.name]
    with ExitStack() as stack:
        workers = workers_with_templates(stack, AT_ONCE)
        found = shared_out(workers, lambda worker, job: _points(worker, job, whole=whole), jobs)
        points = [point for points in found for point in points]
        for tried in shared_out(workers, try_point, points):
            if tried.is_killed or tried.violations:
                _note(tried, report)
    return report


def _points(worker: Worker, job: Job, *, whole: bool) -> list[Point]:
    """Return the points of *job*, all or some: a run without harm tells which there are."""
    _, folder = worker.begin(job.template, job.mode)
    _, calls = _traced(worker, job, folder)
    shutil.rmtree(folder)
    places = range(len(calls))
    if not whole:
        changing = [place for place in places if calls[place] in CHANGING]
        places = [changing[len(changing) * part // (QUICK_POINTS + 1)] for part in range(1, QUICK_POINTS + 1)]
    return [Point(job, calls[place], calls[: place + 1].count(calls[place])) for place in places]


def try_point(worker: Worker, point: Point) -> Tried:
    """Kill a job at *point*, before the system call does anything, and check what is left."""
    job = point.job
    template, folder = worker.begin(job.template, job.mode)
    outcome, calls = _traced(worker, job, folder, "-e", f"inject={point.call}:signal=KILL:when={point.occurrence}")
    violations: list[str] = []
    if (outcome.code and not outcome.is_killed) or outcome.hung:
        violations.append(f"the job ended with {outcome.code}: {outcome.errors.strip()[-600:]}")
    promised = template.promised.copy()
    promised.add(outcome.said)
    before, received = stored(folder), Received.by(worker.server)
    delivered = template.delivered | set(received.numbers)
    violations += broken(promised, before, delivered, unanswered=1)
    if job.mode not in ("ok", "refuse_marked"):
        worker.server.set_mode("ok")
    after = go_on(worker.programs, folder, worker.server, promised, before, template.delivered)
    violations += [each for each in after.violations if not (job.salvaged and DAMAGED in each)]
    violations += _ledger_faults(job, template.promised, promised, before, after.ledger)
    shutil.rmtree(folder)
    where = f"{job.name}, killed at {point.call} {point.occurrence}, the system call {len(calls)}"
    return Tried(
        point,
        outcome.is_killed,
        [f"{where}: {violation}" for violation in violations],
        len(set(before.ids) - set(promised.ids)),
        sum(after.received.repeated.values()),
    )


def _ledger_faults(
    job: Job, at_first: Promised, promised: Promised, before: Stored, ledger: dict[str, int]
) -> list[str]:
    gone = len(set(promised.ids) - set(before.ids))
    expected = {"lost": job.lost} if job.lost else {}
    if job.salvaged:
        expected = {"file_damaged": 1, "salvaged": len(at_first.ids)}
    if job.counted and gone:
        expected[job.counted] = gone
    return [] if ledger == expected else [f"the ledger says {ledger}, not {expected}"]


def _traced(worker: Worker, job: Job, folder: Path, *options: str) -> tuple[Outcome, list[str]]:
    """Do the job below strace with *options* and return the names of its system calls too."""
    trace = worker.folder / "trace"
    started = worker.programs.start(job.work, folder, worker.server.url)
    started.attach(*options, output=trace)
    started.go_on()
    outcome = started.finish()
    lines = trace.read_text(errors="replace").splitlines()
    return outcome, [line.partition("(")[0] for line in lines if "(" in line and line[0].isalpha()]


def _note(tried: Tried, report: Report) -> None:
    report.tried += 1
    report.violations += tried.violations
    report.add(tried.point.job.name)
    report.add("stored though the answer was cut off", tried.unanswered)
    report.add("repeats", tried.repeats)
