"""What others may do to us: rights, secrets, terminals, text that was to be gone, and receivers that mean harm."""

from __future__ import annotations

import base64
import json
import os
import random
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import outtray
from outtray.cli import main
from outtray.outbox import shared, upkeep
from outtray.outbox.records import Mark
from outtray.outbox.store import Outbox
from outtray.testing import FakeServer

from .conftest import wait_until

Run = Callable[..., subprocess.CompletedProcess[str]]
Capture = pytest.CaptureFixture[str]
Answer = Callable[[bytes], Iterator[bytes]]

MIB = 1024 * 1024
KEY = "the-key-b7Qx"
PASSWORD = "pass/wörd-b7Qx"
TOKEN = "token-b7Qx"
SECRETS = (
    KEY,
    PASSWORD,
    "pass%2Fw%C3%B6rd-b7Qx",
    "pass/w\\u00f6rd-b7Qx",
    TOKEN,
    base64.b64encode(f"mallory:{PASSWORD}".encode()).decode(),
)


class RawServer:
    """A receiver that sends exactly the bytes that *answer* makes of a request, on the loopback interface.

    *answer* of None says goodbye before the request is read. `requests` are the heads and bodies as received.
    """

    def __init__(self, answer: Answer) -> None:
        self.requests: list[bytes] = []
        self.answer = answer
        self._closing = threading.Event()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._closing.set()
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _accept(self) -> None:
        while not self._closing.is_set():
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=[connection], daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with connection:
            try:
                request = self._read(connection)
                self.requests.append(request)
                for piece in self.answer(request):
                    connection.sendall(piece)
                    if self._closing.is_set():
                        return
            except OSError:
                return  # the client had enough

    @staticmethod
    def _read(connection: socket.socket) -> bytes:
        data = b""
        while True:
            head, end, body = data.partition(b"\r\n\r\n")
            length = head.lower().partition(b"content-length:")[2].partition(b"\r\n")[0]
            if end and len(body) >= int(length or 0):
                return data
            piece = connection.recv(65_536)
            if not piece:
                return data
            data += piece


@pytest.fixture
def raw_server() -> Iterator[Callable[[Answer], RawServer]]:
    """Start a `RawServer` with the answer that is given."""
    running: list[RawServer] = []

    def start(answer: Answer) -> RawServer:
        running.append(RawServer(answer))
        return running[-1]

    yield start
    for each in running:
        each.close()


