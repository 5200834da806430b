"""Exit codes, by their names and for people, and the error that stands for wrong arguments."""

from __future__ import annotations

DONE = 0
FINDINGS = 1
USAGE = 2
IO_ERROR = 74
KEPT = 75
NOT_CONFIGURED = 78
NOT_EXECUTABLE = 126
NOT_FOUND = 127
INTERRUPTED = 130

MEANINGS = {
    DONE: "done; also where nothing is to be done, or another program delivers just now",
    FINDINGS: "something is to be looked at: new dead letters (`flush`), findings (`doctor`), no such message (`show`, "
    "`retry`), a loss (`demo`)",
    USAGE: "wrong usage; also where `--yes` is missing, or there are several outboxes and no `--app`",
    IO_ERROR: "the output could not be written, or a file not be read",
    KEPT: "kept for later, try again: the receiver cannot be reached, or somebody is in the way",
    NOT_CONFIGURED: "held, not configured, damaged or unusable: somebody must put something right first",
    NOT_EXECUTABLE: "`run`: the program cannot be run",
    NOT_FOUND: "`run`: there is no such program; else `run` ends as the program does",
    INTERRUPTED: "interrupted (Ctrl-C)",
}
"""What each code means, for the README and the help."""


class UsageError(Exception):
    """Arguments that do not go together, or do not say enough; the text says which."""


class Unfinished(Exception):
    """What was begun is not done; the text says what holds by now, and what to do, *code* is the exit code."""

    def __init__(self, text: str, code: int) -> None:
        super().__init__(text)
        self.code = code
