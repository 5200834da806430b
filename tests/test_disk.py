"""A disk that is full, and a bound on the size of files: what is refused, what still works, and what comes back."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import outtray
from outtray.outbox import reserve, shared
from outtray.testing import FakeServer
from tests.conftest import wait_until

pytestmark = pytest.mark.skipif(not hasattr(os, "statvfs"), reason="there is no small disk to make here")

MIB = 1024 * 1024

Run = Callable[..., subprocess.CompletedProcess[str]]


@contextmanager
def mounted(place: Path, size: str) -> Iterator[Path]:
    """A disk in memory at *place*."""
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size},mode=0700", "tmpfs", str(place)]
    if os.geteuid() or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("only root can mount a file system")
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 72 MiB, on which the reserve has its whole size."""
    with mounted(tmp_path / "disk", "72m") as place:
        yield place


def fill(place: Path) -> Path:
    """Leave no byte of room on the disk; what is returned, deleted, gives it back."""
    ballast = place / "ballast"
    with ballast.open("ab", buffering=0) as file:
        for size in (MIB, 4096):
            try:
                while file.write(b"x" * size) == size:
                    pass
            except OSError:
                continue
    assert os.statvfs(place).f_bavail == 0
    return ballast


def tray_on(place: Path, server: FakeServer, **options: Any) -> outtray.Tray:
    return outtray.Tray(app="full", dir=str(place), url=server.url, **{"flush": "manual", **options})


def reserve_of(tray: outtray.Tray) -> int:
    path = Path(tray.settings.directory, "outbox-1.reserve")
    return path.stat().st_size if path.exists() else 0


def numbers(server: FakeServer) -> list[int]:
    return [message["properties"]["number"] for message in server.received]


def with_messages(place: Path, server: FakeServer, count: int, **options: Any) -> outtray.Tray:
    """Return a tray with a whole reserve and *count* messages that wait."""
    tray = tray_on(place, server, **options)
    assert tray.track("event", {"number": -1})
    assert tray.flush(20).outcome == "drained"
    assert reserve_of(tray) == reserve.SIZE
    server.clear()
    for number in range(count):
        assert tray.track("event", {"number": number})
    return tray


def test_on_a_full_disk_a_message_is_refused_and_counted_and_the_next_ones_are_stored(
    disk: Path, server: FakeServer
) -> None:
    tray = with_messages(disk, server, 10)
    ballast = fill(disk)
    answers = [tray.track("event", {"number": number}) for number in range(10, 4000)]
    refused = answers.count(False)
    assert refused
    assert not answers[-1]
    ballast.unlink()
    assert tray.track("event", {"number": 5000}), "without a restart"
    assert tray.status()["ledger"]["disk_full"] == refused
    assert tray.flush(60).outcome == "drained"
    accepted = [number for number, answer in enumerate(answers, 10) if answer]
    assert numbers(server) == [*range(10), *accepted, 5000]
    tray.close()


def test_hundreds_of_batches_are_settled_on_a_full_disk(disk: Path, server: FakeServer) -> None:
    tray = with_messages(disk, server, 600, max_batch_count=1)
    ballast = fill(disk)
    while tray.track("event", {"number": 9999, "text": "x" * 4000}):
        pass
    server.clear()
    report = tray.flush(120)
    assert report.outcome == "drained", report
    assert report.delivered >= 600
    assert numbers(server)[:600] == list(range(600))
    assert not server.repeats, "each batch was settled"
    assert not tray.track("event", {"number": 10_000}), "the room of the reserve is not for messages"
    assert tray.status()["pending"] == 0
    ballast.unlink()
    assert tray.track("event", {"number": 10_001})
    assert tray.flush(20).outcome == "drained"
    assert wait_until(lambda: reserve_of(tray) == reserve.SIZE)
    assert numbers(server)[-1] == 10_001
    tray.close()


def test_settling_gives_the_reserve_back_and_keeps_messages_out_until_there_is_room(
    disk: Path, server: FakeServer, run_python: Run
) -> None:
    tray = with_messages(disk, server, 400, max_batch_count=1)
    ballast = fill(disk)
    outbox = shared.of(tray.settings)
    while tray.track("event", {"number": 9999, "text": "x" * 4000}):
        pass
    assert outbox.give_back_reserve()
    assert reserve_of(tray) == 0
    assert os.statvfs(disk).f_bavail > 0
    assert not tray.track("event", {"number": 1}), "there is room, but it is the deliveries'"
    code = "import sys, outtray; outtray.configure(app='full', dir=sys.argv[1]); print(outtray.track('event'))"
    assert run_python("-c", code, str(disk)).stdout == "False\n", "other processes heed it"
    ballast.unlink()
    assert run_python("-c", code, str(disk)).stdout == "True\n"
    assert tray.track("event", {"number": 2})
    tray.close()


