"""The fake server, mode by mode, through real sockets."""

from __future__ import annotations

import gzip
import http.client
import json
import signal
import socket
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import requests

from outtray.testing import FakeServer
from outtray.testing.choice import choose, find_mode
from outtray.testing.modes import MODES

TOOL = Path(__file__).resolve().parent.parent / "tools" / "fake_server.py"
TIMEOUT = 5.0


@pytest.fixture
def server() -> Iterator[FakeServer]:
    with FakeServer() as running:
        yield running


def batch(*names: str, **extra: Any) -> list[dict[str, Any]]:
    return [{"message_id": name, "event": f"event {name}", **extra} for name in names]


def post(server: FakeServer, messages: Any, path: str = "/batch", **options: Any) -> requests.Response:
    return requests.post(server.url + path, json=messages, timeout=TIMEOUT, allow_redirects=False, **options)


def control(server: FakeServer, **order: Any) -> requests.Response:
    return requests.post(f"{server.url}/__control", json=order, timeout=TIMEOUT)


def raw_post(server: FakeServer, body: bytes, announced: int | None = None) -> socket.socket:
    """Send a POST by hand and return the connection."""
    length = len(body) if announced is None else announced
    connection = socket.create_connection(("127.0.0.1", server.port), timeout=TIMEOUT)
    connection.sendall(b"POST /batch HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % length + body)
    return connection


def is_refused(server: FakeServer) -> bool:
    try:
        socket.create_connection(("127.0.0.1", server.port), timeout=TIMEOUT).close()
    except ConnectionRefusedError:
        return True
    return False


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + TIMEOUT
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.01)


def server_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("fake-")]


def ids(server: FakeServer) -> list[str]:
    return [message["message_id"] for message in server.received]


# What it remembers


def test_a_batch_is_accepted_and_remembered_in_order(server: FakeServer) -> None:
    answer = post(server, batch("b", "a"))
    post(server, batch("c"))
    assert (answer.status_code, answer.json()) == (200, {"success": True})
    assert server.received == batch("b", "a", "c")
    assert server.repeats == {}


def test_repeats_are_counted_and_not_received_again(server: FakeServer) -> None:
    post(server, batch("a", "b"))
    post(server, batch("a", "a"))
    assert ids(server) == ["a", "b"]
    assert server.repeats == {"a": 2}


def test_a_request_is_recorded_with_what_was_answered(server: FakeServer) -> None:
    server.set_mode(503)
    post(server, batch("a", "b"), path="/v1/batch?x=1", headers={"X-Key": "secret"})
    (seen,) = server.requests
    assert (seen.method, seen.path, seen.status) == ("POST", "/v1/batch?x=1", 503)
    assert (seen.count, seen.message_ids) == (2, ["a", "b"])
    assert seen.headers["X-Key"] == "secret"
    assert seen.bytes == int(seen.headers["Content-Length"])
    assert server.received == []


def test_a_gzip_body_is_read_and_its_size_is_the_one_on_the_wire(server: FakeServer) -> None:
    packed = gzip.compress(json.dumps(batch(*map(str, range(100)))).encode())
    headers = {"Content-Encoding": "gzip"}
    answer = requests.post(f"{server.url}/batch", data=packed, headers=headers, timeout=TIMEOUT)
    assert answer.status_code == 200
    assert len(server.received) == 100
    assert server.requests[0].bytes == len(packed)


@pytest.mark.parametrize(
    ("body", "encoding", "reason"),
    [
        (b"{", "", "cannot be read"),
        (b"\xff\xfe\xfd", "", "cannot be read"),
        (b"{}", "", "not a JSON array"),
        (b'[{"message_id": "a"}, {"event": "b"}]', "", "message 1"),
        (b"[]", "gzip", "cannot be read"),
        (gzip.compress(b"[]")[:-4], "gzip", "cannot be read"),
        (b"[]", "br", "'br' is not understood"),
    ],
)
def test_what_is_no_batch_is_answered_400_with_the_reason(
    server: FakeServer, body: bytes, encoding: str, reason: str
) -> None:
    headers = {"Content-Encoding": encoding}
    answer = requests.post(f"{server.url}/batch", data=body, headers=headers, timeout=TIMEOUT)
    assert answer.status_code == 400
    assert reason in answer.json()["error"]
    assert server.requests[0].status == 400
    assert server.received == []


