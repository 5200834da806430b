"""Exit codes in every state of an outbox, and who is in the way: the same for each command."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest

from outtray.cli import exits, main

from .conftest import wait_until
from .test_cli import fill
from .test_cli_doctor import holding, overwrite

Capture = pytest.CaptureFixture[str]

NOWHERE = "http://127.0.0.1:9"

LOOKING = (["status"], ["list"], ["show", "1"], ["flush", "--dry-run"], ["consent"], ["forget", "--dry-run"])
PURGE, FORGET, OFF = ["purge", "--state", "pending", "--yes"], ["forget", "--yes"], ["consent", "off"]
CHANGING = (["retry", "--all"], ["purge"], PURGE, ["consent", "on"], ["consent", "local"], OFF, FORGET)


@pytest.fixture
def folder(home: Path) -> Path:
    """The directory of the application "a", which has 3 messages that wait."""
    fill("a", 3, url=NOWHERE)
    return home / ".local/state/outtray/a"


def a_file_in_its_place(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.write_text("x")


def a_file_in_place_of_all(folder: Path) -> None:
    shutil.rmtree(folder.parent)
    folder.parent.write_text("x")


def a_gate_that_is_a_directory(folder: Path) -> None:
    (folder / "outbox-1.gate").unlink()
    (folder / "outbox-1.gate").mkdir()


def a_newer_release(folder: Path) -> None:
    header = bytearray((folder / "outbox-1.gate").read_bytes())
    header[8] = 2
    (folder / "outbox-1.gate").write_bytes(header[:-4] + zlib.crc32(header[:-4]).to_bytes(4, "little"))


def ends(capsys: Capture, words: list[str]) -> tuple[int, str]:
    """Run a command about "a"; returns the exit code and what is said, which is words for people and no traceback."""
    capsys.readouterr()
    code = main([*words, "--app", "a"])
    said = capsys.readouterr().err
    assert code in exits.MEANINGS
    assert "Errno 20" not in said
    return code, said


@pytest.mark.parametrize("words", [*LOOKING, *CHANGING, ["flush"]], ids=" ".join)
@pytest.mark.parametrize("spoil", [a_file_in_its_place, a_file_in_place_of_all, a_gate_that_is_a_directory])
def test_where_no_outbox_can_be_each_command_is_78(
    spoil: Callable[[Path], None], words: list[str], folder: Path, capsys: Capture
) -> None:
    spoil(folder)
    code, said = ends(capsys, words)
    assert code == exits.NOT_CONFIGURED, said
    assert str(folder.parent) in said
    is_kept = words[0] != "consent" or len(words) == 1 or spoil is a_gate_that_is_a_directory
    assert ("could not be kept" in said) is not is_kept


@pytest.mark.parametrize("words", [OFF, ["consent", "local"]], ids=" ".join)
def test_the_choice_is_kept_wherever_there_is_a_place_for_it(words: list[str], folder: Path, capsys: Capture) -> None:
    a_gate_that_is_a_directory(folder)
    _, said = ends(capsys, words)
    assert f"your choice ({words[1]}) is kept" in said
    assert (folder / "consent").read_text() == {"off": "denied\n", "local": "local\n"}[words[1]]


@pytest.mark.parametrize("words", [*LOOKING[:4], LOOKING[5], *CHANGING, ["flush"]], ids=" ".join)
def test_an_outbox_of_a_newer_release_is_78_and_kept(words: list[str], folder: Path, capsys: Capture) -> None:
    a_newer_release(folder)
    before = (folder / "outbox-1-0.db").read_bytes()
    code, said = ends(capsys, words)
    assert code == exits.NOT_CONFIGURED
    assert "use the newer release" in said
    assert (folder / "outbox-1-0.db").read_bytes() == before


@pytest.mark.parametrize("words", [*LOOKING[:4], ["retry", "--all"], ["purge"]], ids=" ".join)
def test_a_damaged_outbox_is_78_with_what_goes_on(words: list[str], folder: Path, capsys: Capture) -> None:
    overwrite(folder / "outbox-1-0.db", 0, bytes(100))
    code, said = ends(capsys, words)
    assert code == exits.NOT_CONFIGURED
    assert "`outtray doctor --salvage` goes on in a new file and brings back what it can" in said
    assert "; `outtray doctor` says more" in said
    assert "try again" not in said


@pytest.mark.parametrize("words", [["status"], ["list"], ["retry", "--all"], ["purge"], ["consent"], FORGET, ["flush"]])
def test_without_an_outbox_nothing_is_wrong(words: list[str], home: Path, capsys: Capture) -> None:
    assert ends(capsys, words)[0] == exits.DONE
    assert list(home.iterdir()) == []


@pytest.mark.skipif(not os.path.exists("/proc/locks"), reason="only Linux tells who has a lock")
@pytest.mark.parametrize("words", [PURGE, OFF, ["flush"], ["doctor", "--salvage"]])
def test_a_stopped_program_in_the_way_is_named_with_what_to_do(
    words: list[str], folder: Path, environment: dict[str, str], capsys: Capture
) -> None:
    with holding(environment, folder, "gate") as process:
        process.send_signal(signal.SIGSTOP)
        assert wait_until(lambda: Path(f"/proc/{process.pid}/stat").read_text().split()[2] == "T")
        code, said = ends(capsys, words)
    assert code == exits.KEPT
    assert f"process {process.pid} (stopped) keeps the gate: continue it (kill -CONT {process.pid}) or end it" in said
    assert f"process {os.getpid()} passed it last" in said, "who wrote the header is not called the holder"


def test_a_program_that_goes_on_is_not_blamed(folder: Path, environment: dict[str, str], capsys: Capture) -> None:
    with holding(environment, folder, "gate") as process:
        code, said = ends(capsys, ["purge"])
    assert code == exits.KEPT
    assert f"process {process.pid} keeps the gate: wait, or look at what process {process.pid} does; try again" in said


def test_a_lock_of_somebody_beside_the_gate_blames_nobody_at_the_gate(folder: Path, capsys: Capture) -> None:
    import sqlite3

    reader = sqlite3.connect(folder / "outbox-1-0.db")
    reader.execute("BEGIN")
    assert reader.execute("SELECT count(*) FROM messages").fetchone() == (3,)
    try:
        code, said = ends(capsys, FORGET)
    finally:
        reader.close()
    assert code == exits.KEPT
    assert "is being read by another program" in said
    assert "keeps the gate" not in said


# What counts leave out


@pytest.fixture
def left(folder: Path) -> Path:
    """An outbox with 2 messages, and 3 more in a damaged file."""
    overwrite(folder / "outbox-1-0.db", 0, bytes(100))
    fill("a", 2)
    return folder


NOT_COUNTED = "what damaged files hold (not counted)"


@pytest.mark.parametrize(
    ("words", "code", "count"),
    [
        (["purge", "--state", "pending", "--dry-run"], 0, "2 pending messages"),
        (["purge", "--state", "pending"], 2, "2 pending messages"),
        (["forget", "--dry-run"], 0, "2 messages and the client id of 'a'"),
        (["forget"], 2, "2 messages and the client id of 'a'"),
        (FORGET, 0, "2 messages and the client id of 'a'"),
        (OFF, 0, "2 messages that had not been delivered"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_a_count_says_that_damaged_files_are_not_in_it(
    words: list[str], code: int, count: str, left: Path, capsys: Capture
) -> None:
    found, said = ends(capsys, words)
    assert found == code
    assert f"{count} and {NOT_COUNTED}" in said


def test_where_no_damaged_file_waits_nothing_is_said_of_one(folder: Path, capsys: Capture) -> None:
    for words in (["purge", "--state", "pending", "--dry-run"], ["forget", "--dry-run"], OFF, FORGET):
        assert "damaged" not in ends(capsys, words)[1]


def test_delivered_messages_do_not_come_back_and_are_all_counted(left: Path, capsys: Capture) -> None:
    assert "damaged" not in ends(capsys, ["purge", "--dry-run"])[1]


@pytest.mark.parametrize("words", [["forget", "--dry-run"], FORGET, OFF], ids=" ".join)
def test_a_file_whose_damage_nobody_met_yet_is_not_counted_either(
    words: list[str], folder: Path, capsys: Capture
) -> None:
    overwrite(folder / "outbox-1-0.db", 0, bytes(100))
    code, said = ends(capsys, words)
    assert code == exits.DONE
    assert "0 messages" in said
    assert NOT_COUNTED in said


def test_each_code_that_a_program_of_run_can_cause_is_in_the_table(capsys: Capture, tmp_path: Path) -> None:
    (tmp_path / "no program").write_text("x")
    assert main(["run", "--", str(tmp_path / "none")]) == exits.NOT_FOUND
    assert main(["run", "--", str(tmp_path / "no program")]) == exits.NOT_EXECUTABLE
    assert signal.getsignal(signal.SIGPIPE) is signal.SIG_IGN, "a closed socket would end this process"


def test_help_says_what_each_code_means(environment: dict[str, str]) -> None:
    import sys

    done = subprocess.run([sys.executable, "-m", "outtray", "--help"], env=environment, capture_output=True, text=True)
    said = done.stdout.partition("exit codes:\n")[2].splitlines()
    assert [line.split(maxsplit=1) for line in said[: len(exits.MEANINGS)]] == [
        [str(code), text] for code, text in exits.MEANINGS.items()
    ]


def test_consent_in_json_says_whether_the_erasure_is_finished(folder: Path, capsys: Capture) -> None:
    assert main(["consent", "off", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["withdrawn"], found["finished"]) == (3, True)
    assert main(["consent", "on", "--json"]) == 0
    assert "finished" not in json.loads(capsys.readouterr().out)
