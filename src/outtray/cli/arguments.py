"""Options that several commands share, and how their values are read; a wrong one is a usage error."""

from __future__ import annotations

import argparse
import math
import re
import time
from typing import TYPE_CHECKING, Any

from outtray.errors import SettingsError
from outtray.options import OPTIONS, checked

if TYPE_CHECKING:
    from collections.abc import Callable

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
    option = next(option for option in OPTIONS if option.name == name)

    def read(raw: str) -> Any:
        try:
            return checked(option, raw)
        except SettingsError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return read


def destination(raw: str) -> str:
    """Read the name of a destination that exists."""
    from outtray import destinations

    try:
        destinations.place(raw)
    except SettingsError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return raw


def text(raw: str) -> str:
    """Read any text that can be stored: bytes of the command line that are no UTF-8 cannot."""
    try:
        raw.encode()
    except UnicodeEncodeError:
        raise argparse.ArgumentTypeError(f"{raw!r} is not valid text") from None
    return raw


def count(raw: str) -> int:
    """Read a whole number of at least 1."""
    if not (raw.isascii() and raw.isdecimal() and 0 < len(raw) < 19 and int(raw) > 0):
        raise argparse.ArgumentTypeError(f"{raw!r} is not a whole number of at least 1")
    return int(raw)


def seconds(raw: str) -> float:
    """Read a duration in seconds."""
    try:
        value = float(raw)
    except ValueError:
        value = -1.0
    if not (value >= 0 and math.isfinite(value)):
        raise argparse.ArgumentTypeError(f"{raw!r} is not a number of seconds, such as 60 or 0.5")
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
        raise argparse.ArgumentTypeError(
            f"{raw!r} is neither an ISO time, such as 2025-06-01T12:00, nor an age, such as 90s, 30m, 2h, 7d, 1w"
        ) from None
