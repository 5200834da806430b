"""`outtray demo`: the whole story, told with the real program against a server of its own."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time

import outtray
from outtray.cli.exits import DONE, FINDINGS, KEPT
from outtray.cli.output import write
from outtray.testing import FakeServer

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    from collections.abc import Mapping

HELP = """The whole story in less than a minute: events while the receiver is down, a look, the receiver comes back,
a flush, a look again. It happens in a temporary folder, of which nothing is left."""

EVENTS = 3_000

PROGRAM = """
import os, signal, sys
import outtray

outtray.configure(app="demo", url=sys.argv[1], flush="manual")
accepted = sum(outtray.track("Demo event", {"number": number}) for number in range(int(sys.argv[2])))
print(accepted, flush=True)
os.kill(os.getpid(), getattr(signal, "SIGKILL", signal.SIGTERM))
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments: there are none."""


def run(arguments: argparse.Namespace) -> int:
    """Tell the story. Returns the exit code, 1 if a message was lost or came twice; raises OSError."""
    with tempfile.TemporaryDirectory(prefix="outtray-demo-") as folder, FakeServer() as server:
        return _Story(server, folder).tell()


class _Story:
    """The acts of the demo, with the receiver and the environment of its processes."""

    def __init__(self, server: FakeServer, folder: str) -> None:
        self._server = server
        self._environment = _clean(os.environ, folder)
        self._started = time.monotonic()

    def tell(self) -> int:
        self._server.set_mode("refuse")
        self._tell(f"A program tracks {EVENTS:,} events. Nobody answers at {self._server.url}.")
        began = time.monotonic()
        accepted = self._track()
        took = time.monotonic() - began
        write(f"  accepted: {accepted} of {EVENTS} in {took:.1f} s, and the program was killed after the last one")
        self._tell("Cron comes by: silent while the receiver is down for less than a day. 75: kept for later.")
        offline = self._command("flush") == KEPT
        self._tell("What waits, and why?")
        self._command("status")
        self._command("list", "--limit", "3")
        self._tell("The receiver comes back. So does cron; --all: do not heed the wait.")
        self._server.set_mode("ok", delay=0.1)
        flushed = self._command("flush", "--all", "--max-time", "30") == DONE
        self._tell("And now?")
        self._command("status")
        return self._end(accepted, all_as_told=offline and flushed)

    def _track(self) -> int:
        """Track in a process that is killed with the last event, and return how many it had accepted."""
        command = [sys.executable, "-c", PROGRAM, self._server.url, str(EVENTS)]
        done = subprocess.run(command, env=self._environment, stdout=subprocess.PIPE, text=True, check=False)
        return int(done.stdout or 0)

    def _command(self, *words: str) -> int:
        write(f"$ outtray {' '.join(words)}")
        sys.stdout.flush()
        command = [sys.executable, "-m", "outtray", *words]
        code = subprocess.run(command, env=self._environment, check=False).returncode
        if words[0] == "flush":
            write(f"  exit code {code}")
        return code

    def _tell(self, text: str) -> None:
        write()
        write(f"[{time.monotonic() - self._started:4.1f} s] {text}")
        sys.stdout.flush()

    def _end(self, accepted: int, *, all_as_told: bool) -> int:
        received, repeats = len(self._server.received), sum(self._server.repeats.values())
        write()
        write(f"received {received} of {accepted}, {repeats} repeats")
        is_right = all_as_told and received == accepted == EVENTS and not repeats
        return DONE if is_right else FINDINGS


def _clean(environ: Mapping[str, str], folder: str) -> dict[str, str]:
    """Return the environment for the story's processes: this one's, but for what would lead them elsewhere."""
    kept = {
        name: value for name, value in environ.items() if not name.startswith("OUTTRAY_") and name != "DO_NOT_TRACK"
    }
    package = os.path.dirname(os.path.dirname(os.path.abspath(outtray.__file__)))
    paths = [package, *(os.path.abspath(path) for path in environ.get("PYTHONPATH", "").split(os.pathsep) if path)]
    return {
        **kept,
        "OUTTRAY_DIR": os.path.join(folder, "outboxes"),
        "XDG_CONFIG_HOME": folder,
        "PYTHONPATH": os.pathsep.join(paths),
        "NO_PROXY": "127.0.0.1",
        "no_proxy": "127.0.0.1",
    }
