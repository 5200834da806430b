"""Damages copies of an outbox, one for each line on stdin, uses each, and says what became of its messages.

    python bit_flips_child.py TEMPLATE SCRATCH < damages > verdicts

TEMPLATE holds the folder of the outbox and `messages`, what `bit_flips_scene.py` printed. Damages and verdicts are
lines of JSON, see `Damage` and `Verdict`.
"""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from contextlib import closing, redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from outtray import destinations, errors, settings
from outtray.cli import main
from outtray.delivery import backoff
from outtray.delivery.flush import flush
from outtray.outbox import look, shared
from outtray.outbox.files import database_path, newest_generation
from outtray.outbox.inspect import Unreadable, inspect
from outtray.outbox.records import Batch

DESTINATION = "kept"
TRIES = 3
"""Times that a refused call is made again before the refusal counts as lasting."""

FALSE_ALARMS = ("refused", "flush failed", "close failed", "repeats", "lost", "counted as lost", "marked damaged")
"""Counts of which none may be seen where nothing was damaged."""

FILES = {
    "db": "outbox-1-0.db",
    "wal": "outbox-1-0.db-wal",
    "shm": "outbox-1-0.db-shm",
    "gate": "outbox-1.gate",
}


@dataclass(frozen=True)
class Damage:
    """What is done to *file* (a key of `FILES`).

    *kind* is "bit" (number *place* is flipped), "zeros" (*size* bytes from *place* on), "cut" (to *place* bytes),
    "text", "other" (another SQLite file), "directory", "empty", "deleted", or "nothing": then nothing may be noticed.
    *flush_first* says whether the first to use it then is a drainer, and not somebody who appends.
    """

    file: str
    kind: str
    place: int = 0
    size: int = 0
    flush_first: bool = False

    def do(self, directory: Path) -> None:
        """Damage the outbox in *directory*."""
        path = directory / FILES[self.file]
        if self.kind in ("bit", "zeros"):
            with path.open("r+b") as file:
                file.seek(self.place // 8 if self.kind == "bit" else self.place)
                old = file.read(1 if self.kind == "bit" else self.size)
                file.seek(-len(old), os.SEEK_CUR)
                file.write(bytes([old[0] ^ 1 << self.place % 8]) if self.kind == "bit" else bytes(len(old)))
        elif self.kind == "cut":
            os.truncate(path, self.place)
        elif self.kind == "text":
            path.write_text("This is not what it was.\n" * 999)
        elif self.kind == "empty":
            path.write_bytes(b"")
        elif self.kind != "nothing":
            path.unlink()
            if self.kind == "directory":
                path.mkdir()
            elif self.kind == "other":
                with closing(sqlite3.connect(path)) as connection:
                    connection.execute("CREATE TABLE messages (something)")
                    connection.execute("INSERT INTO messages VALUES (1)")
                    connection.commit()


@dataclass
class Verdict:
    """*violations* are pairs of a class and words; *counts* what else was seen, by name."""

    violations: list[tuple[str, str]] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)

    def violated(self, kind: str, words: str) -> None:
        """Note one broken promise."""
        self.violations.append((kind, words))


class Kept:
    """The destination: takes all, and keeps the bodies in this process."""

    title = "a list in memory"
    bodies: ClassVar[list[bytes]] = []

    def __init__(self, settings: settings.Settings, key: str | None) -> None:
        del settings, key

    def deliver(self, batch: Batch, timeout: float, meanwhile: Callable[[], None]) -> int:
        """Keep the bodies and return the status of success."""
        del timeout
        meanwhile()
        self.bodies.extend(message.body for message in batch.messages)
        return 200

    def close(self) -> None:
        """Do nothing."""