def test_a_request_without_a_length_is_answered_411(server: FakeServer) -> None:
    answer = requests.post(f"{server.url}/batch", data=iter([b"[]"]), timeout=TIMEOUT)
    assert answer.status_code == 411


def test_a_post_elsewhere_is_seen_and_answered_404(server: FakeServer) -> None:
    assert post(server, batch("a"), path="/bulk").status_code == 404
    assert [seen.path for seen in server.requests] == ["/bulk"]
    assert server.received == []


def test_clear_forgets_what_was_seen_and_keeps_the_mode(server: FakeServer) -> None:
    server.set_mode("ok", delay=0.01)
    post(server, batch("a"))
    post(server, batch("a"))
    server.set_mode("empty")
    server.clear()
    assert (server.received, server.repeats, server.requests, server.mode) == ([], {}, [], "empty")


def test_the_pages_about_the_server(server: FakeServer) -> None:
    post(server, batch("a"))
    post(server, batch("a", "b"))
    assert requests.get(f"{server.url}/__health", timeout=TIMEOUT).status_code == 200
    assert requests.get(f"{server.url}/nothing", timeout=TIMEOUT).status_code == 404
    assert requests.get(f"{server.url}/__received", timeout=TIMEOUT).json() == {
        "count": 3,
        "distinct": 2,
        "repeats": {"a": 1},
        "messages": batch("a", "b"),
        "requests": 2,
    }


def test_a_connection_is_kept_and_answers_without_waiting(server: FakeServer) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=TIMEOUT)
    connection.connect()
    first = connection.sock
    began = time.monotonic()
    for number in range(40):
        connection.request("POST", "/batch", json.dumps(batch(str(number))))
        assert connection.getresponse().read() == b'{"success": true}'
    # A delayed acknowledgement would cost 40 ms each time.
    assert time.monotonic() - began < 1.2
    assert connection.sock is first
    connection.close()


def test_many_threads_post_at_once_and_nothing_is_lost(server: FakeServer) -> None:
    def send(worker: int) -> None:
        with requests.Session() as session:
            for number in range(20):
                messages = batch(f"{worker}-{number}", "shared")
                session.post(f"{server.url}/batch", json=messages, timeout=TIMEOUT)

    workers = [threading.Thread(target=send, args=[number]) for number in range(8)]
    for each in workers:
        each.start()
    for each in workers:
        each.join()
    assert len(server.received) == 161
    assert server.repeats == {"shared": 159}
    assert len(server.requests) == 160


# Starting and stopping


def test_the_server_comes_back_on_the_same_port_with_its_memory() -> None:
    server = FakeServer()
    with pytest.raises(RuntimeError, match="started"):
        _ = server.port
    with server:
        url = server.url
        post(server, batch("a"))
        server.set_mode(500)
    assert is_refused(server)
    with server:
        assert server.url == url
        assert post(server, batch("b")).status_code == 500
        assert ids(server) == ["a"]


def test_start_and_stop_may_be_repeated() -> None:
    server = FakeServer().start()
    assert server.start() is server
    server.stop()
    server.stop()
    assert is_refused(server)


def test_a_taken_port_is_an_error_and_leaves_the_server_stopped(server: FakeServer) -> None:
    second = FakeServer(server.port)
    with pytest.raises(OSError, match="in use"):
        second.start()
    server.stop()
    with second:
        assert not is_refused(second)


