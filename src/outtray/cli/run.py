"""`python -m outtray run -- PROGRAM ARGUMENT…`: a program that knows nothing of outtray, with the bridges installed."""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import subprocess
import sys

from outtray import bridges
from outtray.cli.arguments import destination, setting
from outtray.cli.exits import NOT_EXECUTABLE, NOT_FOUND, UsageError
from outtray.cli.output import say

HELP = """Run a program that knows nothing of outtray with a bridge installed: ZenML's own analytics go to the outbox.

The Python programs that it starts have the bridge too; `python -E` and `python -I` do not. The exit code is the
program's own, 127 if there is no such program, 126 if it cannot be run."""

AUTOLOAD = os.path.join(os.path.dirname(os.path.abspath(bridges.__file__)), "autoload")
"""The folder whose `sitecustomize` installs the bridges in each Python that has it on its path."""

APP = "zenml"
"""Application of the program's messages where nobody names one."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.usage = "%(prog)s [--app NAME] [--url URL] [--destination NAME] -- PROGRAM [ARGUMENT ...]"
    parser.add_argument(
        "--app", type=setting("app"), metavar="NAME", help=f"application of its messages; else OUTTRAY_APP, or {APP!r}"
    )
    parser.add_argument("--url", type=setting("url"), help="where they go; else OUTTRAY_URL; without one they wait")
    parser.add_argument(
        "--destination",
        type=destination,
        metavar="NAME",
        help="wire format of the receiver; else OUTTRAY_DESTINATION",
    )
    parser.add_argument("program", nargs=argparse.REMAINDER, metavar="-- PROGRAM [ARGUMENT ...]", help="what to run")


def run(arguments: argparse.Namespace) -> int:
    """Become the program; return an exit code where that failed, and on Windows the program's. Raises UsageError."""
    program = arguments.program[1:] if arguments.program[:1] == ["--"] else arguments.program
    if not program:
        raise UsageError("no program is named behind --")
    environment = _environment(arguments)
    try:
        return _start(program, environment)
    except (FileNotFoundError, NotADirectoryError):
        say(f"outtray: there is no program {program[0]!r} (or its #! line names none); nothing was run")
        return NOT_FOUND
    except OSError as error:
        say(f"outtray: {program[0]!r} cannot be run: {error.strerror}")
        return NOT_EXECUTABLE


def _environment(arguments: argparse.Namespace) -> dict[str, str]:
    """Return the program's environment."""
    environment = {**os.environ, "PYTHONPATH": _path(os.environ.get("PYTHONPATH", ""))}
    environment["OUTTRAY_APP"] = environment.get("OUTTRAY_APP") or APP
    for name in ("app", "url", "destination"):
        value = getattr(arguments, name)
        if value is not None:
            environment[f"OUTTRAY_{name.upper()}"] = value
    return environment


def _path(given: str) -> str:
    # An empty entry is the working directory to Python, an empty PYTHONPATH is none: neither may become the other.
    others = [entry for entry in given.split(os.pathsep) if entry != AUTOLOAD] if given else []
    return os.pathsep.join([AUTOLOAD, *others])


def _start(program: list[str], environment: dict[str, str]) -> int:
    """Replace this process with *program*; on Windows, which cannot, run it and return its exit code."""
    if sys.platform != "win32":
        sys.stdout.flush()
        sys.stderr.flush()
        # Python ignores these two from its start on, and what is ignored stays so in the program.
        before = {number: signal.signal(number, signal.SIG_DFL) for number in (signal.SIGPIPE, signal.SIGXFSZ)}
        try:
            os.execvpe(program[0], program, environment)
        finally:  # there is no such program, and this one goes on
            for number, handler in before.items():
                signal.signal(number, handler)
    process = subprocess.Popen([shutil.which(program[0]) or program[0], *program[1:]], env=environment)
    while True:
        try:
            return process.wait()
        except KeyboardInterrupt:
            continue  # the program got it as well, and decides what it means
