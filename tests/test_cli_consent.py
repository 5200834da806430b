"""consent and forget: the user's choice, what it does to programs that run, and that nothing of the text is left."""

from __future__ import annotations

import errno
import json
import os
import re
import signal
import sqlite3
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

import outtray
from outtray import consent, identity
from outtray.cli import main
from outtray.outbox import erasure, shared
from outtray.outbox.gate import Header
from outtray.outbox.look import look
from outtray.outbox.transaction import ERASING
from outtray.testing import FakeServer

from .conftest import wait_until
from .test_cli import fill

Capture = pytest.CaptureFixture[str]
Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def folder(home: Path) -> Path:
    """The directory of the application "a"."""
    return home / ".local/state/outtray/a"


def asked(capsys: Capture, *words: str, code: int = 0) -> Any:
    capsys.readouterr()
    assert main([*words, "--json"]) == code
    return json.loads(capsys.readouterr().out)


def states(capsys: Capture) -> dict[str, int]:
    found = asked(capsys, "status", "--app", "a")
    return {state: found[state] for state in ("pending", "delivered", "dead", "local", "refused") if found[state]}


def texts(folder: Path, pattern: str) -> set[str]:
    """Return what matches *pattern* in any file of the outbox, read by a process that never opened it."""
    code = (
        "import pathlib, re, sys\n"
        "for path in pathlib.Path(sys.argv[1]).rglob('*'):\n"
        "    if path.is_file():\n"
        "        for found in set(re.findall(sys.argv[2].encode(), path.read_bytes())): print(found.decode('ascii'))\n"
    )
    command = [sys.executable, "-c", code, str(folder), pattern]
    return set(subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout.split())


def header_of(folder: Path) -> Header:
    header = Header.from_bytes((folder / "outbox-1.gate").read_bytes())
    assert header is not None
    return header


def fill_disk(path: Path) -> None:
    """Let *path* grow until there is no room left."""
    with path.open("ab", buffering=0) as file:
        while True:
            try:
                file.write(bytes(4096))
            except OSError as error:
                if error.errno == errno.ENOSPC:
                    return
                raise


