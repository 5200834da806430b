"""Put bugs into a copy of the source, one at a time: a harness that does not see its bug proves nothing."""

from __future__ import annotations

import re
import shutil
import signal
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from faults.programs import ROOT
from faults.report import Report

PATIENCE = 900.0
"""Seconds for one bug: some make a harness wait for what does not come, as long as it waits for anything."""


@dataclass(frozen=True)
class Bug:
    """*old* text in *file* (below src/outtray) that becomes *new*, and the harness that must notice, run with *scope*.

    The *quick* ones make the quick slice.
    """

    name: str
    file: str
    old: str
    new: str
    harness: str
    scope: tuple[str, ...] = ()
    quick: bool = False


BUGS = (
    Bug(
        "no fsync in `power`",
        "outbox/sync.py",
        "        _fsync(descriptor)\n        if not self._is_entry_synced:",
        "        if not self._is_entry_synced:",
        "power_cut",
    ),
    Bug(
        "an id is given again",
        "outbox/opening.py",
        "header.last_id = max(header.last_id, highest)",
        "header.last_id = highest",
        "kill_points",
        ("--only", "append behind a lost row"),
    ),
    Bug(
        "an unclean restart is not counted",
        "outbox/opening.py",
        "if was_left_open and header.boot != boot_number() != 0:",
        "if False:",
        "power_cut",
    ),
    Bug(
        "settled before the answer",
        "delivery/drain.py",
        "        try:\n            status = self._deliver(self._destination, batch, timeout)",
        "        self._settle(batch, [], 200, 0.0)\n"
        "        try:\n            status = self._deliver(self._destination, batch, timeout)",
        "kill_points",
        ("--only", "postpone"),
        quick=True,
    ),
    Bug(
        "the header of the live file is sniffed",
        "outbox/store.py",
        "        frame = sys._getframe()\n        try:\n            self._enter(frame)\n            try:\n"
        "                id = self._append_as",
        "        frame = sys._getframe()\n        if self._path:\n            open(self._path, 'rb').close()\n"
        "        try:\n            self._enter(frame)\n            try:\n                id = self._append_as",
        "soak",
    ),
    Bug(
        "a forked child keeps the locks",
        "outbox/filelock.py",
        "    for lock in list(_all):\n        lock.is_inherited = True\n        lock.close()",
        "    return",
        "forks",
    ),
    Bug(
        "the identity of the file is not compared",
        "outbox/handle.py",
        "        if header.generation != self._generation:\n            return False\n",
        "        return header.generation == self._generation\n",
        "races",
        ("--only", "replaced by a copy"),
        quick=True,
    ),
    Bug(
        "redirects are followed",
        "request.py",
        "with adapter.send(",
        "with session.send(",
        "network",
        ("--only", "redirect"),
    ),
    Bug(
        "the header is written before the commit",
        "outbox/store.py",
        "        id = header.last_id + 1\n        try:",
        "        id = header.last_id = header.last_id + 1\n        self._gate.write(header)\n        try:",
        "kill_points",
        ("--only", "append"),
    ),
    Bug(
        "a settle does not look at generation and epoch",
        "outbox/store.py",
        "if not batch.is_of(transaction.header):",
        "if False:",
        "races",
        ("--only", "rm -rf"),
    ),
    Bug(
        "what was settled is brought back",
        "outbox/recovery.py",
        "else id > cursor\n",
        "else True\n",
        "bit_flips",
    ),
    Bug(
        "the reserve is never given back",
        "outbox/store.py",
        "if not self.give_back_reserve():",
        "if True:",
        "io_errors",
    ),
    Bug(
        "a withdrawal is not heeded by programs that run",
        "outbox/store.py",
        "if follows_choice and header.flags & CHOICE_BITS:",
        "if False:",
        "races",
        ("--only", "consent"),
    ),
    Bug(
        "checksums are not compared before sending",
        "outbox/records.py",
        "self.intact = found == crc or self.local",
        "self.intact = True",
        "bit_flips",
    ),
    Bug(
        "the checksums of messages read as one are not compared",
        "outbox/waiting.py",
        "len(bodies) == count and ",
        "len(bodies) == count or ",
        "bit_flips",
    ),
    Bug(
        "a child opens a file that crossed the fork once more",
        "outbox/connection.py",
        "if identity is not None and identity in",
        "if False and identity in",
        "forks",
        ("--only", "some points"),
    ),
    Bug(
        "a call that was forked in its middle goes on in the child",
        "outbox/handle.py",
        "            forbid_all(lock)\n",
        "            pass\n",
        "forks",
        ("--only", "each point of a track that opens"),
    ),
    Bug(
        "the file stays open across a fork",
        "outbox/shared.py",
        "forking.before.append(_before_fork)\n",
        "",
        "forks",
    ),
)


def run(*, whole: bool, only: str = "") -> Report:
    """Plant each bug, in the quick slice two, or those with *only* in their name, and see that it is caught."""
    report = Report("bugs", counts={"caught": 0})
    for bug in BUGS:
        if only in bug.name and (whole or bug.quick or only):
            _try(bug, report)
    return report


def _try(bug: Bug, report: Report) -> None:
    with tempfile.TemporaryDirectory(prefix="outtray-planted-") as name:
        copy = Path(name)
        for part in ("src", "tools"):
            shutil.copytree(ROOT / part, copy / part, ignore=shutil.ignore_patterns("__pycache__"))
        path = copy / "src" / "outtray" / bug.file
        text = path.read_text(encoding="utf-8")
        if text.count(bug.old) != 1:
            report.violated(f"{bug.name}: its text stands in {bug.file} {text.count(bug.old)} times, not once")
            return
        path.write_text(text.replace(bug.old, bug.new), encoding="utf-8")
        code, output = _run(copy, bug)
    if reason := re.search(r": not tried: (.*) \[", output):
        report.counts[f"{bug.name}: not tried"] = reason[1]
        return
    report.tried += 1
    if code == 1 and "\n  VIOLATION " in output:
        report.add("caught")
        report.add(f"by {bug.harness}")
    else:
        report.violated(f"{bug.name}: {bug.harness} does not notice it, and ends with {code}: {output[-600:].strip()}")


def _run(copy: Path, bug: Bug) -> tuple[int, str]:
    """Return exit code and output of the harness in *copy*; it ends its own programs when it is told to end."""
    command = [sys.executable, str(copy / "tools" / "faults"), bug.harness, *bug.scope]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        try:
            output, _ = process.communicate(timeout=PATIENCE)
        except BaseException as error:
            process.send_signal(signal.SIGTERM)
            output, _ = process.communicate()
            if not isinstance(error, subprocess.TimeoutExpired):
                raise
    return process.returncode, output
