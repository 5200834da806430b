"""What an examination found: a line for each check, and what is wrong with what to do about it. Nothing is changed."""

from __future__ import annotations

import os

from outtray.errors import OutboxError
from outtray.outbox.files import gate_path, newest_generation
from outtray.outbox.gate import Header

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from outtray.settings import Settings

NOT_EXAMINED = "not examined: "
"""Begins the line of a check that could not be made; the finding of another check says why."""


class Examination:
    """Checks of one outbox, as they are made.

    *says* has a line for each check, *findings* what can be acted on, as dicts of `check`, `text` and `do`. *header*
    is the gate's, None where there is none, or none that can be read: then *no_header* says why. *generation* is the
    one in use.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.directory = settings.directory
        self.says: dict[str, str] = {}
        self.findings: list[dict[str, str]] = []
        self.generation = 0
        self.header: Header | None = None
        self.no_header = ""
        self._check = ""
        try:
            self.generation = newest_generation(self.directory)
            self.header = _header(self.directory)
        except (OSError, OutboxError) as error:
            self.no_header = str(error)
        if self.header is not None:
            self.generation = self.header.generation

    def run(self, checks: dict[str, Callable[[], str]]) -> None:
        """Make *checks*, by name; each returns its line. One that fails is a finding, and the others are made."""
        for self._check, check in checks.items():
            try:
                self.says[self._check] = check()
            except (OSError, OutboxError) as error:
                self.says[self._check] = "could not be examined"
                self.find(str(error), "put that right and run this again")

    def find(self, text: str, do: str) -> None:
        """Note what the check that is being made found wrong."""
        self.findings.append({"check": self._check, "text": text, "do": do})

    def to_dict(self) -> dict[str, Any]:
        """Return what `doctor --json` prints."""
        return {
            "app": self.settings.app,
            "directory": self.directory,
            "findings": self.findings,
            "checks": self.says,
        }


def _header(directory: str) -> Header | None:
    path = gate_path(directory)
    if not os.path.isfile(path):
        return None
    with open(path, "rb") as file:
        return Header.from_bytes(file.read(Header.SIZE))