def files_below(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


# Rights


@pytest.mark.skipif(os.name == "nt", reason="modes of POSIX")
@pytest.mark.parametrize("umask", [0, 0o077, 0o777])
def test_every_directory_and_file_is_private_whatever_the_umask(
    umask: int, server: FakeServer, home: Path, run_python: Run
) -> None:
    code = f"""
import os, outtray
from outtray.cli import main
os.umask({umask})
outtray.configure(app="rights", url={server.url!r}, write_key="k", remember_key=True, flush="manual")
assert outtray.track("first") and outtray.flush(20).delivered == 1
assert outtray.track("second")
for words in (["flush"], ["retry", "--all"], ["purge"], ["status"], ["list"], ["where"]):
    assert main(words) == 0, words
assert outtray.track("third")
for folder, folders, files in os.walk(os.environ["HOME"]):
    for name in folders + files:
        path = os.path.join(folder, name)
        print(oct(os.stat(path).st_mode & 0o777), os.path.isdir(path), path)
"""
    done = run_python("-c", code)
    assert done.returncode == 0, done.stderr
    found = [line.split(maxsplit=2) for line in done.stdout.splitlines() if line.startswith("0o")]
    assert {mode for mode, is_folder, _ in found if is_folder == "True"} == {"0o700"}, done.stdout
    assert {mode for mode, is_folder, _ in found if is_folder == "False"} == {"0o600"}, done.stdout
    names = {Path(path).name for _, _, path in found}
    database = {"outbox-1-0.db", "outbox-1-0.db-wal", "outbox-1-0.db-shm", "outbox-1.gate", "outbox-1.drain"}
    assert names >= database | {"config.toml", "client_id"}
    assert {".local", "state", ".config", "outtray"} <= names


# Secrets


def echo(status_line: str, *, content_type: str = "text/plain", location: bool = False) -> Answer:
    """Answer with all that the request gave away, wherever there is room for it."""

    def answer(request: bytes) -> Iterator[bytes]:
        head, _, body = request.partition(b"\r\n\r\n")
        first, *lines = head.decode("latin-1").split("\r\n")
        told = " ".join([first.split(" ")[1], *(line for line in lines if line.lower().startswith("authorization"))])
        if b"good" in body and not location and "400" in status_line:
            yield b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"
            return
        text = f"{'.' * 440} {told} ".encode()
        where = f"Location: http://127.0.0.1:9/{told.replace(' ', '/')}\r\n" if location else ""
        answered = status_line.replace("TOLD", told)
        yield (
            f"{answered}\r\nContent-Type: {content_type}\r\n{where}Content-Length: {len(text)}\r\n\r\n".encode() + text
        )

    return answer


@pytest.mark.skipif(os.name == "nt", reason="paths of POSIX")
@pytest.mark.parametrize("with_key", [True, False])
@pytest.mark.parametrize(
    "answer",
    [
        echo("HTTP/1.1 200 TOLD", content_type="text/html; TOLD"),
        echo("HTTP/1.1 204 TOLD"),
        echo("HTTP/1.1 302 TOLD", location=True),
        echo("HTTP/1.1 400 TOLD"),
        echo("HTTP/1.1 401 TOLD"),
        echo("HTTP/1.1 429 TOLD"),
        echo("HTTP/1.1 503 TOLD"),
        echo("HTTP/1.1 TOLD"),
        echo("TOLD"),
        None,
    ],
    ids=["200", "204", "302", "400", "401", "429", "503", "no status", "no HTTP", "refused"],
)
def test_no_secret_is_in_what_is_stored_or_said(
    with_key: bool, answer: Answer | None, raw_server: Callable[[Answer], RawServer], home: Path, run_python: Run
) -> None:
    """With a receiver that repeats key, password and query in its answer; the log is taken at its finest."""
    place = f"127.0.0.1:{raw_server(answer).port if answer else 9}"
    url = f"http://mallory:pass%2Fw%C3%B6rd-b7Qx@{place}/in?token={TOKEN}"
    code = """
import logging, sys, traceback, outtray
from outtray.cli import main
logging.basicConfig(level=logging.DEBUG, stream=sys.stdout)
tray = outtray.configure(app="leak", flush="manual", timeout=5, max_batch_count=1)
outtray.track("good"); outtray.track("bad"); outtray.track("good again")
report = tray.flush(1)
print(report, repr(report), tray, tray.settings, tray.client, tray.status())
try:
    outtray.post(['{"message_id": "bad"}'], 5)
except outtray.AnalyticsAPIError as error:
    print(repr(error))
    traceback.print_exc(file=sys.stdout)
for words in (["flush", "--all"], ["status"], ["list"], ["show", "1"], ["show", "2"], ["where"], ["retry", "--all"]):
    main(words)
    main([*words, "--json"])
"""
    variables = {"OUTTRAY_URL": url, "PYTHONIOENCODING": "utf-8", **({"OUTTRAY_WRITE_KEY": KEY} if with_key else {})}
    done = run_python("-c", code, **variables)
    assert done.returncode == 0, done.stderr
    said = done.stdout + done.stderr
    assert "AnalyticsAPIError" in said or (answer is not None and "[ZenML" not in said)
    for secret in SECRETS:
        assert secret not in said, said[max(0, said.index(secret) - 300) :][:500]
        for path in files_below(home):
            assert secret.encode() not in path.read_bytes(), path
    if answer is not None and b" 400 " in next(answer(b"POST / x\r\n\r\nbad")):
        assert "dead" in said  # the answer's beginning was stored and shown, without them
        assert "/in/batch?…" in said


def test_a_secret_that_is_cut_off_at_the_end_is_hidden_too(server: FakeServer, capsys: Capture) -> None:
    server.set_mode("refuse_marked", marker="bad")
    for cut in range(len(KEY) + 3):
        server.set_mode("400", body="." * (500 - cut) + KEY + "…", times=1)
        tray = outtray.Tray(app=f"cut{cut}", url=server.url, write_key=KEY, flush="manual", max_batch_count=1)
        tray.track("bad")
        tray.track("good")
        assert tray.flush(20).dead == 1
        tray.close()
        assert main(["show", "1", "--app", f"cut{cut}", "--json"]) == 0
        excerpt = json.loads(capsys.readouterr().out)[0]["excerpt"]
        assert KEY[:4] not in excerpt
        assert excerpt.startswith("....")


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="reads /proc")
def test_the_key_is_in_no_command_line_of_a_flush_that_is_left_behind(
    server: FakeServer, home: Path, run_python: Run
) -> None:
    server.set_mode("ok", delay=1.5)
    url = f"http://mallory:{TOKEN}@127.0.0.1:{server.port}"
    code = (
        f"import outtray; outtray.configure(app='left', url={url!r}, write_key={KEY!r}, flush='exit')\n"
        "assert outtray.track('e')"
    )
    assert run_python("-c", code).returncode == 0
    assert wait_until(lambda: server.requests)
    ours = f"HOME={home}".encode()
    lines = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdecimal():
            try:
                if ours in (folder / "environ").read_bytes().split(b"\0"):
                    lines.append((folder / "cmdline").read_bytes())
            except OSError:
                continue  # it ended
    assert any(b"outtray\0flush" in line for line in lines)
    assert not any(secret.encode() in line for line in lines for secret in SECRETS)
    assert server.requests[0].headers["authorization"] == f"Bearer {KEY}"
    assert wait_until(lambda: outtray.Tray(app="left", flush="manual").status()["delivered"] == 1)


