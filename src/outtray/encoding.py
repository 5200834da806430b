"""Messages as strict JSON in valid UTF-8, whatever a property holds; ids and timestamps of new messages."""

from __future__ import annotations

import json
import math
import os
import re
import sys
import time
from enum import Enum

from outtray.enums import AnalyticsEvent

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from typing import Any

MAX_REPR = 200
"""Characters of the repr that stands for an object without a JSON form."""

MAX_DEPTH = 64
"""Levels of nesting that are kept; the limits of receivers' parsers lie above it."""

FIRST_MOMENT, LAST_MOMENT = -62_135_596_800.0, 253_402_300_799.0
"""Unix seconds: the first of the year 1 and the last of the year 9999."""

CUT = "..."
"""What stands where a cycle or too deep nesting was cut, as in Python's own repr of a cycle."""


class AnalyticsEncoder(json.JSONEncoder):
    """The seed's encoder: UUIDs and events become strings, anything else unknown is a TypeError."""

    def default(self, obj: Any) -> Any:
        """Return the string for a UUID or an `AnalyticsEvent`. Raises TypeError for the unknown."""
        if _is_a(obj, "uuid", "UUID"):
            return str(obj)
        if isinstance(obj, AnalyticsEvent):
            return obj.value
        return super().default(obj)


def encode(value: object) -> str:
    """Return *value*, such as a message or its properties, as one line of strict JSON that encodes to UTF-8.

    UUID, Enum, datetime, date, time, timedelta (seconds), Decimal and other numbers, bytes (text, else
    base64), set, path, dataclass and pydantic model have their natural form; NaN and infinities are null;
    lone surrogates become U+FFFD; anything else is its repr, `MAX_REPR` characters at most. Cycles and
    nesting deeper than `MAX_DEPTH` are cut at that point (`CUT`). Keys that are equal as text, such as 1 and "1",
    may both be there: the later one counts, to most readers.
    """
    try:
        text = "".join(_chunks(value, 0))
        if not text.isascii():
            text.encode()
        is_nested = "[" in text or text.find("{", 1) > 0
        if is_nested and text.count("[") + text.count("{") > MAX_DEPTH and _is_too_deep(text):
            raise RecursionError
    except Exception:  # a property's own code may raise anything; the careful way loses at most that property
        _markers.clear()  # of this value, or of another thread's, which then goes the careful way too
        text = "".join(_chunks(_plain(value, MAX_DEPTH, ()), 0))
    return text


def encoded_dict(value: object) -> str:
    """Return a caller's properties as a JSON object; see `as_properties`."""
    return encode(value if type(value) is dict else as_properties(value))


quoted = json.encoder.encode_basestring
"""Returns a text as JSON; `valid` is for whoever puts that into a message."""


def valid(text: str) -> str:
    """Return *text* with U+FFFD for each lone surrogate, so that it encodes to UTF-8 and can be stored and found."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


def as_properties(value: object) -> dict[Any, Any]:
    """Return a caller's properties as a new dict: None is empty, what is no (sound) mapping is kept as "value"."""
    if value is None:
        return {}
    try:
        if isinstance(value, dict) or hasattr(value, "keys"):
            return dict(value)  # type: ignore[call-overload, no-any-return]
    except Exception:  # a mapping's own code failed: the event is kept, with what `encode` makes of the mapping
        return {"value": value}
    return {"value": value}


def as_text(value: object) -> str:
    """Return *value* as text; where its own code for that fails, its repr, or what stands for one."""
    try:
        return str.__str__(value if issubclass(type(value), str) else str(value))
    except Exception:  # it must not cost the event
        return _repr(value)


NOISE_AT_ONCE = 100
"""Message ids that one call of the system gives random bits for."""

_noise: Iterator[str] = iter(())
_noise_pid = 0


