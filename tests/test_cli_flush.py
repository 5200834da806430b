"""flush: what it delivers, what it says and when it is silent, and each of its exit codes."""

from __future__ import annotations

import json
import os
import pty
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

import outtray
from outtray.cli import main
from outtray.delivery.lock import DrainLock
from outtray.delivery.outlook import outlook
from outtray.testing import FakeServer

from .conftest import wait_until
from .test_cli import fill

Run = Callable[..., subprocess.CompletedProcess[str]]
Capture = pytest.CaptureFixture[str]


@pytest.fixture
def other_server() -> Iterator[FakeServer]:
    with FakeServer() as running:
        yield running


def reports(capsys: Capture, *words: str, code: int = 0) -> dict[str, dict[str, Any]]:
    """Run flush --json and return its reports by app."""
    assert main(["flush", "--json", *words]) == code
    found = json.loads(capsys.readouterr().out)
    assert all(each["exit"] in (0, 1, 75, 78) for each in found)
    return {each["app"]: each for each in found}


def only(found: dict[str, dict[str, Any]]) -> dict[str, Any]:
    (report,) = found.values()
    return report


def test_all_outboxes_are_drained_each_to_its_own_receiver(
    server: FakeServer, other_server: FakeServer, capsys: Capture
) -> None:
    fill("a", 30, "to a", url=server.url)
    fill("b", 20, "to b", url=other_server.url)
    found = reports(capsys)
    assert {app: (each["outcome"], each["delivered"]) for app, each in found.items()} == {
        "a": ("drained", 30),
        "b": ("drained", 20),
    }
    assert {each["event"] for each in server.received} == {"to a"}
    assert {each["event"] for each in other_server.received} == {"to b"}
    assert not server.repeats


def test_one_outbox_is_drained_by_name(server: FakeServer, capsys: Capture) -> None:
    fill("a", 3, "to a", url=server.url)
    fill("b", 2, "to b", url=server.url)
    assert list(reports(capsys, "--app", "b")) == ["b"]
    assert {each["event"] for each in server.received} == {"to b"}


def test_success_is_silent_without_a_terminal(server: FakeServer, capsys: Capture) -> None:
    fill("a", 3, url=server.url)
    for _ in range(2):
        assert main(["flush"]) == 0
    assert capsys.readouterr() == ("", "")


def test_a_dry_run_without_an_outbox_says_so(home: Path, capsys: Capture) -> None:
    assert main(["flush", "--dry-run"]) == 0
    assert capsys.readouterr().err == f"nothing to deliver: no outbox in {home}/.local/state/outtray\n"


def test_no_outbox_is_silent_and_no_error(home: Path, capsys: Capture) -> None:
    assert main(["flush"]) == 0
    assert capsys.readouterr() == ("", "")
    assert reports(capsys) == {}
    assert not list(home.iterdir())


@pytest.mark.parametrize("words", [["--app", "unknown"], ["--dir", "nowhere"], ["--dir", "no", "--app", "unknown"]])
def test_that_there_is_no_outbox_where_one_was_named_is_said_and_no_error(
    words: list[str], server: FakeServer, capsys: Capture
) -> None:
    fill("a", 1, url=server.url)
    for more in ([], ["--quiet"], ["--dry-run"]):
        assert main(["flush", *words, *more]) == 0
        said = capsys.readouterr().err
        assert said.startswith("nothing to deliver: no outbox in ")
        assert ("'unknown'" in said) is ("unknown" in words)
    assert not server.requests


def test_dead_letters_are_exit_1_and_said(server: FakeServer, capsys: Capture) -> None:
    server.set_mode("refuse_marked")
    tray = fill("a", 5, url=server.url)
    tray.track("bad")
    tray.close()
    assert main(["flush"]) == 1
    words = capsys.readouterr().err
    assert words.startswith("a: 5 messages delivered; 1 message refused for good")
    assert len(words.splitlines()) == 1
    assert main(["flush"]) == 0
    assert capsys.readouterr() == ("", "")


