"""The command line. `main` finds the command in `COMMANDS` and loads only that one's module.

A command's module has ``HELP`` (its description), ``add_arguments(parser)`` and ``run(arguments) -> int``.
"""

from __future__ import annotations

import sys
from importlib import import_module

from outtray.cli import output
from outtray.cli.exits import (
    DONE,
    INTERRUPTED,
    IO_ERROR,
    KEPT,
    MEANINGS,
    NOT_CONFIGURED,
    USAGE,
    Unfinished,
    UsageError,
)
from outtray.cli.output import say
from outtray.cli.words import plain
from outtray.errors import OutboxBusy, OutboxDamaged, OutboxError, SettingsError

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence
    from types import ModuleType

COMMANDS = {
    "flush": ("outtray.cli.flush", "deliver what waits, of every outbox of this user or of one"),
    "status": ("outtray.cli.status", "say what waits, and why"),
    "list": ("outtray.cli.listing", "list messages, newest first"),
    "show": ("outtray.cli.show", "show one message and what became of it"),
    "where": ("outtray.cli.where", "say where the outbox and the config file lie"),
    "retry": ("outtray.cli.retry", "make dead messages pending again"),
    "purge": ("outtray.cli.purge", "delete messages; delivered ones if nothing else is said"),
    "doctor": ("outtray.cli.doctor", "examine outboxes, and bring back what a damaged file still holds"),
    "consent": ("outtray.cli.consent", "say what is recorded and sent, and choose: on, local or off"),
    "forget": ("outtray.cli.forget", "erase the client id and all messages"),
    "run": ("outtray.cli.run", "run a program that knows nothing of outtray with a bridge installed"),
    "demo": ("outtray.cli.demo", "the whole story in less than a minute, against a server of its own"),
}
"""Name to module and one line of help."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command that *argv* (by default the process's own arguments) names and return its exit code."""
    output.prepare()
    words = list(sys.argv[1:] if argv is None else argv)
    code = DONE
    try:
        code = _run(words)
        output.finish()
    except BrokenPipeError:
        output.give_up()  # the reader had enough, as in `| head`
    except KeyboardInterrupt:
        output.give_up()
        say("outtray: interrupted; what was not delivered yet is kept")
        code = INTERRUPTED
    except SettingsError as error:
        say(f"outtray: {error}")
        code = NOT_CONFIGURED
    except Unfinished as error:
        say(f"outtray: {error}")
        code = error.code
    except OutboxBusy as error:
        say(f"outtray: {error}; try again")
        code = KEPT
    except OutboxDamaged as error:
        say(f"outtray: {error}; `outtray doctor` says more")
        code = NOT_CONFIGURED
    except OutboxError as error:
        say(f"outtray: {error}; what is stored is kept: put that right and try again")
        code = NOT_CONFIGURED
    except OSError as error:
        output.give_up()
        say(f"outtray: could not read or write: {error}; all that waits is kept")
        code = IO_ERROR
    return code


def _run(words: list[str]) -> int:
    try:
        if not words or words[0] not in COMMANDS:
            return _without_command(words)
        module = import_module(COMMANDS[words[0]][0])
        arguments = plain(module.add_arguments, words[1:]) or _command_parser(words[0], module).parse_args(words[1:])
    except SystemExit as request:  # argparse has said what there is to say
        return request.code if isinstance(request.code, int) else USAGE
    try:
        code: int = module.run(arguments)
    except UsageError as error:
        parser = _command_parser(words[0], module)
        say(f"{parser.format_usage()}{parser.prog}: error: {error}")
        return USAGE
    return code


def _command_parser(name: str, module: ModuleType) -> argparse.ArgumentParser:
    import argparse

    parser = argparse.ArgumentParser(
        prog=f"outtray {name}",
        description=module.HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    module.add_arguments(parser)
    return parser


def _without_command(words: list[str]) -> int:
    """Do what can be done without a command: help, version, or saying what is missing."""
    import argparse

    import outtray

    width = max(map(len, COMMANDS))
    commands = "\n".join(f"  {name:{width}}  {text}" for name, (_, text) in COMMANDS.items())
    codes = "\n".join(f"  {code:3}  {text}" for code, text in MEANINGS.items())
    parser = argparse.ArgumentParser(
        prog="outtray",
        usage="%(prog)s COMMAND [options]",
        description=f"A durable, offline-first out-tray for events.\n\ncommands:\n{commands}",
        epilog=f"exit codes:\n{codes}\n\n`outtray COMMAND --help` describes a command.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"outtray {outtray.__version__}")
    _, rest = parser.parse_known_args(words)
    if not rest:
        parser.error(f"a command is missing: {', '.join(COMMANDS)}")
    parser.error(f"unknown command {rest[0]!r}; known are {', '.join(COMMANDS)}")