def test_stop_is_prompt_whatever_the_connections_do() -> None:
    server = FakeServer().start()
    body = json.dumps(batch("a")).encode()
    connections = [raw_post(server, body[:5], announced=len(body))]
    for mode, options in [
        ("hang", {}),
        ("trickle", {}),
        ("endless", {}),
        ("ok", {"delay": 60}),
        ("ok", {}),
    ]:
        server.set_mode(mode, **options)
        seen = len(server.requests)
        connections.append(raw_post(server, body))
        wait_until(lambda seen=seen: len(server.requests) > seen)  # type: ignore[misc]
    began = time.monotonic()
    server.stop()
    assert time.monotonic() - began < 0.5
    assert server_threads() == []
    assert [seen.status for seen in server.requests] == [None, None, 200, None, 200]
    for each in connections:
        each.close()


# The modes


def test_empty_accepts_without_a_body(server: FakeServer) -> None:
    server.set_mode("empty")
    answer = post(server, batch("a"))
    assert (answer.status_code, answer.content) == (200, b"")
    assert "Content-Type" not in answer.headers
    assert ids(server) == ["a"]


def test_refuse_closes_the_port_and_the_kept_connections(server: FakeServer) -> None:
    with requests.Session() as session:
        session.post(f"{server.url}/batch", json=batch("a"), timeout=TIMEOUT)
        server.set_mode("refuse")
        with pytest.raises(requests.ConnectionError):
            session.post(f"{server.url}/batch", json=batch("b"), timeout=TIMEOUT)
    assert is_refused(server)
    port = server.port
    server.set_mode("ok")
    assert server.port == port
    assert post(server, batch("c")).status_code == 200
    assert ids(server) == ["a", "c"]


def test_a_refused_port_cannot_be_taken_by_another(server: FakeServer) -> None:
    server.set_mode("refuse")
    with socket.socket() as other, pytest.raises(OSError, match="in use"):
        other.bind(("127.0.0.1", server.port))


def test_a_server_may_start_refusing() -> None:
    with FakeServer(mode="refuse") as server:
        assert is_refused(server)
        server.set_mode("ok")
        assert post(server, batch("a")).status_code == 200


def test_refuse_ends_after_its_time_in_the_mode_before(server: FakeServer) -> None:
    server.set_mode(503)
    answer = control(server, mode="refuse", for_seconds=0.2)
    assert answer.json() == {"mode": "refuse"}
    assert is_refused(server)
    wait_until(lambda: not is_refused(server))
    assert post(server, batch("a")).status_code == 503


def test_another_mode_ends_refuse_before_its_time(server: FakeServer) -> None:
    server.set_mode("refuse", for_seconds=0.1)
    server.set_mode("refuse")
    time.sleep(0.2)
    assert is_refused(server)
    server.set_mode(500)
    assert post(server, batch("a")).status_code == 500


def test_a_counted_mode_goes_back_to_refuse(server: FakeServer) -> None:
    server.set_mode("refuse")
    server.set_mode(500, times=1)
    assert post(server, batch("a")).status_code == 500
    assert is_refused(server)


@pytest.mark.parametrize("status", [400, 401, 403, 404, 405, 408, 413, 422, 425, 429, 500, 503, 599])
def test_a_status_is_answered_to_every_batch(server: FakeServer, status: int) -> None:
    server.set_mode(str(status))
    answers = [post(server, batch("a")) for _ in range(2)]
    assert [each.status_code for each in answers] == [status, status]
    assert answers[0].json() == {"success": False}
    assert server.received == []


def test_a_status_carries_retry_after_and_a_body(server: FakeServer) -> None:
    server.set_mode(429, retry_after=3, body="slow down", content_type="text/plain")
    answer = post(server, batch("a"))
    assert (answer.headers["Retry-After"], answer.text) == ("3", "slow down")
    assert answer.headers["Content-Type"] == "text/plain"
    date = "Wed, 21 Oct 2065 07:28:00 GMT"
    control(server, mode=503, retry_after=date, body={"why": "down"})
    answer = post(server, batch("a"))
    assert (answer.headers["Retry-After"], answer.json()) == (date, {"why": "down"})


