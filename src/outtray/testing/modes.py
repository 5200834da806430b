"""How the fake server can behave: a table from a mode's name to the function that answers one batch.

A mode is a function from a `Batch` to a `Reply`; its keyword-only parameters are its options, with their
defaults. The functions send nothing themselves: `wire` does what a reply says.
"""

from __future__ import annotations

import inspect
import json
import re
import struct
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import chain, cycle, repeat
from typing import Any, Literal

JSON = "application/json"
SUCCESS = b'{"success": true}'
BODILESS_STATUSES = frozenset({204, 304})
COMMON_OPTIONS = ("delay", "times")

_MIB = 1 << 20
# "bad" turns up by chance in one of 140 random 32-digit ids, so ids are compared as a whole only.
_ID = re.compile(r"\b(?:[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}|[0-9a-f]{16,})\b", re.IGNORECASE)


@dataclass(frozen=True)
class Batch:
    """One POST as a mode sees it: *body_bytes* on the wire, *turn* counted from 0 since the mode was set."""

    path: str
    server_url: str
    messages: list[dict[str, Any]]
    body_bytes: int
    turn: int


@dataclass(frozen=True)
class Reply:
    """What to do with one request.

    *status* None means that no status line is sent. *accepted* says whether the messages count as received.
    A *body* of bytes is sent with its length; an iterator is sent piece by piece, *interval* seconds apart,
    until it ends or the client leaves. *ending* says what becomes of the connection afterwards.
    """

    status: int | None = None
    body: bytes | Iterator[bytes] = b""
    headers: Mapping[str, str] = field(default_factory=dict)
    accepted: bool = False
    ending: Literal["keep", "close", "reset", "hang"] = "keep"
    interval: float = 0.0


def success() -> Reply:
    """Return the answer of a receiver that took the batch."""
    return Reply(200, SUCCESS, {"Content-Type": JSON}, accepted=True)


def failure(status: int, reason: str) -> Reply:
    """Return a JSON answer that says why the batch was not taken."""
    body = json.dumps({"success": False, "error": reason})
    return Reply(status, body.encode(), {"Content-Type": JSON})


def _ok(_batch: Batch) -> Reply:
    return success()


def _empty(_batch: Batch) -> Reply:
    return Reply(200, accepted=True)


def _refuse(_batch: Batch, *, for_seconds: float | None = None) -> Reply:
    # Only a request that was already on its way when the port closed gets here.
    return Reply(ending="close")


def answer_status(
    status: int,
    _batch: Batch,
    *,
    retry_after: str | None = None,
    body: str | None = None,
    content_type: str = JSON,
) -> Reply:
    """Return the answer with that status, for the modes that are numbers; 2xx accepts the batch."""
    good = status < 300
    text = body if body is not None else json.dumps({"success": good})
    headers = {"Content-Type": content_type}
    if retry_after is not None:
        headers["Retry-After"] = retry_after
    return Reply(status, b"" if status in BODILESS_STATUSES else text.encode(), headers, accepted=good)


def _too_large(batch: Batch, *, max_bytes: int = 65_536) -> Reply:
    if batch.body_bytes > max_bytes:
        return failure(413, f"the body has {batch.body_bytes} bytes, {max_bytes} are allowed")
    return success()


def _refuse_marked(batch: Batch, *, marker: str = "bad", status: int = 400) -> Reply:
    if any(_has_marker(message, marker) for message in batch.messages):
        return failure(status, f"a message contains {marker!r}")
    return success()


def _has_marker(message: dict[str, Any], marker: str) -> bool:
    text = json.dumps(message, ensure_ascii=False)
    return marker in _ID.sub("", text) or marker in _ID.findall(text)


def _html(_batch: Batch) -> Reply:
    page = b"<!doctype html><title>Welcome</title><p>Please accept the terms of this network.</p>"
    return Reply(200, page, {"Content-Type": "text/html; charset=utf-8"})


def _drop_after_accept(_batch: Batch) -> Reply:
    return Reply(accepted=True, ending="close")


def _reset(_batch: Batch) -> Reply:
    return Reply(ending="reset")


def _hang(_batch: Batch) -> Reply:
    return Reply(ending="hang")


