"""`outtray where`: where an outbox and the config file lie."""

from __future__ import annotations

import os

from outtray.cli import outboxes
from outtray.cli.arguments import add_json_argument, add_outbox_arguments
from outtray.cli.exits import DONE
from outtray.cli.output import say, size_text, write, write_json
from outtray.errors import OutboxError
from outtray.outbox.files import has_outbox
from outtray.paths import config_path
from outtray.settings import resolve

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    from typing import Any

    from outtray.settings import Settings

HELP = """Say where an outbox and the config file lie, which files there are, and whether they exist."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    add_outbox_arguments(parser)
    add_json_argument(parser, "one JSON object")


def run(arguments: argparse.Namespace) -> int:
    """Print the places. Returns the exit code; raises OSError, UsageError."""
    try:
        settings = outboxes.the_one(arguments)
    except OutboxError as error:
        say(f"outtray: {error}")
        settings = resolve({"app": arguments.app, "dir": arguments.dir})
    found = _places(settings)
    if arguments.json:
        write_json(found)
        return DONE
    write(f"app        {found['app']}")
    write(f"directory  {found['directory']}{'' if found['exists'] else ' (no outbox yet)'}")
    for file in found["files"]:
        write(f"file       {file['path']} ({size_text(file['bytes'])})")
    config = found["config"]
    write(f"config     {config['path']}{'' if config['exists'] else ' (not there)'}")
    return DONE


def _places(settings: Settings) -> dict[str, Any]:
    return {
        "app": settings.app,
        "dir": settings.dir,
        "directory": settings.directory,
        "exists": has_outbox(settings.directory),
        "files": _files(settings.directory),
        "config": {"path": config_path(), "exists": os.path.exists(config_path())},
    }


def _files(directory: str) -> list[dict[str, Any]]:
    if not os.path.isdir(directory):
        return []
    with os.scandir(directory) as entries:
        files = [
            {"path": entry.path, "bytes": entry.stat(follow_symlinks=False).st_size}
            for entry in entries
            if entry.is_file(follow_symlinks=False)
        ]
    return sorted(files, key=lambda file: str(file["path"]))
