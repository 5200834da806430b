"""What is no file in the place of one, a pipe or a folder: nobody waits for it, and doctor says so."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import outtray
from outtray import identity, paths
from outtray.cli import main
from outtray.testing import FakeServer

pytestmark = pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no named pipes here")

Capture = pytest.CaptureFixture[str]

SECONDS = 60
"""For one program: far more than it takes if it waits for nobody."""

PROGRAM = """
import outtray, sys
outtray.configure(app="a", url=sys.argv[1], flush="manual")
answers = [outtray.track("later", {"number": number}) for number in range(3)]
print(answers.count(True), outtray.flush(10).outcome)
"""

REPLACED = ["outbox-1.gate", "outbox-1.drain", "outbox-1.reserve", "client_id", "consent", "outbox-1-0.db"]
BESIDE = ["outbox-1-0.db-wal", "outbox-1-0.db-shm", "outbox-1-0.db-journal"]


@pytest.fixture
def outbox(home: Path, server: FakeServer) -> Path:
    """An outbox with a delivered message, two that wait, and a reserve; nobody has it open."""
    tray = outtray.Tray(app="a", url=server.url, flush="manual")
    assert tray.track("delivered")
    assert tray.flush(20).settled
    assert tray.track("waits")
    assert tray.track("waits")
    tray.close()
    return home / ".local/state/outtray/a"


def ended(environment: dict[str, str], *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run this interpreter; one that waits for ever is a failure."""
    return subprocess.run(
        [sys.executable, *arguments],
        env={**environment, **variables},
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )


def a_pipe(path: Path) -> None:
    path.unlink(missing_ok=True)
    os.mkfifo(path)


def a_folder(path: Path) -> None:
    path.unlink(missing_ok=True)
    path.mkdir(mode=0o755)


def findings(capsys: Capture) -> list[dict[str, Any]]:
    capsys.readouterr()
    main(["doctor", "--json", "--app", "a"])
    found: list[dict[str, Any]] = json.loads(capsys.readouterr().out)[0]["findings"]
    return found


@pytest.mark.parametrize("name", [*REPLACED, *BESIDE])
@pytest.mark.parametrize("put", [a_pipe, a_folder])
def test_no_program_waits_for_it(
    put: Callable[[Path], None], name: str, outbox: Path, server: FakeServer, environment: dict[str, str]
) -> None:
    put(outbox / name)
    done = ended(environment, "-c", PROGRAM, server.url)
    assert done.returncode == 0, done.stderr
    done = ended(environment, "-m", "outtray", "flush", "--all")
    assert "Traceback" not in done.stderr
    for command in ("status", "consent", "doctor"):
        assert "Traceback" not in ended(environment, "-m", "outtray", command, "--app", "a").stderr


@pytest.mark.parametrize("name", [*REPLACED, *BESIDE, "outbox-1-0.db-journal"])
@pytest.mark.parametrize("put", [a_pipe, a_folder])
def test_doctor_finds_it_once_and_says_what_to_do(
    put: Callable[[Path], None], name: str, outbox: Path, capsys: Capture
) -> None:
    put(outbox / name)
    (finding,) = findings(capsys)
    assert finding["text"].startswith(f"{outbox / name} is not a regular file")
    assert finding["do"].startswith(f"move {outbox / name} away")
    (outbox / name).rename(outbox.parent / "away")
    if name not in REPLACED or name in ("client_id", "consent", "outbox-1.drain"):
        assert findings(capsys) == []


def test_a_pipe_in_place_of_the_client_id_is_replaced(outbox: Path, environment: dict[str, str]) -> None:
    before = (outbox / "client_id").read_text()
    a_pipe(outbox / "client_id")
    done = ended(environment, "-c", PROGRAM, "http://127.0.0.1:9")
    assert done.stdout.startswith("3 "), done.stderr
    assert (outbox / "client_id").is_file()
    assert (outbox / "client_id").read_text() != before


def test_a_pipe_in_place_of_the_client_id_is_forgotten(outbox: Path, environment: dict[str, str]) -> None:
    a_pipe(outbox / "client_id")
    done = ended(environment, "-m", "outtray", "forget", "--yes", "--app", "a")
    assert (done.returncode, done.stderr) == (0, "3 messages and the client id of 'a' erased\n")
    assert not os.path.lexists(outbox / "client_id")


def test_a_pipe_that_somebody_writes_to_is_no_client_id(outbox: Path) -> None:
    a_pipe(outbox / "client_id")
    descriptor = os.open(outbox / "client_id", os.O_RDWR)
    try:
        os.write(descriptor, b"00000000-0000-4000-a000-000000000000")
        assert identity.client_id(str(outbox)) != "00000000-0000-4000-a000-000000000000"
    finally:
        os.close(descriptor)


def test_a_pipe_in_place_of_the_reserve_stops_no_delivery(
    outbox: Path, server: FakeServer, environment: dict[str, str]
) -> None:
    a_pipe(outbox / "outbox-1.reserve")
    assert ended(environment, "-c", PROGRAM, server.url).stdout == "3 drained\n"
    assert len(server.received) == 6


@pytest.mark.parametrize("command", ["status", "doctor", "flush"])
def test_a_pipe_in_place_of_the_config_file_is_one_that_cannot_be_read(
    command: str, outbox: Path, home: Path, environment: dict[str, str], server: FakeServer
) -> None:
    path = Path(paths.config_path())
    path.parent.mkdir(parents=True)
    os.mkfifo(path)
    assert ended(environment, "-c", PROGRAM, server.url).stdout.startswith("0 "), "it may hold a denial"
    done = ended(environment, "-m", "outtray", command, "--app", "a")
    assert done.returncode == {"status": 0, "doctor": 1, "flush": 78}[command]
    assert "a pipe, where a file should be" in " ".join((done.stdout + done.stderr).split())
    assert len(server.received) == 1


def test_a_key_is_not_remembered_in_a_pipe(home: Path, environment: dict[str, str]) -> None:
    path = Path(paths.config_path())
    path.parent.mkdir(parents=True)
    os.mkfifo(path)
    done = ended(environment, "-c", "import outtray; outtray.configure(app='a', write_key='k', remember_key=True)")
    assert "SettingsError: the write key could not be remembered" in done.stderr
    assert "a pipe, where a file should be" in done.stderr


def test_a_pipe_in_place_of_the_file_with_the_key_is_said(
    outbox: Path, tmp_path: Path, environment: dict[str, str]
) -> None:
    os.mkfifo(tmp_path / "key")
    variables = {"OUTTRAY_WRITE_KEY_FILE": str(tmp_path / "key")}
    done = ended(environment, "-m", "outtray", "flush", "--all", **variables)
    assert done.returncode == 78
    assert "cannot be read" in done.stderr
    assert "a pipe, where a file should be" in done.stderr
    assert "2 messages kept" in done.stderr
