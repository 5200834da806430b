"""The analytics context: consent, identity, enrichment, and that nothing gets out of it."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any
from uuid import UUID

import pytest

import outtray
from outtray import paths, settings
from outtray.client import Client
from outtray.context import AnalyticsContext
from outtray.outbox import look

USER = UUID("00000000-0000-4000-8000-000000000001")


def stored(app: str = "default") -> list[dict[str, Any]]:
    """Return the stored messages of *app*, oldest first; empty if there is no outbox."""
    directory = Path(paths.state_dir()) / app
    if not directory.exists():
        return []
    with look.look(os.fspath(directory)) as view:
        return [json.loads(message.body) for message in reversed(view.page(limit=10_000))]


def context_of(**options: Any) -> AnalyticsContext:
    return AnalyticsContext(client=Client(settings=settings.resolve(options)))


def test_an_event_is_enriched_with_facts_of_its_surroundings() -> None:
    assert outtray.track("e")
    properties = stored()[0]["properties"]
    named = {"os", "environment", "python_version", "version", "client_id", "user_id", "timezone", "event_success"}
    assert named <= set(properties)
    assert properties["python_version"] == ".".join(map(str, sys.version_info[:3]))
    assert properties["user_id"] == properties["client_id"]


def test_the_locale_is_always_among_the_facts_and_null_where_there_is_none(run_python: Any, home: Path) -> None:
    run_python("-c", "import outtray; outtray.track('e')", LC_ALL="de_CH.UTF-8")
    run_python("-c", "import outtray; outtray.track('e')", LC_ALL="C.UTF-8")
    first, second = (message["properties"] for message in stored())
    assert first["locale"] == "de_CH"
    assert second["locale"] is None


def test_the_version_is_the_settings_or_that_of_the_loaded_application(monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("my_program")
    module.__version__ = "4.5"  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "my_program", module)
    with context_of(app="my-program") as analytics:
        analytics.track("e")
    with context_of(app="told", version="6.7") as analytics:
        analytics.track("e")
    assert stored("my-program")[0]["properties"]["version"] == "4.5"
    assert stored("told")[0]["properties"]["version"] == "6.7"


def test_the_callers_values_win_and_the_callers_dict_stays() -> None:
    given = {"os": "mine", "client_id": "mine", "event_success": "mine", "nested": {"a": [1]}}
    before = json.dumps(given)
    assert outtray.track("e", given)
    assert given.items() <= stored()[0]["properties"].items()
    assert json.dumps(given) == before


def test_the_default_user_is_the_client_and_can_be_set_or_given() -> None:
    with AnalyticsContext() as analytics:
        analytics.track("e")
        assert analytics.user_id == analytics.client_id
    with AnalyticsContext(user_id=USER) as analytics:
        analytics.track("e")
    with context_of(app="other", user_id="somebody") as analytics:
        analytics.track("e")
    by_default, given = stored()
    client_id = by_default["properties"]["client_id"]
    assert by_default["user_id"] == client_id
    assert (given["user_id"], given["properties"]["user_id"]) == (str(USER), str(USER))
    assert given["properties"]["client_id"] == client_id
    assert stored("other")[0]["user_id"] == "somebody"


@pytest.mark.parametrize(("value", "expected"), [
    ("1", True), ("true", True), ("YES", True), (" on ", True), ("y", True),
    ("0", False), ("false", False), ("", False), ("maybe", False),
])  # fmt: skip
def test_in_server_reads_one_boolean_variable(value: str, expected: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_SERVER", value)
    with context_of(app="mine", server_variable="MY_SERVER") as analytics:
        assert analytics.in_server is expected
    with context_of(app="mine") as analytics:
        assert analytics.in_server is False


@pytest.mark.parametrize("event", ["Analytics opt-in", "Analytics opt-out", outtray.AnalyticsEvent.OPT_OUT_ANALYTICS])
def test_consent_events_pass_a_denial_only_where_the_host_enabled_that(event: str, home: Path) -> None:
    with context_of(app="silent", consent="denied") as analytics:
        assert analytics.track(event) is False
    assert list(home.iterdir()) == []
    with context_of(app="told", consent="denied", consent_events=True) as analytics:
        assert analytics.track("other") is False
        assert analytics.identify({"a": 1}) is False
        assert analytics.group(USER) is False
        assert analytics.alias(USER, USER) is False
        assert analytics.track(event) is True
    (message,) = stored("told")
    assert message["event"] == str.__str__(event)
    assert message["user_id"] == message["properties"]["client_id"]


def test_the_disabler_stops_consent_events_too(home: Path) -> None:
    with outtray.analytics_disabler(), context_of(app="mine", consent="denied", consent_events=True) as analytics:
        assert analytics.track("Analytics opt-out") is False
    assert list(home.iterdir()) == []


def test_local_consent_records_what_is_not_to_be_sent() -> None:
    tray = outtray.Tray(app="mine", consent="local")
    assert tray.track("e")
    assert tray.status()["local"] == 1
    assert tray.status()["pending"] == 0
    tray.close()


def test_no_exception_leaves_the_context() -> None:
    with AnalyticsContext():
        raise ValueError("inside")
    with AnalyticsContext() as analytics:
        analytics.track("after")
    assert [message["event"] for message in stored()] == ["after"]


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit, GeneratorExit])
def test_what_is_no_exception_leaves_the_context(kind: type[BaseException]) -> None:
    with pytest.raises(kind), AnalyticsContext():
        raise kind


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit, GeneratorExit])
def test_what_is_no_exception_leaves_track_and_the_next_message_is_stored(kind: type[BaseException]) -> None:
    class Ending:
        def __repr__(self) -> str:
            raise kind

    for event, metadata, user_id in ((Ending(), {}, None), ("e", {"p": Ending()}, None), ("e", {}, Ending())):
        with pytest.raises(kind):
            outtray.track(event, metadata, user_id=user_id)  # type: ignore[arg-type]
    assert outtray.track("after")
    assert [message["event"] for message in stored()] == ["after"]


class RaisingDict(dict[str, Any]):
    def keys(self) -> Any:
        raise RuntimeError("no keys")

    def items(self) -> Any:
        raise RuntimeError("no items")

    def __iter__(self) -> Iterator[str]:
        raise RuntimeError("no iteration")

    def __getitem__(self, key: str) -> Any:
        raise RuntimeError("no item")


class HalfMapping:
    def keys(self) -> list[str]:
        return ["a", "b"]

    def __getitem__(self, key: str) -> Any:
        if key == "b":
            raise RuntimeError("no b")
        return 1


def cyclic() -> dict[str, Any]:
    value: dict[str, Any] = {}
    value["self"] = value
    return value


@pytest.mark.parametrize(
    "metadata",
    [5, "text", b"bytes", [1, 2], (1,), {1, 2}, object(), RaisingDict(a=1), HalfMapping(), cyclic(), {1: 2}, dict],
    ids=lambda value: type(value).__name__,
)  # fmt: skip
def test_hostile_metadata_cost_themselves_at_most(metadata: Any) -> None:
    assert outtray.track("e", metadata) is True
    assert outtray.identify(metadata) is True
    assert outtray.group(USER, metadata) is True
    tracked, identified, grouped = stored()
    assert tracked["event"] == "e"
    assert isinstance(tracked["properties"], dict)
    assert "client_id" in tracked["properties"]
    assert isinstance(identified["traits"], dict)
    assert isinstance(grouped["traits"], dict)


def test_a_module_of_the_applications_name_that_fails_costs_the_version(monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken(ModuleType):
        def __getattr__(self, name: str) -> Any:
            raise RuntimeError("lazy and broken")

    monkeypatch.setitem(sys.modules, "broken_program", Broken("broken_program"))
    with context_of(app="broken-program") as analytics:
        assert analytics.track("e") is True
    assert stored("broken-program")[0]["properties"]["version"] is None
