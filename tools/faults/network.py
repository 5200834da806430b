"""Receivers, and networks before them, in every bad state, while a host program tracks; then all turns good.

For each state: a program with a flusher thread tracks and ends by itself, `python -m outtray flush` is run once
against the bad receiver, and once after it turned good. What the program was told is accepted must then be at the
receiver, or be a dead letter that the receiver refused for good.
"""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import socket
import ssl
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

from faults import nginx, relay
from faults.network_child import LARGE_BYTES, MARKER
from faults.relay import Relay
from faults.report import Report
from outtray.delivery.backoff import LONGEST_WAIT
from outtray.delivery.status import status
from outtray.outbox.look import look
from outtray.settings import resolve
from outtray.testing import FakeServer

SRC = Path(__file__).resolve().parent.parent.parent / "src"

TIMEOUT = 4.0
"""Seconds that one request may take, as the host sets it; what waits for the network takes as long."""

NEVER_AS_LONG = 3.5
"""Seconds: the bound for a call of the host and for its end, far above what they take and below what a wait takes."""

START_UP = 10.0
"""Seconds that a command may take beyond its one request, on a machine that is busy with other things."""

AT_ONCE = 3
"""Cells that are tried at the same time: they mostly wait."""

SEED = 4


@dataclass
class Arena:
    """What one cell can use and change. *url* is what the host is told, *heal* what makes the receiver good again."""

    server: FakeServer
    relay: Relay
    folder: Path
    stack: ExitStack
    url: str
    variables: dict[str, str] = field(default_factory=dict)
    heal: Callable[[], None] = lambda: None
    heal_url: str | None = None


@dataclass(frozen=True)
class Cell:
    """One bad state: *enter* brings it about, *says* is in the reason that a flush gives then.

    *refuses* tells of a text which messages the receiver may refuse for good.
    """

    name: str
    enter: Callable[[Arena], None]
    says: str = ""
    refuses: Callable[[dict[str, Any]], bool] = lambda _: False


def _mode(name: str, **options: Any) -> Callable[[Arena], None]:
    def enter(arena: Arena) -> None:
        arena.server.set_mode(name, **options)
        arena.heal = lambda: arena.server.set_mode("ok")

    return enter


def _spoiled(spoiler: relay.Spoiler) -> Callable[[Arena], None]:
    def enter(arena: Arena) -> None:
        arena.url = arena.relay.url
        arena.relay.spoil = spoiler

        def heal() -> None:
            arena.relay.spoil = relay.pass_on

        arena.heal = heal

    return enter


def _elsewhere(url: Callable[[Arena], str]) -> Callable[[Arena], None]:
    def enter(arena: Arena) -> None:
        arena.url = url(arena)
        arena.heal_url = arena.server.url

    return enter


def _slow_reader(arena: Arena) -> str:
    slow = arena.stack.enter_context(Relay(arena.server.port, receive_bytes=2_048))
    slow.spoil = relay.read_a_byte_a_second
    return slow.url


def _full_backlog(arena: Arena) -> str:
    """Return the url of a port whose queue of connections is full: the kernel drops all further ones."""
    listener = arena.stack.enter_context(socket.socket())
    listener.bind(("127.0.0.1", 0))
    listener.listen(0)
    for _ in range(4):
        waiting = arena.stack.enter_context(socket.socket())
        waiting.setblocking(False)
        waiting.connect_ex(listener.getsockname())
    return f"http://127.0.0.1:{listener.getsockname()[1]}"


def _self_signed(arena: Arena) -> str:
    key, certificate = arena.folder / "key.pem", arena.folder / "certificate.pem"
    command = (
        "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=127.0.0.1 -addext subjectAltName=IP:127.0.0.1"
    )
    files = ["-keyout", str(key), "-out", str(certificate)]
    subprocess.run([*command.split(), *files], check=True, capture_output=True, timeout=60)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    return arena.stack.enter_context(Relay(arena.server.port, tls=context)).url


def _through_proxy(prepare: Callable[[Relay], None]) -> Callable[[Arena], None]:
    def enter(arena: Arena) -> None:
        proxy = arena.stack.enter_context(Relay(arena.server.port))
        prepare(proxy)
        arena.variables["HTTP_PROXY"] = proxy.url
        arena.heal = arena.variables.clear

    return enter


def _answer_407(proxy: Relay) -> None:
    def spoil(exchange: relay.Exchange) -> bool:
        exchange.request()
        exchange.connection.sendall(
            b"HTTP/1.1 407 Proxy Authentication Required\r\nProxy-Authenticate: Basic\r\nContent-Length: 0\r\n\r\n"
        )
        return True

    proxy.spoil = spoil


