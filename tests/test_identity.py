"""The client id."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess
from threading import Barrier, Thread
from uuid import UUID

import pytest

import outtray
from outtray import identity, paths


def test_the_id_is_a_random_uuid_that_is_kept_in_a_private_file(tmp_path: Path) -> None:
    directory = str(tmp_path / "app")
    found = identity.client_id(directory)
    assert not (tmp_path / "app").exists(), "asking for it writes nothing"
    assert identity.with_kept_id(directory, f'"{found}"') == f'"{found}"'
    assert UUID(found).version == 4
    assert UUID(found).variant == "specified in RFC 4122"
    file = tmp_path / "app" / identity.FILE_NAME
    assert file.read_text() == found
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    identity._known.clear()  # as in the next process
    assert identity.client_id(directory) == found
    assert [entry.name for entry in file.parent.iterdir()] == [identity.FILE_NAME]


def test_each_application_has_its_own(tmp_path: Path) -> None:
    assert identity.client_id(str(tmp_path / "a")) != identity.client_id(str(tmp_path / "b"))


def test_it_is_made_with_the_first_message_and_no_sooner(home: Path) -> None:
    outtray.configure(app="mine")
    outtray.Tray(app="mine")
    assert list(home.iterdir()) == []
    outtray.track("e")
    assert (Path(paths.state_dir()) / "mine" / identity.FILE_NAME).exists()


def test_threads_that_begin_at_once_agree_on_one(tmp_path: Path) -> None:
    for round_number in range(40):
        directory = str(tmp_path / str(round_number))
        together = Barrier(8)
        found: list[str] = []

        def ask(directory: str = directory, together: Barrier = together, found: list[str] = found) -> None:
            together.wait(20)
            found.append(identity.with_kept_id(directory, identity.client_id(directory)))

        threads = [Thread(target=ask) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(20)
        assert len(found) == 8
        assert len(set(found)) == 1


def test_processes_that_begin_at_once_agree_on_one(
    tmp_path: Path, run_python: Callable[..., CompletedProcess[str]]
) -> None:
    directory = str(tmp_path / "app")
    code = f"from outtray import identity as i; print(i.with_kept_id({directory!r}, i.client_id({directory!r})))"
    found: list[str] = []
    threads = [Thread(target=lambda: found.append(run_python("-c", code).stdout.strip())) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(found) == 6
    assert set(found) == {(tmp_path / "app" / identity.FILE_NAME).read_text()}


@pytest.mark.parametrize("damage", ["", "short", "\x00" * 36, "ä" * 36])
def test_a_damaged_file_is_replaced(tmp_path: Path, damage: str) -> None:
    file = tmp_path / identity.FILE_NAME
    file.write_text(damage, encoding="utf-8")
    found = identity.client_id(str(tmp_path))
    assert identity.keep(str(tmp_path)) is True
    assert file.read_text() == found
    assert UUID(found)


def test_where_it_cannot_be_written_one_holds_for_the_process(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    directory = str(tmp_path / "file" / "app")
    found = identity.client_id(directory)
    assert identity.keep(directory) is False
    assert identity.with_kept_id(directory, found) == found
    (tmp_path / "file").unlink()
    assert identity.with_kept_id(directory, found) == found
    assert (tmp_path / "file" / "app" / identity.FILE_NAME).read_text() == found, "tried again"


def test_a_message_has_the_id_of_the_process_that_was_first(tmp_path: Path) -> None:
    directory = str(tmp_path / "app")
    ours, theirs = identity.client_id(directory), str(UUID(int=7))
    (tmp_path / "app").mkdir()
    (tmp_path / "app" / identity.FILE_NAME).write_text(theirs)  # as another process does meanwhile
    assert identity.with_kept_id(directory, f"a {ours} b {ours}") == f"a {theirs} b {theirs}"
    assert identity.client_id(directory) == theirs
    assert identity.with_kept_id(directory, ours) == theirs, "from a thread that asked before"


def test_an_id_that_was_kept_once_is_left_where_it_stands(tmp_path: Path) -> None:
    directory = str(tmp_path / "app")
    before, after = identity.client_id(directory), str(UUID(int=7))
    assert identity.keep(directory)
    (tmp_path / "app" / identity.FILE_NAME).write_text(after)
    assert identity.keep(directory)
    assert identity.client_id(directory) == after
    assert identity.with_kept_id(directory, before) == before


def test_a_reset_makes_the_next_message_have_a_new_one() -> None:
    tray = outtray.Tray(app="mine", flush="manual")
    before = identity.client_id(tray.settings.directory)
    assert tray.track("e")
    assert os.path.exists(os.path.join(tray.settings.directory, identity.FILE_NAME))
    assert tray.reset_identity() is True
    assert not os.path.exists(os.path.join(tray.settings.directory, identity.FILE_NAME))
    assert identity.client_id(tray.settings.directory) != before


def test_a_reset_where_there_is_nothing_is_fine(tmp_path: Path) -> None:
    assert outtray.Tray(app="unused").reset_identity() is True


def test_a_reset_that_cannot_be_done_says_so_and_keeps_the_id(tmp_path: Path) -> None:
    tray = outtray.Tray(app="mine", dir=tmp_path)
    file = tmp_path / "mine" / identity.FILE_NAME
    file.mkdir(parents=True)  # a directory cannot be unlinked, whoever asks
    before = identity.client_id(tray.settings.directory)
    assert tray.reset_identity() is False
    assert identity.client_id(tray.settings.directory) == before