@contextmanager
def running(environment: dict[str, str], code: str, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """Run a Python program meanwhile; it ends when its stdin does, or is killed."""
    process = subprocess.Popen(
        [sys.executable, "-c", code, *arguments],
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with process:
        try:
            yield process
        finally:
            process.send_signal(signal.SIGCONT)
            process.kill()


# Seeing and choosing


def test_looking_says_what_decides_and_writes_nothing(
    home: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(["consent", "--app", "a"]) == 0
    assert capsys.readouterr().out == "a: granted (nobody said otherwise)\n"
    monkeypatch.setenv("DO_NOT_TRACK", "1")
    found = asked(capsys, "consent", "--app", "a")
    assert (found["state"], found["reason"], found["choice"]) == ("denied", "DO_NOT_TRACK", None)
    assert list(home.iterdir()) == []


@pytest.mark.parametrize(("word", "kept"), [("on", "granted"), ("local", "local"), ("off", "denied")])
def test_a_choice_can_be_made_before_the_first_message(word: str, kept: str, folder: Path, capsys: Capture) -> None:
    found = asked(capsys, "consent", word, "--app", "a")
    assert (found["state"], found["choice"]) == (kept, kept)
    assert "your choice" in found["reason"]
    assert [path.name for path in folder.iterdir()] == ["consent"]
    assert (folder / "consent").read_text() == f"{kept}\n"
    assert stat.S_IMODE((folder / "consent").stat().st_mode) == 0o600
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    tray = outtray.Tray(app="a", flush="manual")
    assert tray.track("e") is (word != "off")
    assert tray.status()["consent"] == {"state": kept, "reason": found["reason"]}
    tray.close()
    assert states(capsys) == {"on": {"pending": 1}, "local": {"local": 1}, "off": {}}[word]
    if word == "off":
        assert [path.name for path in folder.iterdir()] == ["consent"], "a denial writes nothing"


def test_the_one_application_that_has_a_choice_or_an_outbox_is_meant(capsys: Capture) -> None:
    assert main(["consent", "off", "--app", "a"]) == 0
    assert asked(capsys, "consent")["app"] == "a"
    fill("b", 1)
    assert main(["consent", "off"]) == 2
    assert "choose one with --app: a, b" in capsys.readouterr().err
    assert main(["forget", "--yes"]) == 2
    assert main(["consent", "maybe", "--app", "a"]) == 2


def test_who_comes_before_the_choice_is_named(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    host = outtray.Tray(app="a", url="http://127.0.0.1:9", consent="granted", flush="manual")
    assert host.track("e")
    host.close()
    assert main(["consent", "off"]) == 0
    assert "consent='granted', which comes before your choice" in capsys.readouterr().err
    assert host.track("e") is True, "the host's word comes first"
    host.close()
    monkeypatch.setenv("OUTTRAY_CONSENT", "local")
    assert main(["consent"]) == 0
    shown = capsys.readouterr()
    assert shown.out == "a: local (OUTTRAY_CONSENT)\n"
    assert "your choice is denied, but OUTTRAY_CONSENT comes before it here" in shown.err


def test_a_word_that_cannot_be_read_is_said_to_be_what_denies(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OUTTRAY_CONSENT", "maybe")
    for words in (["consent"], ["consent", "on"], ["status"]):
        assert main([*words, "--app", "a"]) == 0
        said = capsys.readouterr()
        assert "OUTTRAY_CONSENT='maybe' cannot be right: expected granted, local, denied, on or off; so" in said.err
        assert "denied (OUTTRAY_CONSENT)" in said.out


# What a choice does


def test_local_sends_nothing_and_on_sends_what_waited(server: FakeServer, folder: Path, capsys: Capture) -> None:
    tray = outtray.Tray(app="a", url=server.url, flush="manual")
    assert tray.track("waits")
    epoch = header_of(folder).epoch
    assert main(["consent", "local"]) == 0
    assert tray.track("stays here")
    assert tray.flush(10).outcome == "denied"
    assert main(["flush", "--app", "a"]) == 75
    assert server.requests == []
    assert states(capsys) == {"pending": 1, "local": 1}
    assert main(["consent", "on"]) == 0
    assert tray.track("later")
    assert tray.flush(20).settled
    assert [message["event"] for message in server.received] == ["waits", "later"]
    assert states(capsys) == {"delivered": 2, "local": 1}
    assert header_of(folder).epoch == epoch, "these two choices withdraw nothing"
    tray.close()


def test_off_erases_all_that_was_not_delivered_and_counts_it(server: FakeServer, folder: Path, capsys: Capture) -> None:
    server.set_mode("refuse_marked")
    tray = outtray.Tray(app="a", url=server.url, flush="manual")
    private = outtray.Tray(app="a", url=server.url, consent="local", flush="manual")
    for event in ("sent-1", "sent-2", "bad-secret-1"):
        assert tray.track(event)
    assert tray.flush(20).dead == 1
    assert private.track("secret-2")
    assert tray.track("secret-3", {"text": "secret-4" * 20_000})
    private.close()
    tray.close()
    server.set_mode("ok")
    found = asked(capsys, "consent", "off")
    assert found["withdrawn"] == 3
    assert texts(folder, r"secret-\d") == set()
    assert texts(folder, r"sent-\d") == {"sent-1", "sent-2"}, "what was sent is kept for its retention"
    assert states(capsys) == {"delivered": 2}
    assert asked(capsys, "status")["ledger"] == {"withdrawn": 3}
    assert asked(capsys, "consent", "off")["withdrawn"] == 0
    assert main(["flush"]) == 0
    assert main(["consent", "on"]) == 0
    assert tray.track("sent-3")
    assert tray.flush(20).settled
    assert [message["event"] for message in server.received] == ["sent-1", "sent-2", "sent-3"]
    assert states(capsys) == {"delivered": 3}
    tray.close()


def test_text_that_moved_within_the_file_before_is_erased_too(
    server: FakeServer, folder: Path, capsys: Capture
) -> None:
    tray = outtray.Tray(app="a", url=server.url, flush="manual")
    for number in range(200):
        assert tray.track(f"sent-{number}")
    assert tray.flush(20).settled
    for number in range(200):
        assert tray.track(f"secret-{number}")
    outbox = tray._outbox()
    for first in range(3):  # as pruning does: neighbours move together, and leave copies in the pages they leave
        with outbox.writing() as transaction:
            transaction.execute("PRAGMA secure_delete = OFF")
            transaction.remove(list(range(1 + first, 201, 3)))
    tray.close()
    assert asked(capsys, "consent", "off")["withdrawn"] == 200
    assert texts(folder, r"secret-\d+") == set()


def test_what_consent_stopped_is_not_counted(capsys: Capture, caplog: pytest.LogCaptureFixture) -> None:
    tray = outtray.Tray(app="a", flush="manual")
    assert tray.track("e")
    other_view = dict(consent._known)
    assert main(["consent", "off"]) == 0
    consent._known.update(other_view)  # as in a process that had decided before
    assert tray.track("e") is False
    assert tray.track("e") is False
    assert asked(capsys, "status")["ledger"] == {"withdrawn": 1}
    assert caplog.records == []
    tray.close()


APPEND = """
import outtray, sys, threading, time
outtray.configure(app="a", url=sys.argv[2], flush=sys.argv[3], flush_interval=0)
ended = threading.Event()
threading.Thread(target=lambda: (sys.stdin.read(), ended.set()), daemon=True).start()
number = 0
while not ended.is_set():
    began = time.monotonic()
    stored = outtray.track(f"secret-{sys.argv[1]}-{number}-")
    number += 1
    print(began, int(stored), flush=True)
    time.sleep(0.002)
"""


def test_programs_that_run_stop_at_once_and_go_on_when_they_may(
    server: FakeServer, environment: dict[str, str], folder: Path, run_python: Run, tmp_path: Path
) -> None:
    server.set_mode("ok", delay=0.02)
    logs = [tmp_path / f"log-{number}" for number in range(4)]
    command = [sys.executable, "-c", APPEND]
    processes = []
    try:
        for number, log in enumerate(logs):
            arguments = [str(number), server.url, "thread" if number == 0 else "manual"]
            with log.open("w") as output:
                process = subprocess.Popen(
                    [*command, *arguments], env=environment, stdin=subprocess.PIPE, stdout=output
                )
            processes.append(process)

        def stored(log: Path, since: float = 0.0) -> list[float]:
            lines = [line.split() for line in log.read_text().split("\n")[:-1]]
            return [float(began) for began, is_stored in lines if is_stored == "1" and float(began) > since]

        assert wait_until(lambda: all(len(stored(log)) > 50 for log in logs), 60)
        assert wait_until(lambda: server.received, 60)
        done = run_python("-m", "outtray", "consent", "off")
        assert done.returncode == 0, done.stderr
        off_at = time.monotonic()
        time.sleep(0.5)
        assert [stored(log, off_at) for log in logs] == [[]] * 4
        received = {message["event"] for message in server.received}
        assert texts(folder, r"secret-\d-\d+-") <= received
        requests = len(server.requests)
        time.sleep(0.3)
        assert len(server.requests) == requests, "nobody sends"
        assert run_python("-m", "outtray", "status").stdout.startswith("nothing is waiting\n")
        on_at = time.monotonic()
        assert run_python("-m", "outtray", "consent", "on").returncode == 0
        assert wait_until(lambda: all(stored(log, on_at) for log in logs), 60)
    finally:
        for process in processes:
            assert process.stdin is not None
            process.stdin.close()
            process.wait(60)
    assert [process.returncode for process in processes] == [0] * 4
    assert run_python("-m", "outtray", "flush", "--all").returncode == 0
    accepted = sum(len(stored(log)) for log in logs)
    found = json.loads(run_python("-m", "outtray", "status", "--json").stdout)
    assert found["pending"] == 0
    # At most the request that was on its way both arrived and counts as withdrawn.
    assert found["delivered"] + found["ledger"]["withdrawn"] == accepted
    assert len(server.received) >= found["delivered"]


def test_a_batch_on_its_way_is_not_settled_and_the_command_says_that_it_may_arrive(
    server: FakeServer, environment: dict[str, str], folder: Path, capsys: Capture
) -> None:
    fill("a", 5, event="secret", url=server.url)
    server.set_mode("ok", delay=2)
    command = [sys.executable, "-m", "outtray", "flush", "--json"]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE) as flushing:
        assert wait_until(lambda: server.received)
        found = asked(capsys, "consent", "off")
        assert (found["withdrawn"], found["delivering"]) == (5, flushing.pid)
        report = json.loads(flushing.communicate(timeout=60)[0])[0]
    assert (report["outcome"], report["delivered"], report["exit"]) == ("denied", 0, 0)
    assert "your choice" in report["reason"]
    assert states(capsys) == {}, "nothing is delivered that was withdrawn before"
    with look(str(folder)) as view:
        assert view.cursor("zenml").id == 5
    assert texts(folder, "secret") == set()


def test_a_flush_that_found_a_dead_letter_says_so_although_consent_ended_with_it(
    server: FakeServer, environment: dict[str, str], capsys: Capture
) -> None:
    tray = outtray.Tray(app="a", url=server.url, flush="manual", max_batch_count=1)
    assert tray.track("bad one")
    assert tray.track("good")
    tray.close()
    server.set_mode("refuse_marked", marker="bad one", delay=1)
    command = [sys.executable, "-m", "outtray", "flush", "--json"]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE) as flushing:
        assert wait_until(lambda: len(server.requests) == 2)
        asked(capsys, "consent", "local")
        report = json.loads(flushing.communicate(timeout=60)[0])[0]
    assert (report["outcome"], report["delivered"], report["dead"], report["pending"]) == ("denied", 1, 1, 0)
    assert report["exit"] == flushing.returncode == 1


def test_a_batch_that_was_read_before_is_not_sent_after_a_withdrawal(server: FakeServer, capsys: Capture) -> None:
    tray = outtray.Tray(app="a", url=server.url, flush="manual")
    assert tray.track("e")
    outbox = tray._outbox()
    batch = outbox.pending("zenml", after_id=0, max_count=10, max_bytes=10_000)
    assert batch is not None
    assert main(["consent", "off"]) == 0
    assert main(["consent", "on"]) == 0
    assert tray.track("later")
    assert outbox.settle(batch, status=200, seconds=0.1) is False
    assert states(capsys) == {"pending": 1}
    tray.close()


def test_a_thread_that_delivers_sends_no_further_batch_after_a_denial(
    server: FakeServer, environment: dict[str, str], folder: Path, capsys: Capture
) -> None:
    """The denial is only in its file, as when the command waits for a process that is stopped at the gate."""
    fill("a", 40, url=server.url)
    server.set_mode("ok", delay=0.3)
    code = f"""
import outtray, sys
outtray.configure(app="a", url={server.url!r}, flush_interval=0, max_batch_count=1)
outtray.track("last")
sys.stdin.read()
"""
    with running(environment, code):
        assert wait_until(lambda: server.received)
        erasure.keep_choice(str(folder), "denied")
        sent = len(server.requests)
        time.sleep(1.5)
        assert len(server.requests) <= sent + 1


# What cuts a withdrawal off


def test_a_withdrawal_that_was_killed_is_finished_by_the_next_flush(
    server: FakeServer, environment: dict[str, str], folder: Path, run_python: Run, capsys: Capture
) -> None:
    outbox = shared.at(str(folder), destination="zenml", max_bytes=2**30)
    count = 15_000
    with outbox.writing() as transaction:
        for id in range(1, count + 1):
            transaction.execute("INSERT INTO messages VALUES (?, ?, ?, ?)", (id, 1.0, 0, f"secret-{id}-" * 20))
        transaction.execute("INSERT INTO cursors (destination, id) VALUES ('zenml', 0)")
        transaction.header.last_id = count
    outbox.close()
    with running(environment, APPEND, "0", server.url, "manual") as appending:
        assert appending.stdout is not None
        assert appending.stdout.readline().endswith(" 1\n")
        command = [sys.executable, "-m", "outtray", "consent", "off"]
        with subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL) as withdrawing:
            assert wait_until(lambda: header_of(folder).choice == "denied")
            withdrawing.kill()
        assert withdrawing.returncode == -signal.SIGKILL, "it was through before it could be killed"
        with look(str(folder)) as view:
            assert view.meta(ERASING) is not None
        for _ in range(500):
            last = appending.stdout.readline()
        assert last.endswith(" 0\n"), "nobody records any more"
    assert run_python("-m", "outtray", "flush").returncode == 0
    assert server.requests == []
    assert texts(folder, r"secret-\d+-") == set()
    found = asked(capsys, "status")
    assert found["pending"] == 0
    assert found["ledger"]["withdrawn"] > count
    with look(str(folder)) as view:
        assert view.meta(ERASING) is None


def with_a_killed_erasure(server: FakeServer, reason: str) -> outtray.Tray:
    """Return a tray whose one message was to be removed for *reason* when the command was killed."""
    tray = outtray.Tray(app="a", url=server.url, flush="manual")
    assert tray.track("secret")
    with tray._outbox().writing() as transaction:
        transaction.begin_erasure(reason)
    return tray


@pytest.mark.parametrize("is_denied", [False, True])
def test_a_forget_that_was_killed_is_finished_by_the_next_flush(
    is_denied: bool, server: FakeServer, folder: Path, run_python: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    tray = with_a_killed_erasure(server, "forgotten")
    tray.close()
    assert asked(capsys, "status")["erasing"] is True
    done = run_python("-m", "outtray", "flush", **({"OUTTRAY_CONSENT": "denied"} if is_denied else {}))
    assert (done.returncode, done.stderr) == (0, "")
    assert texts(folder, "secret") == set()
    assert asked(capsys, "status")["erasing"] is False
    assert not server.received


def test_a_forget_that_was_killed_is_finished_by_a_program_that_delivers(server: FakeServer, folder: Path) -> None:
    tray = with_a_killed_erasure(server, "forgotten")
    assert tray.track("later")
    assert tray.flush(20).settled
    tray.close()
    assert texts(folder, "secret") == set()
    with look(str(folder)) as view:
        assert view.meta(ERASING) is None


def test_what_a_killed_withdrawal_left_is_not_sent_when_consent_is_given_again(
    server: FakeServer, folder: Path, capsys: Capture
) -> None:
    tray = with_a_killed_erasure(server, "withdrawn")
    assert tray.track("later")
    assert tray.flush(20).settled
    assert [message["event"] for message in server.received] == ["later"]
    assert main(["consent", "on"]) == 0
    assert texts(folder, "secret") == set()
    assert states(capsys) == {"delivered": 1}
    tray.close()


def test_a_denial_that_came_no_further_than_its_file_withdraws_at_the_next_opening(
    folder: Path, run_python: Run, capsys: Capture
) -> None:
    fill("a", 3, event="secret")
    erasure.keep_choice(str(folder), "denied")
    assert main(["flush"]) == 0
    assert texts(folder, "secret") == set()
    assert asked(capsys, "status")["ledger"] == {"withdrawn": 3}


def test_an_approval_that_came_no_further_than_its_file_is_noticed(folder: Path, capsys: Capture) -> None:
    tray = outtray.Tray(app="a", flush="manual")
    assert tray.track("e")
    assert main(["consent", "off"]) == 0
    assert tray.track("e") is False
    assert tray._outbox().meta("unknown") is None  # it is open from here on
    erasure.keep_choice(str(folder), "granted")
    assert header_of(folder).choice == "denied"
    assert tray.track("e") is True
    assert header_of(folder).choice == "granted"
    tray.close()


@pytest.mark.parametrize("word", ["off", "local"])
def test_a_damaged_header_gets_the_choice_from_the_file(word: str, folder: Path, capsys: Capture) -> None:
    tray = outtray.Tray(app="a", flush="manual")
    assert tray.track("e")
    before = dict(consent._known)
    assert main(["consent", word]) == 0
    consent._known.update(before)
    with (folder / "outbox-1.gate").open("r+b") as gate:
        gate.write(bytes(44))
    assert tray.track("e") is (word == "local")
    tray.close()
    assert header_of(folder).choice == ("local" if word == "local" else "denied")
    assert states(capsys) == ({"pending": 1, "local": 1} if word == "local" else {})


def test_a_stopped_program_at_the_gate_is_named_and_the_choice_is_kept(
    environment: dict[str, str], folder: Path, capsys: Capture
) -> None:
    fill("a", 2, event="secret")
    code = f"""
import fcntl, sys
gate = open({str(folder / "outbox-1.gate")!r}, "r+b")
fcntl.flock(gate, fcntl.LOCK_EX)
print("inside", flush=True)
sys.stdin.read()
"""
    with running(environment, code) as holding:
        assert holding.stdout is not None
        assert holding.stdout.readline() == "inside\n"
        holding.send_signal(signal.SIGSTOP)
        assert main(["consent", "off"]) == 75
        shown = capsys.readouterr()
        assert "your choice (off) is kept" in shown.err
        assert f"process {holding.pid} (stopped) keeps the gate: continue it (kill -CONT {holding.pid})" in shown.err
        assert shown.out == "a: denied (your choice, see `outtray consent`)\n"
        assert main(["forget", "--yes"]) == 75
        assert outtray.Tray(app="a").track("e") is False
    assert (folder / "consent").read_text() == "denied\n"
    found = asked(capsys, "consent", "off")
    assert (found["withdrawn"], found["finished"]) == (2, True)
    assert texts(folder, "secret") == set()


def test_a_reader_that_keeps_the_log_is_named_and_the_next_call_finishes(folder: Path, capsys: Capture) -> None:
    tray = outtray.Tray(app="a", flush="manual")
    assert tray.track("secret")
    reader = sqlite3.connect(folder / "outbox-1-0.db")
    reader.execute("BEGIN")
    assert reader.execute("SELECT count(*) FROM messages").fetchone() == (1,)
    found = asked(capsys, "consent", "off", code=75)
    assert (found["state"], found["withdrawn"], found["finished"]) == ("denied", None, False)
    assert "finished" not in asked(capsys, "consent")
    assert main(["consent", "off"]) == 75
    assert "is being read by another program" in capsys.readouterr().err
    reader.close()
    tray.close()
    assert main(["consent", "off"]) == 0
    assert texts(folder, "secret") == set()


def test_a_choice_is_kept_and_holds_where_the_outbox_is_damaged(
    environment: dict[str, str], folder: Path, run_python: Run
) -> None:
    fill("a", 1)
    (folder / "outbox-1-0.db").write_bytes(b"no database" * 1000)
    done = run_python("-m", "outtray", "consent", "off")
    assert done.returncode == 0 or (done.returncode == 78 and "your choice (off) is kept" in done.stderr)
    assert "Traceback" not in done.stderr
    assert (folder / "consent").read_text() == "denied\n"
    assert run_python("-c", "import outtray; print(outtray.Tray(app='a').track('e'))").stdout == "False\n"


def test_a_program_that_looked_before_writes_nothing_after_a_denial(folder: Path) -> None:
    tray = outtray.Tray(app="a", flush="manual")
    assert tray.status()["consent"]["state"] == "granted"
    known = dict(consent._known)
    assert main(["consent", "off", "--app", "a"]) == 0
    consent._known.update(known)  # as in another process
    assert tray.track("e") is False
    assert [path.name for path in folder.iterdir()] == ["consent"]


def test_a_choice_ends_a_denial_by_the_config_file_in_programs_that_run(home: Path) -> None:
    file = home / ".config" / "outtray" / "config.toml"
    file.parent.mkdir(parents=True)
    file.write_text('consent = "denied"\n')
    tray = outtray.Tray(app="a", flush="manual")
    assert tray.track("e") is False
    assert main(["consent", "on", "--app", "a"]) == 0
    assert tray.track("e") is True
    tray.close()


@pytest.mark.parametrize("content", [b"", b"maybe\n", b"\xff\xfe", b"granted nonsense"])
def test_a_choice_that_cannot_be_read_is_a_denial(content: bytes, folder: Path) -> None:
    folder.mkdir(parents=True)
    (folder / "consent").write_bytes(content)
    assert outtray.Tray(app="a").status()["consent"]["state"] == "denied"
    (folder / "consent").unlink()
    (folder / "consent").mkdir()
    assert outtray.Tray(app="a").status()["consent"]["state"] == "denied"
    (folder / "consent").rmdir()
    os.mkfifo(folder / "consent")
    assert outtray.Tray(app="a").status()["consent"]["state"] == "denied"
    (folder / "consent").unlink()
    assert outtray.Tray(app="a").status()["consent"]["state"] == "granted"


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to mount a small disk")
def test_on_a_full_disk_a_denial_is_kept_and_the_text_erased(folder: Path, tmp_path: Path, capsys: Capture) -> None:
    folder.parent.mkdir(parents=True)
    tray = outtray.Tray(app="a", flush="manual")
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=12m", "none", folder.parent], check=True, timeout=60)
    try:
        for number in range(400):
            assert tray.track(f"sent-{number}", {"text": "x" * 3_000})
        with tray._outbox().writing() as transaction:
            transaction.execute("UPDATE cursors SET id = ?", (transaction.header.last_id,))
        for number in range(100):
            assert tray.track(f"secret-{number}", {"text": "y" * 3_000})
        tray.close()
        filler = folder.parent / "filler"
        fill_disk(filler)
        with filler.open("r+b") as file:
            file.truncate(filler.stat().st_size - 700_000)  # some room to work in, too little to copy what was sent
        code = main(["consent", "off"])
        shown = capsys.readouterr()
        assert code in (0, 74, 75, 78), shown.err
        assert code == 0 or "your choice (off) is kept" in shown.err
        assert texts(folder, r"secret-\d+") == set()
        filler.unlink()
        assert main(["consent", "off"]) == 0
        assert texts(folder, r"secret-\d+") == set()
        assert len(texts(folder, r"sent-\d+")) == 400
        fill_disk(filler)
        (folder / "consent").unlink()
        fill_disk(filler)
        erasure.keep_choice(str(folder), "denied")
        assert consent.stored(str(folder)) == "denied"
    finally:
        tray.close()
        subprocess.run(["umount", "--lazy", folder.parent], check=True, timeout=60)


# forget


def test_forget_needs_yes_and_shows_before(folder: Path, capsys: Capture) -> None:
    assert main(["forget", "--app", "unused", "--yes"]) == 0
    fill("a", 3)
    assert main(["forget"]) == 2
    assert "3 messages and the client id of 'a' would be erased for good: add --yes" in capsys.readouterr().err
    assert asked(capsys, "forget", "--dry-run") == {"app": "a", "forgotten": 0, "would_forget": 3}
    assert states(capsys) == {"pending": 3}
    assert (folder / "client_id").exists()


def test_forget_leaves_no_text_no_id_and_no_older_file(server: FakeServer, folder: Path, capsys: Capture) -> None:
    tray = outtray.Tray(app="a", url=server.url, flush="manual")
    private = outtray.Tray(app="a", url=server.url, consent="local", flush="manual")
    assert main(["consent", "on", "--app", "a"]) == 0
    for number in range(50):
        assert tray.track(f"secret-{number}")
    assert tray.flush(20).settled
    assert private.track("secret-local")
    assert tray.track("secret-waiting")
    private.close()
    tray.close()
    id = (folder / "client_id").read_text()
    (folder / f"client_id.1.{'0' * 8}").write_text(id)  # left by a killed process
    with (folder / "outbox-1.gate").open("r+b") as gate:  # as after a recovery
        header = header_of(folder)
        header.generation = 1
        gate.write(header.to_bytes())
    (folder / "outbox-1-0.db").rename(folder / "outbox-1-1.db")
    with closing(sqlite3.connect(folder / "outbox-1-1.db", isolation_level=None)) as connection:
        connection.execute("INSERT INTO gaps VALUES (53, 1 << 40)")
    for name in ("", "-wal", "-shm"):
        (folder / f"outbox-1-0.db{name}").write_bytes(b"secret-old " + id.encode())
    (folder / "outbox-1-0-0.lost-wal").write_bytes(b"secret-old")
    shared._shared.clear()
    assert asked(capsys, "forget", "--yes") == {"app": "a", "forgotten": 52, "would_forget": 52}
    assert texts(folder, f"secret-\\w+|{id}") == set()
    assert sorted(path.name for path in folder.iterdir()) == [
        "consent", "outbox-1-1.db", "outbox-1.drain", "outbox-1.gate", "outbox-1.reserve"
    ]  # fmt: skip
    assert (folder / "consent").read_text() == "granted\n"
    assert states(capsys) == {"delivered": 50}, "the counts stay"
    assert asked(capsys, "status")["ledger"] == {"forgotten": 52}
    assert tray.track("after")
    assert tray.flush(20).settled
    assert server.received[-1]["user_id"] == (folder / "client_id").read_text() != id
    tray.close()


def test_a_withdrawal_beside_many_delivered_messages_keeps_the_newest_of_them(
    folder: Path, server: FakeServer, capsys: pytest.CaptureFixture[str]
) -> None:
    tray = outtray.Tray(app="a", url=server.url, flush="manual", retention=86_400.0)
    for number in range(300):
        assert tray.track(f"event-{number}", {"text": "x" * 30_000})
    assert tray.flush(60).settled
    assert tray.track("secret-waiting")
    tray.close()
    assert main(["consent", "off"]) == 0
    left = texts(folder, r"event-\d+")
    assert texts(folder, "secret-waiting") == set()
    assert "event-299" in left
    assert "event-0" not in left, "a rebuild of all would keep programs waiting for long"
    assert states(capsys) == {"delivered": 300}, "the counts stay"


def test_a_withdrawal_deletes_what_a_recovery_left(folder: Path) -> None:
    fill("a", 1)
    (folder / "outbox-1-0-0.lost-wal").write_bytes(b"secret")
    assert main(["consent", "off"]) == 0
    assert texts(folder, "secret") == set()


def test_an_id_that_is_forgotten_while_a_message_is_put_together_is_not_stored(
    folder: Path, run_python: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    tray = outtray.Tray(app="a", flush="manual")
    assert tray.track("before")
    id = (folder / "client_id").read_text()
    put_in = identity.with_latest_id

    def forgotten_meanwhile(directory: str, text: str) -> tuple[str, bool]:
        found = put_in(directory, text)
        monkeypatch.undo()
        done = run_python("-m", "outtray", "forget", "--yes")
        assert done.returncode == 0, done.stderr
        assert tray.track("of another thread")  # which learns of it
        return found

    monkeypatch.setattr(identity, "with_latest_id", forgotten_meanwhile)
    assert tray.track("after")
    tray.close()
    assert texts(folder, id) == set()


def test_programs_that_run_go_on_with_a_new_id(
    environment: dict[str, str], folder: Path, run_python: Run, tmp_path: Path
) -> None:
    code = """
import outtray, sys, threading
outtray.configure(app="a", flush="manual")
def go():
    while not ended.is_set():
        if outtray.track("secret-before"): counts.append(1)
ended, counts = threading.Event(), []
threads = [threading.Thread(target=go) for _ in range(3)]
for thread in threads: thread.start()
while len(counts) < 30: pass
print("running", flush=True)
sys.stdin.readline()
ended.set()
for thread in threads: thread.join()
outtray.track("after", {"own": 1})
print("done", flush=True)
sys.stdin.read()
"""
    with running(environment, code) as first, running(environment, code) as second:
        for process in (first, second):
            assert process.stdout is not None
            assert process.stdout.readline() == "running\n"
        id = (folder / "client_id").read_text()
        done = run_python("-m", "outtray", "forget", "--yes")
        assert done.returncode == 0, done.stderr
        time.sleep(0.3)
        for process in (first, second):
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.write("\n")
            process.stdin.flush()
            assert process.stdout.readline() == "done\n"
    assert texts(folder, id) == set()
    found = json.loads(run_python("-m", "outtray", "list", "--event", "after", "--json").stdout)
    shown = [json.loads(run_python("-m", "outtray", "show", each["message_id"], "--json").stdout) for each in found]
    users = {message[0]["message"]["user_id"] for message in shown}
    assert len(found) == 2
    assert users == {(folder / "client_id").read_text()}
    assert users != {id}


def test_a_forgetting_that_was_killed_stays_one_of_everything(server: FakeServer, folder: Path) -> None:
    tray = outtray.Tray(app="a", url=server.url, flush="manual")
    assert tray.track("secret")
    assert tray.flush(20).settled
    with tray._outbox().writing() as transaction:
        transaction.begin_erasure("forgotten")
    tray.close()
    assert main(["consent", "off"]) == 0
    assert texts(folder, "secret") == set()


def test_a_forgetting_that_was_killed_at_its_end_is_finished_by_a_flush_with_nothing_to_send(
    server: FakeServer, folder: Path, capsys: Capture
) -> None:
    tray = outtray.Tray(app="a", url=server.url, flush="manual")
    for number in range(60):
        assert tray.track(f"secret-{number}", {"text": "x" * 2_000})
    with tray._outbox().writing() as transaction:
        transaction.begin_erasure("forgotten")
    erasure.remove_marked(tray._outbox())  # and killed before the file was written anew
    shared._shared.clear()
    assert texts(folder, r"secret-\d+") != set()
    assert states(capsys) == {}
    assert main(["flush"]) == 0
    assert texts(folder, r"secret-\d+") == set()
    assert main(["doctor"]) == 0
    assert server.received == []


def test_a_forgotten_id_is_not_written_back(folder: Path, run_python: Run) -> None:
    tray = outtray.Tray(app="a", flush="manual")
    assert tray.track("e")
    before = (folder / "client_id").read_text()
    assert run_python("-m", "outtray", "forget", "--yes").returncode == 0
    assert tray._outbox().keep_identity() is False
    assert not (folder / "client_id").exists()
    assert tray.track("e")
    assert (folder / "client_id").read_text() != before
    tray.close()


def test_a_message_whose_id_was_forgotten_while_it_was_made_gets_another(folder: Path, run_python: Run) -> None:
    tray = outtray.Tray(app="a", flush="manual")
    assert tray.track("e")
    before = (folder / "client_id").read_text()
    with outtray.AnalyticsContext(client=tray.client) as analytics:
        assert analytics.client_id == before
        assert run_python("-m", "outtray", "forget", "--yes").returncode == 0
        stored, text = tray.client.track(UUID(before), "e", {"client_id": before})
    assert stored is True
    assert before not in text
    assert (folder / "client_id").read_text() in text
    tray.close()
    assert texts(folder, re.escape(before)) == set()