def test_what_a_netrc_holds_goes_to_no_receiver(server: FakeServer, home: Path) -> None:
    (home / ".netrc").write_text(f"default login me password {KEY}\n")
    for url in (server.url, f"http://mallory:{TOKEN}@127.0.0.1:{server.port}"):
        tray = outtray.Tray(app="netrc", url=url, flush="manual")
        tray.track("e")
        assert tray.flush(20).delivered == 1
    first, second = ({name.lower(): value for name, value in seen.headers.items()} for seen in server.requests)
    assert "authorization" not in first
    assert second["authorization"] == "Basic " + base64.b64encode(f"mallory:{TOKEN}".encode()).decode()


def test_a_cookie_of_a_receiver_is_not_sent_back(raw_server: Callable[[Answer], RawServer]) -> None:
    def answer(_: bytes) -> Iterator[bytes]:
        yield b"HTTP/1.1 200 OK\r\nSet-Cookie: who=you-7; Path=/\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"

    receiver = raw_server(answer)
    tray = outtray.Tray(app="cookie", url=receiver.url, flush="manual")
    for _ in range(3):
        tray.track("e")
        assert tray.flush(20).delivered == 1
    assert len(receiver.requests) == 3
    assert not any(b"cookie" in request.lower() or b"you-7" in request for request in receiver.requests)


# Terminals

HOSTILE = "\x1b[31mred\x07\x9b5n \u202egnp.exe\u2066 \u200b\r\n\tline\x7f\u2028😀"


def is_harmless(shown: str) -> bool:
    return all(each.isprintable() or each == "\n" for each in shown)


def test_nothing_that_lies_in_a_folder_or_comes_from_a_receiver_moves_the_terminal(
    raw_server: Callable[[Answer], RawServer], home: Path, capsys: Capture
) -> None:
    said = "\x1b]0;title\x07\x9b5n\u202e".encode()

    def answer(request: bytes) -> Iterator[bytes]:
        if b"bad" in request:
            yield b"HTTP/1.1 400 " + said + b"\r\nContent-Length: 20\r\n\r\n" + said + b"." * 20
        elif b"moved" in request:
            yield b"HTTP/1.1 302 " + said + b"\r\nLocation: http://x/" + said + b"\r\nContent-Length: 0\r\n\r\n"
        elif b"portal" in request:
            yield b"HTTP/1.1 200 OK\r\nContent-Type: text/html;" + said + b"\r\nContent-Length: 0\r\n\r\n"
        else:
            yield b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"

    receiver = raw_server(answer)
    tray = outtray.Tray(app="hostile", dir=str(home / "plain"), url=receiver.url, flush="manual", max_batch_count=1)
    for event in (HOSTILE, "bad", HOSTILE * 200, "\ud800 lone", "portal"):
        assert tray.track(event, {event: event})
    tray.close()
    place = ["--dir", str(home / "plain"), "--app", "hostile"]
    inside = Path(tray.settings.directory)
    for name in (b"\x1b[31m file", "‮ bidi".encode(), b"\xff\xfe no UTF-8", b"n" * 200):
        with open(os.fsencode(inside) + b"/" + name, "wb"):
            pass
        os.mkdir(os.fsencode(home / "plain") + b"/" + name)
    commands = [
        ["flush", "--all"],
        ["status"],
        ["list"],
        ["list", "--state", "dead"],
        ["list", "--event", HOSTILE],
        *(["show", str(id)] for id in range(1, 6)),
        ["show", HOSTILE],
        ["where"],
        ["retry", HOSTILE],
        ["retry", "--reason", HOSTILE],
        ["purge", "--dry-run"],
        ["purge", "--state", "dead"],
    ]
    for words in commands:
        main([*words, *place])
        shown = capsys.readouterr()
        assert is_harmless(shown.out + shown.err), (words, shown)
        main([*words, "--json", *place])
        shown = capsys.readouterr()
        assert is_harmless(shown.out + shown.err), (words, shown)
        if shown.out:
            json.loads(shown.out)
    assert main(["list", "--json", *place]) == 0
    assert HOSTILE in [message["event"] for message in json.loads(capsys.readouterr().out)]
    # Without --app the names of the folders are looked at: none of these is an application's.
    assert main(["status", "--dir", str(home / "plain")]) == 0
    shown = capsys.readouterr()
    assert is_harmless(shown.out + shown.err)