class Use:
    """The use of one damaged outbox in *folder*, of which *messages* were accepted."""

    def __init__(self, folder: Path, messages: list[dict[str, Any]]) -> None:
        given = {"app": "a", "dir": str(folder), "destination": DESTINATION, "url": "http://127.0.0.1:9"}
        self._settings = settings.resolve(given, environ={})
        self._outbox = shared.at(str(folder / "a"), destination=DESTINATION, max_bytes=2**30)
        self._messages = list(messages)
        self._ids = {message["id"] for message in messages}
        self._fails = False
        self._folder = f"{folder}/"
        self.verdict = Verdict()

    def go(self, *, flush_first: bool) -> Verdict:
        """Use the outbox as a new process does."""
        Kept.bodies.clear()
        if not flush_first:
            self._append()
        self._flush()
        self._append()
        self._flush()
        self._close()
        self._judge()
        found = {kind: " ".join(words.replace(self._folder, "").split()) for kind, words in self.verdict.violations}
        self.verdict.violations = list(found.items())  # one of each kind
        return self.verdict

    def _append(self) -> None:
        name = f"new-{len(self._messages)}"
        body = json.dumps({"message_id": name, "text": "appended later"})
        for _ in range(TRIES):
            try:
                id = self._outbox.append(body, accepted_at=time.time())
            except errors.OutboxError as error:
                self.verdict.counts["refused"] += 1
                refusal = error
                continue
            except Exception as error:
                return self.verdict.violated("raised", f"append: {error!r}")
            if id in self._ids:
                self.verdict.violated("id given twice", f"{id}")
            self._ids.add(id)
            self._messages.append({"id": id, "message_id": name, "state": "waiting", "body": body})
            return None
        return self.verdict.violated("refused for ever", str(refusal))

    def _flush(self) -> None:
        for _ in range(TRIES):
            try:
                report = flush(self._outbox, self._settings, timeout=60.0)
            except Exception as error:
                self._fails = True

                return self.verdict.violated("raised", f"flush: {error!r}")
            if report.outcome == "drained":
                return None
            self.verdict.counts["flush failed"] += 1
        self._fails = True
        return self.verdict.violated("flush fails for ever", f"{report.outcome}: {report.reason}")

    def _close(self) -> None:
        try:
            self._outbox.close()
        except errors.OutboxError:
            self.verdict.counts["close failed"] += 1
        except Exception as error:
            self.verdict.violated("raised", f"close: {error!r}")
        shared._shared.clear()  # as in a new process

    # What became of the messages

    def _judge(self) -> None:
        bodies = Counter(Kept.bodies)
        missing = []
        for message in self._messages:
            state, times = message["state"], bodies.pop(message["body"].encode(), 0)
            if state == "local" and times:
                self.verdict.violated("sent what is local", message["message_id"])
            was_to_go = state not in ("local", "delivered", "dead")
            self.verdict.counts["repeats"] += max(times - was_to_go, 0)
            if state == "delivered":
                continue
            self.verdict.counts["messages"] += 1
            if times:
                self.verdict.counts["saved"] += 1
            else:
                missing.append(message)
        for body in bodies:
            self.verdict.violated("changed", body[:200].decode("utf-8", "replace"))
        if missing:
            self._judge_missing(missing)

    def require_unnoticed(self) -> None:
        """Note a violation if anything was noticed: the outbox was sound."""
        names = sorted(os.listdir(self._outbox.directory))
        databases = [name for name in names if name.endswith(".db")]
        noticed = {name: count for name, count in self.verdict.counts.items() if count and name in FALSE_ALARMS}
        if noticed or databases != [FILES["db"]]:
            self.verdict.violated("false alarm", f"{noticed}, and there are {', '.join(names)}")

    def _judge_missing(self, missing: list[dict[str, Any]]) -> None:
        """Judge what was not delivered: it is to be in the outbox, marked, counted, or seen by who looks.

        Damage that neither an append nor a flush has met may keep others from looking: they do as they are told then.
        """
        try:
            try:
                unaccounted, ledger = self._seen(missing)
            except errors.OutboxError:
                if self._fails:
                    self.verdict.counts["noticed: cannot be opened"] += 1
                    return None
                self._salvage()
                unaccounted, ledger = self._seen(missing)
                self.verdict.counts["noticed: looked at after doctor --salvage"] += 1
        except errors.OutboxError as error:
            return self.verdict.violated("cannot be looked at", str(error))
        except Exception as error:
            return self.verdict.violated("raised", f"look: {error!r}")
        lost = ledger.get("lost", 0)
        if lost < 0:
            self.verdict.violated("ledger below zero", f"lost {lost}")
        self.verdict.counts["counted as lost"] += lost
        self.verdict.counts["lost"] += len(unaccounted)
        if len(unaccounted) <= lost:
            return None
        if ledger.get("lost_unknown"):
            self.verdict.counts["counted as lost, number unknown"] += 1
        elif self._fails:
            self.verdict.counts["noticed: flush fails"] += 1
        elif self._is_seen():
            self.verdict.counts["noticed by inspection only"] += 1
        else:
            words = "; ".join(unaccounted[:5]) + (f" and {len(unaccounted) - 5} more" if len(unaccounted) > 5 else "")
            self.verdict.violated("unnoticed", f"{words}; the ledger counts {lost} as lost")
        return None

    def _seen(self, missing: list[dict[str, Any]]) -> tuple[list[str], dict[str, int]]:
        """Return what is wrong with the messages, and the ledger. Raises OutboxError where nobody can look at them."""
        counts = self.verdict.counts.copy()
        unaccounted = []
        try:
            with look.look(self._outbox.directory) as view:
                for message in missing:
                    what = self._fate(message, view.find(message["id"]))
                    if what:
                        unaccounted.append(f"{message['message_id']} ({message['state']}): {what}")
                return unaccounted, view.ledger()
        except errors.OutboxError:
            self.verdict.counts = counts
            raise

    def _salvage(self) -> None:
        """Do what whoever cannot look at the outbox is told to do."""
        with open(os.devnull, "w", encoding="utf-8") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):
            main(["doctor", "--salvage", "--dir", self._settings.dir, "--app", self._settings.app])

    def _fate(self, message: dict[str, Any], found: list[look.StoredMessage]) -> str:
        """Return what is wrong with a message that was not delivered, "" if it is as it should be, or marked."""
        stored = next((each for each in found if each.destination == DESTINATION), None)
        if stored is None:
            return "gone"
        if stored.state == "dead" and (stored.reason or "").startswith("damaged"):
            self.verdict.counts["marked damaged"] += 1
            return ""
        if stored.body != message["body"]:
            return f"changed in the outbox, and {stored.state}"
        expected = {"waiting": (), "retry": (), "retry in the WAL": ("dead",)}.get(
            message["state"], (message["state"],)
        )
        if stored.state not in expected and not (self._fails and stored.state == "pending"):
            return f"now {stored.state}"
        if stored.state == "deferred" and not (stored.next_attempt_at or 0) < time.time() + backoff.LONGEST_WAIT:
            return f"deferred until {stored.next_attempt_at}"
        self.verdict.counts["saved"] += 1
        return ""

    def _is_seen(self) -> bool:
        """Tell whether a look at the file in use finds it damaged: in files before it, all was saved or counted."""
        directory = self._outbox.directory
        try:
            return bool(inspect(database_path(directory, newest_generation(directory)))["problems"])
        except Unreadable:
            return True
        except Exception as error:
            self.verdict.violated("raised", f"inspect: {error!r}")
            return True


def _copy(source: str, target: str) -> None:
    """Copy a file, but for the reserve: nobody looks into that, and the copies share it."""
    if source.endswith(".reserve"):
        os.link(source, target)
    else:
        shutil.copyfile(source, target)


def use_each() -> None:
    template, scratch = Path(sys.argv[1]), Path(sys.argv[2])
    tempfile.tempdir = str(scratch)
    destinations.DESTINATIONS[DESTINATION] = f"{__name__}:{Kept.__name__}"
    messages = [json.loads(line) for line in (template / "messages").read_text("utf-8").splitlines()]
    for line in sys.stdin:
        damage = Damage(**json.loads(line))
        with tempfile.TemporaryDirectory() as folder:
            shutil.copytree(template / "a", Path(folder, "a"), copy_function=_copy)
            damage.do(Path(folder, "a"))
            use = Use(Path(folder), messages)
            verdict = use.go(flush_first=damage.flush_first)
            if damage.kind == "nothing":
                use.require_unnoticed()
        print(json.dumps(vars(verdict)), flush=True)


if __name__ == "__main__":
    use_each()
