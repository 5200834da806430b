"""A stretch of network in front of a receiver, which spoils what passes in a way that can be changed at any time.

What it knows for certain is whether a receiver's answer was passed on whole: `Relay.lost_answers` has the bodies of
the requests whose answer was not, so that each repeat can be explained or not.
"""

from __future__ import annotations

import contextlib
import socket
import ssl
import struct
import threading
from collections.abc import Callable
from itertools import cycle

Spoiler = Callable[["Exchange"], bool]
"""What is done with one request; returns whether the connection may be used again."""


SUCCESS = b"HTTP/1.1 200 OK\r\nServer: some\r\nContent-Type: application/json\r\nContent-Length: 4\r\n\r\n1234"


class Relay:
    """Listens on a free port of the loopback interface and passes requests on to *target_port*, spoiled by `spoil`.

    *tls* makes it an https server. Closed by `close`, also as a context manager.
    """

    def __init__(
        self, target_port: int, *, tls: ssl.SSLContext | None = None, receive_bytes: int | None = None
    ) -> None:
        self.target_port = target_port
        self.spoil: Spoiler = pass_on
        self.closing = threading.Event()
        self.lost_answers: list[bytes] = []
        self._tls = tls
        self._receive_bytes = receive_bytes
        self._connections: set[socket.socket] = set()
        self._lock = threading.Lock()
        self._socket = self._bound(0)
        self.port: int = self._socket.getsockname()[1]
        self._accepting: threading.Thread | None = None
        self.open()

    def __enter__(self) -> Relay:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def url(self) -> str:
        """The address without a path."""
        return f"{'http' if self._tls is None else 'https'}://127.0.0.1:{self.port}"

    def open(self) -> None:
        """Accept connections."""
        if self._accepting is None:
            self._socket.listen(64)
            self._accepting = threading.Thread(target=self._accept, args=[self._socket], daemon=True)
            self._accepting.start()

    def refuse(self) -> None:
        """Refuse new connections; a socket that is bound and does not listen keeps the port from others."""
        if self._accepting is not None:
            self._stop_listening()
            self._socket = self._bound(self.port)

    def close(self) -> None:
        """End everything."""
        self.closing.set()
        self._stop_listening()
        with self._lock:
            connections = list(self._connections)
        for connection in connections:
            with contextlib.suppress(OSError):  # it ended by itself
                connection.shutdown(socket.SHUT_RDWR)

    def _bound(self, port: int) -> socket.socket:
        bound = socket.socket()
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if self._receive_bytes is not None:
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, self._receive_bytes)
        bound.bind(("127.0.0.1", port))
        return bound

    def _stop_listening(self) -> None:
        accepting, self._accepting = self._accepting, None
        if accepting is not None:
            self._socket.shutdown(socket.SHUT_RDWR)  # which wakes the thread that accepts
            accepting.join()
        self._socket.close()

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return  # nobody listens any more
            threading.Thread(target=self._serve, args=[connection], daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        try:
            if self._tls is not None:
                connection = self._tls.wrap_socket(connection, server_side=True)
            with self._lock:
                self._connections.add(connection)
            is_open = True
            while is_open and not self.closing.is_set():
                is_open = self.spoil(Exchange(self, connection))
        except OSError:
            return  # the client left, as clients do of such a network
        finally:
            with self._lock:
                self._connections.discard(connection)
            connection.close()


class Exchange:
    """One request and its answer on a client's *connection*."""

    def __init__(self, relay: Relay, connection: socket.socket) -> None:
        self.relay = relay
        self.connection = connection

    def request(self) -> bytes:
        """Read one request, head and body. Raises ConnectionError if the client leaves before its end."""
        return _read_message(self.connection)

    def forward(self, request: bytes) -> bytes:
        """Pass *request* on and return the receiver's answer; it counts as lost until `answered`."""
        self.relay.lost_answers.append(request)
        with socket.create_connection(("127.0.0.1", self.relay.target_port)) as receiver:
            receiver.sendall(request)
            return _read_message(receiver)

    def answered(self, request: bytes) -> None:
        """Say that the answer to *request* reached the client whole."""
        self.relay.lost_answers.remove(request)

    def reset(self) -> None:
        """End the connection with a reset."""
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    def trickle(self, data: bytes, interval: float) -> None:
        """Send *data* a byte at a time, *interval* seconds apart, again and again."""
        for byte in cycle(data):
            self.connection.sendall(bytes([byte]))
            if self.relay.closing.wait(interval):
                return


def pass_on(exchange: Exchange) -> bool:
    request = exchange.request()
    exchange.connection.sendall(exchange.forward(request))
    exchange.answered(request)
    return True


def accept_and_never_read(exchange: Exchange) -> bool:
    exchange.relay.closing.wait()
    return False


def read_a_byte_a_second(exchange: Exchange) -> bool:
    while exchange.connection.recv(1) and not exchange.relay.closing.wait(1.0):
        continue
    return False


def reset_in_the_request(exchange: Exchange) -> bool:
    exchange.connection.recv(600)
    exchange.reset()
    return False


def reset_in_the_answer(exchange: Exchange) -> bool:
    answer = exchange.forward(exchange.request())
    exchange.connection.sendall(answer[: answer.index(b"\r\n\r\n") + 6])
    exchange.reset()
    return False


def cut_in_the_answer(exchange: Exchange) -> bool:
    return _cut(exchange, SUCCESS.index(b"\r\n\r\n") + 6)


def cut_after_the_head(exchange: Exchange) -> bool:
    return _cut(exchange, SUCCESS.index(b"\r\n\r\n") + 4)


def cut_in_the_head(exchange: Exchange) -> bool:
    return _cut(exchange, 25)


def _cut(exchange: Exchange, length: int) -> bool:
    """Answer with a part of a success; the receiver has not seen the request."""
    exchange.request()
    exchange.connection.sendall(SUCCESS[:length])
    return False


def drop_the_answer(exchange: Exchange) -> bool:
    exchange.forward(exchange.request())
    return False


def answer_a_byte_a_second(exchange: Exchange) -> bool:
    exchange.trickle(exchange.forward(exchange.request()), 1.0)
    return False


def answer_garbage(exchange: Exchange) -> bool:
    exchange.forward(exchange.request())
    exchange.connection.sendall(b"\x00\xff\x15\x03\x01 not HTTP at all\r\n\r\n" * 20)
    return False


def answer_of_another_protocol(exchange: Exchange) -> bool:
    exchange.request()
    exchange.connection.sendall(b"220 mail.example ESMTP\r\n500 5.5.1 Command unrecognized\r\n")
    return False


def answer_before_the_request_is_read(exchange: Exchange) -> bool:
    exchange.connection.recv(16)
    exchange.connection.sendall(b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
    exchange.reset()
    return False


def _read_message(connection: socket.socket) -> bytes:
    """Return one HTTP message that has a Content-Length. Raises ConnectionError if it ends too early."""
    data = b""
    while b"\r\n\r\n" not in data:
        data += _some(connection)
    head, _, body = data.partition(b"\r\n\r\n")
    lengths = [line.partition(b":")[2] for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
    missing = int(lengths[0]) - len(body) if lengths else 0
    pieces = [data]
    while missing > 0:
        pieces.append(_some(connection))
        missing -= len(pieces[-1])
    return b"".join(pieces)


def _some(connection: socket.socket) -> bytes:
    data = connection.recv(65_536)
    if not data:
        raise ConnectionAbortedError("the other side closed in the middle of a message")
    return data
