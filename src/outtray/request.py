"""The one place where HTTP happens: a `Line`, and on top of it the seed's `post`."""

from __future__ import annotations

import encodings.idna  # noqa: F401 - else loaded by the first request's thread, which a fork may cut off
import threading
import time
import zlib
from contextlib import closing
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any

import requests

from outtray import forking, sessions, settings
from outtray.enums import source_context
from outtray.errors import AnalyticsAPIError, Postponed, SettingsError
from outtray.secrets import without_secrets

if TYPE_CHECKING:
    from collections.abc import Callable

MAX_ANSWER_BYTES = 256 * 1024
"""Bytes of an answer's body that are read; the rest is left."""

TICK = 0.2
"""Seconds between two calls of *meanwhile*."""


def post(batch: list[str], timeout: int = 15, *, url: str | None = None) -> requests.Response:
    """Post encoded messages to ``{url}/batch`` as one JSON array; *url* is by default the default tray's.

    *timeout* in seconds is the total deadline. Returns the response, whose status is 200. Raises
    AnalyticsAPIError for any other status, and with status 0 where no answer came or no url is set.
    """
    default = settings.current()
    url = url or default.url
    if url is None:
        raise AnalyticsAPIError(0, "no url is set: give one to configure() or in OUTTRAY_URL")
    try:
        key = default.find_key()
    except SettingsError as error:
        raise AnalyticsAPIError(0, str(error)) from error
    try:
        with closing(batch_line(url, key)) as line:
            response = line.exchange(f"[{','.join(batch)}]".encode(), timeout)
    except Postponed as error:
        error.conceal(lambda text: without_secrets(text, url, key))
        raise AnalyticsAPIError(0, str(error)) from error
    if response.status_code != 200:
        raise AnalyticsAPIError(response.status_code, without_secrets(response.text, url, key))
    return response


def batch_line(url: str, key: str | None) -> Line:
    """Return the line for batches in the seed's format; its errors may show what is secret in *url*."""
    context = source_context.get()
    headers = {
        "accept": "application/json",
        "content-type": "application/json",
        source_context.name: getattr(context, "value", str(context)),
    }
    if key is not None:
        headers["authorization"] = f"Bearer {key}"
    place, mark, query = url.partition("#")[0].partition("?")
    return Line("POST", f"{place.rstrip('/')}/batch{mark}{query}", headers)


def probe(url: str, timeout: float) -> requests.Response:
    """Ask for *url* without a body, a key or credentials, and return the answer, whatever its status.

    *timeout* in seconds bounds all of it, as in `Line.exchange`. Raises Postponed with the reason where none came.
    """
    with closing(Line("HEAD", settings.without_credentials(url) or "", {})) as line:
        return line.exchange(b"", timeout)


class Line:
    """Requests to one *url*, one after the other, for which proxies, certificates and credentials are found once.

    A thread of their own makes them, as nothing else bounds a name look-up or a header that trickles in. It starts with
    the first request, and ends with the line, or where no answer comes.
    """

    def __init__(self, method: str, url: str, headers: dict[str, str]) -> None:
        self._arguments = (method, url, headers)
        self._caller: _Caller | None = None

    def close(self) -> None:
        """End the thread; the connection is kept for the next line."""
        caller, self._caller = self._caller, None
        if caller is not None:
            caller.end()

    def exchange(self, body: bytes, timeout: float, meanwhile: Callable[[], None] | None = None) -> requests.Response:
        """Send *body* and return the answer, whatever its status; redirects are answers too and are not followed.

        *timeout* bounds all of it in seconds, name look-up included; *meanwhile* is called every `TICK` in this
        thread until the answer is there. At most `MAX_ANSWER_BYTES` of the answer are kept, unpacked. Raises
        Postponed with the reason where no answer came.
        """
        if self._caller is None:
            self._caller = _Caller(*self._arguments)
        try:
            return self._caller.answer(body, timeout, meanwhile)
        except BaseException:
            self.close()
            raise