def test_another_success_status_accepts_and_204_has_no_body(server: FakeServer) -> None:
    server.set_mode(204)
    answer = post(server, batch("a"))
    assert (answer.status_code, answer.content) == (204, b"")
    assert "Content-Length" not in answer.headers
    assert ids(server) == ["a"]


def test_a_body_over_the_limit_is_too_large_and_a_smaller_one_passes(server: FakeServer) -> None:
    messages = batch("a", "b")
    size = len(json.dumps(messages))
    server.set_mode("too_large", max_bytes=size - 1)
    assert post(server, messages).status_code == 413
    assert post(server, messages[:1]).status_code == 200
    server.set_mode("too_large", max_bytes=size)
    assert post(server, messages).status_code == 200
    assert ids(server) == ["a", "b"]


def test_a_marked_message_is_refused_and_the_others_pass(server: FakeServer) -> None:
    server.set_mode("refuse_marked")
    refused = post(server, [*batch("1"), *batch("2", properties={"note": "so bad"})])
    assert (refused.status_code, "bad" in refused.json()["error"]) == (400, True)
    assert post(server, batch("1")).status_code == 200
    server.set_mode("refuse_marked", marker="größer", status=422)
    assert post(server, batch("3", properties={"note": "größer"})).status_code == 422
    assert ids(server) == ["1"]


@pytest.mark.parametrize("chance", ["0192bad0-0000-7000-8000-00000000bad0", "0192bad0000070008000000000000bad"])
def test_a_marker_that_is_in_a_random_id_by_chance_refuses_nothing(server: FakeServer, chance: str) -> None:
    server.set_mode("refuse_marked")
    assert post(server, batch(chance)).status_code == 200
    server.set_mode("refuse_marked", marker=chance)
    assert post(server, batch(chance)).status_code == 400


def test_html_is_a_captive_portal_and_accepts_nothing(server: FakeServer) -> None:
    server.set_mode("html")
    answer = post(server, batch("a"))
    assert answer.status_code == 200
    assert answer.headers["Content-Type"].startswith("text/html")
    assert "<title>" in answer.text
    assert server.received == []


def test_drop_after_accept_keeps_the_batch_and_answers_nothing(server: FakeServer) -> None:
    server.set_mode("drop_after_accept", times=1)
    connection = raw_post(server, json.dumps(batch("a")).encode())
    assert connection.recv(1) == b""
    connection.close()
    post(server, batch("a"))
    assert [seen.status for seen in server.requests] == [None, 200]
    assert (ids(server), server.repeats) == (["a"], {"a": 1})


@pytest.mark.parametrize("size", [1, 3_000_000])
def test_reset_reads_a_part_and_resets_the_connection(server: FakeServer, size: int) -> None:
    server.set_mode("reset")
    with pytest.raises(requests.ConnectionError, match=r"reset by peer|Broken pipe"):
        post(server, batch("a", text="x" * size))
    (seen,) = server.requests
    assert seen.bytes < int(seen.headers["Content-Length"])
    assert (seen.status, server.received) == (None, [])


def test_trickle_sends_a_letter_at_a_time_without_end(server: FakeServer) -> None:
    server.set_mode("trickle", interval=0.05)
    connection = raw_post(server, json.dumps(batch("a")).encode())
    began = time.monotonic()
    letters = [connection.recv(100) for _ in range(5)]
    assert b"HTTP/1.1 200 OK".startswith(b"".join(letters))
    assert time.monotonic() - began > 0.15
    connection.close()
    assert (server.requests[0].status, server.received) == (None, [])


