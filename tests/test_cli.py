"""The door: real processes, their exit codes, what goes where, and what is loaded."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import outtray
from outtray.cli import COMMANDS, main
from outtray.testing import FakeServer

from .conftest import wait_until

Run = Callable[..., subprocess.CompletedProcess[str]]

LISTED = ["status", "list", "show", "where", "retry", "purge", "doctor", "consent", "forget", "flush"]


def fill(app: str, count: int, event: str = "event", **options: object) -> outtray.Tray:
    tray = outtray.Tray(app=app, flush="manual", **options)
    for number in range(count):
        assert tray.track(event, {"number": number})
    tray.close()
    return tray


def test_help_lists_every_command_with_one_line(run_python: Run) -> None:
    done = run_python("-m", "outtray", "--help")
    assert done.returncode == 0
    assert not done.stderr
    lines = [line.split() for line in done.stdout.splitlines()]
    assert [line[0] for line in lines if line and line[0] in COMMANDS] == list(COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_has_help(command: str, run_python: Run) -> None:
    done = run_python("-m", "outtray", command, "--help")
    assert done.returncode == 0, done.stderr
    assert f"usage: outtray {command}" in done.stdout


def test_the_version_is_the_packages(run_python: Run) -> None:
    assert run_python("-m", "outtray", "--version").stdout == f"outtray {outtray.__version__}\n"


@pytest.mark.parametrize("words", [[], ["nonsense"], ["--nonsense"], ["--dir", "x"], [""], ["\x1b[31m"]])
def test_without_a_known_command_the_usage_is_shown(words: list[str], run_python: Run) -> None:
    done = run_python("-m", "outtray", *words)
    assert done.returncode == 2
    assert not done.stdout
    assert done.stderr.startswith("usage:")
    assert "Traceback" not in done.stderr
    assert "\x1b" not in done.stderr


WRONG = [
    *([command, "--app", "a/b"] for command in LISTED),
    *([command, "--app", ""] for command in LISTED),
    *([command, "--dir", ""] for command in LISTED),
    *([command, "--nonsense"] for command in LISTED),
    ["show"],
    ["show", "1", "2"],
    ["retry"],
    ["retry", "1", "--all"],
    ["retry", "--all", "--reason", "x"],
    ["retry", "\udcff"],
    ["show", "\udcff"],
    ["list", "--event", "\udcff"],
    ["list", "--state", "lost"],
    ["list", "--limit", "0"],
    ["list", "--limit", "-1"],
    ["list", "--limit", "1.5"],
    ["list", "--limit", "9" * 40],
    ["list", "--limit", "²"],
    ["list", "--since", "yesterday"],
    ["list", "--since", "1e9999d"],
    ["list", "--since", "0001-01-01"],
    ["list", "--since", ""],
    ["purge", "--state", "all"],
    ["purge", "--before", "5 apples"],
    ["purge", "--state", "pending"],
    ["flush", "--url", "ftp://example.org"],
    ["flush", "--url", "example.org"],
    ["flush", "--destination", "nowhere"],
    ["flush", "--limit", "x"],
    ["flush", "--max-time", "-1"],
    ["flush", "--max-time", "nan"],
    ["flush", "--max-time", "inf"],
    ["flush", "--warn-after", "soon"],
    ["flush", "stray"],
    ["demo", "stray"],
]


@pytest.mark.parametrize("words", WRONG, ids=lambda words: " ".join(words).encode("ascii", "replace").decode())
def test_a_wrong_value_is_a_usage_error(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    fill("one", 1, url="http://127.0.0.1:9")
    assert main(words) == 2
    shown = capsys.readouterr()
    assert not shown.out
    assert shown.err.startswith("usage: outtray")
    assert "error:" in shown.err


def test_a_bare_flush_from_cron_delivers_what_a_program_left(server: FakeServer, home: Path, run_python: Run) -> None:
    code = (
        "import outtray, sys; outtray.configure(app='cron', url=sys.argv[1], flush='manual');"
        "assert all([outtray.track('left') for _ in range(30)])"
    )
    assert run_python("-c", code, server.url).returncode == 0
    source = Path(__file__).parent.parent / "src"
    command = (
        f"import sys; sys.path.insert(0, {str(source)!r}); from outtray.cli import main; sys.exit(main(['flush']))"
    )
    done = subprocess.run(
        [sys.executable, "-c", command], env={"HOME": str(home)}, cwd="/", capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert len(server.received) == 30


@pytest.mark.parametrize("words", [["status"], ["list", "--limit", "100000"], ["list", "--json"], ["--help"]])
def test_a_reader_that_had_enough_is_no_error(words: list[str], environment: dict[str, str]) -> None:
    fill("long", 1_500)
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "outtray", *words]
    done = subprocess.run(command, env=environment, stdout=writer, stderr=subprocess.PIPE, check=False)
    os.close(writer)
    assert (done.returncode, done.stderr) == (0, b"")


@pytest.mark.parametrize("closing", [">&-", "2>&-", ">&- 2>&-", "<&- >&- 2>&-"])
def test_closed_streams_do_no_harm(closing: str, server: FakeServer, environment: dict[str, str]) -> None:
    fill("closed", 5, url=server.url)
    for command in ("status", "list", "flush"):
        line = f"{sys.executable} -m outtray {command} {closing}"
        done = subprocess.run(line, shell=True, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == (74 if command != "flush" and ">&-" in closing.replace("2>&-", "") else 0)
        assert "Traceback" not in done.stderr
    assert len(server.received) == 5
    code = (
        "import os; from outtray.cli import main; code = main(['flush']); null = os.stat(os.devnull);"
        "os._exit(code + sum(not os.path.samestat(os.fstat(number), null) for number in (0, 1, 2)))"
    )
    line = f'exec {sys.executable} -c "{code}" <&- >&- 2>&-'
    assert subprocess.run(line, shell=True, env=environment, check=False).returncode == 0, "a file took their place"
    assert outtray.Tray(app="closed", url=server.url, flush="manual").status()["delivered"] == 5


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
@pytest.mark.parametrize("command", ["list", "list --json", "status", "where --json", "--help", "list --help"])
def test_output_that_cannot_be_written_is_said(command: str, environment: dict[str, str]) -> None:
    fill("full", 1)
    for stdout in ("> /dev/full", ">&-") if "--help" not in command else ("> /dev/full",):
        line = f"{sys.executable} -m outtray {command} {stdout}"
        done = subprocess.run(line, shell=True, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 74
        assert len(done.stderr.splitlines()) == 1
        assert "could not read or write" in done.stderr
        assert subprocess.run(f"{line} 2> /dev/full", shell=True, env=environment, check=False).returncode == 74


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_words_that_cannot_be_written_end_no_work(
    environment: dict[str, str], capfd: pytest.CaptureFixture[str]
) -> None:
    fill("full", 3)
    line = f"{sys.executable} -m outtray consent off --app full 2> /dev/full"
    assert subprocess.run(line, shell=True, env=environment, check=False).returncode == 74
    assert capfd.readouterr().out == "full: denied (your choice, see `outtray consent`)\n"
    assert outtray.Tray(app="full").status()["pending"] == 0


def test_an_interrupted_flush_says_what_is_kept(server: FakeServer, environment: dict[str, str]) -> None:
    server.set_mode("hang")
    fill("interrupted", 3, url=server.url)
    process = subprocess.Popen(
        [sys.executable, "-m", "outtray", "flush"], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    try:
        assert wait_until(lambda: server.requests)
        process.send_signal(signal.SIGINT)
        _, words = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130
    assert words.decode() == "outtray: interrupted; what was not delivered yet is kept\n"


def test_damaged_files_are_one_line_and_no_traceback(home: Path, run_python: Run) -> None:
    fill("damaged", 3, url="http://127.0.0.1:9")
    database = home / ".local/state/outtray/damaged/outbox-1-0.db"
    database.write_bytes(b"this is no database" * 1_000)
    for words in (["status"], ["list"], ["show", "1"], ["retry", "--all"], ["purge"]):
        done = run_python("-m", "outtray", *words)
        assert done.returncode == 78, (words, done)
        assert len(done.stderr.splitlines()) == 1, done.stderr
        assert "outbox-1-0.db" in done.stderr
    assert run_python("-m", "outtray", "where").returncode == 0
    assert database.read_bytes() == b"this is no database" * 1_000


def unusable(kind: str, tmp_path: Path) -> tuple[dict[str, str], str]:
    """Make a place where no outbox can work; returns the environment that leads there and the path to blame."""
    if kind == "a file in place of the folder":
        (tmp_path / "file").write_text("x")
        return {"OUTTRAY_DIR": str(tmp_path / "file" / "below")}, str(tmp_path / "file")
    if kind == "no home":
        return {"HOME": os.devnull}, os.devnull
    if kind == "a gate that is a directory":
        gate = tmp_path / "outboxes/a/outbox-1.gate"
        gate.mkdir(parents=True)
        return {"OUTTRAY_DIR": str(tmp_path / "outboxes")}, str(gate)
    if os.getuid() == 0:
        pytest.skip("root has all rights")
    (tmp_path / "locked").mkdir(mode=0)
    return {"OUTTRAY_DIR": str(tmp_path / "locked")}, str(tmp_path / "locked")


UNUSABLE = ["a file in place of the folder", "no home", "a gate that is a directory", "a folder without rights"]


@pytest.mark.parametrize("kind", UNUSABLE)
def test_an_outbox_that_cannot_be_used_does_not_look_healthy(kind: str, tmp_path: Path, run_python: Run) -> None:
    variables, culprit = unusable(kind, tmp_path)
    for words in (["status"], ["status", "--json"], ["list"], ["flush"], ["flush", "--json"]):
        done = run_python("-m", "outtray", *words, "--app", "a", **variables)
        assert done.returncode == 78, (words, done)
        assert culprit in done.stderr
        assert len(done.stderr.splitlines()) == 1
    if kind != "a gate that is a directory":  # without a name no outbox is found at all
        assert run_python("-m", "outtray", "flush", **variables).returncode == 78
    assert run_python("-m", "outtray", "where", "--app", "a", **variables).returncode == 0
    code = (
        "import json, outtray; outtray.configure(app='a', flush='manual');"
        "print(json.dumps([outtray.flush(1).outcome, outtray.status()['error'], outtray.status()['why']]))"
    )
    outcome, error, why = json.loads(run_python("-c", code, **variables).stdout)
    assert outcome == "failed"
    assert culprit in error
    assert culprit in why


def test_a_folder_that_is_not_made_yet_is_healthy(tmp_path: Path, run_python: Run) -> None:
    folder = tmp_path / "not/made/yet"
    done = run_python("-m", "outtray", "status", OUTTRAY_DIR=str(folder))
    assert (done.returncode, done.stdout.splitlines()[0]) == (0, "nothing is waiting")
    assert run_python("-m", "outtray", "flush", OUTTRAY_DIR=str(folder)).returncode == 0
    assert not (tmp_path / "not").exists()


@pytest.mark.parametrize("stored", ["{no json", "[" * 100_000, '"text"'])
def test_nonsense_in_place_of_the_delivery_settings_is_no_traceback(stored: str, home: Path, run_python: Run) -> None:
    fill("a", 2, url="http://127.0.0.1:9")
    connection = sqlite3.connect(home / ".local/state/outtray/a/outbox-1-0.db")
    assert connection.execute("UPDATE meta SET value = ? WHERE key = 'delivery'", (stored,)).rowcount == 1
    connection.commit()
    connection.close()
    done = run_python("-m", "outtray", "status")
    assert done.returncode == 0, done
    assert done.stdout.startswith("2 messages waiting: no url is set")
    done = run_python("-m", "outtray", "flush")
    assert done.returncode == 78
    assert "no url is set" in done.stderr


def test_only_the_chosen_command_is_loaded(environment: dict[str, str]) -> None:
    fill("small", 1)
    code = (
        "import sys; from outtray.cli import main; main(['status']);"
        "print([name for name in sys.modules if name.startswith('outtray.cli.') or name.split('.')[0] in"
        "('rich', 'requests', 'pydantic')], file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    loaded = set(json.loads(done.stderr.replace("'", '"')))
    shared = {f"outtray.cli.{name}" for name in ("output", "exits", "words", "arguments", "outboxes")}
    assert loaded == {*shared, "outtray.cli.status"}


def test_the_demo_tells_the_story_and_leaves_nothing(tmp_path: Path, home: Path, run_python: Run) -> None:
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    done = run_python(
        "-m", "outtray", "demo", TMPDIR=str(temporary), OUTTRAY_CONSENT="denied", OUTTRAY_URL="http://x.invalid"
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[-1] == "received 3000 of 3000, 0 repeats"
    assert "3000 messages waiting: connection refused" in done.stdout
    assert not list(temporary.iterdir())
    assert not list(home.iterdir())
