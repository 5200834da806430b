"""doctor: each fault is found and said, looking changes nothing, and --salvage brings messages back."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

import outtray
from outtray import paths
from outtray.cli import main
from outtray.outbox import places, reserve
from outtray.outbox.gate import NO_ROOM, REWRITE_WAL, Header
from outtray.testing import FakeServer

from .conftest import wait_until
from .test_cli import fill
from .test_cli_look import traces

Capture = pytest.CaptureFixture[str]
Run = Callable[..., subprocess.CompletedProcess[str]]

NOWHERE = "http://127.0.0.1:9"

HOLD = """
import os, sys, time
from outtray.delivery.lock import DrainLock
from outtray.outbox.gate import Gate
if sys.argv[2] == "drain":
    lock = DrainLock(sys.argv[1])
    assert lock.try_acquire()
else:
    gate = Gate(os.path.join(sys.argv[1], "outbox-1.gate"))
    gate.enter(sys._getframe())
print("held", flush=True)
while True:
    time.sleep(0.05)
    if sys.argv[2] == "drain":
        lock.beat()
"""

KILLED = (
    "import os, outtray; outtray.configure(app='a', flush='manual');"
    "assert all([outtray.track('e', {'n': n}) for n in range(60)]); os.kill(os.getpid(), 9)"
)


@pytest.fixture
def folder(home: Path) -> Path:
    """The directory of the application "a"."""
    return home / ".local/state/outtray/a"


@pytest.fixture
def outbox(folder: Path, server: FakeServer) -> Path:
    """An outbox with 4 delivered messages, 3 that wait, and a reserve."""
    tray = fill("a", 4, url=server.url)
    assert tray.flush(20).settled
    for number in range(3):
        assert tray.track("waits", {"number": number})
    tray.close()
    return folder


@pytest.fixture
def killed(folder: Path, run_python: Run) -> Path:
    """An outbox whose owner was killed: 60 messages, in the log."""
    assert run_python("-c", KILLED).returncode == -9
    return folder


def examined(capsys: Capture, *words: str, code: int = 1) -> dict[str, Any]:
    capsys.readouterr()
    assert main(["doctor", "--json", *words]) == code
    (report,) = json.loads(capsys.readouterr().out)
    result: dict[str, Any] = report
    return result


def found(capsys: Capture, check: str, *words: str) -> str:
    """Return what is found by *check* alone, and by no other."""
    findings = examined(capsys, *words)["findings"]
    assert {each["check"] for each in findings} == {check}, findings
    assert all(each["do"] for each in findings)
    return "\n".join(each["text"] for each in findings)


def change(folder: Path, statement: str, *values: object) -> None:
    """Change the database as a fault would; nobody has it open."""
    with closing(sqlite3.connect(folder / "outbox-1-0.db")) as connection, connection:
        assert connection.execute(statement, values).rowcount > 0


def overwrite(path: Path, where: int, data: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(where)
        file.write(data)


@contextmanager
def holding(environment: dict[str, str], folder: Path, what: str) -> Iterator[subprocess.Popen[str]]:
    """Run a program that keeps the gate, or the drain lock."""
    command = [sys.executable, "-c", HOLD, str(folder), what]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "held\n"
            yield process
        finally:
            process.send_signal(signal.SIGCONT)
            process.kill()


# All is well


def test_a_sound_outbox_is_well(outbox: Path, capsys: Capture) -> None:
    report = examined(capsys, code=0)
    assert (report["app"], report["directory"], report["findings"]) == ("a", str(outbox), [])
    checks = report["checks"]
    assert "7 messages" in checks["content"]
    assert "8.0 MiB" in checks["space"]
    assert sqlite3.sqlite_version in checks["versions"]
    assert main(["doctor"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "a: all is well"
    assert all(line.startswith(("  ok  ", " " * 6)) for line in lines[1:])


def test_names_of_events_are_compared_as_they_were_stored(folder: Path, capsys: Capture) -> None:
    tray = outtray.Tray(app="a", flush="manual")
    for name in ("\ud800", "\x00", "ä😀", "", "x" * 5000, '"\\'):
        assert tray.track(name)
    assert tray.identify({"a": 1})
    assert tray.group("g")
    assert tray.alias("a", "b")
    tray.close()
    assert examined(capsys, code=0)["findings"] == []


@pytest.mark.parametrize("which", ["outbox", "killed"])
@pytest.mark.parametrize("is_damaged", [False, True])
def test_looking_changes_nothing(
    which: str, is_damaged: bool, request: pytest.FixtureRequest, home: Path, tmp_path: Path, run_python: Run
) -> None:
    folder = request.getfixturevalue(which)
    if is_damaged:
        overwrite(folder / "outbox-1-0.db", 0, bytes(200))
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    before = traces(home)
    for words in ([], ["--json"], ["--online"]):
        done = run_python("-m", "outtray", "doctor", *words, TMPDIR=str(temporary))
        assert done.returncode == int(is_damaged or (which == "killed" and words == ["--online"])), done
    assert traces(home) == before
    assert not list(temporary.iterdir())


def test_all_outboxes_are_examined_or_the_one_that_is_named(outbox: Path, capsys: Capture) -> None:
    fill("b", 1)
    (outbox / "outbox-1.gate").chmod(0o644)
    assert main(["doctor", "--json"]) == 1
    assert [(each["app"], len(each["findings"])) for each in json.loads(capsys.readouterr().out)] == [
        ("a", 1),
        ("b", 0),
    ]
    assert examined(capsys, "--app", "b", code=0)["app"] == "b"


def test_without_an_outbox_there_is_nothing_to_find(home: Path, capsys: Capture) -> None:
    assert main(["doctor", "--salvage"]) == 0
    assert "there is no outbox" in capsys.readouterr().err
    assert list(home.iterdir()) == []


def test_a_place_where_no_outbox_can_be_is_78(tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "file").write_text("x")
    assert main(["doctor", "--dir", str(tmp_path / "file")]) == 78
    assert "is not a directory" in capsys.readouterr().err


def test_the_advice_is_given_once_and_commands_are_in_one_line(outbox: Path, capsys: Capture) -> None:
    for path in (outbox, *outbox.iterdir()):
        path.chmod(path.stat().st_mode | 0o044)
    (outbox / "outbox-1.reserve").unlink()
    assert len(examined(capsys)["findings"]) == 1 + len(list(outbox.iterdir())) + 1
    assert main(["doctor"]) == 1
    said = capsys.readouterr().out
    assert said.partition("  to do:\n")[2].splitlines() == [
        f"    rights: chmod -R go= {outbox}",
        "    space: run `outtray flush`, which makes it whole",
    ]
    subprocess.run(["chmod", "-R", "go=", str(outbox)], check=True)
    assert found(capsys, "space")


# One that cannot be examined


def another_major(outbox: Path) -> None:
    header = bytearray((outbox / "outbox-1.gate").read_bytes())
    header[8] = 2
    (outbox / "outbox-1.gate").write_bytes(header[:-4] + zlib.crc32(header[:-4]).to_bytes(4, "little"))


def gone(outbox: Path) -> None:
    shutil.rmtree(outbox)
    outbox.symlink_to("nowhere")


def no_gate(outbox: Path) -> None:
    (outbox / "outbox-1.gate").unlink()
    (outbox / "outbox-1.gate").mkdir()


def a_file(outbox: Path) -> None:
    shutil.rmtree(outbox)
    outbox.write_text("x")


def only_newer(outbox: Path) -> None:
    for path in list(outbox.glob("outbox-1*")):
        path.rename(outbox / path.name.replace("outbox-1", "outbox-2"))


@pytest.mark.parametrize("salvage", [[], ["--salvage"]], ids=["looking", "salvaging"])
@pytest.mark.parametrize(
    ("spoil", "check", "text"),
    [
        (another_major, "gate", "has format 2"),
        (only_newer, "versions", "files of format 2"),
        (no_gate, "gate", "is not a regular file"),
        (gone, "directory", "is a symbolic link"),
    ],
)
def test_one_that_cannot_be_used_is_a_finding_and_the_others_are_examined(
    spoil: Callable[[Path], None], check: str, text: str, salvage: list[str], outbox: Path, capsys: Capture
) -> None:
    fill("b", 1)
    spoil(outbox)
    capsys.readouterr()
    assert main(["doctor", "--json", *salvage]) == 1
    first, second = json.loads(capsys.readouterr().out)
    assert [each["check"] for each in first["findings"]] == [check]
    assert text in first["findings"][0]["text"]
    assert (second["app"], second["findings"]) == ("b", [])
    assert "1 message" in second["checks"]["content"]
    assert examined(capsys, "--app", "a")["findings"] == first["findings"], "also where it is the one that is named"


def test_a_file_in_place_of_the_directory_is_a_finding_of_the_app_that_is_named(outbox: Path, capsys: Capture) -> None:
    a_file(outbox)
    assert "is not a directory" in found(capsys, "directory", "--app", "a")


def test_one_that_the_system_cannot_read_is_a_finding_and_the_others_are_examined(
    outbox: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill("b", 1)
    whole = Path.open

    def broken(path: str, *arguments: Any, **options: Any) -> Any:
        if str(path).startswith(str(outbox)):
            raise OSError(5, "Input/output error", path)
        return whole(Path(path), *arguments, **options)

    for module in ("outtray.cli.examination", "shutil"):
        monkeypatch.setattr(f"{module}.open", broken, raising=False)
    capsys.readouterr()
    assert main(["doctor", "--json"]) == 1
    first, second = json.loads(capsys.readouterr().out)
    assert {each["check"] for each in first["findings"]} == {"gate", "content"}
    assert len(first["findings"]) == 2
    assert second["findings"] == []


def test_a_salvage_that_fails_is_said_and_the_others_are_salvaged(outbox: Path, capsys: Capture) -> None:
    fill("b", 3)
    (outbox / "outbox-1.drain").unlink()
    (outbox / "outbox-1.drain").mkdir()
    overwrite(outbox.parent / "b" / "outbox-1-0.db", 0, bytes(100))
    capsys.readouterr()
    assert main(["doctor", "--salvage", "--json"]) == 1
    shown = capsys.readouterr()
    assert [each["salvaged"] for each in json.loads(shown.out)] == [None, 3]
    assert "a: [Errno 21]" in shown.err


def test_a_program_that_writes_all_the_time_is_no_finding(
    home: Path, environment: dict[str, str], capsys: Capture
) -> None:
    code = (
        "import outtray; outtray.configure(app='a', flush='manual')\n"
        "while outtray.track('e'): print('more', flush=True)"
    )
    with subprocess.Popen([sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline()
            reader = Thread(target=process.stdout.read)
            reader.start()
            for _ in range(5):
                assert examined(capsys, code=0)["findings"] == []
        finally:
            process.kill()
            reader.join()


# Where it lies


def test_a_file_that_is_a_symbolic_link(outbox: Path, capsys: Capture) -> None:
    (outbox / "client_id").rename(outbox.parent / "client_id")
    (outbox / "client_id").symlink_to("../client_id")
    assert "client_id is a symbolic link" in found(capsys, "rights")


def test_others_can_read_a_file_or_the_directory(outbox: Path, capsys: Capture) -> None:
    (outbox / "outbox-1-0.db").chmod(0o640)
    outbox.chmod(0o755)
    text = found(capsys, "rights")
    assert "outbox-1-0.db has the mode 0640" in text
    assert f"{outbox} has the mode 0755" in text


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root gives files away")
def test_a_file_of_another_user(outbox: Path, capsys: Capture) -> None:
    os.chown(outbox / "outbox-1.gate", 1, 1)
    assert "belongs to user 1" in found(capsys, "rights")


def test_a_directory_that_is_a_symbolic_link(outbox: Path, capsys: Capture) -> None:
    outbox.rename(outbox.with_name("elsewhere-1"))
    outbox.symlink_to("elsewhere-1")
    assert "symbolic link" in found(capsys, "directory", "--app", "a")


def test_a_network_file_system(outbox: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    _, kind = places.mount(str(outbox))
    monkeypatch.setattr(places, "NETWORK_FILE_SYSTEMS", frozenset({kind}))  # as if the real one were such
    assert f"network file system ({kind})" in found(capsys, "directory")


def test_a_config_file_that_is_wrong_or_shows_the_key(outbox: Path, capsys: Capture) -> None:
    path = Path(paths.config_path())
    path.parent.mkdir(parents=True)
    path.write_text('write_key = "secret"\nretention = "long"\n')
    path.chmod(0o644)
    text = found(capsys, "settings")
    assert "others can read it" in text
    assert "retention" in text
    assert "secret" not in text


def test_an_option_that_there_is_not_is_said_alike_by_doctor_status_and_flush(outbox: Path, capsys: Capture) -> None:
    path = Path(paths.config_path())
    path.parent.mkdir(parents=True)
    path.write_text("novel = 1\n")
    fault = f"{path}: 'novel' is not an option and was passed over"
    (finding,) = examined(capsys)["findings"]
    assert (finding["text"], finding["do"]) == (fault, "correct it; until then `outtray flush` sends nothing")
    assert main(["status"]) == 0
    assert capsys.readouterr().err == f"outtray: {fault}\n"
    assert main(["flush"]) == 78
    assert f"not configured: {fault}; nothing was sent" in capsys.readouterr().err


# Room


@pytest.mark.parametrize(("size", "text"), [(None, "missing"), (0, "0 B of 8.0 MiB"), (4096, "4.0 KiB of 8.0 MiB")])
def test_a_reserve_that_is_not_whole(size: int | None, text: str, outbox: Path, capsys: Capture) -> None:
    path = outbox / "outbox-1.reserve"
    assert path.stat().st_size == reserve.SIZE
    if size is None:
        path.unlink()
    else:
        os.truncate(path, size)
    assert text in found(capsys, "space")


@pytest.mark.parametrize(("flag", "text"), [(NO_ROOM, "disk was full"), (REWRITE_WAL, "did not confirm")])
def test_what_the_header_says_of_the_disk(flag: int, text: str, outbox: Path, capsys: Capture) -> None:
    header = Header.from_bytes((outbox / "outbox-1.gate").read_bytes())
    assert header is not None
    header.flags |= flag
    (outbox / "outbox-1.gate").write_bytes(header.to_bytes())
    assert text in found(capsys, "gate")


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root mounts")
def test_too_little_room(tmp_path: Path, capsys: Capture) -> None:
    place = tmp_path / "small"
    place.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "none", str(place)], check=False, timeout=30)
    if mounted.returncode:
        pytest.skip("no tmpfs can be mounted here")
    try:
        fill("a", 2, dir=str(place))
        (place / "ballast").write_bytes(b"x" * (3 * 1024 * 1024))
        assert "too little for new messages" in found(capsys, "space", "--dir", str(place))
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True, timeout=30)


def test_a_log_that_grew(outbox: Path, capsys: Capture) -> None:
    log = outbox / "outbox-1-0.db-wal"
    log.touch(mode=0o600)
    os.truncate(log, 17 * 1024 * 1024)
    assert "17.0 MiB" in found(capsys, "log")


# Who is at it


@pytest.mark.parametrize(("what", "check"), [("gate", "gate"), ("drain", "delivery")])
def test_a_stopped_program_in_the_way_is_named(
    what: str, check: str, outbox: Path, environment: dict[str, str], capsys: Capture
) -> None:
    with holding(environment, outbox, what) as process:
        process.send_signal(signal.SIGSTOP)
        assert wait_until(lambda: Path(f"/proc/{process.pid}/stat").read_text().split()[2] == "T")
        (finding,) = examined(capsys)["findings"]
        assert finding["check"] == check
        assert f"process {process.pid} (stopped)" in finding["text"]
        assert f"kill -CONT {process.pid}" in finding["do"]
    assert examined(capsys, code=0)["findings"] == []


def test_who_delivers_is_named_and_no_finding(outbox: Path, environment: dict[str, str], capsys: Capture) -> None:
    with holding(environment, outbox, "drain") as process:
        assert examined(capsys, code=0)["checks"]["delivery"] == f"process {process.pid} delivers"
        assert main(["doctor", "--salvage"]) == 75
        assert f"process {process.pid} delivers" in capsys.readouterr().err


def test_who_keeps_the_gate_for_long_is_named(outbox: Path, environment: dict[str, str], capsys: Capture) -> None:
    with holding(environment, outbox, "gate") as process:
        assert f"process {process.pid} keeps the gate" in found(capsys, "gate")


# What is in it


@pytest.mark.parametrize(
    ("statement", "text"),
    [
        ("UPDATE messages SET body = replace(body, 'waits', 'waitz') WHERE id = 6", "the first is 6"),
        ("UPDATE cursors SET id = 6", "not what its mirror says"),
        ("INSERT INTO exceptions (destination, id, state) VALUES ('zenml', 6, 'x\x1b[31m')", "with the state"),
        ("DELETE FROM messages WHERE id = 6", "though none of them was removed: 1"),
        ("DELETE FROM messages WHERE id = 7", "not in the database: 1"),
    ],
)
def test_rows_that_are_not_what_was_stored(statement: str, text: str, outbox: Path, capsys: Capture) -> None:
    change(outbox, statement)
    assert text in found(capsys, "content")
    assert main(["doctor"]) == 1
    assert "\x1b" not in capsys.readouterr().out


def test_what_was_purged_and_retried_is_accounted_for(outbox: Path, capsys: Capture) -> None:
    assert main(["purge", "--state", "pending", "--yes"]) == 0
    fill("a", 2)
    assert main(["purge"]) == 0
    assert examined(capsys, code=0)["findings"] == []


def test_a_damaged_header_is_rebuilt_by_the_next_use(outbox: Path, capsys: Capture) -> None:
    overwrite(outbox / "outbox-1.gate", 0, b"X")
    assert "header of the gate is damaged" in found(capsys, "content")
    fill("a", 1)
    assert examined(capsys, code=0)["findings"] == []


@pytest.mark.parametrize(
    ("ahead", "is_found"), [(3600.0, True), (30.0, False), (-3600.0, False)], ids=["ahead", "a little", "before"]
)
def test_a_message_of_the_future(ahead: float, is_found: bool, outbox: Path, capsys: Capture) -> None:
    change(outbox, "UPDATE messages SET accepted_at = accepted_at + ? WHERE id = 7", ahead)
    if is_found:
        assert "after now" in found(capsys, "clock")
    else:
        assert examined(capsys, code=0)["findings"] == []


@pytest.mark.parametrize("reason", ["lost", "lost_unknown", "unknown", "file_damaged", "unclean_restart"])
def test_losses_of_the_past_are_said_and_no_finding(reason: str, outbox: Path, capsys: Capture) -> None:
    change(outbox, "INSERT INTO ledger VALUES (?, 3), ('purged', 9), ('salvaged', 0)", reason)
    said = examined(capsys, code=0)["checks"]["ledger"]
    assert said.startswith(f"purged 9; in the past: {reason} 3 (")
    assert main(["doctor"]) == 0
    assert f"in the past: {reason} 3" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize("is_first", [True, False])
def test_a_database_that_is_gone_is_one_finding(is_first: bool, outbox: Path, capsys: Capture) -> None:
    if not is_first:
        overwrite(outbox / "outbox-1-0.db", 0, bytes(100))
        fill("a", 1)
    name = f"outbox-1-{0 if is_first else 1}.db"
    (outbox / name).unlink()
    (finding,) = examined(capsys)["findings"]
    assert (finding["check"], finding["text"]) == (
        "content",
        f"{outbox / name} is gone or empty, though messages were stored in it",
    )
    assert main(["doctor"]) == 1
    assert "--  ledger" in capsys.readouterr().out


def test_a_directory_in_place_of_the_database_is_to_be_moved_away(outbox: Path, capsys: Capture) -> None:
    (outbox / "outbox-1-0.db").unlink()
    (outbox / "outbox-1-0.db").mkdir(mode=0o755)
    (finding,) = examined(capsys)["findings"]
    assert finding["text"].endswith("outbox-1-0.db is not a regular file")
    assert finding["do"].startswith(f"move {outbox}/outbox-1-0.db away")


@pytest.mark.parametrize("name", ["client_id", "consent"])
def test_a_directory_in_place_of_another_file(name: str, outbox: Path, capsys: Capture) -> None:
    (outbox / name).unlink(missing_ok=True)
    (outbox / name).mkdir(mode=0o755)
    assert "is not a regular file" in found(capsys, "rights")


@pytest.mark.parametrize("is_running", [True, False])
def test_a_gate_that_was_deleted_is_a_finding_where_messages_were_stored(
    is_running: bool, outbox: Path, capsys: Capture
) -> None:
    tray = outtray.Tray(app="a", flush="manual")
    assert tray.track("e")
    if not is_running:
        tray.close()
    (outbox / "outbox-1.gate").unlink()
    (finding,) = examined(capsys)["findings"]
    assert finding["check"] == "gate"
    assert "outbox-1.gate was deleted" in finding["text"]
    assert tray.track("e")
    tray.close()
    fill("a", 1)
    assert examined(capsys, code=0)["findings"] == []


@pytest.mark.parametrize("name", ["outbox-1-0.db", "outbox-1.drain", "outbox-1.reserve", "client_id", "consent"])
def test_a_file_that_its_owner_cannot_use(name: str, outbox: Path, capsys: Capture) -> None:
    (outbox / name).touch()
    (outbox / name).chmod(0o400)
    report = examined(capsys)
    (finding,) = [each for each in report["findings"] if each["check"] == "rights"]
    assert finding["text"] == f"{outbox / name} has the mode 0400: its owner cannot read and write it"
    assert finding["do"] == f"chmod 600 {outbox / name}"


@pytest.fixture
def elsewhere() -> Iterator[Path]:
    """A folder that every user can reach."""
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        yield Path(folder)


NOBODY = 65534


@pytest.mark.skipif(not hasattr(os, "fork"), reason="rights of POSIX")
def test_a_directory_that_this_user_cannot_write(
    elsewhere: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.setenv("HOME", str(elsewhere))
    fill("a", 2)
    folder = elsewhere / ".local/state/outtray/a"
    assert examined(capsys, code=0)["findings"] == []  # which also loads all that it needs
    if os.geteuid() == 0:  # whom nothing is forbidden
        subprocess.run(["chown", "-R", str(NOBODY), str(elsewhere)], check=True)

    def findings(code: int) -> list[dict[str, str]]:
        pid = os.fork()
        if not pid:
            status = 99
            try:
                if os.geteuid() == 0:
                    os.setuid(NOBODY)
                (elsewhere / "report").write_text(json.dumps(examined(capsys, code=code)["findings"]))
                status = 0
            finally:
                os._exit(status)
        assert os.waitpid(pid, 0)[1] == 0
        found: list[dict[str, str]] = json.loads((elsewhere / "report").read_text())
        return found

    folder.chmod(0o500)
    (finding,) = findings(1)
    assert finding["check"] == "directory"
    assert finding["text"] == f"{folder} cannot be written by this user: nothing can be stored or delivered"
    assert finding["do"].startswith(f"chmod 700 {folder}")
    folder.chmod(0o700)
    assert findings(0) == []


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root mounts")
def test_without_inodes_no_file_can_be_made(tmp_path: Path, capsys: Capture) -> None:
    place = tmp_path / "small"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64m,nr_inodes=20", "none", str(place)]
    if subprocess.run(mount, check=False, timeout=30).returncode:
        pytest.skip("no tmpfs can be mounted here")
    try:
        fill("a", 2, dir=str(place))
        assert examined(capsys, "--dir", str(place), code=0)["findings"] == []
        for number in range(20):
            try:
                (place / f"{number}").touch()
            except OSError:
                break
        assert "no inodes are left" in found(capsys, "space", "--dir", str(place))
        for number in range(4):  # for the directory, the gate, the database and its first journal, but not for all
            (place / f"{number}").unlink()
        assert not outtray.Tray(app="b", dir=str(place), flush="manual").track("e"), "its database cannot be finished"
        assert (place / "b" / "outbox-1-0.db").exists()
        assert found(capsys, "space", "--dir", str(place), "--app", "b")
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True, timeout=30)


def test_without_room_for_the_copy_nothing_is_called_damaged(
    outbox: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("outtray.outbox.inspect._copy", full)
    assert "could not be examined: [Errno 28]" in found(capsys, "content")


def test_an_erasure_that_is_not_finished(outbox: Path, capsys: Capture) -> None:
    change(outbox, "INSERT INTO meta VALUES ('erasing', 'forgotten 7')")
    assert "erasure" in found(capsys, "consent")


def test_files_of_a_newer_release(outbox: Path, capsys: Capture) -> None:
    (outbox / "outbox-2-0.db").touch(mode=0o600)
    assert "format 2" in found(capsys, "versions")


# Bringing back


def test_what_a_destroyed_file_still_holds_comes_back(outbox: Path, capsys: Capture, server: FakeServer) -> None:
    overwrite(outbox / "outbox-1-0.db", 0, bytes(100))
    assert "damaged" in found(capsys, "content")
    report = examined(capsys, "--salvage", code=0)
    assert report["salvaged"] == 3
    assert "file_damaged 1" in report["checks"]["ledger"]
    assert "outbox-1-0.db" in report["checks"]["recovery"]
    assert examined(capsys, "--salvage", code=0)["salvaged"] == 0, "once"
    assert main(["flush", "--url", server.url]) == 0
    assert len(server.received) == 7
    assert not server.repeats


def test_damage_that_no_statement_meets_is_left_behind_on_purpose(folder: Path, capsys: Capture) -> None:
    fill("a", 300)
    database = folder / "outbox-1-0.db"
    size = database.stat().st_size
    overwrite(database, size // 2 // 4096 * 4096, b"\xff" * 64)
    assert "content" in {each["check"] for each in examined(capsys)["findings"]}
    report = examined(capsys, "--salvage", code=0)
    lost = 300 - report["salvaged"]
    assert 0 < lost < 30
    assert f"lost {lost}" in report["checks"]["ledger"]
    assert (folder / "outbox-1-1.db").exists()
    assert f"{report['salvaged']} messages" in report["checks"]["content"]


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE cursors SET id = 6",
        "INSERT INTO exceptions (destination, id, state) VALUES ('zenml', 2, 'x')",
        "DELETE FROM messages WHERE id = 6",
        "DELETE FROM messages WHERE id = 7",
    ],
)
def test_after_a_salvage_nothing_is_left_to_be_done(statement: str, outbox: Path, capsys: Capture) -> None:
    change(outbox, statement)
    examined(capsys)
    assert examined(capsys, "--salvage", code=0)["findings"] == []


def test_a_view_that_cannot_be_read_is_left_behind_by_a_salvage(outbox: Path, capsys: Capture) -> None:
    database = outbox / "outbox-1-0.db"
    data = database.read_bytes()
    assert data.count(b"e.attempts") == 1
    database.write_bytes(data.replace(b"e.attempts", b"e.attempus"))
    assert main(["list"]) == 78
    assert "`outtray doctor --salvage`" in capsys.readouterr().err
    assert "cannot be read" in found(capsys, "content")
    assert examined(capsys, "--salvage", code=0)["findings"] == []
    assert main(["list"]) == 0


def test_a_count_of_another_type_is_no_count(outbox: Path, capsys: Capture) -> None:
    change(outbox, "INSERT INTO ledger VALUES ('busy', 3), ('full', x'ff'), (x'6c6f7374', 2)")
    assert examined(capsys, code=0)["checks"]["ledger"] == (
        "busy 3; in the past: lost 2 (messages that were stored and are gone)"
    )
    capsys.readouterr()
    assert main(["status", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["ledger"] == {"busy": 3, "full": 0, "lost": 2}


def test_single_damaged_messages_end_by_the_commands_that_the_advice_names(
    outbox: Path, capsys: Capture, server: FakeServer
) -> None:
    change(outbox, "UPDATE messages SET body = replace(body, 'waits', 'waitz') WHERE id = 6")
    (finding,) = examined(capsys)["findings"]
    words = [each.split() for each in re.findall(r"`outtray ([^`]*)`", finding["do"])]
    assert [each[0] for each in words] == ["flush", "purge", "purge"]
    assert main([*words[0], "--url", server.url]) in (0, 1)
    for each in words[1:]:
        assert main(each) == 0
    assert examined(capsys, code=0)["findings"] == []


def test_a_kept_log_waits_and_is_brought_back(killed: Path, capsys: Capture) -> None:
    log = killed / "outbox-1-0.db-wal"
    overwrite(log, log.stat().st_size // 2, b"\xff" * 8)
    assert "messages that the header knows of" in found(capsys, "content")
    fill("a", 1)
    report = examined(capsys)
    assert [each["check"] for each in report["findings"]] == ["recovery"]
    assert "outbox-1-0-0.lost-wal" in report["findings"][0]["text"]
    lost = int(report["checks"]["ledger"].partition("lost ")[2].split()[0])
    report = examined(capsys, "--salvage", code=0)
    assert report["salvaged"] == lost > 0
    assert "lost" not in report["checks"]["ledger"]
    assert "outbox-1-0-0.lost-wal" in report["checks"]["recovery"]


def test_denied_consent_brings_nothing_back(outbox: Path, capsys: Capture) -> None:
    overwrite(outbox / "outbox-1-0.db", 0, bytes(100))
    (outbox / "consent").write_text("denied\n")
    (outbox / "consent").chmod(0o600)
    assert main(["doctor", "--salvage"]) == 1
    assert "nothing is brought back" in capsys.readouterr().err


# The receiver


def test_a_receiver_that_answers(outbox: Path, server: FakeServer, capsys: Capture) -> None:
    server.clear()
    report = examined(capsys, "--online", code=0)
    assert f"{server.url} answers HEAD with " in report["checks"]["receiver"]
    assert server.requests == []


def test_a_receiver_that_cannot_be_reached(capsys: Capture) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        fill("a", 1, url=f"http://me:secret@127.0.0.1:{taken.getsockname()[1]}")
        text = found(capsys, "receiver", "--online")
    assert "connection refused" in text
    assert "secret" not in text


def test_no_url_is_a_finding_only_when_asked_for(capsys: Capture) -> None:
    fill("a", 1)
    assert examined(capsys, code=0)["findings"] == []
    assert "no url" in found(capsys, "receiver", "--online")


def test_a_redirect_is_said_and_not_followed_and_no_key_is_sent(
    capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[str, str, dict[str, str]]] = []

    class Elsewhere(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            seen.append((self.command, self.path, dict(self.headers)))
            self.send_response(302)
            self.send_header("location", "https://user:word@login.example/portal")
            self.end_headers()

        def log_message(self, *words: object) -> None:
            """Be silent."""

    with HTTPServer(("127.0.0.1", 0), Elsewhere) as portal:
        thread = Thread(target=portal.serve_forever, args=(0.05,))
        thread.start()
        try:
            monkeypatch.setenv("OUTTRAY_WRITE_KEY", "the-key")
            fill("a", 1, url=f"http://127.0.0.1:{portal.server_port}/x")
            text = found(capsys, "receiver", "--online")
        finally:
            portal.shutdown()
            thread.join()
    assert "redirect (302) to https://login.example/portal" in text
    ((command, path, headers),) = seen
    assert (command, path) == ("HEAD", "/x")
    assert "the-key" not in str(headers)
    assert "authorization" not in {name.lower() for name in headers}