def test_a_home_with_a_hostile_name_is_shown_harmlessly(home: Path, run_python: Run) -> None:
    strange = home / "\x1b[2J\u202e home"
    strange.mkdir()
    for words in (["status"], ["where"], ["list"], ["flush"], ["status", "--json"], ["where", "--json"]):
        done = run_python("-m", "outtray", *words, HOME=str(strange))
        assert done.returncode == 0, done.stderr
        assert is_harmless(done.stdout + done.stderr), words
    assert json.loads(done.stdout)["dir"].startswith(str(strange))


# Text that was to be gone


@pytest.fixture
def sparing_sqlite(monkeypatch: pytest.MonkeyPatch) -> None:
    """An SQLite that was built to leave deleted text where it is; some distributions build it the other way."""
    connect = sqlite3.connect

    def connect_sparingly(*arguments: Any, **options: Any) -> sqlite3.Connection:
        connection = connect(*arguments, **options)
        connection.execute("PRAGMA secure_delete = OFF")
        return connection

    monkeypatch.setattr(sqlite3, "connect", connect_sparingly)


def texts_left(directory: str, ids: set[int]) -> set[int]:
    content = b"".join(path.read_bytes() for path in Path(directory).iterdir())
    return {id for id in ids if f"tulip-{id:05d}".encode() in content}


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.usefixtures("sparing_sqlite")
def test_a_purge_leaves_no_byte_also_of_rows_that_were_moved_before(seed: int, tmp_path: Path) -> None:
    """Pruning moves the rows that stay to other pages; what it leaves behind on the old ones must be gone too."""
    chance = random.Random(seed)
    outbox = shared.at(str(tmp_path / "app"), destination="zenml", max_bytes=64 * MIB)
    for number in range(1, 401):
        text = f"tulip-{number:05d} " * chance.choice([5, 30, 90, 300, 900])
        assert outbox.append(json.dumps({"t": text}), accepted_at=float(number)) == number
    dead = settle_some(outbox, chance)
    upkeep.prune(outbox, retention=-1.0)
    assert upkeep.purge(outbox, state="pending", before=float("inf")) == 200
    assert upkeep.purge(outbox, state="dead", before=float("inf")) == len(dead)
    assert texts_left(outbox.directory, dead | set(range(201, 401))) == set()


@pytest.mark.parametrize("state", ["pending", "dead", "local", "deferred"])
@pytest.mark.usefixtures("sparing_sqlite")
def test_the_text_of_what_is_purged_is_gone_and_of_what_stays_is_there(state: str, tmp_path: Path) -> None:
    outbox = shared.at(str(tmp_path / "app"), destination="zenml", max_bytes=64 * MIB)
    for number in range(1, 101):
        text = f"tulip-{number:05d} " * 30
        body, is_local = json.dumps({"t": text}), state == "local" and number % 2 == 0
        outbox.append(body, accepted_at=float(number), local=is_local)
    gone = {number for number in range(1, 101) if number % 2 == 0 or state == "pending"}
    if state in ("dead", "deferred"):
        batch = outbox.pending("zenml", after_id=0, max_count=100, max_bytes=MIB)
        assert batch is not None
        later = time.time() + 1_000
        marks = [
            Mark(
                message, state, status=400, reason="no", excerpt=f"tulip-{message.id:05d} is bad", next_attempt_at=later
            )
            for message in batch.messages
            if message.id in gone
        ]
        outbox.settle(batch, marks, status=200, seconds=0.1)
    assert upkeep.purge(outbox, state=state, before=float("inf")) == len(gone)
    assert texts_left(outbox.directory, gone) == set()
    stays = set(range(1, 101)) - gone
    assert texts_left(outbox.directory, stays) == stays