def stamped(moment: float) -> tuple[str, str]:
    """Return a new message id and the timestamp of *moment*, both of which say that time in milliseconds.

    The id is a UUIDv7 (RFC 9562): 48 bits of Unix milliseconds, then random bits from the system.
    """
    global _latest
    milliseconds = int(moment * 1000)
    kept, prefix, text = _latest
    if milliseconds != kept:
        prefix, text = _id_prefix(milliseconds), clock_text(milliseconds / 1000)
        _latest = (milliseconds, prefix, text)
    # `next` gives each once, whatever threads and signal handlers do; what a fork copies is not used there.
    noise = next(_noise, None)
    if noise is None or os.getpid() != _noise_pid:
        noise = _more_noise()
    return prefix + noise, text


_latest = (-1, "", "")


def _id_prefix(milliseconds: int) -> str:
    digits = f"{min(max(milliseconds, 0), 2**48 - 1):012x}"  # whatever the clock says
    return f"{digits[:8]}-{digits[8:]}"


def new_message_id() -> str:
    """Return a message id of this moment; see `stamped`."""
    return stamped(time.time())[0]


def _more_noise() -> str:
    """Return the part of a message id that follows the time, and keep more of them for later."""
    global _noise, _noise_pid
    pid = os.getpid()  # before all else: a child that a signal handler forks in here has what the parent has
    digits = os.urandom(9 * NOISE_AT_ONCE).hex()
    parts = [digits[place : place + 18] for place in range(0, len(digits), 18)]
    fresh = iter([f"-7{part[:3]}-8{part[3:6]}-{part[6:]}" for part in parts])
    first = next(fresh)
    _noise_pid = 0  # between these lines no thread or handler may take the old ones for this process's
    _noise = fresh
    _noise_pid = pid
    return first


_second_text = (-1, "")


def clock_text(moment: float) -> str:
    """Return *moment*, read from this machine's clock, as `timestamp_text`; beyond the years 1 to 9999 their end."""
    try:
        return timestamp_text(moment)
    except (ValueError, OverflowError, OSError):
        return timestamp_text(min(max(moment, FIRST_MOMENT), LAST_MOMENT))


def timestamp_text(moment: float) -> str:
    """Return *moment* (Unix seconds) as ISO 8601 in UTC with milliseconds: "2026-01-31T23:59:59.250Z".

    Raises ValueError, OverflowError or OSError for a moment outside the years 1 to 9999.
    """
    global _second_text
    milliseconds = round(moment * 1000)  # cut off, a text of ours that was read as a float could lose one
    second = milliseconds // 1000
    kept, text = _second_text
    if kept != second:
        year, *rest = time.gmtime(second)[:6]
        if not 1 <= year <= 9999:
            raise ValueError(f"the year {year} has no place in a timestamp")
        text = "{:04d}-{:02d}-{:02d}T{:02d}:{:02d}:{:02d}".format(year, *rest)
        _second_text = (second, text)
    return f"{text}.{milliseconds % 1000:03d}Z"


def _is_too_deep(text: str) -> bool:
    """Tell whether arrays and objects of a JSON text are nested deeper than `MAX_DEPTH`."""
    brackets = _NO_BRACKETS.sub("", text).replace("{", "[").replace("}", "]")
    for _ in range(MAX_DEPTH):
        brackets = brackets.replace("[]", "")  # the innermost level
    return bool(brackets)


def _natural(obj: Any) -> Any:
    """Return the JSON form of what `json` does not know; it may again hold such objects."""
    if isinstance(obj, Enum):
        return obj.value
    if isinstance(obj, (set, frozenset)):
        return _ordered(obj)
    if isinstance(obj, (bytes, bytearray, memoryview)):
        return _text_of(bytes(obj))
    if isinstance(obj, os.PathLike):
        path = os.fspath(obj)
        return path if isinstance(path, str) else os.fsdecode(path)
    if _is_a(obj, "datetime", "date") or _is_a(obj, "datetime", "time"):
        return obj.isoformat()
    if _is_a(obj, "datetime", "timedelta"):
        return obj.total_seconds()
    if _is_a(obj, "uuid", "UUID"):
        return str(obj)
    if _is_a(obj, "pydantic", "BaseModel"):
        return obj.model_dump()
    if not isinstance(obj, type) and hasattr(obj, "__dataclass_fields__"):
        return {name: getattr(obj, name, None) for name in obj.__dataclass_fields__}
    if hasattr(obj, "__index__"):
        return obj.__index__()
    if hasattr(obj, "__float__"):
        return _number(obj)
    return _repr(obj)


