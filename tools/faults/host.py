"""The host's side of the programs that harnesses run: track, and write down what the call said, where no fault reaches.

Run with FAULTS_PLAIN set, the same program does all it does but use outtray: what it prints and how it ends is what
outtray must not change.
"""

from __future__ import annotations

import faulthandler
import os
import signal
import sys
from typing import Any

PLAIN = "FAULTS_PLAIN" in os.environ

_record = os.open(os.environ["FAULTS_RECORD"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)

# A harness that has waited too long asks every process where it stands, before it ends them.
faulthandler.register(signal.SIGUSR1, all_threads=True, chain=False)


def configure(**options: Any) -> None:
    """Configure outtray; what is not given comes from the environment that the harness made."""
    if not PLAIN:
        import outtray

        outtray.configure(**options)


def track(event: str = "event", **properties: Any) -> bool:
    """Track one event and write down before it that it is tried, and after it what the call said."""
    if PLAIN:
        return True
    import outtray

    message_id, pid = os.urandom(16).hex(), os.getpid()
    note("tried", message_id)
    taken = outtray.track(event, properties, message_id=message_id)
    # Forked in the middle of the call, by a signal handler, there are two processes that end it.
    if taken or os.getpid() == pid:
        note("accepted" if taken else "refused", message_id)
    return taken


def track_some(number: int, event: str = "event") -> bool:
    """Track *number* events; True if all were taken."""
    taken = [track(event, number=each, pid=os.getpid()) for each in range(number)]
    return all(taken)


def note(word: str, message_id: str) -> None:
    """Append one line to the record: short enough that lines of several processes never mix."""
    os.write(_record, f"{word} {message_id}\n".encode())


def flush(timeout: float = 20.0) -> bool:
    """Wait until what was tracked is settled and tell whether it is."""
    if PLAIN:
        return True
    import outtray

    return outtray.flush(timeout).settled


def status() -> None:
    """Ask what `status` shows."""
    if not PLAIN:
        import outtray

        outtray.status()


def close() -> None:
    """Close the default tray, which waits for an answer on its way."""
    if not PLAIN:
        import outtray

        outtray.tray.default_tray.close()


def say(line: str) -> None:
    """Tell the harness something."""
    print(line, flush=True)


def wait_for_go() -> None:
    """Wait until the harness says so."""
    sys.stdin.readline()
