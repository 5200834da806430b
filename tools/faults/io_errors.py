"""Have the disk refuse: each write, sync and open in its turn, a disk that is full, a bound on the size of a file."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from faults.jobs_child import APP, LATER
from faults.promises import Promised, Received, broken, go_on, stored
from faults.report import Report
from faults.templates import Worker, shared_out, workers_with_templates
from faults.traced import Outcome, cannot_trace
from outtray.delivery.status import REFUSED

AT_ONCE = 2
"""Points tried at the same time."""

MIB = 1024 * 1024

ERRORS = {
    "pwrite64": ("EIO", "ENOSPC", "EDQUOT"),
    "write": ("EIO", "ENOSPC"),
    "fsync": ("EIO",),
    "fdatasync": ("EIO",),
    "ftruncate": ("EIO", "ENOSPC"),
    "fallocate": ("EIO", "ENOSPC"),
    "openat": ("EIO", "ENOSPC", "EMFILE"),
    "unlink": ("EIO",),
    "flock": ("EIO",),
}
"""System calls and the errors that a disk may give them."""

FULL = ("ENOSPC", "EDQUOT")
"""Those that mean a full disk, on which what was delivered is removed at once."""

RESERVE = "outbox-1.reserve"
DATABASES = [f"outbox-1-{generation}.db{suffix}" for generation in (0, 1) for suffix in ("", "-wal", "-shm")]
FILES = ("", *DATABASES, "outbox-1.gate", "outbox-1.drain", RESERVE)
"""What the faults are for, in the outbox's directory; the first is that directory."""

DISKS = (2 * MIB, 32 * MIB, 64 * MIB)
"""Sizes of the disks that are filled, in bytes: without and with room for a reserve; the last only in the whole run."""

BLOCK = 4096
LEFT = 100 * BLOCK
"""Bytes that are left free on the disk before it is filled with messages."""


@dataclass(frozen=True)
class Job:
    """One job of `jobs_child` to disturb, on what *template* left."""

    name: str
    template: str
    work: str


JOBS = (
    Job("append", "filled", "append_in_trouble"),
    Job("append behind a killed program", "killed", "append_in_trouble"),
    Job("create", "nothing", "append_in_trouble"),
    Job("settle", "filled", "drain_in_trouble"),
)


@dataclass(frozen=True)
class Fault:
    """An *error* for some of the calls of one kind in a job: *when* is "5", or "5+" for that and all later ones."""

    job: Job
    call: str
    error: str
    when: str


QUICK = (
    Fault(JOBS[0], "pwrite64", "EIO", "3"),
    Fault(JOBS[0], "pwrite64", "ENOSPC", "5+"),
    Fault(JOBS[1], "openat", "EMFILE", "2"),
    Fault(JOBS[2], "fdatasync", "EIO", "1"),
    Fault(JOBS[3], "pwrite64", "ENOSPC", "7+"),
    Fault(JOBS[3], "pwrite64", "EIO", "12"),
)
"""The faults of the quick slice."""


@dataclass
class Tried:
    """What came of a fault, or of a full disk: its *name*, the broken promises, and further figures by name."""

    name: str
    violations: list[str]
    counts: dict[str, int]


def run(*, whole: bool) -> Report:
    """Give every error at every k of every job, or some of them, then fill disks."""
    report = Report("faults", skipped=cannot_trace())
    if report.skipped:
        return report
    with ExitStack() as stack:
        workers = workers_with_templates(stack, AT_ONCE)
        faults = [fault for faults in shared_out(workers, _faults, JOBS) for fault in faults] if whole else QUICK
        for tried in shared_out(workers, try_fault, faults):
            if tried.counts["errors given"]:
                _note(tried, report)
        _note(_with_file_limit(workers[0]), report)
        for size in DISKS if whole else DISKS[:-1]:
            name = f"a disk of {size // MIB} MiB"
            reason = _cannot_mount(workers[0].folder)
            if reason:
                report.counts[name] = f"not tried: {reason}"
            else:
                _note(_with_full_disk(workers[0], name, size), report)
    return report


def _faults(worker: Worker, job: Job) -> list[Fault]:
    """Return every error for every k of every call of *job*: a run without harm tells how many there are."""
    _, folder = worker.begin(job.template)
    _, trace = _in_trouble(worker, job, folder)
    shutil.rmtree(folder)
    return [
        Fault(job, call, error, f"{k}{on}")
        for call, errors in ERRORS.items()
        for error in errors
        for k in range(1, trace.count(f" {call}(") + 1)
        for on in ("", "+")
    ]


def try_fault(worker: Worker, fault: Fault) -> Tried:
    """Have a job meet *fault*, end the fault, and check what was promised."""
    template, folder = worker.begin(fault.job.template)
    inject = f"inject={fault.call}:error={fault.error}:when={fault.when}"
    outcome, trace = _in_trouble(worker, fault.job, folder, "-e", inject)
    name = f"{fault.job.name}, {fault.call} {fault.when} gives {fault.error}"
    promised = template.promised.copy()
    if fault.error in FULL and not promised.removing:
        promised.removing = "delivered"
    tried = _after_trouble(name, worker, folder, promised, template.delivered, outcome)
    tried.counts["errors given"] = trace.count("(INJECTED)")
    shutil.rmtree(folder)
    return tried