def _plain(obj: Any, depth: int, parents: tuple[int, ...]) -> Any:
    """Return *obj* rebuilt from dict, list, str, int, float, bool and None, so that encoding it cannot fail."""
    if obj is None or obj is True or obj is False:
        return obj
    kind = type(obj)  # not isinstance(): an object may lie about its __class__, as Mock(spec=str) does
    if issubclass(kind, str):
        return valid(str.__str__(obj))
    if issubclass(kind, int):
        return _whole_number(int.__int__(obj))
    if issubclass(kind, float):
        return float.__float__(obj) if math.isfinite(obj) else None
    if depth == 0 or id(obj) in parents:
        return CUT
    parents = (*parents, id(obj))
    try:
        if issubclass(kind, dict):
            return {_key(key): _plain(value, depth - 1, parents) for key, value in list(obj.items())}
        if issubclass(kind, (list, tuple)):
            return [_plain(value, depth - 1, parents) for value in obj]
        return _plain(_natural(obj), depth - 1, parents)
    except RecursionError:
        return CUT
    except Exception:  # the object's own code failed: its repr is what is left of it
        return _plain(_repr(obj), 1, ())


def _key(key: Any) -> str:
    plain = _plain(key, 1, ())
    return plain if isinstance(plain, str) else json.dumps(plain)


def _number(obj: Any) -> Any:
    """Return a Decimal, Fraction or foreign number as int or float; beyond a float's range its digits as text."""
    value = float(obj)
    if math.isinf(value) and "inf" not in str(obj).lower():
        return str(obj)[:MAX_REPR]
    return int(value) if value == obj and value.is_integer() and abs(value) < 2**53 else value


def _whole_number(obj: int) -> int | str:
    try:
        repr(obj)
    except ValueError:  # above sys.get_int_max_str_digits()
        return hex(obj)[:MAX_REPR]
    return obj


def _ordered(values: Iterable[Any]) -> list[Any]:
    try:
        return sorted(values)
    except TypeError:
        return list(values)


def _text_of(data: bytes) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError:
        import binascii

        return binascii.b2a_base64(data, newline=False).decode()


def _repr(obj: Any) -> str:
    try:
        return repr(obj)[:MAX_REPR]
    except Exception:  # a broken __repr__ must not cost the event
        return f"<{_name_of(type(obj))}>"


_name_of = type.__dict__["__name__"].__get__  # whatever a metaclass makes of the name


def _is_a(obj: Any, module: str, name: str) -> bool:
    """Tell whether *obj* is an instance of module.name without importing the module: unloaded, nothing is one."""
    loaded = sys.modules.get(module)
    kind = getattr(loaded, name, None)
    return isinstance(kind, type) and isinstance(obj, kind)


_NO_BRACKETS = re.compile(r'(?:"(?:[^"\\]++|\\.)*+"|[^][{}"]++)++')

# `JSONEncoder.encode` makes a new encoder of its C part for each value; one that is kept saves a fifth.
_make_encoder = getattr(json.encoder, "c_make_encoder", None)
_markers: dict[int, Any] = {}  # what is just being encoded: without, a cycle would end the stack
_no_indent = None
_no_sorting = _no_skipping = _no_nan = False
_options = (_no_indent, ":", ",", _no_sorting, _no_skipping, _no_nan)
if _make_encoder is not None:
    _chunks = _make_encoder(_markers, _natural, json.encoder.encode_basestring, *_options)
else:  # an interpreter without the C part
    _encoder = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":"), default=_natural)

    def _chunks(value: Any, level: int) -> Iterable[str]:
        return _encoder.iterencode(value)