FLAPS = (
    relay.pass_on,
    relay.pass_on,
    relay.drop_the_answer,
    relay.reset_in_the_request,
    relay.reset_in_the_answer,
    relay.answer_garbage,
    relay.cut_in_the_answer,
)


def _flap(arena: Arena) -> None:
    """Change the network every 50 to 200 ms."""
    arena.url = arena.relay.url
    chance = random.Random(SEED)
    is_over = threading.Event()

    def change() -> None:
        while not is_over.wait(chance.uniform(0.05, 0.2)):
            if chance.random() < 0.2:
                arena.relay.refuse()
            else:
                arena.relay.open()
                arena.relay.spoil = chance.choice(FLAPS)

    thread = threading.Thread(target=change, daemon=True)

    def heal() -> None:
        is_over.set()
        thread.join()
        arena.relay.open()
        arena.relay.spoil = relay.pass_on

    arena.stack.callback(is_over.set)
    arena.heal = heal
    thread.start()


def _nginx(spoiler: relay.Spoiler | None, *settings: str) -> Callable[[Arena], None]:
    """Put nginx with *settings* between the host and the relay; without a *spoiler* the relay refuses."""

    def enter(arena: Arena) -> None:
        if spoiler is None:
            arena.relay.refuse()
        else:
            arena.relay.spoil = spoiler
        arena.url = arena.stack.enter_context(nginx.running(arena.folder, arena.relay.port, settings))

        def heal() -> None:
            arena.relay.open()
            arena.relay.spoil = relay.pass_on

        arena.heal = heal

    return enter


def _in_a_minute() -> str:
    return format_datetime(datetime.now(UTC) + timedelta(seconds=60), usegmt=True)


def _has_marker(message: dict[str, Any]) -> bool:
    return MARKER in message["properties"]["text"]


def _is_large(message: dict[str, Any]) -> bool:
    return len(message["properties"]["text"]) >= LARGE_BYTES


SLOW = "no answer within|not answer in time"
HTML = {"body": "<!doctype html><title>Log in</title>", "content_type": "text/html"}

CELLS = (
    Cell("connection refused", _mode("refuse"), "connection refused"),
    Cell("accepted, then dropped", _spoiled(relay.drop_the_answer), "without an answer"),
    Cell("captive portal: 200 text/html", _mode("html"), "not the receiver's answer"),
    Cell(f"flapping (seed {SEED})", _flap),
    Cell("half-open: accepts, never answers", _mode("hang"), SLOW),
    Cell("redirect to a receiver that says yes", _mode("redirect_self", status=307), "a redirect to"),
    Cell("refuses everything", _mode("400"), "refuses every message"),
    Cell("name that does not resolve", _elsewhere(lambda _: "http://receiver.invalid"), "cannot be resolved"),
    Cell("TLS to a port without it", _elsewhere(lambda arena: arena.server.url.replace("http:", "https:")), "SSL"),
    Cell("TLS with a certificate of its own", _elsewhere(_self_signed), "certificate cannot be verified"),
    Cell("half-open: accepts, never reads", _spoiled(relay.accept_and_never_read), SLOW),
    Cell("queue of connections full", _elsewhere(_full_backlog), SLOW),
    Cell("request read a byte a second", _elsewhere(_slow_reader), SLOW),
    Cell("answer a byte a second", _spoiled(relay.answer_a_byte_a_second), SLOW),
    Cell("head of the answer without end", _mode("trickle", interval=0.2), SLOW),
    Cell("reset in the request", _spoiled(relay.reset_in_the_request), "reset|broken pipe"),
    Cell("reset in the answer", _spoiled(relay.reset_in_the_answer), "reset|not valid HTTP"),
    Cell("answer cut in its body", _spoiled(relay.cut_in_the_answer), "not valid HTTP"),
    Cell("answer cut after its head", _spoiled(relay.cut_after_the_head), "not valid HTTP"),
    Cell("answer cut in its head", _spoiled(relay.cut_in_the_head), "not valid HTTP"),
    Cell("answer that is garbage", _spoiled(relay.answer_garbage), "not valid HTTP"),
    Cell("answer of another protocol", _spoiled(relay.answer_of_another_protocol), "not valid HTTP"),
    Cell("503 before the request is read", _spoiled(relay.answer_before_the_request_is_read), "503|reset|broken pipe"),
    Cell("chunks that cannot be read", _mode("bad_chunks"), "not valid HTTP"),
    Cell("answer without end", _mode("endless"), "not the receiver's answer"),
    Cell("captive portal: 302 to a login page", _mode("302", **HTML), "a redirect to"),
    Cell("captive portal: 302 to another host", _mode("redirect_host"), "a redirect to http://other.invalid"),
    Cell("redirect to a receiver that says yes, as GET", _mode("redirect_self", status=302), "a redirect to"),
    Cell("captive portal: 511", _mode("511", **HTML), "511"),
    Cell("429, Retry-After in seconds", _mode("429", retry_after="60"), "429"),
    Cell("503, Retry-After as a date", _mode("503", retry_after=_in_a_minute()), "503"),
    Cell("429, Retry-After negative", _mode("429", retry_after="-5"), "429"),
    Cell("503, Retry-After absurd", _mode("503", retry_after="9" * 40), "503"),
    Cell("503, Retry-After in the past", _mode("503", retry_after="Thu, 01 Jan 1970 00:00:00 GMT"), "503"),
    Cell("503, Retry-After that is a word", _mode("503", retry_after="soon"), "503"),
    Cell("every other answer a 500", _mode("flaky")),
    Cell("401", _mode("401"), "check url and key"),
    Cell("some messages refused", _mode("refuse_marked", marker=MARKER), refuses=_has_marker),
    Cell("batches too large", _mode("too_large", max_bytes=5_000), refuses=_is_large),
    Cell("proxy that refuses", _through_proxy(Relay.refuse), "connection refused"),
    Cell("proxy that wants a password", _through_proxy(_answer_407), "407"),
    Cell("nginx, receiver dead", _nginx(None), "502"),
    Cell("nginx, receiver drops the answer", _nginx(relay.drop_the_answer), "502"),
    Cell("nginx, receiver too slow", _nginx(relay.answer_a_byte_a_second, "proxy_read_timeout 300ms;"), "504"),
    Cell("nginx, bodies too large", _nginx(relay.pass_on, "client_max_body_size 5000;"), refuses=_is_large),
)

