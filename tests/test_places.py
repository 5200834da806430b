"""Where an outbox may lie: a local directory of one's own, which may go away or be replaced while it is in use."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import outtray
from outtray.outbox import places
from outtray.testing import FakeServer

needs_root = pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root can do it")

Run = Callable[..., subprocess.CompletedProcess[str]]


def tray_in(place: Path, url: str = "http://127.0.0.1:9") -> outtray.Tray:
    return outtray.Tray(app="placed", dir=str(place), url=url, flush="manual")


def refused(tray: outtray.Tray, caplog: pytest.LogCaptureFixture, *words: str) -> None:
    caplog.clear()
    assert not tray.track("event")
    assert all(word in caplog.text for word in words), caplog.text


def test_a_directory_that_is_a_symbolic_link_is_refused(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    real = tmp_path / "real"
    real.mkdir(mode=0o700)
    tray = tray_in(tmp_path)
    Path(tray.settings.directory).symlink_to(real)
    refused(tray, caplog, "symbolic link", "OUTTRAY_DIR", str(tray.settings.directory))
    assert list(real.iterdir()) == []


def test_a_directory_that_becomes_a_link_under_a_running_program_is_not_followed(tmp_path: Path) -> None:
    tray = tray_in(tmp_path)
    assert tray.track("event")
    directory, moved = Path(tray.settings.directory), tmp_path / "moved"
    other = tmp_path / "other"
    other.mkdir(mode=0o700)
    directory.rename(moved)
    directory.symlink_to(other)
    assert not tray.track("event")
    assert list(other.iterdir()) == []
    directory.unlink()
    moved.rename(directory)
    assert tray.track("event")
    assert tray.status()["pending"] == 2
    assert tray.status()["ledger"]["unusable"] == 1


@needs_root
def test_a_directory_of_somebody_else_is_refused_and_left_as_it_is(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tray = tray_in(tmp_path)
    directory = Path(tray.settings.directory)
    directory.mkdir(mode=0o755)
    os.chown(directory, 12345, 12345)
    refused(tray, caplog, "belongs to user 12345", "not to 0", "OUTTRAY_DIR")
    found = directory.stat()
    assert (found.st_uid, stat.S_IMODE(found.st_mode)) == (12345, 0o755)
    assert list(directory.iterdir()) == []
    os.chown(directory, os.geteuid(), os.getegid())
    assert tray.track("event"), "and once it is one's own, the next call stores"


@pytest.mark.parametrize("mode", [0o755, 0o777, 0o750, 0o701])
def test_rights_of_others_are_taken_away(mode: int, tmp_path: Path) -> None:
    tray = tray_in(tmp_path)
    directory = Path(tray.settings.directory)
    directory.mkdir()
    directory.chmod(mode)
    assert tray.track("event")
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700


# Network file systems

TABLE = """\
22 1 0:20 / / rw,relatime shared:1 - ext4 /dev/root rw
30 22 0:31 / /home rw,relatime shared:2 - nfs4 server:/home rw,vers=4.2
31 30 0:32 / /home/local rw,relatime shared:3 - xfs /dev/sdb rw
32 22 0:33 / /mnt/two\\040words rw master:1 propagate_from:2 - cifs //server/share rw
33 22 0:34 / /mnt/back\\134slash rw - fuse.sshfs me@there: rw
34 22 0:35 / /over rw - ext4 /dev/sdc rw
35 34 0:36 / /over rw shared:9 - nfs server:/over rw
36 22 0:37 / /homes rw - tmpfs tmpfs rw
37 22 0:38 / /mnt/c rw,noatime - 9p C:\\134 rw,dirsync,aname=drvfs;path=C:\\;cache=5,access=client
38 22 0:39 / /work rw - virtiofs mount0 rw
39 22 0:40 / /bucket rw - fuse.rclone remote: rw
40 22 0:41 / /pool rw - fuse.mergerfs a:b rw
41 22 0:42 / /usb rw - fuseblk /dev/sdd1 rw
"""
ODD = """\
some other shape