def settle_some(outbox: Outbox, chance: random.Random) -> set[int]:
    """Deliver the older half, some of which is refused; return the ids of those."""
    batch = outbox.pending("zenml", after_id=0, max_count=200, max_bytes=64 * MIB)
    assert batch is not None
    assert len(batch.messages) == 200
    marks = [Mark(each, "dead", status=400, reason="no") for each in batch.messages if chance.random() < 0.3]
    outbox.settle(batch, marks, status=200, seconds=0.1)
    return {mark.message.id for mark in marks}


# Receivers that mean harm

OK_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"


def at_once(*pieces: bytes) -> Answer:
    def answer(_: bytes) -> Iterator[bytes]:
        yield b"".join(pieces)

    return answer


def for_ever(begin: bytes, again: bytes, *, pause: float = 0.0) -> Answer:
    def answer(_: bytes) -> Iterator[bytes]:
        yield begin
        while True:
            yield again
            time.sleep(pause)

    return answer


HARMFUL: dict[str, Answer] = {
    "endless body": for_ever(OK_HEAD + b"\r\n", b" " * 65_536),
    "endless chunks": for_ever(OK_HEAD + b"Transfer-Encoding: chunked\r\n\r\n", b"10000\r\n" + b" " * 65_536 + b"\r\n"),
    "endless tiny chunks": for_ever(OK_HEAD + b"Transfer-Encoding: chunked\r\n\r\n", b"1\r\n \r\n" * 1_000),
    "endless chunk extension": for_ever(OK_HEAD + b"Transfer-Encoding: chunked\r\n\r\n1;", b"x" * 65_536),
    "gigantic header": for_ever(OK_HEAD + b"X-Big: ", b"x" * 65_536),
    "endless headers": for_ever(OK_HEAD, b"X-More: yes\r\n" * 100),
    "a header now and then": for_ever(OK_HEAD, b"X-More: yes\r\n", pause=0.2),
    "endless status line": for_ever(b"HTTP/1.1 200 ", b"O" * 65_536),
    "endless 100 Continue": for_ever(b"", b"HTTP/1.1 100 Continue\r\n\r\n" * 100),
    "100 Continue with endless headers": for_ever(b"HTTP/1.1 100 Continue\r\n", b"X-More: yes\r\n" * 100),
    "chunk of 2^63 bytes": for_ever(OK_HEAD + b"Transfer-Encoding: chunked\r\n\r\n8000000000000000\r\n", b" " * 65_536),
    "chunk size with a sign": at_once(OK_HEAD, b"Transfer-Encoding: chunked\r\n\r\n-5\r\n{}\r\n0\r\n\r\n"),
    "chunks that end too early": at_once(OK_HEAD, b"Transfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n"),
    "length of 10^30": for_ever(OK_HEAD + b"Content-Length: 1" + b"0" * 30 + b"\r\n\r\n", b" " * 65_536),
    "length that is not reached": at_once(OK_HEAD, b"Content-Length: 100\r\n\r\n{}"),
    "two lengths": at_once(OK_HEAD, b"Content-Length: 2\r\nContent-Length: 90\r\n\r\n{}"),
    "HTTP/0.9": at_once(b'{"success": true}'),
    "status of six digits": at_once(b"HTTP/1.1 200200 OK\r\nContent-Length: 2\r\n\r\n{}"),
    "negative status": at_once(b"HTTP/1.1 -200 OK\r\nContent-Length: 2\r\n\r\n{}"),
    "cut in its head": at_once(OK_HEAD),
    "deep JSON": at_once(OK_HEAD, b"Content-Length: 200000\r\n\r\n", b"[" * 200_000),
    "number of a million digits": at_once(OK_HEAD, b"Content-Length: 200000\r\n\r\n", b"9" * 200_000),
    "gzip that is cut off": at_once(OK_HEAD, b"Content-Encoding: gzip\r\n\r\n\x1f\x8b\x08\0\0\0\0\0\2\xff"),
    "endless redirect": for_ever(b"HTTP/1.1 302 Found\r\nLocation: /\r\n\r\n", b" " * 65_536),
    "upgrade": at_once(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: tls\r\nConnection: upgrade\r\n\r\n"),
    "hints without an answer": for_ever(b"", b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n" * 10, pause=0.1),
}

DEADLINE = 0.5
"""Seconds that a request may take in these tests."""


@pytest.mark.parametrize("harm", HARMFUL)
def test_a_hostile_receiver_costs_one_deadline_and_no_message(
    harm: str, raw_server: Callable[[Answer], RawServer]
) -> None:
    receiver = raw_server(HARMFUL[harm])
    tray = outtray.Tray(app="harm", url=receiver.url, timeout=DEADLINE, flush="manual")
    assert tray.track("e")
    began = time.monotonic()
    report = tray.flush(DEADLINE)
    assert time.monotonic() - began < DEADLINE + 10
    assert (report.delivered, report.dead) == (0, 0)
    assert report.outcome in (("held",) if "redirect" in harm else ("postponed", "timeout")), report
    assert tray.status()["pending"] == 1
    assert wait_until(lambda: not any(thread.name == "outtray-request" for thread in threading.enumerate()))


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_hostile_receivers_together_cost_little_memory(
    raw_server: Callable[[Answer], RawServer], server: FakeServer, run_python: Run
) -> None:
    server.set_mode("gzip_bomb", unpacked_bytes=256 * MIB)
    urls = {harm: raw_server(HARMFUL[harm]).url for harm in HARMFUL} | {"gzip bomb": server.url}
    code = f"""
import outtray, re
def peak():
    return int(re.search(r"VmHWM:\\s+(\\d+) kB", open("/proc/self/status").read())[1]) * 1024
def flush(number, url):
    tray = outtray.Tray(app=f"app{{number}}", url=url, timeout={DEADLINE}, flush="manual")
    assert tray.track("e")
    tray.flush({DEADLINE})
    tray.close()
flush("good", {raw_server(at_once(OK_HEAD, b"Content-Length: 2", bytes([13, 10, 13, 10]), b"{}")).url!r})
before = peak()
for number, (harm, url) in enumerate({urls!r}.items()):
    flush(number, url)
    print(harm, (peak() - before) >> 20, "MiB more")
print((peak() - before) >> 20)
"""
    done = run_python("-c", code)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.splitlines()[-1]) < 32, done.stdout


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
@pytest.mark.parametrize(
    "target", ["other", "//other", "file", "ftp", "other scheme", "relative", "not UTF-8", "no url"]
)
def test_no_redirect_is_followed_and_no_key_goes_there(
    status: int, target: str, raw_server: Callable[[Answer], RawServer], server: FakeServer
) -> None:
    locations = {
        "other": f"{server.url}/batch",
        "//other": f"//127.0.0.1:{server.port}/batch",
        "file": "file:///etc/passwd",
        "ftp": f"ftp://127.0.0.1:{server.port}/batch",
        "other scheme": f"https://127.0.0.1:{server.port}/batch",
        "relative": "/elsewhere/batch",
        "not UTF-8": f"{server.url}/b\xe4tch",
        "no url": "http://[",
    }
    answer = f"HTTP/1.1 {status} Moved\r\nLocation: {locations[target]}\r\nContent-Length: 0\r\n\r\n"
    receiver = raw_server(at_once(answer.encode("latin-1")))
    tray = outtray.Tray(app="moved", url=receiver.url, write_key=KEY, flush="manual", timeout=5.0)
    assert tray.track("e")
    report = tray.flush(5)
    assert (report.outcome, report.delivered) == ("held", 0)
    assert locations[target] in report.reason
    assert len(receiver.requests) == 1
    assert server.requests == []
    assert server.received == []


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere 127.0.0.2 is no address of this machine")
def test_the_fake_server_answers_on_one_loopback_address_only(server: FakeServer) -> None:
    socket.create_connection(("127.0.0.1", server.port), timeout=5).close()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.2", server.port), timeout=5)