def test_an_unreachable_receiver_is_75_and_silent_for_a_day(capsys: Capture) -> None:
    fill("a", 4, url="http://127.0.0.1:9")
    assert main(["flush"]) == 75
    assert main(["flush", "--warn-after", "3600"]) == 75
    assert capsys.readouterr() == ("", "")
    assert main(["flush", "--warn-after", "0"]) == 75
    words = capsys.readouterr().err
    assert "a: postponed: connection refused" in words
    assert "4 messages kept" in words
    report = only(reports(capsys, code=75))
    assert (report["outcome"], report["pending"], report["exit"]) == ("postponed", 4, 75)


def test_messages_that_wait_for_more_than_a_day_are_said(home: Path, capsys: Capture) -> None:
    import sqlite3

    fill("a", 1, url="http://127.0.0.1:9")
    connection = sqlite3.connect(home / ".local/state/outtray/a/outbox-1-0.db")
    connection.execute("UPDATE messages SET accepted_at = ?", (time.time() - 3 * 86_400,))
    connection.commit()
    connection.close()
    assert main(["flush"]) == 75
    assert "the oldest for 3 d" in capsys.readouterr().err


@pytest.mark.parametrize("mode", ["401", "403", "404", "redirect_host"])
def test_a_held_outbox_is_78_and_always_said(mode: str, server: FakeServer, capsys: Capture) -> None:
    server.set_mode(mode)
    fill("a", 2, url=server.url)
    for _ in range(2):  # the second finds the stored wait
        assert main(["flush"]) == 78
        words = capsys.readouterr().err
        assert "a: held: check url and key" in words
        assert "2 messages kept" in words
        assert len(words.splitlines()) == 1


def test_an_unknown_destination_is_78_though_nothing_is_due(server: FakeServer, run_python: Run) -> None:
    tray = outtray.Tray(app="a", url=server.url, flush="manual")
    assert tray.track("event")
    assert tray.flush(20).settled
    tray.close()
    done = run_python("-m", "outtray", "flush", OUTTRAY_DESTINATION="novel")
    assert done.returncode == 78
    assert "unknown destination 'novel'" in done.stderr


def test_waiting_does_not_wait_for_somebody_to_put_it_right(server: FakeServer, capsys: Capture) -> None:
    server.set_mode("401")
    fill("a", 2, url=server.url)
    assert only(reports(capsys, "--wait", code=78))["outcome"] == "held"


def test_a_flush_from_the_program_does_not_sleep_through_a_hold(server: FakeServer, run_python: Run) -> None:
    server.set_mode("401")
    code = (
        "import outtray, sys; outtray.configure(app='a', url=sys.argv[1], flush='manual'); outtray.track('x');"
        "print(outtray.flush(8000).outcome)"
    )
    assert run_python("-c", code, server.url).stdout == "held\n"


def test_an_outbox_without_a_url_is_78_and_says_how(capsys: Capture, server: FakeServer) -> None:
    fill("a", 2)
    assert main(["flush"]) == 78
    words = capsys.readouterr().err
    assert all(way in words for way in ("--url", "OUTTRAY_URL", "configure(url=", "2 messages kept"))
    assert only(reports(capsys, "--url", server.url))["delivered"] == 2
    assert main(["flush"]) == 0, "nothing waits that would need a url"


