"""The program that does the jobs which `kill_points` and `io_errors` disturb: a server that forks a child for each.

It has everything imported and nothing open, so that a child begins at once. One JSON line on stdin orders a job
(`job`, `folder`, `url`, `log`, `errors`), two lines on stdout answer: the child's pid, and its wait status. Each
child waits for SIGUSR1 before it begins, so that a tracer can be attached, and writes what it was promised into *log*,
one line with one write each: what stands there had been promised before whatever came next.
"""

from __future__ import annotations

import importlib
import json
import os
import pkgutil
import signal
import sys
import traceback
import uuid
from typing import Any

import outtray
from outtray.cli import main as command_line

APP = "app"

SMALL, SOME, MANY = 5, 40, 520
"""Messages; the last are more than one slice of prune and purge."""

PATIENCE = 90.0
"""Seconds that a child waits for the harness."""

LATER, LAST = 100_000, 900_000
"""Numbers of the first message that a disturbed job tracks, and of the first one after the disturbance."""


class Job:
    """What one child knows of its order, and the log of what it was promised."""

    def __init__(self, order: dict[str, str]) -> None:
        self.folder = order["folder"]
        self.url = order["url"]
        self._log = os.open(order["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    def say(self, **fields: Any) -> None:
        """Write one line into the log."""
        os.write(self._log, json.dumps(fields).encode() + b"\n")

    def configure(self, **options: Any) -> outtray.Tray:
        """Make this process the application."""
        return outtray.configure(app=APP, dir=self.folder, url=self.url, flush="manual", **options)

    def track(self, first: int, count: int) -> None:
        """Track *count* messages numbered from *first* on and log what was answered."""
        for number in range(first, first + count):
            self.track_one(number)

    def track_one(self, number: int) -> bool:
        """Track one message, log what was answered, and return it."""
        is_accepted = outtray.track("event", properties(number), message_id=message_id(number))
        if is_accepted:
            self.say(accepted=number, id=outtray.tray.default_tray.client.last_id)
        else:
            self.say(refused=number)
        return is_accepted

    def run(self, *arguments: str) -> int:
        """Run `python -m outtray` with *arguments*, in this process, and return its exit code."""
        os.environ["OUTTRAY_DIR"] = self.folder
        os.environ["OUTTRAY_URL"] = self.url
        return command_line([arguments[0], "--app", APP, *arguments[1:]])

    def flush(self, *arguments: str, batch: int = 10, retention: float = 86_400) -> int:
        """Drain as the command line does, log its exit code and return it."""
        os.environ["OUTTRAY_MAX_BATCH_COUNT"] = str(batch)
        os.environ["OUTTRAY_RETENTION"] = str(retention)
        code = self.run("flush", "--all", *arguments)
        self.say(flushed=code)
        return code

    def wait(self) -> None:
        """Wait until the harness says that it goes on; where the harness is gone, this ends too."""
        if signal.sigtimedwait({signal.SIGUSR1}, PATIENCE) is None:
            raise TimeoutError(f"nobody said for {PATIENCE:.0f} s that the job goes on")


def message_id(number: int) -> str:
    return str(uuid.UUID(int=0x7000_8000_0000_0000_0000 + number))


def properties(number: int) -> dict[str, Any]:
    """Return what message *number* says; every fifteenth is one that a receiver may refuse."""
    return {"number": number, "text": f"{'bad' if number % 15 == 7 else 'good'} {number} " * (number % 50)}


# What lies there before the job


def nothing(job: Job) -> None:
    """No outbox at all."""


def filled(job: Job) -> None:
    tray = job.configure()
    job.track(0, SOME)
    tray.close()


def killed(job: Job) -> None:
    """A program was killed: its WAL is there."""
    filled(job)
    job.configure()
    job.track(SOME, SOME // 2)


def with_dead(job: Job) -> None:
    """Some are delivered, some dead, some wait; the receiver refuses the bad ones."""
    filled(job)
    job.flush()
    job.track(SOME, SOME // 2)


def with_many(job: Job) -> None:
    """More than one slice is delivered, more than one waits."""
    tray = job.configure()
    job.track(0, MANY)
    job.flush(batch=MANY)
    job.track(MANY, MANY)
    tray.close()


def with_newest_row_gone(job: Job) -> None:
    """Somebody deleted the newest message by `sqlite3`; its id must not be given again."""
    import sqlite3

    filled(job)
    connection = sqlite3.connect(os.path.join(job.folder, APP, "outbox-1-0.db"), isolation_level=None)
    connection.execute("DELETE FROM messages WHERE id = (SELECT max(id) FROM messages)")
    connection.close()
    job.say(removed=[SOME - 1])


def damaged(job: Job) -> None:
    """The file is not taken for an outbox any more; SQLite still reads it, and so does who looks for the promised."""
    import sqlite3

    filled(job)
    connection = sqlite3.connect(os.path.join(job.folder, APP, "outbox-1-0.db"), isolation_level=None)
    connection.execute("PRAGMA application_id = 0")
    connection.close()


# The jobs


def append(job: Job) -> None:
    tray = job.configure()
    job.track(LATER, SMALL)
    tray.close()


def drain(job: Job) -> None:
    job.flush()


def drain_and_prune(job: Job) -> None:
    job.say(removing="delivered")
    job.flush(batch=MANY, retention=0)


def purge(job: Job) -> None:
    job.say(removing="all")
    job.run("purge", "--state", "pending", "--yes")
    job.say(removed=list(range(MANY, 2 * MANY)))


def purge_delivered(job: Job) -> None:
    job.say(removing="delivered")
    job.run("purge")


def retry(job: Job) -> None:
    job.run("retry", "--all")


# After the job


def go_on(job: Job) -> None:
    """Look, append and drain, as the next program does."""
    tray = job.configure()
    found = outtray.status()
    job.say(status=found["error"], ledger=found["ledger"])
    job.track(LAST, 1)
    job.flush(batch=MANY)
    found = outtray.status()
    job.say(status=found["error"], ledger=found["ledger"], pending=found["pending"])
    tray.close()


# With errors while they last; `wait` is where the harness ends them


def append_in_trouble(job: Job) -> None:
    job.configure()
    job.track(LATER, 2 * SMALL)
    _recover(job)


def drain_in_trouble(job: Job) -> None:
    job.configure()
    job.track_one(LATER)
    job.flush()
    _recover(job)


def _recover(job: Job) -> None:
    job.say(waiting=True)
    job.wait()
    job.track(LATER + 100, SMALL)
    job.flush()
    found = outtray.status()
    job.say(status=found["error"], ledger=found["ledger"], pending=found["pending"])
    outtray.tray.default_tray.close()


def fill_the_disk(job: Job) -> None:
    """Track until 20 calls in a row are refused, drain on the full disk, and go on when the harness made room."""
    job.configure()
    job.track(0, SOME)
    job.flush(batch=SOME)
    job.say(waiting=True)  # now the harness leaves little room
    job.wait()
    refused_in_a_row, number = 0, LATER
    while refused_in_a_row < 20 and number < LATER + 50_000:
        refused_in_a_row = 0 if job.track_one(number) else refused_in_a_row + 1
        number += 1
    job.say(full=refused_in_a_row == 20, last=number)
    job.flush("--limit", str(SOME), batch=SMALL)
    job.say(waiting=True)
    job.wait()
    job.track(number + 1_000, SMALL)
    job.flush(batch=MANY)
    found = outtray.status()
    job.say(status=found["error"], ledger=found["ledger"], pending=found["pending"])
    outtray.tray.default_tray.close()


def hit_the_file_limit(job: Job) -> None:
    """As `fill_the_disk`, with a bound of this process on the size of a file (RLIMIT_FSIZE)."""
    import resource

    job.configure()
    job.track(0, SMALL)
    database = os.path.join(job.folder, APP, "outbox-1-0.db")
    limit = os.path.getsize(f"{database}-wal") + 200_000
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    refused_in_a_row, number = 0, LATER
    while refused_in_a_row < 5 and number < LATER + 5_000:
        refused_in_a_row = 0 if job.track_one(number) else refused_in_a_row + 1
        number += 1
    job.say(full=refused_in_a_row == 5, last=number)
    resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    job.track(number + 1_000, SMALL)
    job.flush(batch=MANY)
    found = outtray.status()
    job.say(status=found["error"], ledger=found["ledger"], pending=found["pending"])
    outtray.tray.default_tray.close()


def serve() -> None:
    """Fork a child for each order until stdin ends."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
    for module in pkgutil.walk_packages(outtray.__path__, "outtray."):
        if not module.name.startswith(("outtray.bridges", "outtray.__main__")):
            importlib.import_module(module.name)
    for line in sys.stdin:
        order = json.loads(line)
        pid = os.fork()
        if pid == 0:
            _work(order)
        print(json.dumps({"pid": pid}), flush=True)
        _, status = os.waitpid(pid, 0)
        print(json.dumps({"status": status}), flush=True)


def _work(order: dict[str, str]) -> None:
    """Do the job in this forked child and end it."""
    code = 1
    try:
        for number, name in ((0, os.devnull), (1, os.devnull), (2, order["errors"])):
            descriptor = os.open(name, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
            os.dup2(descriptor, number)
            os.close(descriptor)
        job = Job(order)
        job.wait()
        globals()[order["job"]](job)
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    serve()