def test_a_full_disk_does_not_stop_a_wait_from_being_written_down(disk: Path, server: FakeServer) -> None:
    tray = with_messages(disk, server, 5)
    fill(disk)
    while tray.track("event", {"number": 9999, "text": "x" * 4000}):
        pass
    server.set_mode(503)
    for _ in range(3):
        assert tray.flush(0.5).outcome in ("postponed", "timeout")
    found = tray.status()
    assert found["attempts"] >= 1
    assert found["pending"] >= 5
    tray.close()


def test_cron_delivers_on_a_full_disk_though_nobody_has_the_outbox_open(
    disk: Path, server: FakeServer, run_python: Run
) -> None:
    tray = with_messages(disk, server, 5)
    tray.close()
    ballast = fill(disk)
    done = run_python("-m", "outtray", "flush", "--dir", str(disk))
    assert (done.returncode, done.stderr) == (0, "")
    assert numbers(server) == list(range(5))
    assert reserve_of(tray) == 0
    assert not tray.track("event"), "the room of the reserve is not for messages"
    ballast.unlink()
    assert tray.track("event", {"number": 5})
    assert tray.flush(20).outcome == "drained"
    assert reserve_of(tray) == reserve.SIZE
    assert numbers(server)[-1] == 5
    tray.close()


def test_an_outbox_that_fills_a_small_disk_at_once_is_delivered_and_stores_again(
    tmp_path: Path, server: FakeServer, run_python: Run
) -> None:
    with mounted(tmp_path / "small", "24m") as place:
        server.set_mode(503)
        tray = tray_on(place, server, flush="thread")
        accepted = sum(tray.track("event", {"number": number, "text": "x" * 2000}) for number in range(12_000))
        assert accepted > 2_000
        tray.close()
        server.set_mode("ok")
        done = run_python("-m", "outtray", "flush", "--all", "--dir", str(place))
        assert (done.returncode, done.stderr) == (0, "")
        assert len(server.received) == accepted
        assert not server.repeats
        assert tray.track("event", {"number": 0}), "the room of what was delivered is given back"
        assert reserve_of(tray)
        tray.close()


def test_that_there_is_no_room_in_the_drain_lock_does_not_stop_deliveries(disk: Path, server: FakeServer) -> None:
    tray = with_messages(disk, server, 5)
    Path(tray.settings.directory, "outbox-1.drain").unlink()
    fill(disk)
    assert tray.flush(20).outcome == "drained"
    assert numbers(server) == list(range(5))
    tray.close()


def test_a_call_on_a_full_disk_with_a_closed_outbox_is_told_that_the_disk_is_full(
    disk: Path, server: FakeServer, run_python: Run
) -> None:
    tray = with_messages(disk, server, 5)
    tray.close()
    Path(tray.settings.directory, "outbox-1.reserve").unlink()
    ballast = fill(disk)
    assert not tray.track("event")
    status = run_python("-m", "outtray", "status", "--dir", str(disk), "--json")
    assert json.loads(status.stdout)["pending"] == 5, status.stderr
    ballast.unlink()
    assert tray.track("event")
    assert tray.status()["ledger"]["disk_full"] == 1
    tray.close()


def test_a_disk_that_is_full_from_the_beginning_is_no_harm_once_it_is_not(disk: Path, server: FakeServer) -> None:
    ballast = fill(disk)
    tray = tray_on(disk, server)
    assert [tray.track("event", {"number": number}) for number in range(5)] == [False] * 5
    ballast.unlink()
    assert tray.track("event", {"number": 5})
    assert tray.flush(20).outcome == "drained"
    assert numbers(server) == [5]
    assert sum(tray.status()["ledger"].get(reason, 0) for reason in ("disk_full", "unusable")) == 5
    tray.close()


def test_calls_on_a_full_disk_leave_no_file_that_could_not_be_written(
    disk: Path, server: FakeServer, run_python: Run
) -> None:
    tray = with_messages(disk, server, 10)
    assert run_python("-m", "outtray", "forget", "--yes", "--dir", str(disk)).returncode == 0
    ballast = fill(disk)
    answers = [tray.track("event", {"number": number, "text": "x" * 4000}) for number in range(3000)]
    assert answers[-1] is False, "it is full, and this program has no client id that is written down"
    assert list(Path(tray.settings.directory).glob("client_id*")) == []
    ballast.unlink()
    assert tray.track("event", {"number": 3000})
    assert [path.name for path in Path(tray.settings.directory).glob("client_id*")] == ["client_id"]
    tray.close()


