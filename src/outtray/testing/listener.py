"""The port of the fake server and its connections."""

from __future__ import annotations

import contextlib
import os
import socket
import socketserver
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

from outtray.testing.choice import Choice, Turns
from outtray.testing.memory import Memory

# How long closing the port may take, in seconds; an idle server wakes up this often.
_POLL_SECONDS = 0.02


class Listener(socketserver.ThreadingTCPServer):
    """A bound port and its connections. The port refuses connections until `open`, and after `refuse`.

    *follow* is called with a choice to change over to, or with None when the current mode may have changed,
    and with the connection that this happened on.
    """

    # Elsewhere than on POSIX the option would let two servers share a port.
    allow_reuse_address = os.name == "posix"
    request_queue_size = 128

    def __init__(
        self,
        address: tuple[str, int],
        handler: type[socketserver.BaseRequestHandler],
        memory: Memory,
        turns: Turns,
        follow: Callable[[Choice | None, socket.socket], None],
    ) -> None:
        super().__init__(address, handler, bind_and_activate=False)
        self.memory = memory
        self.turns = turns
        self.follow = follow
        self.closing = threading.Event()
        self._accepting: threading.Thread | None = None
        self._lock = threading.Lock()
        self._connections: dict[socket.socket, threading.Thread] = {}
        try:
            self.server_bind()
        except OSError:
            self.server_close()
            raise

    @property
    def listening(self) -> bool:
        """Whether connections are accepted."""
        return self._accepting is not None

    @property
    def port(self) -> int:
        """The bound port."""
        return int(self.server_address[1])

    @property
    def url(self) -> str:
        """The address of the server without a path."""
        return f"http://{self.server_address[0]!s}:{self.port}"

    def open(self) -> None:
        """Begin to accept connections."""
        self.server_activate()
        self._accepting = threading.Thread(
            target=self.serve_forever, args=(_POLL_SECONDS,), name="fake-server", daemon=True
        )
        self._accepting.start()

    def refuse(self, keep: socket.socket | None = None) -> None:
        """Close the port and all connections but *keep*.

        A socket that is bound and does not listen holds the port meanwhile: connections to it are refused,
        and no other program can get it.
        """
        self._stop_accepting()
        self.socket.close()
        self.socket = socket.socket(self.address_family, self.socket_type)
        self.server_bind()
        self._hang_up(keep)

    def close(self, timeout: float) -> None:
        """Close everything for good and wait up to *timeout* seconds for the connections' threads to end."""
        self.closing.set()
        self._stop_accepting()
        self.server_close()
        deadline = time.monotonic() + timeout
        for thread in self._hang_up(keep=None):
            thread.join(max(0.0, deadline - time.monotonic()))

    def _stop_accepting(self) -> None:
        if self._accepting is not None:
            self.shutdown()
            self._accepting.join()
            self._accepting = None

    def _hang_up(self, keep: socket.socket | None) -> list[threading.Thread]:
        with self._lock:
            ended = {each: thread for each, thread in self._connections.items() if each is not keep}
        for connection in ended:
            # This wakes a thread that waits in recv or send; closing the descriptor under it would not.
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        return list(ended.values())

    def process_request(self, request: Any, client_address: Any) -> None:
        """Serve one connection in a thread of its own, so that `close` knows both."""
        thread = threading.Thread(
            target=self.process_request_thread,
            args=(request, client_address),
            name="fake-connection",
            daemon=True,
        )
        with self._lock:
            self._connections[request] = thread
        thread.start()

    def shutdown_request(self, request: Any) -> None:
        """End one connection."""
        with self._lock:
            self._connections.pop(request, None)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Report a fault of this server; a client that went away is none."""
        if not isinstance(sys.exception(), OSError):
            super().handle_error(request, client_address)
