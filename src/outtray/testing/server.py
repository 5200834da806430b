"""FakeServer: a receiver of batches that misbehaves on demand."""

from __future__ import annotations

import socket
import threading
from types import TracebackType
from typing import Any, Self

from outtray.testing.choice import Choice, Turns, choose
from outtray.testing.listener import Listener
from outtray.testing.memory import Memory, SeenRequest
from outtray.testing.wire import Handler

_LEAVE_SECONDS = 0.3


class FakeServer:
    """A real HTTP/1.1 server for tests: keeps what is posted to any path that ends in ``/batch``.

    A batch is a JSON array of objects, each with a ``message_id``; gzip bodies are read too. What is no batch
    is answered 400 by the modes that accept batches. *port* 0 takes a free one at the first start and keeps
    it from then on. *host* is the IPv4 address to bind; the default is out of reach of other machines. *mode*
    is what `set_mode` takes; ValueError if it is unknown.

    All methods may be called from any thread, before, between and after `start` and `stop`. What was received
    and the mode outlive a stop.
    """

    def __init__(self, port: int = 0, mode: str | int = "ok", *, host: str = "127.0.0.1") -> None:
        self._host = host
        self._port = port
        self._memory = Memory()
        self._turns = Turns()
        self._turns.set(choose(str(mode), {}))
        self._switching = threading.RLock()
        self._listener: Listener | None = None
        self._reopening: threading.Timer | None = None

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def start(self) -> Self:
        """Bind the port and, unless the mode is ``refuse``, answer. Raises OSError if the port is taken."""
        with self._switching:
            if self._listener is None:
                address = (self._host, self._port)
                self._listener = Listener(address, Handler, self._memory, self._turns, self._follow)
                self._port = self._listener.port
                self._follow()
        return self

    def stop(self) -> None:
        """Close the port and every connection, in less than 0.5 s."""
        with self._switching:
            self._cancel_reopening()
            if self._listener is not None:
                self._listener.close(timeout=_LEAVE_SECONDS)
                self._listener = None

    @property
    def port(self) -> int:
        """The port. Raises RuntimeError before the first start if it was to be a free one."""
        if self._port == 0:
            raise RuntimeError("the port is known once the server was started")
        return self._port

    @property
    def url(self) -> str:
        """The address without a trailing slash; batches go to ``url + "/batch"``."""
        return f"http://{self._host}:{self.port}"

    @property
    def mode(self) -> str:
        """The name of the mode that answers next."""
        return self._turns.current.name

    def set_mode(self, name: str | int, /, **options: Any) -> None:
        """Answer as *name* says from the next request on.

        Names and options are listed in `outtray.testing.modes.MODES`; a number is an HTTP status, with the
        options ``retry_after`` (seconds or an HTTP date), ``body`` and ``content_type``. All modes but
        ``refuse`` take ``delay`` (seconds before the answer; the batch is accepted before them) and ``times``
        (requests until the mode before comes back). ``refuse`` closes the port and all connections until
        another mode is set or ``for_seconds`` have passed. Raises ValueError, which names what is known.
        """
        self._follow(choose(str(name), options))

    @property
    def received(self) -> list[dict[str, Any]]:
        """The distinct accepted messages in the order of their first acceptance."""
        return self._memory.received

    @property
    def repeats(self) -> dict[str, int]:
        """How many times beyond the first a message was accepted, for those that were."""
        return self._memory.repeats

    @property
    def requests(self) -> list[SeenRequest]:
        """All POSTs (but those to ``/__control``) and GETs of a batch path, in the order of their arrival."""
        return self._memory.requests

    def clear(self) -> None:
        """Forget what was received and seen; the mode stays."""
        self._memory.clear()

    def _follow(self, choice: Choice | None = None, keep: socket.socket | None = None) -> None:
        """Change over to *choice*, if given, then open or close the port as the current mode wants it."""
        with self._switching:
            if choice is not None:
                self._turns.set(choice)
            listener, current = self._listener, self._turns.current
            if listener is None:
                return
            self._cancel_reopening()
            if current.mode.listens and not listener.listening:
                listener.open()
            elif listener.listening and not current.mode.listens:
                listener.refuse(keep)
            if current.for_seconds is not None:
                self._reopening = threading.Timer(current.for_seconds, self._reopen, [current])
                self._reopening.daemon = True
                self._reopening.start()

    def _reopen(self, choice: Choice) -> None:
        with self._switching:
            if self._turns.leave(choice):
                self._follow()

    def _cancel_reopening(self) -> None:
        if self._reopening is not None:
            self._reopening.cancel()
            self._reopening = None