def test_the_head_of_a_fast_trickle_never_ends(server: FakeServer) -> None:
    server.set_mode("trickle", interval=0)
    connection = raw_post(server, json.dumps(batch("a")).encode())
    text = b""
    while len(text) < 1_000:
        text += connection.recv(1_000)
    connection.close()
    assert text.startswith(b"HTTP/1.1 200 OK\r\nX-Slow: ")
    assert b"\r\n\r\n" not in text


def test_hang_never_answers(server: FakeServer) -> None:
    server.set_mode("hang")
    connection = raw_post(server, json.dumps(batch("a")).encode())
    connection.settimeout(0.2)
    with pytest.raises(TimeoutError):
        connection.recv(1)
    connection.close()
    assert [(seen.count, seen.status) for seen in server.requests] == [(1, None)]
    assert server.received == []


@pytest.mark.parametrize(("status", "method"), [(302, "GET"), (307, "POST")])
def test_a_followed_redirect_meets_a_friendly_receiver_and_is_seen(
    server: FakeServer, status: int, method: str
) -> None:
    control(server, mode="redirect_self", status=status)
    answer = post(server, batch("a"))
    assert (answer.status_code, answer.headers["Location"]) == (status, f"{server.url}/elsewhere/batch")
    followed = requests.post(f"{server.url}/batch", json=batch("a"), timeout=TIMEOUT)
    assert (followed.status_code, followed.json()) == (200, {"success": True})
    last = server.requests[-1]
    assert (len(server.requests), last.method, last.path) == (3, method, "/elsewhere/batch")


def test_redirect_host_names_another_host(server: FakeServer) -> None:
    server.set_mode("redirect_host")
    assert post(server, batch("a")).headers["Location"] == "http://other.invalid/batch"
    server.set_mode("redirect_host", location="https://third.invalid/", status=308)
    answer = post(server, batch("a"))
    assert (answer.status_code, answer.headers["Location"]) == (308, "https://third.invalid/")
    assert server.received == []


def test_an_endless_body_goes_on_until_the_client_leaves(server: FakeServer) -> None:
    server.set_mode("endless")
    with post(server, batch("a"), stream=True) as answer:
        assert answer.status_code == 200
        assert len(answer.raw.read(5_000_000)) == 5_000_000
    wait_until(lambda: "fake-connection" not in server_threads())
    assert server.received == []


def test_huge_headers_are_more_than_a_client_takes(server: FakeServer) -> None:
    server.set_mode("huge_headers")
    with pytest.raises(requests.RequestException):
        post(server, batch("a"))
    server.set_mode("huge_headers", count=2, header_bytes=1_000)
    assert len(post(server, batch("a")).headers["X-Huge-1"]) == 1_000
    assert server.received == []


def test_a_gzip_bomb_is_small_on_the_wire_and_a_gib_unpacked(server: FakeServer) -> None:
    server.set_mode("gzip_bomb")
    with post(server, batch("a"), stream=True) as answer:
        assert answer.headers["Content-Encoding"] == "gzip"
        packed = answer.raw.read(decode_content=False)
    assert len(packed) < 1_200_000
    assert int.from_bytes(packed[-4:], "little") == 1 << 30
    assert len(zlib.decompressobj(31).decompress(packed, 20_000_000)) == 20_000_000


def test_a_smaller_gzip_bomb_is_valid_to_the_end(server: FakeServer) -> None:
    server.set_mode("gzip_bomb", unpacked_bytes=4 << 20)
    assert post(server, batch("a")).content == bytes(4 << 20)


def test_bad_chunks_cannot_be_read(server: FakeServer) -> None:
    server.set_mode("bad_chunks")
    with post(server, batch("a"), stream=True) as answer:
        assert (answer.status_code, answer.headers["Transfer-Encoding"]) == (200, "chunked")
        with pytest.raises(requests.RequestException):
            _ = answer.content


