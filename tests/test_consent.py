"""Consent: which rule decides, and what each decision allows."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

import outtray
from outtray import consent, settings
from outtray.client import Client

RULES = {
    "argument": "the application says so",
    "environment": "OUTTRAY_CONSENT",
    "do not track": "DO_NOT_TRACK",
    "choice": "your choice, see `outtray consent`",
    "file": "the config file",
    "default": "nobody said otherwise",
}


def decided(environ: dict[str, str] | None = None, **options: Any) -> tuple[str, str]:
    surroundings = {"HOME": os.environ["HOME"], **(environ or {})}
    found = consent.decide(settings.resolve(options, surroundings), surroundings, afresh=True)
    return found.state, found.reason


def test_the_first_rule_that_says_something_decides(home: Path) -> None:
    assert decided() == ("granted", RULES["default"])
    file = home / ".config" / "outtray" / "config.toml"
    file.parent.mkdir(parents=True)
    file.write_text('consent = "local"\n')
    assert decided() == ("local", RULES["file"])
    choice = home / ".local" / "state" / "outtray" / "default" / "consent"
    choice.parent.mkdir(parents=True)
    choice.write_text("denied\n")
    assert decided() == ("denied", RULES["choice"])
    choice.write_text("granted\n")
    assert decided() == ("granted", RULES["choice"])
    assert decided({"DO_NOT_TRACK": "1"}) == ("denied", RULES["do not track"])
    both = {"DO_NOT_TRACK": "1", "OUTTRAY_CONSENT": "granted"}
    assert decided(both) == ("granted", RULES["environment"])
    assert decided(both, consent="local") == ("local", RULES["argument"])
    file.unlink()


def test_the_choice_is_each_applications_own(home: Path) -> None:
    choice = home / ".local" / "state" / "outtray" / "a" / "consent"
    choice.parent.mkdir(parents=True)
    choice.write_text("denied\n")
    assert outtray.Tray(app="a").track("e") is False
    assert [path.name for path in choice.parent.iterdir()] == ["consent"]
    other = outtray.Tray(app="b", flush="manual")
    assert other.track("e") is True
    other.close()


@pytest.mark.parametrize(("value", "denies"), [
    ("1", True), ("true", True), ("yes", True), ("0", False), ("false", False), ("FALSE", False), ("", False),
    (" ", False),
])  # fmt: skip
def test_do_not_track_denies_unless_it_says_no(value: str, denies: bool) -> None:
    assert (decided({"DO_NOT_TRACK": value})[0] == "denied") is denies


def test_a_denial_is_heeded_by_the_tray_and_named_by_flush(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DO_NOT_TRACK", "1")
    assert outtray.track("e") is False
    report = outtray.flush(1)
    assert report.outcome == "denied"
    assert "DO_NOT_TRACK" in report.reason
    assert outtray.status()["consent"] == {"state": "denied", "reason": "DO_NOT_TRACK"}
    assert list(home.iterdir()) == []


def test_a_denial_at_run_time_holds_for_the_functions_and_for_a_client(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    client = Client()
    doors = (lambda: outtray.track("e"), lambda: client.track(UUID(int=1), "e", None)[0])
    assert [door() for door in doors] == [True, True]
    monkeypatch.setenv("DO_NOT_TRACK", "1")
    assert [door() for door in doors] == [False, False]
    monkeypatch.delenv("DO_NOT_TRACK")
    assert [door() for door in doors] == [True, True]
    assert outtray.status()["pending"] == 4


def test_a_denial_by_the_environment_keeps_what_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    assert outtray.track("before")
    monkeypatch.setenv("DO_NOT_TRACK", "1")
    assert outtray.track("during") is False
    assert outtray.status()["pending"] == 1


def test_two_trays_have_a_consent_of_their_own() -> None:
    silent, open_ = outtray.Tray(app="silent", consent="denied"), outtray.Tray(app="open")
    assert silent.track("e") is False
    assert open_.track("e") is True
    open_.close()