QUICK = 7
"""Cells of the quick slice: the first ones."""


def run(*, whole: bool, only: str = "") -> Report:
    """Try the cells, or those with *only* in their name. The quick slice is the first `QUICK`, with fewer messages."""
    report = Report("states of receiver and network")
    cells = tuple(cell for cell in (CELLS if whole or only else CELLS[:QUICK]) if only in cell.name)
    if not nginx.PROGRAM:
        cells = tuple(cell for cell in cells if not cell.name.startswith("nginx"))
    if not shutil.which("openssl"):
        cells = tuple(cell for cell in cells if cell.enter is not _self_signed)
    count, seconds = (1_000, 4.0) if whole else (200, 1.2)
    with ThreadPoolExecutor(AT_ONCE) as pool:
        for part in pool.map(lambda cell: _try(cell, count, seconds), cells):
            report.tried += 1
            report.violations += part.violations
            for name, number in part.counts.items():
                (report.raise_to if name.startswith("longest") else report.add)(name, number)  # type: ignore[arg-type]
    for name, number in report.counts.items():
        if name.endswith("(ms)"):
            report.counts[name] = round(float(number), 1)
    return report


def _try(cell: Cell, count: int, seconds: float) -> Report:
    part = Report("")
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="outtray-network-")))
        server = stack.enter_context(FakeServer())
        arena = Arena(server, stack.enter_context(Relay(server.port)), folder, stack, server.url)
        cell.enter(arena)
        _Trial(cell, arena, part).go(count, seconds)
    part.violations = [f"{cell.name}: {violation}" for violation in part.violations]
    return part