def test_flaky_answers_in_turn_and_accepts_only_its_successes(server: FakeServer) -> None:
    server.set_mode("flaky")
    assert [post(server, batch(name)).status_code for name in "abc"] == [200, 500, 200]
    server.set_mode("flaky", statuses=[503, 429, 200])
    assert [post(server, batch(name)).status_code for name in "defg"] == [503, 429, 200, 503]
    assert ids(server) == ["a", "c", "f"]


# What works with every mode


def test_a_delay_comes_before_the_answer_and_after_the_acceptance(server: FakeServer) -> None:
    server.set_mode("ok", delay=0.5)
    connection = raw_post(server, json.dumps(batch("a")).encode())
    wait_until(lambda: ids(server) == ["a"])
    assert server.requests[0].status is None
    assert connection.recv(12) == b"HTTP/1.1 200"
    assert server.requests[0].status == 200
    connection.close()


def test_a_counted_mode_goes_back_to_the_mode_before(server: FakeServer) -> None:
    server.set_mode(503)
    server.set_mode(429, times=2)
    server.set_mode("html", times=1)
    assert [post(server, batch("a")).status_code for _ in range(5)] == [200, 429, 429, 503, 503]


def test_a_counted_mode_counts_from_anew_when_it_is_set_again(server: FakeServer) -> None:
    server.set_mode("flaky", statuses=[500, 502], times=3)
    assert [post(server, batch("a")).status_code for _ in range(4)] == [500, 502, 500, 200]


@pytest.mark.parametrize("mode", sorted({*MODES, "503"} - {"refuse"}))
def test_every_mode_can_be_delayed_and_counted(mode: str) -> None:
    choice = choose(mode, {"delay": "0.5", "times": "2"})
    assert (choice.delay, choice.times) == (0.5, 2)


@pytest.mark.parametrize("mode", sorted({*MODES, "503"}))
def test_the_default_of_every_option_is_a_value_that_it_takes(mode: str) -> None:
    options = {name: value for name, value in find_mode(mode).options.items() if value is not None}
    assert choose(mode, options).options == options


# What cannot be set


@pytest.mark.parametrize(
    ("order", "reason"),
    [
        ({"mode": "nonsense"}, "unknown mode 'nonsense'.*drop_after_accept.*HTTP status"),
        ({"mode": "99"}, "unknown mode '99'"),
        ({"mode": "600"}, "unknown mode '600'"),
        ({"mode": "trickle", "speed": 1}, "no option 'speed'; known are delay, interval, times"),
        ({"mode": "429", "max_bytes": 1}, "known are body, content_type, delay, retry_after, times"),
        ({"mode": "refuse", "times": 1}, "no option 'times'; known are for_seconds"),
        ({"mode": "ok", "times": 0}, "'times' must be a whole number from 1, not 0"),
        ({"mode": "ok", "times": 1.5}, "'times' must be a whole number"),
        ({"mode": "ok", "times": True}, "'times' must be a whole number"),
        ({"mode": "ok", "delay": -1}, "'delay' must be seconds from 0"),
        ({"mode": "ok", "delay": "soon"}, "'delay' must be seconds"),
        ({"mode": "ok", "delay": "nan"}, "'delay' must be seconds"),
        ({"mode": "flaky", "statuses": []}, "'statuses' must be HTTP statuses"),
        ({"mode": "flaky", "statuses": 500}, "'statuses' must be HTTP statuses"),
        ({"mode": "redirect_self", "status": 1000}, "'status' must be an HTTP status"),
        ({"mode": "503", "retry_after": "3\r\nX: y"}, "'retry_after' must be"),
    ],
)
def test_a_wrong_order_names_what_is_known_and_the_mode_stays(
    server: FakeServer, order: dict[str, Any], reason: str
) -> None:
    server.set_mode(503)
    options = {name: value for name, value in order.items() if name != "mode"}
    with pytest.raises(ValueError, match=reason) as refusal:
        server.set_mode(order["mode"], **options)
    answer = control(server, **order)
    assert (answer.status_code, answer.json()["error"]) == (400, str(refusal.value))
    assert post(server, batch("a")).status_code == 503


