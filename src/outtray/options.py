"""Every option that can be set, once: kind, default, unit, meaning; and how its values are read.

The README's table is checked against `OPTIONS`.
"""

from __future__ import annotations

import os
from collections import namedtuple

from outtray.errors import SettingsError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

MIB = 1024 * 1024
DAY = 86_400.0

Option = namedtuple("Option", ["name", "kind", "default", "unit", "help"])

OPTIONS = (
    Option("app", "app", "default", "", "Name of the application: one outbox, one identity and one consent each"),
    Option("dir", "text", None, "path", "Folder that holds one directory per application"),
    Option("url", "url", None, "", "Where batches go; without one messages wait. Stored without user, password, query"),
    Option("destination", "text", "zenml", "", "Wire format of the receiver"),
    Option("write_key", "secret", None, "", "Key of the receiver; never stored in the outbox"),
    Option("write_key_file", "text", None, "path", "File that holds the key; only its path is stored"),
    Option("consent", "consent", "granted", "", "`granted` or on: record and send; `local`: record; `denied` or off"),
    Option("consent_events", "flag", False, "", "Let the opt-in and opt-out events pass when consent is denied"),
    Option(
        "flush",
        ("thread", "exit", "manual"),
        "thread",
        "",
        "Who delivers: a thread, a detached process at exit, nobody",
    ),
    Option(
        "durability",
        ("process", "power"),
        "process",
        "",
        "What an accepted message outlives: `process`: the process, after 1 s a power cut; `power`: both",
    ),
    Option("flush_interval", "seconds", 1.0, "s", "How long the thread gathers messages before it posts"),
    Option("exit_interval", "seconds", 60.0, "s", "Least time between two detached flushes"),
    Option("user_id", "text", None, "", "User of the messages; by default the client id"),
    Option("version", "text", None, "", "Version of the application, sent with each event"),
    Option("server_variable", "text", "OUTTRAY_SERVER", "", "Environment variable that says the code runs in a server"),
    Option("debug", "flag", False, "", "Value of each message's `debug` field"),
    Option("max_bytes", "bytes", 1024 * MIB, "bytes", "Bound of the outbox; at it the newest message is refused"),
    Option("max_message_bytes", "bytes", MIB, "bytes", "Bound of one message; a larger one is refused when tracked"),
    Option("retention", "seconds", 7 * DAY, "s", "How long delivered messages stay; 0 removes them at once"),
    Option(
        "max_batch_count",
        "count",
        5_000,
        "messages",
        "Messages in one request, at most: 500, and more where the receiver is far away",
    ),
    Option("max_batch_bytes", "bytes", 4 * MIB, "bytes", "Bytes of messages in one request, at most"),
    Option(
        "timeout",
        "deadline",
        15.0,
        "s",
        "Total deadline of one request, from the look-up of its name on",
    ),
)


def named(name: str) -> Option:
    """Return the option called *name*."""
    return next(option for option in OPTIONS if option.name == name)


def environment_name(option: str) -> str:
    """Return the environment variable of *option*: "max_bytes" is OUTTRAY_MAX_BYTES."""
    return f"OUTTRAY_{option.upper()}"


def checked(option: Any, raw: Any, shown: str | None = None) -> Any:
    """Return *raw* as the value of *option*. Raises SettingsError, which never repeats a secret."""
    try:
        return _parse(option.kind, raw)
    except (TypeError, ValueError, OverflowError) as error:
        value = "" if option.kind in ("secret", "url") else f"={raw!r}"
        raise SettingsError(f"{shown or option.name}{value} cannot be right: {error}") from None


def _parse(kind: str | tuple[str, ...], raw: Any) -> Any:
    if isinstance(kind, tuple):
        word = _text(raw).lower()
        if word not in kind:
            raise ValueError(f"expected one of {', '.join(kind)}")
        return word
    return _PARSERS[kind](raw)


def _text(raw: Any) -> str:
    text = os.fspath(raw) if isinstance(raw, os.PathLike) else raw if isinstance(raw, str) else None
    if text is None and isinstance(getattr(raw, "hex", None), str):  # of bytes it is a method
        text = str(raw)  # a UUID as user_id
    if not isinstance(text, str) or not text:
        raise ValueError("expected text")
    if any(
        ord(character) < 32 or 127 <= ord(character) < 160 or 0xD800 <= ord(character) < 0xE000 for character in text
    ):
        raise ValueError("it holds control characters or lone surrogates")
    return text


def _app(raw: Any) -> str:
    text = _text(raw)
    if len(text) > 64 or text[0] in ".-" or not all(c.isascii() and (c.isalnum() or c in "._-") for c in text):
        raise ValueError("expected up to 64 of A-Z a-z 0-9 . _ - beginning with none of . -")
    return text


def _url(raw: Any) -> str:
    text = _text(raw).strip()
    scheme, separator, rest = text.partition("://")
    host = rest.partition("#")[0].partition("?")[0].partition("/")[0].rpartition("@")[2]
    name, colon, port = host.rpartition(":") if not host.endswith("]") else (host, "", "")
    named = bool(name or not colon) and bool(host)
    if scheme.lower() not in ("http", "https") or not separator or not named or " " in text:
        raise ValueError("expected http://host or https://host, with port and path where needed")
    if colon and port and not (port.isascii() and port.isdecimal() and int(port[:6]) < 65_536):
        raise ValueError("expected a port of 0 to 65535")
    return text


def _flag(raw: Any) -> bool:
    if isinstance(raw, bool):
        return raw
    word = str(raw).strip().lower()
    if word in ("1", "true", "yes", "on", "y"):
        return True
    if word in ("0", "false", "no", "off", "n"):
        return False
    raise ValueError("expected true or false")


def _consent(raw: Any) -> str:
    word = raw.strip().lower() if isinstance(raw, str) else raw
    if word in ("granted", "local", "denied"):
        return str(word)
    try:
        return "granted" if _flag(raw) else "denied"
    except ValueError:
        raise ValueError("expected granted, local, denied, on or off") from None


def _seconds(raw: Any) -> float:
    value = float(_number(raw))
    if not 0 <= value <= 100 * 365 * DAY:
        raise ValueError("expected seconds, 0 to a hundred years")
    return value


def _deadline(raw: Any) -> float:
    value = _seconds(raw)
    if value == 0:
        raise ValueError("expected more than 0 seconds")
    return value


def _whole(raw: Any) -> int:
    value = int(_number(raw))
    if value != float(raw) or not 1 <= value <= 2**62:
        raise ValueError("expected a whole number of at least 1")
    return value


def _number(raw: Any) -> Any:
    if isinstance(raw, (bool, bytes, bytearray)):  # float() and int() would take them
        raise ValueError("expected a number")
    return raw


_PARSERS: dict[str, Any] = {
    "text": _text,
    "secret": _text,
    "app": _app,
    "url": _url,
    "flag": _flag,
    "consent": _consent,
    "seconds": _seconds,
    "deadline": _deadline,
    "bytes": _whole,
    "count": _whole,
}
