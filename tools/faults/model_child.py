"""Processes on demand: `model_child.py SOCKET` forks one that uses the outbox for each connection to SOCKET.

A forked process says its process id, then takes one order after the other: a JSON object a line, with "do" naming
one of `ORDERS` and the rest being its arguments. Each is answered with JSON objects, the last of them with "done".
Python and its modules are loaded once, so that a process that is killed costs milliseconds and not half a second.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import select
import signal
import socket
import sys
import time
import traceback
from typing import Any

import requests  # noqa: F401 - loaded before the forks, for their sake

import outtray
from outtray import settings as settings_module
from outtray.cli import COMMANDS
from outtray.cli import main as command_line
from outtray.delivery.drain import Drain
from outtray.delivery.lock import DrainLock
from outtray.delivery.target import fingerprint
from outtray.outbox import shared, upkeep
from outtray.outbox.records import Mark
from outtray.outbox.store import Outbox
from outtray.tray import default_tray

DESTINATION = "zenml"


class Process:
    """What one process does; *say* sends an object back."""

    def __init__(self, say: Any) -> None:
        self._say = say
        self._options: dict[str, Any] = {}

    def configure(self, **options: Any) -> None:
        """Take the settings that all later orders go by."""
        self._options = options
        outtray.configure(**options)

    def track(self, messages: list[dict[str, str]], local: bool = False) -> None:
        """Track *messages*, and say of each whether it was taken before the next one begins."""
        if local:
            outtray.configure(**self._options, consent="local")
        for message in messages:
            taken = outtray.track("model", {"text": message["text"]}, message_id=message["message_id"])
            self._say({"message_id": message["message_id"], "taken": taken})
        if local:
            outtray.configure(**self._options)

    def drain(self, steps: int, heed_wait: bool, timeout: float) -> dict[str, Any]:
        """Do at most *steps* steps of one run; "wait" is what the last of them returned.

        *timeout* is the deadline of a request in seconds.
        """
        outtray.configure(**self._options, timeout=timeout)
        lock = DrainLock(self._outbox.directory)
        if not lock.try_acquire():
            raise RuntimeError(f"the drain lock is held by {lock.holder()}")
        try:
            drain = Drain(self._outbox, settings_module.current(), heed_wait=heed_wait)
            wait: float | None = 0.0
            with contextlib.closing(drain):
                while wait == 0.0 and steps:
                    wait = drain.step()
                    steps -= 1
        finally:
            lock.release()
        return {"wait": wait, "delivered": drain.delivered, "dead": drain.dead}

    def answer(self, states: list[str], moments: list[float]) -> dict[str, Any]:
        """Settle the next messages as a receiver with per-message answers would have it; say which they were.

        One state for each: "delivered", "dead" or "deferred", the last until the moment at the same place, in
        seconds from now.
        """
        batch = self._outbox.pending(DESTINATION, after_id=0, max_count=len(states), max_bytes=1 << 30)
        if batch is None:
            return {"answered": {}}
        answers = dict(zip(batch.messages, states, strict=False))
        marks = [
            Mark(message, state, status=200, reason="the receiver's answer", next_attempt_at=time.time() + moment)
            for (message, state), moment in zip(answers.items(), moments, strict=False)
            if state != "delivered"
        ]
        settled = self._outbox.settle(batch, marks, status=200, seconds=0.0)
        answered = {json.loads(message.body)["message_id"]: state for message, state in answers.items()}
        return {"answered": answered if settled else {}, "refused": not settled}

    def jump(self, seconds: float) -> None:
        """Store a wait that ends *seconds* from now, as one does that was stored before the clock was changed."""
        settings = settings_module.current()
        owner = fingerprint(self._outbox.meta("salt") or "", settings.url or "", settings.find_key())
        until = time.time() + seconds
        self._outbox.postpone(DESTINATION, until=until, reason="before the jump", fingerprint=owner)

    def purge(self, state: str) -> dict[str, Any]:
        """Purge all messages in *state*."""
        return {"removed": upkeep.purge(self._outbox, state=state, before=float("inf"))}

    def retry(self, ids: list[int] | None) -> dict[str, Any]:
        """Retry the dead messages *ids*, None for all."""
        return {"retried": upkeep.retry(self._outbox, DESTINATION, ids=ids)}

    def prune(self, retention: float) -> dict[str, Any]:
        """Remove delivered messages that are past *retention* seconds."""
        return {"removed": upkeep.prune(self._outbox, retention=retention)}

    def command(self, words: list[str]) -> dict[str, Any]:
        """Run the command line."""
        out, err = (io.TextIOWrapper(io.BytesIO(), encoding="utf-8", write_through=True) for _ in range(2))
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = command_line(words)
        return {"code": code, "err": err.buffer.getvalue().decode()}

    def commands(self) -> dict[str, Any]:
        """Say which commands there are."""
        return {"commands": list(COMMANDS)}

    def close(self) -> None:
        """Sync and close."""
        default_tray.close()

    @property
    def _outbox(self) -> Outbox:
        settings = settings_module.current()
        return shared.at(settings.directory, destination=DESTINATION, max_bytes=settings.max_bytes)


ORDERS = ("configure", "track", "drain", "answer", "jump", "purge", "retry", "prune", "command", "commands", "close")


def serve(connection: socket.socket) -> None:
    """Obey the orders that come over *connection* until it ends."""

    def say(answer: dict[str, Any]) -> None:
        connection.sendall(json.dumps(answer).encode() + b"\n")

    process = Process(say)
    say({"pid": os.getpid()})
    for line in connection.makefile("rb"):
        order = json.loads(line)
        name = order.pop("do")
        if name not in ORDERS:
            raise ValueError(f"no order {name}")
        try:
            result = getattr(process, name)(**order) or {}
        except Exception:  # the harness reports it as what the process died of
            result = {"error": traceback.format_exc()}
        say({**result, "done": True})


def main() -> None:
    """Fork until standard input ends, as it does with the harness."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the forked processes
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(sys.argv[1])
        listener.listen()
        print("ready", flush=True)
        while sys.stdin not in select.select([listener, sys.stdin], [], [])[0]:
            connection, _ = listener.accept()
            if os.fork() == 0:
                listener.close()
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                try:
                    serve(connection)
                except (BrokenPipeError, ConnectionResetError):
                    os._exit(0)  # the harness is done with this process
                except BaseException:
                    traceback.print_exc()
                    os._exit(1)
                os._exit(0)
            connection.close()


if __name__ == "__main__":
    main()