@pytest.mark.parametrize("body", [b"", b"[]", b"{}", b"{"])
def test_an_order_that_is_no_order_is_answered_400(server: FakeServer, body: bytes) -> None:
    answer = requests.post(f"{server.url}/__control", data=body, timeout=TIMEOUT)
    assert answer.status_code == 400
    assert server.mode == "ok"


def test_an_unknown_first_mode_is_an_error() -> None:
    with pytest.raises(ValueError, match="unknown mode"):
        FakeServer(mode="nonsense")


# The tool


@pytest.fixture
def start_tool() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    started: list[subprocess.Popen[str]] = []

    def start(*arguments: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-E", str(TOOL), *arguments]
        started.append(
            subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=TOOL.anchor)
        )
        return started[-1]

    yield start
    for each in started:
        each.kill()
        each.communicate()


def said(tool: subprocess.Popen[str]) -> str:
    assert tool.stdout is not None
    return tool.stdout.readline()


@pytest.mark.parametrize("ending", [signal.SIGINT, signal.SIGTERM])
def test_the_tool_serves_until_a_signal_and_ends_cleanly(
    start_tool: Callable[..., subprocess.Popen[str]], ending: signal.Signals
) -> None:
    tool = start_tool("--port", "0", "--mode", "429", "--option", "retry_after=3", "--option", "times=1")
    line = said(tool)
    url = line.split()[0].removesuffix("/batch")
    assert url.startswith("http://127.0.0.1:")
    assert "mode 429" in line
    assert f"{url}/__control" in line
    first = requests.post(f"{url}/batch", json=batch("a"), timeout=TIMEOUT)
    assert (first.status_code, first.headers["Retry-After"]) == (429, "3")
    assert requests.post(f"{url}/batch", json=batch("a"), timeout=TIMEOUT).status_code == 200
    order = {"mode": "flaky", "statuses": [418]}
    assert requests.post(f"{url}/__control", json=order, timeout=TIMEOUT).status_code == 200
    assert requests.post(f"{url}/batch", json=batch("a"), timeout=TIMEOUT).status_code == 418
    tool.send_signal(ending)
    out, err = tool.communicate(timeout=TIMEOUT)
    assert (tool.returncode, out, err) == (0, "", "")


def test_the_tool_says_how_refuse_is_left(start_tool: Callable[..., subprocess.Popen[str]]) -> None:
    assert "for_seconds" in said(start_tool("--port", "0", "--mode", "refuse"))


@pytest.mark.parametrize(
    ("arguments", "code", "word"),
    [
        (["--mode", "nonsense"], 2, "unknown mode 'nonsense'"),
        (["--option", "x=1"], 2, "no option 'x'"),
        (["--option", "x"], 2, "expected NAME=VALUE"),
        (["--host", "0.0.0.0"], 2, "--allow-remote"),
        (["--port", "70000"], 1, "cannot listen"),
    ],
)
def test_the_tool_refuses_what_cannot_be(
    start_tool: Callable[..., subprocess.Popen[str]], arguments: list[str], code: int, word: str
) -> None:
    tool = start_tool("--port", "0", *arguments)
    out, err = tool.communicate(timeout=TIMEOUT)
    assert (tool.returncode, out) == (code, "")
    assert word in err


def test_the_tool_names_a_taken_port(server: FakeServer, start_tool: Callable[..., subprocess.Popen[str]]) -> None:
    tool = start_tool("--port", str(server.port))
    _, err = tool.communicate(timeout=TIMEOUT)
    assert tool.returncode == 1
    assert str(server.port) in err


def test_the_tools_help_names_every_mode(start_tool: Callable[..., subprocess.Popen[str]]) -> None:
    out, _ = start_tool("--help").communicate(timeout=TIMEOUT)
    assert all(f"  {mode}" in out for mode in MODES)