22
23 22 0:1 / /home/me
24 22 0:1 / /home/me rw -\x20
25 22 0:1 / / rw - 9p
26 22 0:1 / /home/me rw -nfs server:/ rw
"""


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/var/tmp", "ext4"),
        ("/home/me/.local/state", "nfs4"),
        ("/home", "nfs4"),
        ("/home/local/me", "xfs"),
        ("/homes/me", "tmpfs"),
        ("/mnt/two words/me", "cifs"),
        ("/mnt/back\\slash/me", "fuse.sshfs"),
        ("/over/me", "nfs"),
        ("/mnt/c/Users/me", "9p"),
        ("/bucket", "fuse.rclone"),
    ],
)
def test_the_file_system_is_that_of_the_last_and_longest_mount(path: str, kind: str, tmp_path: Path) -> None:
    table = tmp_path / "mountinfo"
    table.write_text(TABLE)
    assert places.mount(path, str(table))[1] == kind


def test_without_a_mount_table_nothing_is_known_of_the_file_system(tmp_path: Path) -> None:
    assert places.mount("/home/me", str(tmp_path / "none")) == ("", "")
    assert places.mount("\\\\server\\share", str(tmp_path / "none"))[1] == "smb2"
    assert places.why_not_alone("/home/me", str(tmp_path / "none")) is None


def test_a_line_of_another_shape_in_the_mount_table_is_passed_over(tmp_path: Path) -> None:
    table = tmp_path / "mountinfo"
    table.write_text(ODD)
    assert places.mount("/home/me", str(table)) == ("/", "9p")
    table.write_text(ODD + TABLE)
    assert places.mount("/home/me", str(table)) == ("/home", "nfs4")


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("/home/me", "network file system (nfs4)"),
        ("/mnt/back\\slash/me", "network file system (fuse.sshfs)"),
        ("/bucket/me", "network file system (fuse.rclone)"),
        ("/mnt/c/Users/me", "shared with the host of this machine (9p)"),
        ("/work/me", "shared with the host of this machine (virtiofs)"),
    ],
)
def test_where_other_machines_may_be_at_the_files_is_said(path: str, reason: str, tmp_path: Path) -> None:
    table = tmp_path / "mountinfo"
    table.write_text(TABLE)
    assert f"{path} is " in (said := places.why_not_alone(path, str(table)) or "")
    assert reason in said


@pytest.mark.parametrize("path", ["/var/tmp", "/home/local/me", "/pool/me", "/usb/me", "/homes/me"])
def test_local_file_systems_are_used(path: str, tmp_path: Path) -> None:
    table = tmp_path / "mountinfo"
    table.write_text(TABLE)
    assert places.why_not_alone(path, str(table)) is None


@pytest.mark.parametrize("kind", ["9p", "virtiofs"])
def test_the_root_of_a_machine_is_its_own_whatever_lies_below_it(kind: str, tmp_path: Path) -> None:
    table = tmp_path / "mountinfo"
    table.write_text(f"22 1 0:20 / / rw - {kind} none rw\n")
    assert places.why_not_alone("/home/me", str(table)) is None


@pytest.fixture
def network_disk(tmp_path: Path) -> Iterator[Path]:
    """A network file system, mounted where the machine has a server of one."""
    place = tmp_path / "net"
    place.mkdir()
    kinds = (["-t", "cifs", "//127.0.0.1/share"], ["-t", "nfs", "127.0.0.1:/share"], ["-t", "ceph", "127.0.0.1:/"])
    for kind in kinds:
        if (
            os.geteuid() == 0
            and not subprocess.run(
                ["timeout", "5", "mount", *kind, str(place)], capture_output=True, check=False
            ).returncode
        ):
            break
    else:
        pytest.skip("no network file system can be mounted here")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


def test_a_network_file_system_is_refused_with_the_alternative(
    network_disk: Path, caplog: pytest.LogCaptureFixture
) -> None:
    refused(tray_in(network_disk), caplog, "network file system", "OUTTRAY_DIR", "local directory")


# What happens to the directory under a running program


def test_after_the_directory_was_deleted_the_next_message_is_stored_in_a_new_one(
    tmp_path: Path, server: FakeServer
) -> None:
    tray = tray_in(tmp_path, server.url)
    assert tray.track("event", {"number": 0})
    shutil.rmtree(tray.settings.directory)
    assert tray.track("event", {"number": 1})
    assert Path(tray.settings.directory, "outbox-1-0.db").exists()
    assert stat.S_IMODE(Path(tray.settings.directory).stat().st_mode) == 0o700
    assert tray.flush(20).outcome == "drained"
    assert [message["properties"]["number"] for message in server.received] == [1]


def test_a_directory_that_was_put_back_from_a_copy_is_used_and_nothing_is_stored_beside_it(
    tmp_path: Path, server: FakeServer
) -> None:
    tray = tray_in(tmp_path, server.url)
    assert tray.track("event", {"number": 0})
    tray.close()
    directory, copy = Path(tray.settings.directory), tmp_path / "copy"
    shutil.copytree(directory, copy)
    for number in (1, 2):
        assert tray.track("event", {"number": number})
    shutil.rmtree(directory)
    copy.rename(directory)
    assert tray.track("event", {"number": 3})
    assert tray.flush(20).outcome == "drained"
    assert [message["properties"]["number"] for message in server.received] == [0, 3]


def test_a_directory_whose_rights_were_widened_is_closed_again_by_the_next_program(
    tmp_path: Path, run_python: Run
) -> None:
    tray = tray_in(tmp_path)
    assert tray.track("event")
    tray.close()
    directory = Path(tray.settings.directory)
    directory.chmod(0o777)
    code = "import sys, outtray; outtray.configure(app='placed', dir=sys.argv[1]); print(outtray.track('event'))"
    done = run_python("-c", code, str(tmp_path))
    assert done.stdout == "True\n", done.stderr
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700


def test_where_the_place_is_a_file_the_call_is_refused_and_works_when_it_is_gone(tmp_path: Path) -> None:
    place = tmp_path / "place"
    place.write_text("a file")
    tray = tray_in(place)
    assert not tray.track("event")
    place.unlink()
    assert tray.track("event")
    assert tray.status()["ledger"]["unusable"] == 1


@needs_root
def test_a_disk_that_became_read_only_refuses_and_goes_on_when_it_is_not(
    tmp_path: Path, server: FakeServer, run_python: Run
) -> None:
    place = tmp_path / "disk"
    place.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "tmpfs", str(place)], capture_output=True, check=False).returncode:
        pytest.skip("no file system can be mounted here")
    try:
        tray = tray_in(place, server.url)
        code = "import sys, outtray; outtray.configure(app='placed', dir=sys.argv[1]); "
        code += "print(outtray.track('event', {'number': 0}))"
        assert run_python("-c", code, str(place), OUTTRAY_FLUSH="manual").stdout == "True\n"
        subprocess.run(["mount", "-o", "remount,ro,size=40m", str(place)], check=True)
        assert not tray.track("event", {"number": 1})
        subprocess.run(["mount", "-o", "remount,rw", str(place)], check=True)
        assert tray.track("event", {"number": 2})
        assert tray.flush(20).outcome == "drained"
        assert [message["properties"]["number"] for message in server.received] == [0, 2]
        assert tray.status()["ledger"]["unusable"] == 1
        tray.close()
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)
