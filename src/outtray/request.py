"""The one place where HTTP happens: `exchange`, and on top of it the seed's `post`."""

from __future__ import annotations

import encodings.idna  # noqa: F401 - else loaded by the first request's thread, which a fork may cut off
import threading
import time
import zlib
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
        response = post_batch(url, [message.encode() for message in batch], timeout, key=default.find_key())
    except (Postponed, SettingsError) as error:
        raise AnalyticsAPIError(0, str(error)) from error
    if response.status_code != 200:
        text = without_secrets(response.text, url, default.find_key())
        raise AnalyticsAPIError(response.status_code, text)
    return response


def post_batch(
    url: str,
    bodies: list[bytes],
    timeout: float,
    *,
    key: str | None = None,
    meanwhile: Callable[[], None] | None = None,
) -> requests.Response:
    """Post *bodies* in the seed's format and return whatever answer comes. Raises Postponed as `exchange` does."""
    context = source_context.get()
    headers = {
        "accept": "application/json",
        "content-type": "application/json",
        source_context.name: getattr(context, "value", str(context)),
    }
    if key is not None:
        headers["authorization"] = f"Bearer {key}"
    place, mark, query = url.partition("#")[0].partition("?")
    target = f"{place.rstrip('/')}/batch{mark}{query}"
    try:
        return exchange(target, b"[" + b",".join(bodies) + b"]", headers, timeout, meanwhile)
    except Postponed as error:
        error.conceal(lambda text: without_secrets(text, url, key))
        raise


def exchange(
    url: str,
    body: bytes,
    headers: dict[str, str],
    timeout: float,
    meanwhile: Callable[[], None] | None = None,
) -> requests.Response:
    """Post *body* and return the answer, whatever its status; redirects are answers too and are not followed.

    *timeout* bounds all of it in seconds, name look-up included; *meanwhile* is called every `TICK` in this
    thread until the answer is there. At most `MAX_ANSWER_BYTES` of the answer are kept, unpacked. Raises
    Postponed with the reason where no answer came.
    """
    return _answered(_Call("POST", url, body, headers, timeout), timeout, meanwhile)


def probe(url: str, timeout: float) -> requests.Response:
    """Ask for *url* without a body, a key or credentials, and return the answer, whatever its status.

    *timeout* in seconds bounds all of it, as in `exchange`. Raises Postponed with the reason where no answer came.
    """
    return _answered(_Call("HEAD", settings.without_credentials(url) or "", b"", {}, timeout), timeout, None)


def _answered(call: _Call, timeout: float, meanwhile: Callable[[], None] | None) -> requests.Response:
    is_answered = False
    try:
        is_answered = call.wait(timeout, meanwhile)
    finally:
        if not is_answered:
            call.abandon()
    if not is_answered:
        raise Postponed(f"no answer within {timeout:.3g} s")
    return call.result()


class _Call:
    """One exchange in a thread of its own, as nothing else bounds a name look-up or a header that trickles in."""

    def __init__(self, method: str, url: str, body: bytes, headers: dict[str, str], timeout: float) -> None:
        self._depth = forking.depth
        self._arguments = (method, url, body, headers, timeout)
        self._done = threading.Event()
        self._response: requests.Response | None = None
        self._error: Exception | None = None
        self._session = sessions.take()
        try:
            threading.Thread(target=self._run, name="outtray-request", daemon=True).start()
        except RuntimeError:  # an interpreter that is ending starts no threads; the timeouts of requests must do
            self._run()

    def wait(self, timeout: float, meanwhile: Callable[[], None] | None) -> bool:
        """Wait for the answer, *timeout* seconds at most; False if there is none by then. Raises Postponed."""
        end = time.monotonic() + timeout
        while True:
            self._require_parent()
            if meanwhile is not None:
                meanwhile()
            left = end - time.monotonic()
            if self._done.wait(min(TICK, max(left, 0))):
                return True
            if left <= 0:
                return False

    def _require_parent(self) -> None:
        """See that this is still the process that began. Raises Postponed."""
        if forking.depth != self._depth:
            raise Postponed("this process was forked while it waited; the answer goes to its parent")

    def result(self) -> requests.Response:
        """Return the response, and keep the session for the next call. Raises Postponed."""
        self._require_parent()
        if self._error is not None:
            # Cut off from what requests says, in which the url stands with all its credentials.
            raise Postponed(_reason(self._error)) from None
        assert self._response is not None
        sessions.keep(self._session)  # here, not in the thread: one that comes late would put back what was abandoned
        return self._response

    def abandon(self) -> None:
        """Shut the connections down, which ends the thread; the session is not used again."""
        if forking.depth == self._depth:
            self._session.abandon()

    def _run(self) -> None:
        method, url, body, headers, timeout = self._arguments
        try:
            self._require_parent()
            # Unpacked by us, with a bound: what the server packs is its own choice.
            with self._session.request(
                method,
                url,
                data=body,
                headers={**headers, "accept-encoding": "identity"},
                auth=_authorization(url, headers),
                timeout=timeout,
                allow_redirects=False,
                stream=True,
            ) as response:
                response._content = _bounded_content(response)
            self._response = response
        except Exception as error:  # all that goes wrong out there is a reason to wait, and is named
            self._error = error
        finally:
            self._done.set()


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


# Secrets, which receivers and libraries repeat in what they say
