"""Exit codes, by their names, and the error that stands for wrong arguments."""

from __future__ import annotations

DONE = 0
FINDINGS = 1
"""New dead letters, findings of an examination, or no such message."""
USAGE = 2
IO_ERROR = 74
"""The output could not be written, or a file not read."""
KEPT = 75
"""Kept for later."""
NOT_CONFIGURED = 78
"""Held or not configured: something must be put right first."""
INTERRUPTED = 130


class UsageError(Exception):
    """Arguments that do not go together, or do not say enough; the text says which."""