def _in_trouble(worker: Worker, job: Job, folder: Path, *options: str) -> tuple[Outcome, str]:
    """Do the job below strace with *options* until it waits, then without; return the trace of the first part too."""
    output = worker.folder / "trace"
    only = [option for name in FILES for option in ("-P", str(folder / APP / name))]
    started = worker.programs.start(job.work, folder, worker.server.url)
    started.attach("-f", *only, *options, output=output)
    started.go_on()
    if started.wait_until_waiting():
        started.detach()
        started.go_on()
    return started.finish(), output.read_text(errors="replace")


def _after_trouble(
    name: str, worker: Worker, folder: Path, promised: Promised, delivered: set[int], outcome: Outcome
) -> Tried:
    """Check what a program that was in trouble, and recovered, said and left; *outcome* is how it ended."""
    found: list[str] = []
    if outcome.code or outcome.hung:
        found.append(f"the program ended with {outcome.code}: {outcome.errors.strip()[-600:]}")
    promised = promised.copy()
    promised.add(outcome.said)
    before, received = stored(folder), Received.by(worker.server)
    refused = outcome.all("refused")
    recovered = [number for number in refused if number >= LATER + 100 and outcome.last("last") is None]
    recovered += [number for number in refused if number > (outcome.last("last") or float("inf"))]
    if recovered:
        found.append(f"refused after the fault had ended: {recovered}")
    found += [f"status fails: {error}" for error in outcome.all("status") if error]
    if outcome.last("pending"):
        found.append(f"{outcome.last('pending')} still wait after the drain that followed the fault")
    ledger = outcome.last("ledger") or {}
    counted = sum(ledger.get(reason, 0) for reason in (*REFUSED, "unknown"))
    if counted != len(refused):
        found.append(f"{len(refused)} calls were refused, the ledger counts {ledger}")
    if ledger.get("lost"):
        found.append(f"the ledger counts lost messages: {ledger}")
    # An error after the commit: the call says False, and the message is there all the same.
    stored_though_refused = set(before.ids) & set(refused)
    found += broken(promised, before, delivered | set(received.numbers), unanswered=len(stored_though_refused))
    after = go_on(worker.programs, folder, worker.server, promised, before, delivered)
    found += after.violations
    counts = {
        "calls refused": len(refused),
        "unknown": ledger.get("unknown", 0),
        "refused though stored": len(stored_though_refused),
        "repeats": sum(after.received.repeated.values()),
        "recovered without a restart": int(not recovered),
    }
    return Tried(name, [f"{name}: {violation}" for violation in found], counts)


def _with_file_limit(worker: Worker) -> Tried:
    """Let a process have a bound on the size of its files, and lift it."""
    _, folder = worker.begin("nothing")
    outcome = worker.programs.run("hit_the_file_limit", folder, worker.server.url)
    tried = _after_trouble("RLIMIT_FSIZE", worker, folder, Promised(), set(), outcome)
    if not outcome.last("full"):
        tried.violations.append("RLIMIT_FSIZE: no call was refused")
    return tried


def _cannot_mount(folder: Path) -> str:
    """Return why no file system can be mounted here, "" if it can."""
    place = folder / "mount"
    place.mkdir(exist_ok=True)
    try:
        with _tmpfs(place, MIB):
            return ""
    except (OSError, subprocess.CalledProcessError) as error:
        return str(error)


@contextmanager
def _tmpfs(place: Path, size: int) -> Iterator[None]:
    """Mount a tmpfs of *size* bytes at *place* meanwhile."""
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(place)], check=True, capture_output=True)
    try:
        yield
    finally:
        subprocess.run(["umount", str(place)], check=True, timeout=60)


def _with_full_disk(worker: Worker, name: str, size: int) -> Tried:
    """Fill a disk of *size* bytes until nothing is accepted any more, settle there, and make room."""
    _, folder = worker.begin("nothing")
    with _tmpfs(folder, size):
        started = worker.programs.start("fill_the_disk", folder, worker.server.url)
        started.go_on()
        ballast, sent, settled, had_reserve = folder / "ballast", set[int](), set[int](), False
        if started.wait_until_waiting(1):
            had_reserve = (folder / APP / RESERVE).exists()
            earlier = len(worker.server.received)
            _leave(folder, ballast, LEFT)
            started.go_on()
        if started.wait_until_waiting(2):
            sent = {message["properties"]["number"] for message in worker.server.received[earlier:]}
            states = stored(folder).states
            settled = {number for number in sent if states.get(number, "delivered") == "delivered"}
            ballast.unlink()
            started.go_on()
        outcome = started.finish()
        tried = _after_trouble(name, worker, folder, Promised(removing="delivered"), set(), outcome)
    tried.counts |= {"sent on the full disk": len(sent), "settled on the full disk": len(settled)}
    if not outcome.last("full"):
        tried.violations.append(f"{name}: no call was refused")
    if had_reserve and (settled != sent or not sent):
        tried.violations.append(f"{name}: with a reserve, {len(settled)} of {len(sent)} messages sent were settled")
    return tried


def _leave(folder: Path, ballast: Path, left: int) -> None:
    """Write *ballast* so that *left* bytes are free."""
    space = os.statvfs(folder)
    with open(ballast, "wb") as file:
        for _ in range((space.f_bavail * space.f_frsize - left) // BLOCK):
            file.write(bytes(BLOCK))


def _note(tried: Tried, report: Report) -> None:
    report.tried += 1
    report.violations += tried.violations
    for name, number in tried.counts.items():
        report.add(name, number)