class _Trial:
    """One cell's run and what is counted in it."""

    def __init__(self, cell: Cell, arena: Arena, part: Report) -> None:
        self._cell = cell
        self._arena = arena
        self._part = part
        self._settings = resolve({"app": "host", "dir": arena.folder / "outboxes"})
        self._accepted: list[str] = []
        self._on_the_way: set[str] = set()

    def go(self, count: int, seconds: float) -> None:
        self._host(count, seconds)
        requests = self._arena.server.requests
        # At its end a program waits a moment for the answer on its way, then leaves; that batch goes once more.
        self._on_the_way = set(requests[-1].message_ids) if requests else set()
        self._flush_in_vain()
        self._arena.heal()
        self._flush()
        self._compare()

    def _host(self, count: int, seconds: float) -> None:
        options = {
            "app": "host",
            "dir": self._settings.dir,
            "url": self._arena.url,
            "flush": "thread",
            "flush_interval": 0.05,
            "timeout": TIMEOUT,
            "max_batch_count": 100,
        }
        words = [str(Path(__file__).with_name("network_child.py")), "host", str(count), str(seconds)]
        done = self._python(*words, json.dumps(options))
        ended_at = time.monotonic()
        lines = done.stdout.splitlines()
        if done.returncode != 0 or not lines or done.stderr:
            self._violated(f"the host program ended with {done.returncode} and said {done.stderr[-500:]!r}")
            return
        self._accepted = lines[:-1]
        measured = json.loads(lines[-1])
        self._part.add("messages accepted", len(self._accepted))
        if len(self._accepted) != count:
            self._violated(f"{count - len(self._accepted)} of {count} calls did not store their message")
        self._longest("longest call of the host (ms)", measured["longest_call"])
        self._longest("longest end of the host (ms)", ended_at - measured["ended_at"])

    def _longest(self, name: str, seconds: float) -> None:
        self._part.raise_to(name, seconds * 1_000)
        if seconds > NEVER_AS_LONG:
            self._violated(f"{name.removesuffix(' (ms)')} took {seconds:.2f} s")

    def _flush_in_vain(self) -> None:
        """Flush once while all is bad: the cell is what it is meant to be, and costs one deadline at most."""
        began = time.monotonic()
        report = self._ask_to_flush()
        seconds = time.monotonic() - began
        if self._cell.says:
            if not re.search(self._cell.says, report["reason"], re.IGNORECASE):
                self._violated(f"a flush says {report['outcome']}, {report['reason']!r}, not {self._cell.says!r}")
            if seconds > TIMEOUT + START_UP:
                self._violated(f"a flush took {seconds:.1f} s with a deadline of {TIMEOUT} s")
        wait = (status(self._settings)["next_attempt_at"] or 0.0) - time.time()
        if wait > LONGEST_WAIT:
            self._violated(f"the next attempt is {wait:.0f} s away")

    def _flush(self) -> None:
        url = ["--url", self._arena.heal_url] if self._arena.heal_url else []
        report = self._ask_to_flush(*url)
        if report["outcome"] != "drained" or report["pending"] or report["deferred"]:
            self._violated(f"after all turned good a flush says {report}")

    def _compare(self) -> None:
        found = status(self._settings)
        with look(self._settings.directory) as view:
            dead = {message.message_id: message for message in view.page(state="dead", limit=len(self._accepted))}
        received = [message["message_id"] for message in self._arena.server.received]
        self._part.add("dead letters", len(dead))
        lost = set(self._accepted) - set(received) - set(dead)
        self._part.add("lost", len(lost))
        if lost:
            self._violated(f"{len(lost)} accepted messages are lost: {_some(lost)}")
        if found["delivered"] + found["dead"] != len(self._accepted) or found["ledger"]:
            self._violated(f"{len(self._accepted)} were accepted, and status says {found}")
        buried = [message for message in dead.values() if not self._cell.refuses(json.loads(message.body))]
        if buried:
            self._violated(f"{len(buried)} good messages are dead letters, one of them for {buried[0].reason!r}")
        breaks = sum(later < earlier for earlier, later in pairwise(received))
        self._part.add("order breaks", breaks)
        if breaks:
            self._violated(f"{breaks} messages arrived before an earlier one")
        followed = [request.path for request in self._arena.server.requests if request.path != "/batch"]
        if followed:
            self._violated(f"a redirect was followed to {followed[0]}")
        self._explain_repeats()

    def _explain_repeats(self) -> None:
        """Each repeat has an answer before it that never reached us: it was lost on the way, or as the host ended."""
        lost = " ".join(body.decode("utf-8", "replace") for body in self._arena.relay.lost_answers)
        repeats = self._arena.server.repeats
        self._part.add("repeats", sum(repeats.values()))
        unexplained = {
            message_id
            for message_id, count in repeats.items()
            if count > lost.count(f'"{message_id}"') + (message_id in self._on_the_way)
        }
        self._part.add("repeats not explained", len(unexplained))
        if unexplained:
            self._violated(f"{len(unexplained)} messages arrived again without need: {_some(unexplained)}")

    def _ask_to_flush(self, *words: str) -> dict[str, Any]:
        """Return the report of `outtray flush`."""
        folder = self._settings.dir
        done = self._python("-m", "outtray", "flush", "--dir", folder, "--app", "host", "--all", "--json", *words)
        try:
            report: dict[str, Any] = json.loads(done.stdout)[0]
        except (ValueError, IndexError):
            raise RuntimeError(f"a flush ended with {done.returncode}: {done.stdout} {done.stderr}") from None
        return report

    def _python(self, *words: str) -> subprocess.CompletedProcess[str]:
        environment = {
            "HOME": str(self._arena.folder),
            "PATH": os.environ["PATH"],
            "PYTHONPATH": str(SRC),
            **self._arena.variables,
        }
        command = [sys.executable, *words]
        return subprocess.run(
            command, env=environment, cwd=self._arena.folder, capture_output=True, text=True, timeout=120, check=False
        )

    def _violated(self, what: str) -> None:
        self._part.violated(what)


def _some(ids: set[str]) -> str:
    return ", ".join(sorted(ids)[:5]) + (" …" if len(ids) > 5 else "")