def _trickle(_batch: Batch, *, interval: float = 1.0) -> Reply:
    letters = chain("HTTP/1.1 200 OK\r\n", cycle("X-Slow: yes\r\n"))
    return Reply(body=(letter.encode() for letter in letters), ending="close", interval=interval)


def _redirect_self(batch: Batch, *, status: int = 302) -> Reply:
    # The target works like any receiver: a client that follows believes that it has delivered.
    if batch.path.startswith("/elsewhere/"):
        return success()
    return Reply(status, headers={"Location": f"{batch.server_url}/elsewhere/batch"})


def _redirect_host(_batch: Batch, *, location: str = "http://other.invalid/batch", status: int = 302) -> Reply:
    return Reply(status, headers={"Location": location})


def _endless(_batch: Batch) -> Reply:
    return Reply(200, repeat(b" " * 65_536), {"Content-Type": JSON}, ending="close")


def _huge_headers(_batch: Batch, *, count: int = 200, header_bytes: int = 8_192) -> Reply:
    headers = {f"X-Huge-{number}": "h" * header_bytes for number in range(count)}
    return Reply(200, SUCCESS, {"Content-Type": JSON, **headers})


def _gzip_bomb(_batch: Batch, *, unpacked_bytes: int = 1024 * _MIB) -> Reply:
    body = _zeros_packed(-(-unpacked_bytes // _MIB))
    return Reply(200, body, {"Content-Type": JSON, "Content-Encoding": "gzip"})


@lru_cache(maxsize=4)
def _zeros_packed(mebibytes: int) -> bytes:
    """Return a gzip stream of that many MiB of zero bytes, a thousandth of that in size.

    After a full flush the packer starts anew, so one packed MiB can be repeated: packing 1 GiB takes seconds.
    """
    zeros = bytes(_MIB)
    packer = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    block = packer.compress(zeros) + packer.flush(zlib.Z_FULL_FLUSH)
    check = 0
    for _ in range(mebibytes):
        check = zlib.crc32(zeros, check)
    head = b"\x1f\x8b\x08\0\0\0\0\0\2\xff"
    return head + block * mebibytes + packer.flush() + struct.pack("<II", check, mebibytes * _MIB % 2**32)


def _bad_chunks(_batch: Batch) -> Reply:
    headers = {"Content-Type": JSON, "Transfer-Encoding": "chunked"}
    return Reply(200, iter([b"not-a-size\r\n" + SUCCESS + b"\r\n0\r\n\r\n"]), headers, ending="close")


def _flaky(batch: Batch, *, statuses: tuple[int, ...] = (200, 500)) -> Reply:
    return answer_status(statuses[batch.turn % len(statuses)], batch)


@dataclass(frozen=True)
class Mode:
    """One row of the table: *body_share* of the request body is read before *reply* is asked (0 to 1)."""

    reply: Callable[..., Reply]
    body_share: float = 1.0
    listens: bool = True

    @property
    def options(self) -> dict[str, Any]:
        """The mode's own options with their defaults."""
        parameters = inspect.signature(self.reply).parameters.values()
        return {each.name: each.default for each in parameters if each.kind is each.KEYWORD_ONLY}

    @property
    def known_options(self) -> list[str]:
        """The names of all options that the mode takes, sorted."""
        # A closed port sees no requests that could be delayed or counted.
        return sorted([*self.options, *(COMMON_OPTIONS if self.listens else ())])


MODES: dict[str, Mode] = {
    "ok": Mode(_ok),
    "empty": Mode(_empty),
    "refuse": Mode(_refuse, listens=False),
    "too_large": Mode(_too_large),
    "refuse_marked": Mode(_refuse_marked),
    "html": Mode(_html),
    "drop_after_accept": Mode(_drop_after_accept),
    "reset": Mode(_reset, body_share=0.5),
    "trickle": Mode(_trickle),
    "hang": Mode(_hang),
    "redirect_self": Mode(_redirect_self),
    "redirect_host": Mode(_redirect_host),
    "endless": Mode(_endless),
    "huge_headers": Mode(_huge_headers),
    "gzip_bomb": Mode(_gzip_bomb),
    "bad_chunks": Mode(_bad_chunks),
    "flaky": Mode(_flaky),
}