class _Caller:
    """The thread of a line, and what is found with its first request."""

    def __init__(self, method: str, url: str, headers: dict[str, str]) -> None:
        self._depth = forking.depth
        self._arguments = (method, url, headers)
        self._prepared: tuple[requests.PreparedRequest, Any] | None = None
        self._has_thread = False
        self._calls: SimpleQueue[tuple[sessions.Session, bytes, float] | None] = SimpleQueue()
        self._answers: SimpleQueue[requests.Response | Exception] = SimpleQueue()

    def answer(self, body: bytes, timeout: float, meanwhile: Callable[[], None] | None) -> requests.Response:
        """Do as `Line.exchange`; what raises also ends the thread."""
        session = sessions.take()
        answer: requests.Response | Exception | None = None
        try:
            self._begin(session, body, timeout)
            answer = self._wait(timeout, meanwhile)
        finally:
            if answer is None:
                self._abandon(session)
        if answer is None:
            raise Postponed(f"no answer within {timeout:.3g} s")
        if isinstance(answer, Exception):
            self.end()
            # Cut off from what requests says, in which the url stands with all its credentials.
            raise Postponed(_reason(answer)) from None
        sessions.keep(session)  # here, not in the thread: one that comes late would put back what was abandoned
        return answer

    def end(self) -> None:
        """End the thread once it has nothing to do."""
        self._calls.put(None)

    def _begin(self, session: sessions.Session, body: bytes, timeout: float) -> None:
        self._calls.put((session, body, timeout))
        if not self._has_thread:
            try:
                threading.Thread(target=self._run, name="outtray-request", daemon=True).start()
                self._has_thread = True
            except RuntimeError:  # an interpreter that is ending starts no threads; the timeouts of requests must do
                self.end()
                self._run()

    def _wait(self, timeout: float, meanwhile: Callable[[], None] | None) -> requests.Response | Exception | None:
        """Return what came, None if nothing does within *timeout* seconds. Raises Postponed in a forked child."""
        end = time.monotonic() + timeout
        while True:
            self._require_parent()
            if meanwhile is not None:
                meanwhile()
            left = end - time.monotonic()
            try:
                answer = self._answers.get(timeout=min(TICK, max(left, 0)))
            except Empty:
                if left <= 0:
                    return None
            else:
                self._require_parent()
                return answer

    def _require_parent(self) -> None:
        """See that this is still the process that began. Raises Postponed."""
        if forking.depth != self._depth:
            raise Postponed("this process was forked while it waited; the answer goes to its parent")

    def _abandon(self, session: sessions.Session) -> None:
        """Shut the connections down, which ends the thread; the session is not used again."""
        self.end()
        if forking.depth == self._depth:
            session.abandon()

    def _run(self) -> None:
        while (call := self._calls.get()) is not None:
            self._answers.put(self._answer_to(*call))

    def _answer_to(self, session: sessions.Session, body: bytes, timeout: float) -> requests.Response | Exception:
        try:
            self._require_parent()
            prepared, environment = self._prepared = self._prepared or _prepare(session, *self._arguments)
            prepared.prepare_body(body, None)
            adapter = session.get_adapter(prepared.url or "")  # it knows of no redirects, which are answers
            # A name may have several addresses, of which the first may be dead.
            with adapter.send(prepared, timeout=(timeout / 2, timeout), **environment) as response:
                response._content = _bounded_content(response)
            return response
        except Exception as error:  # all that goes wrong out there is a reason to wait, and is named
            return error


def _prepare(
    session: sessions.Session, method: str, url: str, headers: dict[str, str]
) -> tuple[requests.PreparedRequest, Any]:
    """Return the request without its body, and what requests takes from the environment for it."""
    # Unpacked by us, with a bound: what the server packs is its own choice.
    headers = {**headers, "accept-encoding": "identity"}
    request = requests.Request(method, url, headers, auth=_authorization(url, headers))
    environment = session.merge_environment_settings(url, {}, stream=True, verify=None, cert=None)
    return session.prepare_request(request), environment


def _authorization(url: str, headers: dict[str, str]) -> Any:
    """Return what requests takes as `auth`. With None it would look into ~/.netrc: what is there is for others."""
    user_and_password = requests.utils.get_auth_from_url(url)
    return _as_given if "authorization" in headers or not any(user_and_password) else user_and_password


def _as_given(request: requests.PreparedRequest) -> requests.PreparedRequest:
    return request


def _bounded_content(response: requests.Response) -> bytes:
    """Return the body, unpacked, or the beginning of it. Raises ValueError if the connection ended in it."""
    data: bytes = response.raw.read(MAX_ANSWER_BYTES, decode_content=False)
    if response.raw.length_remaining and len(data) < MAX_ANSWER_BYTES:
        raise ValueError(f"it ends {response.raw.length_remaining} bytes too early")
    if not data or response.headers.get("content-encoding", "").lower() not in ("gzip", "deflate"):
        return data
    unpacker = zlib.decompressobj(32 + zlib.MAX_WBITS)
    try:
        text = unpacker.decompress(data, MAX_ANSWER_BYTES)
    except zlib.error:
        return data
    if not unpacker.eof and max(len(text), len(data)) < MAX_ANSWER_BYTES:
        raise ValueError("what is packed in it is cut off")
    return text


def _reason(error: Exception) -> str:
    """Return what went wrong in a line, without the layers of wrapping and the addresses of objects."""
    chain: list[BaseException] = [error]
    while (inner := _inside(chain[-1])) is not None and inner not in chain:
        chain.append(inner)
    for cause in reversed(chain):
        if type(cause).__name__ in _WORDS:
            words = _WORDS[type(cause).__name__]
            return words if isinstance(cause, ConnectionError) else f"{words} ({_one_line(cause)})"
    return f"{type(chain[-1]).__name__}: {_one_line(chain[-1])}"


_WORDS = {
    "ConnectionRefusedError": "connection refused",
    "ConnectionResetError": "connection reset by the receiver",
    "RemoteDisconnected": "the receiver closed the connection without an answer",
    "gaierror": "the receiver's name cannot be resolved",
    "SSLCertVerificationError": "the receiver's certificate cannot be verified",
    "TimeoutError": "no answer within the time",
    "InvalidChunkLength": "the answer is not valid HTTP",
    "BadStatusLine": "the answer is not valid HTTP",
    "IncompleteRead": "the answer is not valid HTTP",
    "ValueError": "the answer is not valid HTTP",  # http.client, of a chunk size
}


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200]


def _inside(error: BaseException) -> BaseException | None:
    inner = getattr(error, "reason", None)
    if not isinstance(inner, BaseException):
        inner = error.__cause__ or error.__context__
    if not isinstance(inner, BaseException):
        inner = next((argument for argument in error.args if isinstance(argument, BaseException)), None)
    return inner
