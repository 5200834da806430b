"""`post`, the seed's function, and the one exchange below it."""

from __future__ import annotations

import socket
import threading
import time
from pathlib import Path
from typing import Any

import pytest

import outtray
from outtray import AnalyticsAPIError, SourceContext, post, source_context
from outtray.errors import Postponed
from outtray.request import MAX_ANSWER_BYTES
from outtray.testing import FakeServer
from tests.conftest import exchange, wait_until

Addresses = list[tuple[Any, ...]]

MESSAGES = ['{"message_id": "1"}', '{"message_id": "2", "text": "é"}']


@pytest.mark.parametrize("ending", ["", "/", "//", "/path", "/path/"])
def test_post_joins_the_messages_and_puts_one_slash(ending: str, server: FakeServer) -> None:
    outtray.configure(url=server.url + ending)
    response = post(MESSAGES)
    assert response.status_code == 200
    assert response.json() == {"success": True}
    assert [message["message_id"] for message in server.received] == ["1", "2"]
    assert server.received[1]["text"] == "é"
    (seen,) = server.requests
    assert seen.path == ("/path/batch" if "path" in ending else "/batch")
    headers = {name.lower(): value for name, value in seen.headers.items()}
    assert headers["accept"] == headers["content-type"] == "application/json"
    assert headers["source-context"] == "python"


def test_a_query_of_the_url_stays_behind_the_path(server: FakeServer) -> None:
    outtray.configure(url=server.url + "/path/?token=tulip#top")
    post(MESSAGES)
    assert server.requests[0].path == "/path/batch?token=tulip"


def test_the_source_context_is_a_context_variable(server: FakeServer) -> None:
    outtray.configure(url=server.url)
    token = source_context.set(SourceContext.CLI)
    try:
        post(MESSAGES)
    finally:
        source_context.reset(token)
    post(MESSAGES)
    assert [request.headers["Source-Context"] for request in server.requests] == ["cli", "python"]


@pytest.mark.parametrize("status", [201, 204, 301, 302, 400, 401, 404, 500, 503])
def test_post_raises_for_anything_but_200(status: int, server: FakeServer) -> None:
    outtray.configure(url=server.url)
    server.set_mode(status, body="" if status == 204 else "the text")
    with pytest.raises(AnalyticsAPIError) as caught:
        post(MESSAGES)
    assert caught.value.status == status
    if status != 204:
        assert str(caught.value) == f"[ZenML Analytics] {status}: the text"
    assert len(server.requests) == 1


def test_post_raises_with_status_0_where_no_answer_comes(server: FakeServer) -> None:
    outtray.configure(url=server.url)
    server.set_mode("refuse")
    with pytest.raises(AnalyticsAPIError, match="connection refused") as caught:
        post(MESSAGES)
    assert caught.value.status == 0


def test_post_without_a_url_says_how_to_set_one() -> None:
    with pytest.raises(AnalyticsAPIError, match="OUTTRAY_URL"):
        post(MESSAGES)


@pytest.mark.parametrize("mode", ["hang", "trickle"])
def test_the_deadline_is_a_total_one_and_leaves_no_thread(mode: str, server: FakeServer) -> None:
    server.set_mode(mode, **({"interval": 0.05} if mode == "trickle" else {}))
    began = time.monotonic()
    with pytest.raises(Postponed, match="no answer within"):
        exchange(server.url + "/batch", b"[]", {}, 0.5)
    assert time.monotonic() - began < 5
    end = time.monotonic() + 10
    while any(thread.name == "outtray-request" for thread in threading.enumerate()) and time.monotonic() < end:
        time.sleep(0.02)
    assert not any(thread.name == "outtray-request" for thread in threading.enumerate())


@pytest.mark.parametrize("mode", ["endless", "gzip_bomb"])
def test_no_more_of_an_answer_is_kept_than_the_bound(mode: str, server: FakeServer) -> None:
    server.set_mode(mode)
    assert len(exchange(server.url + "/batch", b"[]", {}, 10).content) <= MAX_ANSWER_BYTES


def test_a_connection_is_kept_alive(server: FakeServer) -> None:
    accepted = []
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            connection, _ = listener.accept()
            accepted.append(connection)
            for _ in range(3):
                while b"[]" not in connection.recv(65_536):
                    continue
                connection.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")

        thread = threading.Thread(target=serve)
        thread.start()
        for _ in range(3):
            url = f"http://127.0.0.1:{listener.getsockname()[1]}/batch"
            assert exchange(url, b"[]", {"content-type": "application/json"}, 5).status_code == 200
        thread.join(5)
        assert not thread.is_alive()
        assert len(accepted) == 1
        accepted[0].close()


def test_a_netrc_does_not_take_the_place_of_the_key(server: FakeServer, home: Path) -> None:
    (home / ".netrc").write_text("machine 127.0.0.1 login me password other\n")
    outtray.configure(url=server.url, write_key="the-key")
    post(MESSAGES)
    assert server.requests[0].headers["authorization"] == "Bearer the-key"


def test_what_happens_while_the_answer_is_awaited_is_up_to_the_caller(server: FakeServer) -> None:
    server.set_mode("ok", delay=0.7)
    calls: list[float] = []
    exchange(server.url + "/batch", b"[]", {}, 10, meanwhile=lambda: calls.append(time.monotonic()))
    assert len(calls) >= 2


# What was given up


def request_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name == "outtray-request"]


def test_a_request_that_was_given_up_during_the_look_up_is_not_sent_later(
    server: FakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked_up = threading.Event()

    def slow(*arguments: Any, look_up: Any = socket.getaddrinfo, **options: Any) -> Addresses:
        time.sleep(0.6)
        looked_up.set()
        found: Addresses = look_up(*arguments, **options)
        return found

    monkeypatch.setattr(socket, "getaddrinfo", slow)
    with pytest.raises(Postponed, match="no answer within"):
        exchange(server.url, b"[]", {}, 0.2)
    assert looked_up.wait(10)
    assert wait_until(lambda: not request_threads())
    assert not server.requests


def test_a_dead_first_address_leaves_time_for_the_second(server: FakeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    port = int(server.url.rpartition(":")[2])
    with socket.socket() as dead, socket.socket() as waiting, socket.socket() as other:
        dead.bind(("127.0.0.2", port))
        dead.listen(0)
        for each in (waiting, other):  # which fill its queue, so that the kernel drops all further ones
            each.setblocking(False)
            each.connect_ex(("127.0.0.2", port))

        def two(*arguments: Any, look_up: Any = socket.getaddrinfo, **options: Any) -> Addresses:
            found: Addresses = look_up(*arguments, **options)
            return [(*found[0][:4], ("127.0.0.2", port)), *found]

        monkeypatch.setattr(socket, "getaddrinfo", two)
        assert exchange(f"http://127.0.0.1:{port}/batch", b'[{"message_id": "1"}]', {}, 4.0).status_code == 200
    assert len(server.requests) == 1


def test_an_interrupted_flush_leaves_no_thread_behind(server: FakeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(_: object) -> None:
        raise KeyboardInterrupt

    tray = outtray.Tray(app="interrupted", url=server.url, flush="manual")
    assert tray.track("event")
    with monkeypatch.context() as patched:
        patched.setattr("outtray.sessions.keep", interrupt)
        with pytest.raises(KeyboardInterrupt):
            tray.flush(10)
    assert wait_until(lambda: not request_threads())
    assert tray.flush(10).settled