@pytest.mark.parametrize("words", [["forget", "--yes"], ["consent", "off"]], ids=" ".join)
def test_an_erasure_that_the_full_disk_cuts_off_is_said_and_goes_on_once_there_is_room(
    words: list[str], disk: Path, server: FakeServer, run_python: Run
) -> None:
    tray = with_messages(disk, server, 0)
    for number in range(2000):
        assert tray.track("secret", {"number": number, "text": "x" * 4000})
    tray.close()
    ballast = fill(disk)
    with ballast.open("r+b") as file:
        file.truncate(ballast.stat().st_size - MIB // 4)  # some room to begin in
    done = run_python("-m", "outtray", *words, "--dir", str(disk))
    assert done.returncode == 78, done
    assert "there is no room on the disk" in done.stderr
    assert "text may be left on the disk" in done.stderr
    assert "the next `outtray flush`, or this again, goes on" in done.stderr
    assert "stored" not in done.stderr, "as what was stored is not kept"
    ballast.unlink()
    assert run_python("-m", "outtray", "flush", "--dir", str(disk)).returncode == 0
    assert all(b"secret" not in path.read_bytes() for path in Path(tray.settings.directory).iterdir())
    assert run_python("-m", "outtray", "doctor", "--dir", str(disk)).returncode == 0
    assert server.received == []


def test_the_reserve_is_made_by_the_thread_of_a_program_that_goes_on(tmp_path: Path, server: FakeServer) -> None:
    tray = tray_on(tmp_path, server, flush="thread", flush_interval=0.05)
    assert tray.track("event", {"number": 0})
    assert wait_until(lambda: reserve_of(tray) == reserve.SIZE)
    path = Path(tray.settings.directory, "outbox-1.reserve")
    assert path.stat().st_blocks * 512 >= reserve.SIZE, "allocated, not a hole"
    assert path.stat().st_mode & 0o777 == 0o600


def test_the_thread_that_only_syncs_makes_the_reserve_too(tmp_path: Path, server: FakeServer) -> None:
    tray = tray_on(tmp_path, server)
    assert tray.track("event", {"number": 0})
    assert wait_until(lambda: reserve_of(tray) == reserve.SIZE)


def test_the_reserve_is_made_by_a_flush(tmp_path: Path, server: FakeServer, run_python: Run) -> None:
    tray = tray_on(tmp_path, server)
    assert tray.track("event", {"number": 0})
    tray.close()
    flushed = run_python("-m", "outtray", "flush", "--dir", str(tmp_path))
    assert flushed.returncode == 0, flushed.stderr
    assert reserve_of(tray) == reserve.SIZE


def test_a_short_program_does_not_pay_for_the_reserve(tmp_path: Path, server: FakeServer, run_python: Run) -> None:
    code = "import sys, outtray; outtray.configure(app='full', dir=sys.argv[1], flush='manual'); outtray.track('event')"
    started = time.monotonic()
    run_python("-c", code, str(tmp_path))
    if time.monotonic() - started < 0.8:  # a slow machine makes a short program a long one
        assert reserve_of(tray_on(tmp_path, server)) == 0


def test_a_small_disk_has_a_small_reserve(tmp_path: Path, server: FakeServer) -> None:
    place = tmp_path / "small"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=12m,mode=0700", "tmpfs", str(place)]
    if os.geteuid() or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("only root can mount a file system")
    try:
        tray = tray_on(place, server)
        assert tray.track("event", {"number": 0})
        assert tray.flush(20).outcome == "drained"
        assert reserve_of(tray) == 12 * MIB // 8
        assert tray.track("event", {"number": 1}), "and messages are stored all the same"
        tray.close()
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)


LIMITED = """
import json, resource, signal, sys, outtray
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
outtray.configure(app="full", dir=sys.argv[1], url=sys.argv[2], flush="manual")
for number in range(20):
    assert outtray.track("event", {"number": number})
soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, hard))
answers = [outtray.track("event", {"number": number, "text": "x" * 3000}) for number in range(20, 300)]
during = outtray.status()["error"]
resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
again = outtray.track("event", {"number": 300})
report = outtray.flush(60)
print(json.dumps([answers, during, again, report.outcome, report.reason, outtray.status()["ledger"]]))
"""


def test_a_bound_on_the_size_of_files_refuses_and_loses_nothing(
    tmp_path: Path, server: FakeServer, run_python: Run
) -> None:
    done = run_python("-c", LIMITED, str(tmp_path), server.url)
    assert done.returncode == 0, done.stderr
    answers, during, again, outcome, reason, ledger = json.loads(done.stdout)
    assert during is None
    assert False in answers
    assert again
    assert outcome == "drained", reason
    accepted = [number for number, answer in enumerate(answers, 20) if answer]
    assert numbers(server) == [*range(20), *accepted, 300]
    assert sum(ledger.get(word, 0) for word in ("disk_full", "unusable")) == answers.count(False)
