"""What the commands print: data on stdout, words on stderr, and nothing in it that a terminal would obey."""

from __future__ import annotations

import errno
import json
import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from typing import Any, TextIO

_ALSO_PRINTED = "\u00a0\u200c\u200d\u3000"
"""Not printable by Python's word, but harmless in text: spaces, and the joiners in emoji, Persian and Hindi."""

_GAP = "  "

_unsaid: list[OSError] = []
"""Why words could not be printed."""


def prepare() -> None:
    """Put /dev/null where a standard stream is closed, or files opened later would take its number."""
    _unsaid.clear()
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number: this one


def finish() -> None:
    """Have all that was printed on its way. Raises OSError, also where words could not be printed."""
    if sys.stdout is not None:
        sys.stdout.flush()
    if _unsaid:
        raise _unsaid[0]


def give_up() -> None:
    """Drop what could not be written to stdout."""
    _drop(sys.stdout, sys.__stdout__)


def say(text: str) -> None:
    """Print words for people, on stderr. That they cannot be printed ends no work; `finish` tells of it."""
    if sys.stderr is None:
        return
    try:
        print("\n".join(map(printable, text.split("\n"))), file=sys.stderr, flush=True)
    except OSError as error:
        _unsaid.append(error)
        _drop(sys.stderr, sys.__stderr__)


def is_interactive() -> bool:
    """Tell whether somebody reads the words as they come: stderr is a terminal."""
    return sys.stderr is not None and sys.stderr.isatty()


def printable(text: str) -> str:
    r"""Return *text* with controls (C0, C1, bidirectional, invisible ones) as ``\x1b``, ``\u202e`` and the like."""
    if text.isprintable():
        return text
    return "".join(each if each.isprintable() or each in _ALSO_PRINTED else _escaped(each) for each in text)


def write(text: str = "") -> None:
    """Print one line of data."""
    _print(_encodable(printable(text)))


def write_json(value: Any) -> None:
    """Print *value* as JSON that is safe on a terminal."""
    _print(json_text(value))


def write_json_array(values: Iterable[Any]) -> None:
    """Print *values* as one JSON array, an element a line, as they come."""
    separator = "["
    for value in values:
        _print(f"{separator}\n{json_text(value, indent=None)}", end="")
        separator = ","
    _print("[]" if separator == "[" else "\n]")


def json_text(value: Any, *, indent: int | None = 2) -> str:
    """Return *value* as strict JSON in which no character is one that a terminal would obey."""
    text = json.dumps(value, indent=indent, ensure_ascii=not _is_unicode(), allow_nan=False)
    if text.isprintable():
        return text
    return "".join(
        each if each.isprintable() or each == "\n" or each in _ALSO_PRINTED else json.dumps(each)[1:-1].replace(
            "\x7f", "\\u007f"
        )
        for each in text
    )  # fmt: skip


def write_table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print left-aligned columns; on a terminal each line is cut to its width."""
    lines = [list(head), *([printable(cell) for cell in row] for row in rows)]
    widths = [max(_width(line[column]) for line in lines) for column in range(len(head))]
    limit = _columns()
    for line in lines:
        cells = [cell + " " * (width - _width(cell)) for cell, width in zip(line, widths, strict=True)]
        _print(_encodable(_cut(_GAP.join(cells).rstrip(), limit)))


def age_text(seconds: float) -> str:
    """Return a duration for people: "12 s", "3 min", "5 h", "2 d"."""
    for unit, size in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"


def size_text(size: int) -> str:
    """Return a number of bytes for people: "712 B", "40.0 KiB"."""
    value, units = float(size), ["B", "KiB", "MiB", "GiB", "TiB"]
    while value >= 1024 and len(units) > 1:
        value /= 1024
        units.pop(0)
    return f"{value:.0f} B" if units[0] == "B" else f"{value:.1f} {units[0]}"


def count_text(count: int, noun: str = "message") -> str:
    """Return "1 message", "2 messages"."""
    return f"{count} {noun}" + ("" if count == 1 else "s")


def _print(text: str, end: str = "\n") -> None:
    """Print data. Raises OSError, also where there is no stdout, of which `print` would say nothing."""
    if sys.stdout is None:
        raise OSError(errno.EBADF, "stdout is closed")
    print(text, end=end)


def _drop(stream: TextIO | None, standard: TextIO | None) -> None:
    """Have what could not be written go nowhere, or the interpreter tries again, and complains, as it ends."""
    if stream is None or stream is not standard:
        return
    descriptor = os.open(os.devnull, os.O_WRONLY)
    os.dup2(descriptor, stream.fileno())
    os.close(descriptor)


def _escaped(character: str) -> str:
    number = ord(character)
    return f"\\x{number:02x}" if number < 256 else f"\\u{number:04x}" if number < 65_536 else f"\\U{number:08x}"


def _is_unicode() -> bool:
    return sys.stdout is None or (sys.stdout.encoding or "").lower().replace("-", "").startswith("utf")


def _encodable(text: str) -> str:
    """Return *text* with escapes for what stdout's encoding does not have."""
    if _is_unicode():
        return text
    return text.encode(sys.stdout.encoding, "backslashreplace").decode(sys.stdout.encoding)


def _columns() -> int | None:
    """Return the width of the terminal that stdout is, None if it is none."""
    if sys.stdout is None or not sys.stdout.isatty():
        return None
    import shutil

    return shutil.get_terminal_size().columns


def _width(text: str) -> int:
    """Return the columns that *text* takes on a terminal."""
    return len(text) if text.isascii() else sum(map(_character_width, text))


def _character_width(character: str) -> int:
    import unicodedata

    if unicodedata.combining(character) or unicodedata.category(character) in ("Mn", "Me", "Cf"):
        return 0
    return 2 if unicodedata.east_asian_width(character) in ("W", "F") else 1


def _cut(text: str, limit: int | None) -> str:
    if limit is None or _width(text) <= limit:
        return text
    kept = ""
    for character in text:
        if _width(kept) + _character_width(character) >= limit:
            break
        kept += character
    return f"{kept}…" if _is_unicode() else f"{kept}~"
