"""One connection to the fake server: reads its requests and does what a mode's reply says."""

from __future__ import annotations

import gzip
import json
import os
import socket
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler
from typing import Any
from urllib.parse import urlsplit

from outtray.testing.choice import choose
from outtray.testing.listener import Listener
from outtray.testing.memory import SeenRequest
from outtray.testing.modes import BODILESS_STATUSES, JSON, Batch, Reply, failure, success

_LINGER_FORMAT = "hh" if os.name == "nt" else "ii"


@dataclass(frozen=True)
class _Body:
    wire_bytes: int
    messages: list[dict[str, Any]]
    fault: str = ""


def _unpack(body: bytes, encoding: str) -> list[dict[str, Any]]:
    """Return the messages of a request body. Raises ValueError, which says what is wrong with it."""
    if encoding not in ("", "identity", "gzip"):
        raise ValueError(f"content-encoding {encoding!r} is not understood; gzip is")
    try:
        messages = json.loads(gzip.decompress(body) if encoding == "gzip" else body)
    except (OSError, EOFError, zlib.error, ValueError) as error:
        raise ValueError(f"the body cannot be read: {error}") from error
    if not isinstance(messages, list):
        raise ValueError("the body is not a JSON array")
    for place, message in enumerate(messages):
        if not (isinstance(message, dict) and isinstance(message.get("message_id"), str)):
            raise ValueError(f"message {place} of the batch is not an object with a message_id")
    return messages


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    server: Listener
    protocol_version = "HTTP/1.1"
    server_version = "outtray-fake-server"
    # Otherwise each answer on a kept connection waits for the client's delayed acknowledgement (40 ms).
    disable_nagle_algorithm = True

    def log_message(self, format: str, *args: Any) -> None:
        """Print nothing: what was seen is in the memory."""

    def do_GET(self) -> None:
        """Answer the pages about the server, and what arrives at a batch path by a followed redirect."""
        if self._is_for_batches:
            # The client's POST has become a GET on the way. A receiver's friendly answer to it is the trap.
            self._note(_Body(0, []), success())
            return
        pages: dict[str, Callable[[], dict[str, Any]]] = {
            "/__health": lambda: {"healthy": True},
            "/__received": self.server.memory.summary,
        }
        page = pages.get(self._path)
        self._send(failure(404, "no such page") if page is None else _json(page()))

    def do_POST(self) -> None:
        """Answer a batch by the current mode, or change the mode."""
        length = self.headers.get("Content-Length", "")
        if not (length.isascii() and length.isdecimal()):
            self.close_connection = True
            self._send(failure(411, "a Content-Length is needed"))
        elif self._path == "/__control":
            self._control(self._read(int(length)))
        elif self._is_for_batches:
            self._answer_batch(int(length))
        else:
            body = self._body(self._read(int(length)))
            self._note(body, failure(404, "batches are received at paths that end in /batch"))

    @property
    def _path(self) -> str:
        return urlsplit(self.path).path

    @property
    def _is_for_batches(self) -> bool:
        return self._path.endswith("/batch")

    def _read(self, length: int) -> bytes:
        body = self.rfile.read(length)
        if len(body) < length:
            raise ConnectionAbortedError("the client left in the middle of its request")
        return body

    def _body(self, body: bytes) -> _Body:
        try:
            messages = _unpack(body, self.headers.get("Content-Encoding", "").lower())
        except ValueError as error:
            return _Body(len(body), [], str(error))
        return _Body(len(body), messages)

    def _control(self, body: bytes) -> None:
        try:
            order = json.loads(body)
            if not isinstance(order, dict) or "mode" not in order:
                raise ValueError('the body must be a JSON object with a "mode"')
            choice = choose(str(order.pop("mode")), order)
        except ValueError as error:
            self._send(failure(400, str(error)))
            return
        self.server.follow(choice, self.connection)
        self._send(_json({"mode": choice.name}))

    def _answer_batch(self, length: int) -> None:
        turn = self.server.turns.take()
        body = self._body(self._read(int(length * turn.choice.mode.body_share)))
        batch = Batch(self._path, self.server.url, body.messages, body.wire_bytes, turn.number)
        reply = turn.choice.reply(batch)
        if turn.is_last:
            self.server.follow(None, self.connection)
        if reply.accepted and body.fault:
            reply = failure(400, body.fault)
        self._note(body, reply, turn.choice.delay)

    def _note(self, body: _Body, reply: Reply, delay: float = 0.0) -> None:
        """Record a request, then answer it: a client that has its answer finds its request recorded."""
        ids = [message["message_id"] for message in body.messages]
        request = SeenRequest(
            method=self.command,
            path=self.path,
            headers=dict(self.headers.items()),
            count=len(ids),
            bytes=body.wire_bytes,
            status=None,
            message_ids=ids,
        )
        self.server.memory.note(request, body.messages if reply.accepted else [])
        if self.server.closing.wait(delay):
            raise ConnectionAbortedError("the server stops")
        self.server.memory.answered(request, reply.status)
        self._send(reply)

    def _send(self, reply: Reply) -> None:
        if reply.ending != "keep" or not self.server.listening:
            self.close_connection = True
        head = b"" if reply.status is None else self._head(reply, reply.status)
        if isinstance(reply.body, bytes):
            self.wfile.write(head + reply.body)
        else:
            self.wfile.write(head)
            for piece in reply.body:
                self.wfile.write(piece)
                if self.server.closing.wait(reply.interval):
                    break
        if reply.ending == "hang":
            self._wait_for_the_client_to_leave()
        elif reply.ending == "reset":
            self._reset()

    def _head(self, reply: Reply, status: int) -> bytes:
        phrase, _ = self.responses.get(status, ("Unknown", ""))
        headers = {"Server": self.server_version, "Date": self.date_time_string(), **reply.headers}
        if isinstance(reply.body, bytes) and status not in BODILESS_STATUSES:
            headers["Content-Length"] = str(len(reply.body))
        if self.close_connection:
            headers["Connection"] = "close"
        lines = [f"HTTP/1.1 {status} {phrase}", *(f"{name}: {value}" for name, value in headers.items())]
        return "\r\n".join([*lines, "", ""]).encode("ascii")

    def _wait_for_the_client_to_leave(self) -> None:
        while self.connection.recv(65_536):
            continue

    def _reset(self) -> None:
        # With a linger of 0 s close() sends a reset, unless a FIN went before, as in the base class.
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack(_LINGER_FORMAT, 1, 0))
        self.rfile.close()
        self.connection.close()


def _json(value: Any) -> Reply:
    return Reply(200, json.dumps(value).encode(), {"Content-Type": JSON})
