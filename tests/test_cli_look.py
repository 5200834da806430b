"""status, list, show, where: what they say, in which shape, and that they leave no trace."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

import outtray
from outtray.cli import main, output
from outtray.testing import FakeServer

from .test_cli import fill

Run = Callable[..., subprocess.CompletedProcess[str]]
Capture = pytest.CaptureFixture[str]

NOWHERE = "http://127.0.0.1:9"
HOSTILE = "\x1b[31mred\x07 \x9b5n ‮gnp.exe⁦ \u200b\r\nline\x7f 😀 é"


def asked(capsys: Capture, *words: str) -> Any:
    assert main([*words, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def traces(folder: Path) -> dict[str, tuple[int, int, bytes]]:
    """Each file below *folder* with size, time of the last change, and content."""
    paths = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    folders = {f"{path}/": (0, path.stat().st_mtime_ns, b"") for path in folder.rglob("*") if path.is_dir()}
    return {
        **folders,
        **{str(path): (path.stat().st_size, path.stat().st_mtime_ns, path.read_bytes()) for path in paths},
    }


def look_at_everything(run_python: Run, **variables: str) -> None:
    for words in (
        ["status"],
        ["status", "--json"],
        ["list"],
        ["list", "--json", "--state", "pending"],
        ["show", "1"],
        ["where"],
        ["flush", "--dry-run"],
        ["purge", "--state", "pending", "--dry-run"],
    ):
        done = run_python("-m", "outtray", *words, **variables)
        assert done.returncode == 0, (words, done.stderr)
    assert run_python("-m", "outtray", "purge", "--state", "pending").returncode == 2


def test_looking_leaves_no_trace_in_a_closed_outbox(home: Path, run_python: Run) -> None:
    fill("closed", 20, url=NOWHERE)
    before = traces(home)
    look_at_everything(run_python)
    assert traces(home) == before


def test_looking_leaves_no_trace_where_there_is_no_outbox(home: Path, run_python: Run) -> None:
    for words in (["status"], ["list"], ["where"], ["flush"], ["retry", "--all"], ["purge"]):
        assert run_python("-m", "outtray", *words).returncode == 0
    assert run_python("-m", "outtray", "show", "1").returncode == 1
    assert not list(home.iterdir())


def test_looking_leaves_no_trace_beside_a_copy_without_its_gate(home: Path, run_python: Run) -> None:
    fill("copied", 20, url=NOWHERE)
    (home / ".local/state/outtray/copied/outbox-1.gate").unlink()
    before = traces(home)
    look_at_everything(run_python)
    assert traces(home) == before


def test_looking_changes_no_message_of_a_killed_owner(home: Path, run_python: Run) -> None:
    """SQLite must rebuild the -shm, its index of the WAL, where the owner died; the -wal and the .db stay."""
    code = (
        "import os, outtray; outtray.configure(app='killed', url='http://127.0.0.1:9', flush='manual');"
        "assert all([outtray.track('e') for _ in range(20)]); os.kill(os.getpid(), 9)"
    )
    assert run_python("-c", code).returncode == -9
    before = traces(home)
    assert any(name.endswith("-wal") for name in before)
    look_at_everything(run_python)
    after = traces(home)
    index = next(name for name in before if name.endswith("-shm"))
    assert after.keys() == before.keys()
    assert {**after, index: None} == {**before, index: None}


def test_status_has_the_promised_keys(server: FakeServer, capsys: Capture) -> None:
    tray = fill("keys", 3, url=f"http://me:secret@127.0.0.1:{server.port}/")
    assert tray.flush(10).delivered == 3
    tray.track("one more")
    found = asked(capsys, "status")
    assert found["consent"] == {"state": "granted", "reason": "nobody said otherwise"}
    counts = {"pending": 1, "deferred": 0, "delivered": 3, "dead": 0, "refused": 0, "local": 0}
    assert {name: found[name] for name in counts} == counts
    assert (found["app"], found["destination"], found["held"], found["ledger"]) == ("keys", "zenml", None, {})
    assert 0 <= found["oldest_pending_age"] < 600
    assert found["next_attempt_at"] is None
    assert found["bytes"] > 0
    assert "secret" not in json.dumps(found)


def test_the_first_line_of_status_says_why_nothing_is_sent(
    server: FakeServer, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def first_line() -> str:
        assert main(["status"]) == 0
        return capsys.readouterr().out.splitlines()[0]

    assert first_line() == "nothing is waiting"
    fill("why", 2)
    assert "no url is set" in first_line()
    monkeypatch.setenv("OUTTRAY_URL", server.url)
    assert "due now" in first_line()
    server.set_mode("503", retry_after=60)
    assert main(["flush"]) == 75
    capsys.readouterr()
    assert "503" in (line := first_line())
    assert "next attempt in" in line
    monkeypatch.setenv("DO_NOT_TRACK", "1")
    assert "consent is denied (DO_NOT_TRACK)" in first_line()


def test_status_says_that_damaged_files_wait_and_what_brings_them_back(
    home: Path, server: FakeServer, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill("a", 3, url=server.url)
    assert asked(capsys, "status")["unsalvaged"] == 0
    (home / ".local/state/outtray/a/outbox-1-0.db").write_bytes(b"no database" * 1_000)
    fill("a", 1)
    found = asked(capsys, "status")
    assert (found["pending"], found["unsalvaged"]) == (1, 1)
    assert found["why"].startswith("1 message waiting")
    assert main(["purge", "--state", "delivered"]) == 0, "which brings nothing back"
    with monkeypatch.context() as denied:
        denied.setenv("OUTTRAY_CONSENT", "local")
        assert asked(capsys, "status")["why"].endswith("brings them back once consent is granted")
    capsys.readouterr()
    assert main(["status"]) == 0
    first, *rows = capsys.readouterr().out.splitlines()
    assert "1 damaged file may hold messages that wait: the next `python -m outtray flush` brings them back" in first
    assert any(row.split(maxsplit=1) == ["unsalvaged", "1 damaged file, not brought back yet"] for row in rows)
    assert main(["flush", "--url", server.url]) == 0
    assert asked(capsys, "status")["unsalvaged"] == 0
    assert main(["status"]) == 0
    assert capsys.readouterr().out.splitlines()[0] == "nothing is waiting"


def test_status_does_not_call_it_quiet_where_only_a_damaged_file_waits(home: Path, capsys: Capture) -> None:
    fill("a", 3, url=NOWHERE)
    (home / ".local/state/outtray/a/outbox-1-0.db").write_bytes(b"no database" * 1_000)
    assert main(["consent", "on"]) == 0, "which goes on in a new file"
    capsys.readouterr()
    assert main(["status"]) == 0
    assert capsys.readouterr().out.startswith("1 damaged file may hold messages that wait")


def test_status_says_where_nothing_will_be_delivered_from_here(home: Path, capsys: Capture) -> None:
    fill("a", 3, url=NOWHERE)
    folder = home / ".local/state/outtray/a"
    folder.rename(home / "elsewhere")
    folder.symlink_to(home / "elsewhere")
    why = asked(capsys, "status", "--app", "a")["why"]
    assert why.startswith(f"3 messages waiting: {folder} is a symbolic link")
    assert "due now" not in why


def test_status_reads_no_damaged_file_and_loads_nothing_for_it(run_python: Run) -> None:
    fill("sound", 1)
    code = "import sys; from outtray.cli import main; main(['status']); print('outtray.outbox.sources' in sys.modules)"
    assert run_python("-c", code).stdout.splitlines()[-1] == "False"


def test_several_outboxes_are_named_and_none_is_guessed(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    for app in ("b", "a"):
        fill(app, 1, url=NOWHERE)
    for words in (["status"], ["list"], ["show", "1"], ["where"], ["retry", "--all"], ["purge"]):
        assert main(words) == 2
        shown = capsys.readouterr()
        assert not shown.out
        assert "choose one with --app: a, b" in shown.err
    assert asked(capsys, "status", "--app", "a")["app"] == "a"
    monkeypatch.setenv("OUTTRAY_APP", "b")
    assert asked(capsys, "status")["app"] == "b"


def test_a_folder_that_holds_no_outbox_is_not_an_app(home: Path, capsys: Capture) -> None:
    fill("real", 1, url=NOWHERE)
    folder = home / ".local/state/outtray"
    (folder / "empty").mkdir()
    (folder / "file").write_text("x")
    (folder / "not an app").mkdir()
    (folder / "not an app/outbox-1-0.db").write_text("x")
    (folder / "real/outbox-1-7-backup.db").write_text("x")
    assert asked(capsys, "status")["app"] == "real"
    assert asked(capsys, "status")["pending"] == 1


def test_an_outbox_elsewhere_is_reached_with_dir(tmp_path: Path, capsys: Capture) -> None:
    fill("there", 4, dir=str(tmp_path / "elsewhere"))
    assert asked(capsys, "status")["pending"] == 0
    assert asked(capsys, "status", "--dir", str(tmp_path / "elsewhere"))["pending"] == 4


def test_list_gives_the_newest_first_and_filters(capsys: Capture) -> None:
    tray = outtray.Tray(app="filters", url=NOWHERE, flush="manual")
    for number in range(130):
        tray.track("even" if number % 2 == 0 else "odd", {"number": number})
    local = outtray.Tray(app="filters", url=NOWHERE, consent="local", flush="manual")
    local.track("kept here")
    tray.close()
    assert [each["id"] for each in asked(capsys, "list")] == list(range(131, 81, -1))
    assert [each["id"] for each in asked(capsys, "list", "--limit", "1000")] == list(range(131, 0, -1))
    assert [each["id"] for each in asked(capsys, "list", "--event", "even", "--limit", "2")] == [129, 127]
    assert [each["event"] for each in asked(capsys, "list", "--state", "local")] == ["kept here"]
    assert len(asked(capsys, "list", "--state", "pending", "--limit", "1000")) == 130
    assert asked(capsys, "list", "--state", "dead") == []
    keys = "id message_id event accepted_at destination state next_attempt_at attempts status reason bytes"
    assert list(asked(capsys, "list", "--limit", "1")[0]) == keys.split()


def test_list_since_takes_an_age_or_a_time(capsys: Capture) -> None:
    fill("times", 2, url=NOWHERE)
    now = datetime.now(UTC)
    for when in ("1h", "2d", "90s", "1.5h", "1w", (now - timedelta(minutes=5)).isoformat(), "2020-01-01"):
        assert len(asked(capsys, "list", "--since", when)) == 2, when
    local = (datetime.now() + timedelta(hours=1)).isoformat()
    for when in ((now + timedelta(hours=1)).isoformat(), local, "2099-01-01T00:00:00Z"):
        assert asked(capsys, "list", "--since", when) == [], when


def test_what_events_say_cannot_move_the_terminal(run_python: Run) -> None:
    tray = outtray.Tray(app="hostile", url=NOWHERE, flush="manual")
    tray.track(HOSTILE, {HOSTILE: HOSTILE, "lone": "\ud800"})
    tray.close()
    for words in (["list"], ["list", "--json"], ["show", "1"], ["show", "1", "--json"]):
        shown = run_python("-m", "outtray", *words).stdout
        kept = [each for each in shown if not each.isprintable() and each != "\n"]
        assert kept == [], words
        assert "😀 é" in shown
    listed = json.loads(run_python("-m", "outtray", "list", "--json").stdout)
    assert listed[0]["event"] == HOSTILE


def test_what_a_receiver_says_cannot_move_the_terminal(server: FakeServer, capsys: Capture) -> None:
    server.set_mode("400", body="\x1b]0;title\x07no")
    fill("answer", 2, url=server.url)
    main(["flush"])
    server.set_mode("refuse_marked", marker="number", status=422)
    tray = outtray.Tray(app="answer", flush="manual")
    tray.track("good")
    tray.close()
    main(["flush", "--all"])
    main(["status"])
    main(["show", "1"])
    shown = capsys.readouterr()
    assert not [each for each in shown.out + shown.err if not each.isprintable() and each != "\n"]


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_a_poor_encoding_costs_no_output(encoding: str, run_python: Run, environment: dict[str, str]) -> None:
    tray = outtray.Tray(app="poor", url=NOWHERE, flush="manual")
    tray.track("😀 é 漢字", {"text": "😀"})
    tray.close()
    for words in (["list"], ["show", "1"], ["status"]):
        command = [sys.executable, "-m", "outtray", *words]
        variables = {**environment, "PYTHONIOENCODING": f"{encoding}:strict"}
        done = subprocess.run(command, env=variables, capture_output=True, check=False)
        assert done.returncode == 0, done.stderr
        assert done.stdout.decode(encoding)
    done = run_python("-m", "outtray", "list", "--json", PYTHONIOENCODING=encoding)
    assert json.loads(done.stdout)[0]["event"] == "😀 é 漢字"


def test_show_takes_an_id_or_a_message_id(capsys: Capture) -> None:
    tray = outtray.Tray(app="show", url=NOWHERE, flush="manual")
    tray.track("first")
    tray.track("second", {"odd": [float("nan"), float("inf"), 10**300, 10**5_000, "😀"]}, message_id="mine")
    tray.track("third", message_id="99")
    tray.close()
    assert [each["event"] for each in asked(capsys, "show", "1")] == ["first"]
    assert [each["event"] for each in asked(capsys, "show", "99")] == ["third"]
    (found,) = asked(capsys, "show", "mine")
    assert found["id"] == 2
    assert found["message"]["properties"]["odd"][:3] == [None, None, 10**300]
    assert found["excerpt"] is None
    assert main(["show", "2"]) == 0
    shown = capsys.readouterr().out
    assert json.loads(shown[shown.index("{") :])["message_id"] == "mine"
    for unknown in ("7", "nothing", "9" * 30, "-1", "٣"):
        assert main(["show", "--", unknown]) == (0 if unknown == "٣" else 1)
    assert "there is no message" in capsys.readouterr().err


def test_show_says_when_a_message_was_delivered_and_what_the_answer_was(server: FakeServer, capsys: Capture) -> None:
    server.set_mode("refuse_marked", marker="bad")
    began = time.time()
    tray = outtray.Tray(app="told", url=server.url, flush="manual", max_batch_count=2)
    for event in ("first", "second", "bad", "last", "bad"):
        tray.track(event)
    tray.flush(20)
    tray.track("waits")
    assert asked(capsys, "retry", "--all")
    server.set_mode("ok")
    tray.flush(20)
    ended = time.time()
    tray.track("waits")
    tray.close()
    shown = {id: asked(capsys, "show", str(id))[0] for id in (1, 2, 4, 6, 7)}
    for id in (1, 2, 4, 6):
        assert shown[id]["state"] == "delivered"
        assert shown[id]["status"] == 200
        assert began <= shown[id]["delivered_at"] <= ended
    assert shown[1]["delivered_at"] == shown[2]["delivered_at"] < shown[4]["delivered_at"] < shown[6]["delivered_at"]
    assert (shown[7]["state"], shown[7]["status"], shown[7]["delivered_at"]) == ("pending", None, None)
    assert main(["show", "1"]) == 0
    moment = datetime.fromtimestamp(shown[1]["delivered_at"], UTC).isoformat(timespec="milliseconds")
    assert f"delivered     {moment}\n" in capsys.readouterr().out


def test_show_says_no_time_where_several_batches_may_have_had_the_message(server: FakeServer, capsys: Capture) -> None:
    from outtray.outbox.records import Mark

    tray = outtray.Tray(app="unsure", url=server.url, flush="manual")
    for number in range(3):
        tray.track(f"e{number}")
    outbox = tray._outbox()
    for refused in ({1, 3}, set()):
        batch = outbox.pending("zenml", after_id=0, max_count=9, max_bytes=9_999)
        assert batch is not None
        marks = [Mark(each, "dead", status=400, reason="no") for each in batch.messages if each.id in refused]
        outbox.settle(batch, marks, status=200, seconds=0.1)
        assert main(["retry", "--all"]) == 0
    tray.close()
    capsys.readouterr()
    (found,) = asked(capsys, "show", "2")
    assert (found["state"], found["delivered_at"]) == ("delivered", None)


def test_a_body_that_is_beyond_json_is_shown_as_it_is(home: Path, capsys: Capture) -> None:
    import sqlite3
    import zlib

    fill("odd", 4, url=NOWHERE)
    bodies = ["{'no': json}", f'{{"n": {"9" * 5_000}}}', "[" * 100_000, '{"n": NaN, "m": 1e999}']
    connection = sqlite3.connect(home / ".local/state/outtray/odd/outbox-1-0.db")
    for id, body in enumerate(bodies, 1):
        connection.execute("UPDATE messages SET body = ?, crc = ? WHERE id = ?", (body, zlib.crc32(body.encode()), id))
    connection.commit()
    connection.close()
    for id, body in enumerate(bodies, 1):
        (found,) = asked(capsys, "show", str(id))
        assert found["message"] == body
        assert main(["show", str(id)]) == 0
        assert capsys.readouterr().out.endswith(f"{body}\n")


def test_where_says_what_is_there(home: Path, capsys: Capture) -> None:
    found = asked(capsys, "where")
    assert found["directory"] == str(home / ".local/state/outtray/default")
    assert (found["exists"], found["files"], found["config"]["exists"]) == (False, [], False)
    fill("there", 1)
    (home / ".config/outtray").mkdir(parents=True)
    (home / ".config/outtray/config.toml").write_text("timeout = 3\n")
    found = asked(capsys, "where")
    assert found["exists"]
    assert found["config"] == {"path": str(home / ".config/outtray/config.toml"), "exists": True}
    for file in found["files"]:
        assert os.path.getsize(file["path"]) == file["bytes"]
    assert {os.path.basename(file["path"]) for file in found["files"]} >= {"outbox-1-0.db", "outbox-1.gate"}
    assert main(["where"]) == 0
    assert str(home / ".local/state/outtray/there/outbox-1-0.db") in capsys.readouterr().out


def test_a_fault_in_the_environment_is_said_and_does_not_stop_a_look(run_python: Run) -> None:
    fill("fault", 1, url=NOWHERE)
    done = run_python("-m", "outtray", "status", "--json", OUTTRAY_MAX_BYTES="lots")
    assert done.returncode == 0
    assert json.loads(done.stdout)["pending"] == 1
    assert done.stderr.startswith("outtray: OUTTRAY_MAX_BYTES='lots' cannot be right: ")
    assert done.stderr.endswith("; it was passed over\n")


def test_a_table_fits_the_terminal() -> None:
    import pty

    reader, writer = pty.openpty()
    code = (
        "from outtray.cli.output import write_table;"
        "write_table(('A', 'EVENT'), [('1', 'x' * 200), ('2', '漢字' * 100), ('3', 'short')])"
    )
    source = str(Path(__file__).parent.parent / "src")
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=writer,
        env={"PYTHONPATH": source, "COLUMNS": "40", "LINES": "20", "PYTHONUTF8": "1"},
    )
    os.close(writer)
    text = b""
    try:
        while data := os.read(reader, 65_536):
            text += data
    except OSError:  # Linux's word for the end
        pass
    assert process.wait(60) == 0
    os.close(reader)
    lines = text.decode().replace("\r", "").splitlines()
    assert len(lines) == 4
    assert [output._width(line) for line in lines] == [8, 40, 40, 8]


def test_ages_and_sizes_are_for_people() -> None:
    assert [output.age_text(each) for each in (0, 59, 60, 7_200, 172_800)] == ["0 s", "59 s", "1 min", "2 h", "2 d"]
    assert [output.size_text(each) for each in (0, 1023, 1024, 5 * 1024**3)] == ["0 B", "1023 B", "1.0 KiB", "5.0 GiB"]