def test_a_missing_key_is_78_and_names_all_three_places(
    server: FakeServer, home: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill("a", 2, url=server.url, write_key="the-secret")
    assert main(["flush"]) == 78
    words = capsys.readouterr().err
    assert all(way in words for way in ("OUTTRAY_WRITE_KEY", "write_key_file", "remember_key=True"))
    assert str(home / ".config/outtray/config.toml") in words
    monkeypatch.setenv("OUTTRAY_WRITE_KEY", "the-secret")
    assert main(["flush"]) == 0
    assert len(server.received) == 2
    assert "the-secret" not in words


def test_a_fault_in_the_environment_sends_nothing(server: FakeServer, run_python: Run) -> None:
    fill("a", 2, url=server.url)
    for name, value in (("OUTTRAY_CONSENT", "maybe"), ("OUTTRAY_URL", "elsewhere"), ("OUTTRAY_TIMEOUT", "long")):
        done = run_python("-m", "outtray", "flush", **{name: value})
        assert done.returncode == 78
        assert name in done.stderr
        assert "nothing was sent" in done.stderr
    assert not server.requests


@pytest.mark.parametrize(
    ("name", "value"), [("OUTTRAY_CONSENT", "denied"), ("OUTTRAY_CONSENT", "local"), ("DO_NOT_TRACK", "1")]
)
def test_without_consent_nothing_is_sent_and_nothing_purged(
    name: str, value: str, server: FakeServer, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill("a", 2, url=server.url)
    monkeypatch.setenv(name, value)
    report = only(reports(capsys, "--all", code=75))
    assert (report["outcome"], report["pending"]) == ("denied", 2)
    assert main(["flush"]) == 75
    assert f"({name})" in capsys.readouterr().err
    assert not server.requests
    monkeypatch.delenv(name)
    assert main(["flush"]) == 0
    monkeypatch.setenv(name, value)
    assert main(["flush"]) == 0
    assert len(server.received) == 2


def test_of_several_outboxes_the_most_severe_code_counts(server: FakeServer, capsys: Capture) -> None:
    fill("drained", 1, url=server.url)
    assert main(["flush"]) == 0
    server.set_mode("refuse_marked")
    dead = fill("dead", 1, url=server.url)
    dead.track("bad")
    dead.close()
    fill("drained", 1)
    assert reports(capsys, code=1)["dead"]["exit"] == 1
    server.set_mode("ok")
    fill("kept", 1, url="http://127.0.0.1:9")
    assert reports(capsys, code=75)["kept"]["exit"] == 75
    fill("lost", 1)
    fill("drained", 1)
    found = reports(capsys, code=78)
    assert {app: each["exit"] for app, each in found.items()} == {"dead": 0, "drained": 0, "kept": 75, "lost": 78}


def test_kept_counts_more_than_new_dead_letters_and_held_more_than_both(server: FakeServer, capsys: Capture) -> None:
    server.set_mode("refuse_marked")
    tray = fill("a", 2, url=server.url)
    tray.track("bad")
    for _ in range(3):
        tray.track("e")
    tray.close()
    report = only(reports(capsys, "--limit", "4", code=75))
    assert (report["dead"], report["pending"], report["exit"]) == (1, 2, 75)
    fill("0-unset", 1)
    found = reports(capsys, "--limit", "1", code=78)
    assert {app: each["exit"] for app, each in found.items()} == {"0-unset": 78, "a": 75}
    assert main(["flush", "--help"]) == 0
    help_text = capsys.readouterr().out
    assert [help_text.index(code) for code in ("78 ", "75 ", "else 1 ", "else 0")] == sorted(
        help_text.index(code) for code in ("78 ", "75 ", "else 1 ", "else 0")
    )


def test_a_damaged_outbox_does_not_hold_the_others(server: FakeServer, home: Path, capsys: Capture) -> None:
    fill("a", 1, url=server.url)
    fill("b", 1, url=server.url)
    (home / ".local/state/outtray/a/outbox-1-0.db").write_bytes(b"nonsense" * 1_000)
    found = reports(capsys, code=78)
    assert (found["a"]["outcome"], found["b"]["outcome"]) == ("not configured", "drained"), "its url was in the file"
    assert len(server.received) == 1


def test_the_limit_is_shared_and_the_rest_kept(server: FakeServer, capsys: Capture) -> None:
    fill("a", 7, url=server.url)
    fill("b", 7, url=server.url)
    found = reports(capsys, "--limit", "10", code=75)
    assert [found[app]["delivered"] for app in "ab"] == [7, 3]
    assert found["a"]["outcome"] == "drained"
    assert (found["b"]["outcome"], found["b"]["pending"]) == ("limit", 4)
    assert only(reports(capsys, "--app", "b", "--limit", "4"))["outcome"] == "drained"
    assert len(server.received) == 14


def test_the_time_is_shared_and_the_rest_kept(server: FakeServer, capsys: Capture) -> None:
    server.set_mode("ok", delay=0.6)
    fill("a", 3, url=server.url, max_batch_count=1)
    fill("b", 3, url=server.url, max_batch_count=1)
    found = reports(capsys, "--max-time", "0.5", code=75)
    assert all(each["exit"] == 75 for each in found.values())
    assert (found["a"]["delivered"], found["b"]["delivered"]) == (0, 0), "the request under way is cut off"
    found = reports(capsys, "--max-time", "0", "--all", code=75)
    assert {each["outcome"] for each in found.values()} == {"timeout"}
    server.set_mode("ok")
    assert main(["flush", "--all"]) == 0


def test_wait_goes_on_until_all_is_delivered(
    server: FakeServer, other_server: FakeServer, environment: dict[str, str]
) -> None:
    """An outbox whose receiver stays away does not keep the next one from its turn."""
    server.set_mode("refuse")
    other_server.set_mode("503", times=2)
    fill("a", 3, url=server.url)
    fill("b", 3, url=other_server.url)
    command = [sys.executable, "-m", "outtray", "flush", "--wait", "--json"]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE)
    try:
        assert wait_until(lambda: len(other_server.received) == 3)
        server.set_mode("ok")
        shown, _ = process.communicate(timeout=120)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 0
    assert [(each["outcome"], each["delivered"]) for each in json.loads(shown)] == [("drained", 3)] * 2


def test_wait_ends_with_the_time(server: FakeServer, capsys: Capture) -> None:
    server.set_mode("503", retry_after=600)
    fill("a", 3, url=server.url)
    assert only(reports(capsys, "--wait", "--max-time", "60", code=75))["outcome"] == "postponed"


def test_a_stored_wait_is_heeded_unless_told_otherwise(server: FakeServer, capsys: Capture) -> None:
    server.set_mode("503", retry_after=600)
    fill("a", 3, url=server.url)
    assert main(["flush"]) == 75
    server.set_mode("ok")
    assert only(reports(capsys, code=75))["wait"] > 500
    assert len(server.requests) == 1
    assert only(reports(capsys, "--all"))["delivered"] == 3


WAIT = "id, delivered, next_attempt_at, attempts, status, reason, held, fingerprint, mirror"


@pytest.mark.parametrize("mode", ["503", "401"])
@pytest.mark.parametrize(
    "variables",
    [
        {},
        {"OUTTRAY_DESTINATION": "novel"},
        {"OUTTRAY_WRITE_KEY": ""},
        {"OUTTRAY_WRITE_KEY": "another"},
        {"OUTTRAY_URL": "http://127.0.0.1:9"},
        {"OUTTRAY_CONSENT": "local"},
    ],
    ids=str,
)
def test_a_look_at_a_stored_wait_says_what_the_delivery_would_say(
    mode: str,
    variables: dict[str, str],
    server: FakeServer,
    home: Path,
    capsys: Capture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    server.set_mode(mode, **({"retry_after": "3600"} if mode == "503" else {}))
    monkeypatch.setenv("OUTTRAY_WRITE_KEY", "the-key")
    fill("a", 2, url=server.url, write_key="the-key")
    main(["flush"])
    edit(home / ".local/state/outtray/a", f"INSERT INTO cursors SELECT 'novel', {WAIT} FROM cursors")
    for name, value in variables.items():
        monkeypatch.setenv(name, value)

    def told() -> tuple[int, str, Any]:
        capsys.readouterr()
        code = main(["flush", "--json", "--warn-after", "0"])
        shown = capsys.readouterr()
        (report,) = json.loads(shown.out)
        return code, report["outcome"], report["reason"]

    of_a_look = told()
    monkeypatch.setattr("outtray.delivery.outlook.Outlook.stored_wait", lambda self: None)
    assert told() == of_a_look


MORE_TO_DO: dict[str, Callable[[Path], object]] = {
    "an erasure": lambda folder: edit(folder, "INSERT INTO meta VALUES ('erasing', 'withdrawn 1')"),
    "a log that was set aside": lambda folder: (folder / "outbox-1-0-0.lost-wal").write_bytes(b"x"),
    "a link in its place": lambda folder: folder.symlink_to(folder.rename(folder.parent / "b")),
    "a wait that is over": lambda folder: edit(folder, "UPDATE cursors SET next_attempt_at = 1"),
    "a wait that is too long": lambda folder: edit(folder, "UPDATE cursors SET next_attempt_at = 1e12"),
}


def edit(folder: Path, statement: str) -> None:
    with closing(sqlite3.connect(folder / "outbox-1-0.db")) as connection, connection:
        connection.execute(statement)


@pytest.mark.parametrize("more", MORE_TO_DO)
def test_a_look_at_a_stored_wait_says_nothing_where_there_is_more_to_do(
    more: str, server: FakeServer, home: Path
) -> None:
    server.set_mode("503", retry_after="3600")
    settings = fill("a", 2, url=server.url).settings
    main(["flush"])
    assert outlook(settings).stored_wait() is not None
    MORE_TO_DO[more](home / ".local/state/outtray/a")
    assert outlook(settings).stored_wait() is None


def test_a_key_that_is_needed_since_and_missing_is_78_though_a_wait_is_stored(server: FakeServer) -> None:
    server.set_mode("503", retry_after="3600")
    fill("a", 2, url=server.url)
    assert main(["flush"]) == 75
    fill("a", 1, url=server.url, write_key="the-key")
    assert main(["flush"]) == 78


def test_damage_is_left_behind_though_a_wait_is_stored(server: FakeServer, home: Path, capsys: Capture) -> None:
    server.set_mode("503", retry_after="3600")
    folder = home / ".local/state/outtray/a"
    fill("a", 2, url=server.url)
    main(["flush"])
    edit(folder, "UPDATE cursors SET mirror = 7")
    capsys.readouterr()
    assert only(reports(capsys, code=75))["pending"] == 2
    assert (folder / "outbox-1-1.db").exists()


def test_while_another_delivers_a_stored_wait_is_no_reason(server: FakeServer, home: Path) -> None:
    server.set_mode("503", retry_after="3600")
    settings = fill("a", 2, url=server.url).settings
    main(["flush"])
    lock = DrainLock(settings.directory)
    assert lock.try_acquire()
    assert outlook(settings).stored_wait() is None
    lock.release()
    assert outlook(settings).stored_wait() is not None


def test_a_dry_run_says_what_would_be_sent_and_sends_nothing(server: FakeServer, capsys: Capture) -> None:
    tray = fill("a", 5, url=f"http://me:secret@127.0.0.1:{server.port}")
    assert main(["flush", "--dry-run", "--json"]) == 0
    (plan,) = json.loads(capsys.readouterr().out)
    stored = [tray.track("x")]
    assert stored == [True]
    tray.close()
    assert main(["list", "--json"]) == 0
    sizes = [each["bytes"] for each in json.loads(capsys.readouterr().out)]
    assert (plan["count"], plan["bytes"], plan["destination"]) == (5, sum(sizes[1:]), "zenml")
    assert plan["url"] == f"http://127.0.0.1:{server.port}"
    assert plan["held_back"], "the url's password is not stored"
    assert main(["flush", "--dry-run", "--json", "--limit", "2", "--url", f"http://me:x@127.0.0.1:{server.port}"]) == 0
    (plan,) = json.loads(capsys.readouterr().out)
    assert (plan["count"], plan["bytes"], plan["url"], plan["held_back"]) == (2, sum(sizes[-2:]), server.url, False)
    assert main(["flush", "--dry-run"]) == 0
    assert capsys.readouterr().out.startswith("a: 6 messages, ")
    assert not server.requests


def test_a_dry_run_tells_of_a_stored_wait(server: FakeServer, capsys: Capture) -> None:
    server.set_mode("503", retry_after=600)
    fill("a", 3, url=server.url)
    main(["flush"])
    for words, held_back in ([], True), (["--all"], False), (["--url", f"{server.url}/other"], False):
        assert main(["flush", "--dry-run", "--json", *words]) == 0
        (plan,) = json.loads(capsys.readouterr().out)
        assert plan["held_back"] is held_back
        assert "503" in plan["why"]


def test_another_drainer_at_work_is_no_fault_and_a_stopped_one_is_75(
    server: FakeServer, environment: dict[str, str], run_python: Run
) -> None:
    fill("a", 3, url=server.url, timeout=10)
    server.set_mode("ok", delay=4)
    first = subprocess.Popen([sys.executable, "-m", "outtray", "flush"], env=environment)
    try:
        assert wait_until(lambda: server.requests)
        done = run_python("-m", "outtray", "flush", "--json")
        assert done.returncode == 0, done
        assert json.loads(done.stdout)[0]["outcome"] in ("busy", "drained")
        assert first.wait(60) == 0
        assert (
            run_python("-c", "import outtray; t = outtray.Tray(app='a', flush='manual'); t.track('x')").returncode == 0
        )
        server.clear()
        server.set_mode("hang")
        first = subprocess.Popen([sys.executable, "-m", "outtray", "flush"], env=environment)
        assert wait_until(lambda: server.requests)
        first.send_signal(signal.SIGSTOP)
        done = run_python("-m", "outtray", "flush", OUTTRAY_TIMEOUT="0.5")
        assert done.returncode == 75
        assert f"continue it (kill -CONT {first.pid}) or end it" in done.stderr
    finally:
        first.kill()
        first.wait()
    assert len(server.received) <= 3
    assert not server.repeats


def on_a_terminal(code: str, environment: dict[str, str]) -> tuple[int, str]:
    """Run Python *code* with a terminal for everything and return its exit code and what it showed."""
    pid, terminal = pty.fork()
    if pid == 0:  # pragma: no cover
        variables = {"TERM": "xterm", "COLUMNS": "100", "LINES": "30", **environment}
        os.execve(sys.executable, [sys.executable, "-c", code], variables)
    shown = b""
    try:
        while data := os.read(terminal, 65_536):
            shown += data
    except OSError:  # Linux's word for the end
        pass
    _, status = os.waitpid(pid, 0)
    os.close(terminal)
    return os.waitstatus_to_exitcode(status), shown.decode()


FLUSH = "import sys; from outtray.cli import main; sys.exit(main(['flush']))"
WITHOUT_RICH = f"import sys; sys.modules['rich'] = sys.modules['rich.progress'] = None; {FLUSH}"


def test_a_terminal_shows_a_bar_and_one_line(server: FakeServer, environment: dict[str, str]) -> None:
    fill("a", 40, url=server.url, max_batch_count=10)
    code, shown = on_a_terminal(FLUSH, environment)
    assert code == 0
    assert "40/40" in shown
    assert "━" in shown
    assert shown.endswith("a: 40 messages delivered\r\n")
    code, shown = on_a_terminal(FLUSH, environment)
    assert (code, shown) == (0, "a: 0 messages delivered\r\n")


def test_without_rich_a_plain_line_is_written_again(server: FakeServer, environment: dict[str, str]) -> None:
    fill("a", 40, url=server.url, max_batch_count=10)
    code, shown = on_a_terminal(WITHOUT_RICH, environment)
    assert code == 0
    assert "\ra 0/40" in shown
    assert "\ra 40/40" in shown
    assert "━" not in shown
    assert shown.endswith("\r\x1b[Ka: 40 messages delivered\r\n")


def test_no_color_and_quiet_are_obeyed(server: FakeServer, environment: dict[str, str]) -> None:
    fill("a", 4, url=server.url)
    _, shown = on_a_terminal(FLUSH, {**environment, "NO_COLOR": "1"})
    assert "4/4" in shown
    assert "\x1b[3" not in shown
    fill("a", 4)
    code, shown = on_a_terminal(FLUSH.replace("'flush'", "'flush', '--quiet'"), environment)
    assert (code, shown) == (0, "")
    assert len(server.received) == 8


def test_a_terminal_is_told_that_there_is_nothing(environment: dict[str, str], home: Path) -> None:
    code, shown = on_a_terminal(FLUSH, environment)
    assert (code, shown) == (0, f"nothing to deliver: no outbox in {home}/.local/state/outtray\r\n")


def test_the_outbox_is_closed_after_a_flush(server: FakeServer, home: Path, run_python: Run) -> None:
    code = "import os, outtray; outtray.configure(app='a', flush='manual'); outtray.track('x'); os.kill(os.getpid(), 9)"
    assert run_python("-c", code, OUTTRAY_URL=server.url).returncode == -9
    folder = home / ".local/state/outtray/a"
    assert (folder / "outbox-1-0.db-wal").exists()
    assert main(["flush"]) == 0
    assert not (folder / "outbox-1-0.db-wal").exists()
    assert len(server.received) == 1


def test_a_flush_keeps_to_the_bound_that_the_program_has_set(
    server: FakeServer, run_python: Run, capsys: Capture
) -> None:
    code = (
        "import sys, outtray\n"
        "outtray.configure(app='a', url=sys.argv[1], flush='manual', max_bytes=2_000_000, max_batch_count=10)\n"
        "for n in range(100): assert outtray.track('event', {'text': 'x' * 5000})\n"
    )
    run_python("-c", code, server.url)
    assert only(reports(capsys))["delivered"] == 100
    assert main(["list", "--json", "--limit", "1000"]) == 0
    left = len(capsys.readouterr().out.splitlines())
    assert 0 < left <= 60, "what was delivered takes an eighth of the bound, and a batch"
