"""Sessions of requests whose connections can be shut down from outside the thread that waits on them."""

from __future__ import annotations

from http.client import HTTPResponse, IncompleteRead
from http.cookiejar import DefaultCookiePolicy
from typing import TYPE_CHECKING, Any

import requests
from requests.adapters import HTTPAdapter
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool

from outtray import forking

if TYPE_CHECKING:
    import socket


class Session(requests.Session):
    """A session that knows its open connections."""

    def __init__(self) -> None:
        super().__init__()
        self.cookies.set_policy(DefaultCookiePolicy(allowed_domains=[]))  # they would tell the receiver who it was
        self.connections: list[_Tracked] = []
        self.is_abandoned = False
        self.mount("http://", _Adapter(self))
        self.mount("https://", _Adapter(self))

    def abandon(self) -> None:
        """Shut every connection down; what is just being looked up or connected sends nothing any more."""
        self.is_abandoned = True
        for connection in list(self.connections):
            connection.shut_down()
        self.close()


class _Adapter(HTTPAdapter):
    """requests' own adapter with connections that report to the session."""

    query = ""

    def __init__(self, session: Session) -> None:
        self.session = session
        super().__init__(pool_connections=1, pool_maxsize=1)

    def request_url(self, request: requests.PreparedRequest, proxies: Any) -> str:
        """Return the target without its query, which the connection adds: urllib3 puts targets into the host's log."""
        target, mark, query = super().request_url(request, proxies).partition("?")
        self.query = mark + query
        return target

    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        super().init_poolmanager(*args, **kwargs)
        self._track(self.poolmanager)

    def proxy_manager_for(self, proxy: Any, **kwargs: Any) -> Any:
        manager = super().proxy_manager_for(proxy, **kwargs)
        self._track(manager)
        return manager

    def _track(self, manager: Any) -> None:
        adapter = self

        class Plain(_Tracked, HTTPConnection):
            of = adapter

        class Secure(_Tracked, HTTPSConnection):
            of = adapter

        class PlainPool(HTTPConnectionPool):
            ConnectionCls = Plain

        class SecurePool(HTTPSConnectionPool):
            ConnectionCls = Secure

        manager.pool_classes_by_scheme = {"http": PlainPool, "https": SecurePool}


class _Answer(HTTPResponse):
    """An answer whose head has an end: `http.client` takes one that is cut off for a whole one."""

    fp: Any

    def begin(self) -> None:
        """Read the head. Raises IncompleteRead if the connection ends in it."""
        lines = self.fp = _Lines(self.fp)
        super().begin()
        if not lines.last:
            raise IncompleteRead(b"")
        if self.fp is lines:
            self.fp = lines.file


class _Lines:
    """A *file* that remembers the *last* line that was read from it; empty at the end of the file."""

    def __init__(self, file: Any) -> None:
        self.file = file
        self.last = b"\n"

    def __getattr__(self, name: str) -> Any:
        return getattr(self.file, name)

    def readline(self, *arguments: int) -> bytes:
        line: bytes = self.file.readline(*arguments)
        self.last = line
        return line


class _Tracked:
    """A connection that is told of when it connects, and can be shut down."""

    response_class: Any = _Answer
    sock: socket.socket | None
    of: _Adapter

    def connect(self) -> None:
        super().connect()  # type: ignore[misc]
        self.of.session.connections.append(self)
        if self.of.session.is_abandoned:  # it was shut down, or comes too late for that
            self.shut_down()

    def putrequest(self, method: str, url: str, *arguments: Any, **options: Any) -> None:
        """Begin a request, with the query that was kept out of its target. Raises OSError where nobody waits for it."""
        if self.of.session.is_abandoned:
            raise OSError("its deadline is over")
        super().putrequest(method, url + self.of.query, *arguments, **options)  # type: ignore[misc]

    def shut_down(self) -> None:
        """End whatever waits on the socket."""
        if self.sock is not None:
            import socket

            try:
                socket.socket.shutdown(self.sock, socket.SHUT_RDWR)
            except OSError:
                return  # it is closed already


_idle: list[Session] = []
forking.in_child.append(lambda _: _idle.clear())  # the sockets are the parent's


def take() -> Session:
    """Return the session that was used last, with its connection kept alive, or a new one."""
    try:
        return _idle.pop()
    except IndexError:
        return Session()


def keep(session: Session) -> None:
    """Have *session* ready for the next call, with the connection that it used last."""
    del session.connections[:-1]
    if len(_idle) < 4:
        _idle.append(session)
