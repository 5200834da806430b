"""Options that several commands share, and how their values are read; a wrong one is a usage error."""

from __future__ import annotations

import re
import time

from outtray.errors import SettingsError
from outtray.options import checked, named

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable
    from typing import Any

_UNITS = {"s": 1, "m": 60, "h": 3_600, "d": 86_400, "w": 604_800}


def add_outbox_arguments(parser: argparse.ArgumentParser) -> None:
    """Add --app and --dir, which choose the outbox."""
    parser.add_argument("--app", type=setting("app"), help="the application whose outbox is meant")
    parser.add_argument("--dir", type=setting("dir"), help="the folder that holds the outboxes (OUTTRAY_DIR)")


def add_json_argument(parser: argparse.ArgumentParser, shape: str) -> None:
    """Add --json, which prints *shape*."""
    parser.add_argument("--json", action="store_true", help=f"print {shape}")


def setting(name: str) -> Callable[[str], Any]:
    """Return the reader of the option *name* of `outtray.options`."""
    option = named(name)

    def read(raw: str) -> Any:
        try:
            return checked(option, raw)
        except SettingsError as error:
            raise _wrong(str(error)) from None

    return read


def destination(raw: str) -> str:
    """Read the name of a destination that exists."""
    from outtray import destinations

    try:
        destinations.place(raw)
    except SettingsError as error:
        raise _wrong(str(error)) from None
    return raw


def text(raw: str) -> str:
    """Read any text that can be stored: bytes of the command line that are no UTF-8 cannot."""
    try:
        raw.encode()
    except UnicodeEncodeError:
        raise _wrong(f"{raw!r} is not valid text") from None
    return raw


def count(raw: str) -> int:
    """Read a whole number of at least 1."""
    if not (raw.isascii() and raw.isdecimal() and 0 < len(raw) < 19 and int(raw) > 0):
        raise _wrong(f"{raw!r} is not a whole number of at least 1")
    return int(raw)


def seconds(raw: str) -> float:
    """Read a duration in seconds."""
    try:
        value = float(raw)
    except ValueError:
        value = -1.0
    if not 0 <= value < float("inf"):
        raise _wrong(f"{raw!r} is not a number of seconds, such as 60 or 0.5")
    return value


def moment(raw: str) -> float:
    """Read a moment, as an ISO time (local, where it names no zone) or an age such as 90s, 2h, 7d; Unix seconds."""
    age = re.fullmatch(r"(\d{1,9}(?:\.\d{1,9})?)([smhdw])", raw, re.ASCII)
    if age:
        return time.time() - float(age[1]) * _UNITS[age[2]]
    from datetime import datetime

    try:
        return datetime.fromisoformat(raw).timestamp()
    except (ValueError, OverflowError, OSError):
        raise _wrong(
            f"{raw!r} is neither an ISO time, such as 2025-06-01T12:00, nor an age, such as 90s, 30m, 2h, 7d, 1w"
        ) from None


def _wrong(text: str) -> Exception:
    """Return what tells the parser that a value cannot be right, and why."""
    from argparse import ArgumentTypeError

    return ArgumentTypeError(text)
