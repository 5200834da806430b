"""Which mode answers: the options of a mode are read and checked here, and its turns are counted."""

from __future__ import annotations

import json
import math
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from outtray.testing.modes import COMMON_OPTIONS, MODES, Batch, Mode, Reply, answer_status


def _whole(value: Any) -> int:
    number = int(str(value))
    if number < 1:
        raise ValueError
    return number


def _seconds(value: Any) -> float:
    number = float(str(value))
    if not (math.isfinite(number) and number >= 0):
        raise ValueError
    return number


def _http_status(value: Any) -> int:
    number = int(str(value))
    if not 200 <= number <= 599:
        raise ValueError
    return number


def _http_statuses(value: Any) -> tuple[int, ...]:
    listed = value.split(",") if isinstance(value, str) else tuple(value)
    if not listed:
        raise ValueError
    return tuple(_http_status(each) for each in listed)


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _header(value: Any) -> str:
    text = str(value)
    if not (text.isascii() and text.isprintable()):
        raise ValueError
    return text


# What an option's value is made of, whether it comes as a Python value, from JSON or as text, and in words.
_READERS: dict[str, tuple[Callable[[Any], Any], str]] = {
    "body": (_text, "text, or a value to be sent as JSON"),
    "content_type": (_header, "printable ASCII"),
    "count": (_whole, "a whole number from 1"),
    "delay": (_seconds, "seconds from 0"),
    "for_seconds": (_seconds, "seconds from 0"),
    "header_bytes": (_whole, "a whole number from 1"),
    "interval": (_seconds, "seconds from 0"),
    "location": (_header, "printable ASCII"),
    "marker": (str, "text"),
    "max_bytes": (_whole, "a whole number from 1"),
    "retry_after": (_header, "seconds or an HTTP date"),
    "status": (_http_status, "an HTTP status from 200 to 599"),
    "statuses": (_http_statuses, "HTTP statuses from 200 to 599, a list or separated by commas"),
    "times": (_whole, "a whole number from 1"),
    "unpacked_bytes": (_whole, "a whole number from 1"),
}


def _read(option: str, value: Any) -> Any:
    reader, expected = _READERS[option]
    try:
        return reader(value)
    except (TypeError, ValueError) as error:
        raise ValueError(f"option {option!r} must be {expected}, not {value!r}") from error


def find_mode(name: str) -> Mode:
    """Return the mode called *name*, or of that HTTP status. Raises ValueError, which names what is known."""
    if name in MODES:
        return MODES[name]
    try:
        return Mode(partial(answer_status, _http_status(name)))
    except ValueError as error:
        raise ValueError(
            f"unknown mode {name!r}; known are {', '.join(sorted(MODES))} and any HTTP status from 200 to 599"
        ) from error


@dataclass(frozen=True)
class Choice:
    """A mode with its options settled."""

    name: str
    mode: Mode
    options: dict[str, Any]
    delay: float = 0.0
    times: int | None = None

    @property
    def for_seconds(self) -> float | None:
        """How long the mode lasts in seconds; None means until another one is set."""
        seconds: float | None = self.options.get("for_seconds")
        return seconds

    def reply(self, batch: Batch) -> Reply:
        """Return what to answer to *batch*."""
        return self.mode.reply(batch, **self.options)


def choose(name: str, options: Mapping[str, Any]) -> Choice:
    """Return the mode called *name* with *options*. Raises ValueError, which names what is known."""
    mode = find_mode(name)
    unknown = sorted(set(options) - set(mode.known_options))
    if unknown:
        raise ValueError(
            f"mode {name!r} has no option {', '.join(map(repr, unknown))}; known are {', '.join(mode.known_options)}"
        )
    settled = {option: _read(option, value) for option, value in options.items() if value is not None}
    common = {option: settled.pop(option) for option in COMMON_OPTIONS if option in settled}
    return Choice(name, mode, settled, **common)


@dataclass(frozen=True)
class Turn:
    """One request's share of a mode: the *number*-th from 0; *is_last* when the mode is over with it."""

    choice: Choice
    number: int
    is_last: bool


class Turns:
    """Which mode answers the next request; ``ok`` at first.

    A mode with `times`, or with a closed port, lies on top of another one, which comes back afterwards; any
    other mode replaces all.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._choices = [choose("ok", {})]
        self._taken = [0]

    @property
    def current(self) -> Choice:
        """The mode on top."""
        with self._lock:
            return self._choices[-1]

    def set(self, choice: Choice) -> None:
        """Let *choice* answer from now on."""
        with self._lock:
            if choice.times is None and choice.mode.listens:
                self._choices.clear()
                self._taken.clear()
            elif not (choice.mode.listens or self._choices[-1].mode.listens):
                self._drop_top()
            self._choices.append(choice)
            self._taken.append(0)

    def take(self) -> Turn:
        """Return the turn of one request, and count it."""
        with self._lock:
            choice, number = self._choices[-1], self._taken[-1]
            self._taken[-1] += 1
            is_last = choice.times == number + 1
            if is_last:
                self._drop_top()
            return Turn(choice, number, is_last)

    def leave(self, choice: Choice) -> bool:
        """Go back to the mode before *choice*, if *choice* is still on top; return whether it was."""
        with self._lock:
            on_top = self._choices[-1] is choice
            if on_top:
                self._drop_top()
            return on_top

    def _drop_top(self) -> None:
        self._choices.pop()
        self._taken.pop()
