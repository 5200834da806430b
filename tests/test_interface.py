"""The public interface, name by name against the page of `zenml.analytics`, and what it does through the front door."""

from __future__ import annotations

import ast
import importlib
import inspect
import json
import os
import re
import zlib
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any
from unittest.mock import Mock
from uuid import UUID

import pytest

import outtray
from outtray import paths
from outtray.client import Client
from outtray.context import AnalyticsContext
from outtray.enums import AnalyticsEvent, SourceContext
from outtray.errors import AnalyticsAPIError
from outtray.outbox import look
from outtray.outbox.gate import Header
from outtray.testing import FakeServer

USER = UUID("00000000-0000-4000-8000-000000000001")
OTHER = UUID("00000000-0000-4000-8000-000000000002")

REQUIRED = inspect.Parameter.empty

# Module, name, parameters with their defaults in the page's order, return type as the page has it.
SEED: tuple[tuple[str, str, tuple[tuple[str, object], ...], str | None], ...] = (
    ("", "alias", (("user_id", REQUIRED), ("previous_id", REQUIRED)), "bool"),
    ("", "group", (("group_id", REQUIRED), ("group_metadata", None)), "bool"),
    ("", "identify", (("metadata", None),), "bool"),
    ("", "track", (("event", REQUIRED), ("metadata", None)), "bool"),
    ("client", "Client", (("send", True), ("timeout", 15)), None),
    ("client", "Client.alias", (("user_id", REQUIRED), ("previous_id", REQUIRED)), "Tuple[bool, str]"),
    (
        "client",
        "Client.group",
        (("user_id", REQUIRED), ("group_id", REQUIRED), ("traits", REQUIRED)),
        "Tuple[bool, str]",
    ),
    ("client", "Client.identify", (("user_id", REQUIRED), ("traits", REQUIRED)), "Tuple[bool, str]"),
    (
        "client",
        "Client.track",
        (("user_id", REQUIRED), ("event", REQUIRED), ("properties", REQUIRED)),
        "Tuple[bool, str]",
    ),
    ("context", "AnalyticsContext", (), None),
    ("context", "AnalyticsContext.alias", (("user_id", REQUIRED), ("previous_id", REQUIRED)), "bool"),
    ("context", "AnalyticsContext.group", (("group_id", REQUIRED), ("traits", None)), "bool"),
    ("context", "AnalyticsContext.identify", (("traits", None),), "bool"),
    ("context", "AnalyticsContext.track", (("event", REQUIRED), ("properties", None)), "bool"),
    ("models", "AnalyticsTrackedModelMixin.get_analytics_metadata", (), "Dict[str, Any]"),
    ("request", "post", (("batch", REQUIRED), ("timeout", 15)), "requests.Response"),
    ("utils", "AnalyticsAPIError", (("status", REQUIRED), ("message", REQUIRED)), None),
    ("utils", "AnalyticsEncoder.default", (("obj", REQUIRED),), "Any"),
    ("utils", "analytics_disabler", (), None),
    ("utils", "email_opt_int", (("opted_in", REQUIRED), ("email", REQUIRED), ("source", REQUIRED)), "None"),
    ("utils", "track_decorator", (("event", REQUIRED),), "Callable[[F], F]"),
    ("utils", "track_handler", (("event", REQUIRED), ("metadata", None)), None),
)

BASES = (
    ("client", "Client", object),
    ("context", "AnalyticsContext", object),
    ("enums", "AnalyticsEvent", str),
    ("utils", "AnalyticsAPIError", Exception),
    ("utils", "AnalyticsEncoder", json.JSONEncoder),
    ("utils", "analytics_disabler", object),
    ("utils", "track_handler", object),
)

EVENTS_OF_THE_PAGE = {
    "BUILD_PIPELINE": "Pipeline built",
    "CREATED_FLAVOR": "Flavor created",
    "CREATED_MODEL": "Model created",
    "CREATED_MODEL_VERSION": "Model Version created",
    "CREATED_RUN_TEMPLATE": "Run template created",
    "CREATED_SECRET": "Secret created",
    "CREATED_SERVICE_ACCOUNT": "Service account created",
    "CREATED_SERVICE_CONNECTOR": "Service connector created",
    "CREATED_TAG": "Tag created",
    "CREATED_TRIGGER": "Trigger created",
    "CREATED_WORKSPACE": "Workspace created",
    "CREATE_PIPELINE": "Pipeline created",
    "DEPLOY_FULL_STACK": "Full stack deployed",
    "DEPLOY_STACK": "Stack deployed",
    "DEPLOY_STACK_COMPONENT": "Stack component deployed",
    "DESTROY_STACK": "Stack destroyed",
    "DESTROY_STACK_COMPONENT": "Stack component destroyed",
    "DEVICE_VERIFIED": "Device verified",
    "EXECUTED_RUN_TEMPLATE": "Run templated executed",
    "GENERATE_TEMPLATE": "Template generated",
    "MODEL_DEPLOYED": "Model deployed",
    "OPT_IN_ANALYTICS": "Analytics opt-in",
    "OPT_IN_OUT_EMAIL": "Response for Email prompt",
    "OPT_OUT_ANALYTICS": "Analytics opt-out",
    "REGISTERED_CODE_REPOSITORY": "Code repository registered",
    "REGISTERED_STACK": "Stack registered",
    "REGISTERED_STACK_COMPONENT": "Stack component registered",
    "RUN_PIPELINE": "Pipeline run",
    "RUN_PIPELINE_ENDED": "Pipeline run ended",
    "RUN_STACK_RECIPE": "Stack recipe ran",
    "RUN_ZENML_GO": "ZenML go",
    "SERVER_SETTINGS_UPDATED": "Server Settings Updated",
    "UPDATED_STACK": "Stack updated",
    "UPDATED_TRIGGER": "Trigger updated",
    "USER_ENRICHED": "User Enriched",
    "ZENML_SERVER_DEPLOYED": "ZenML server deployed",
    "ZENML_SERVER_DESTROYED": "ZenML server destroyed",
}

LATER_EVENTS = {
    "CREATED_PROJECT": "Project created",
    "EXECUTED_SNAPSHOT": "Snapshot executed",
    "DEPLOY_PIPELINE": "Pipeline deployed",
    "CREATE_DEPLOYMENT": "Deployment created",
    "STOP_DEPLOYMENT": "Deployment stopped",
    "DELETE_DEPLOYMENT": "Deployment deleted",
    "DELETED_TRIGGER": "Trigger deleted",
}

KEYS = {
    "track": {"user_id", "type", "debug", "message_id", "timestamp", "event", "properties"},
    "identify": {"user_id", "type", "debug", "message_id", "timestamp", "traits"},
    "group": {"user_id", "type", "debug", "message_id", "timestamp", "group_id", "traits"},
    "alias": {"user_id", "type", "debug", "message_id", "timestamp", "previous_id"},
}


def stored(app: str = "default") -> list[dict[str, Any]]:
    """Return the stored messages of *app*, oldest first."""
    with look.look(os.path.join(paths.state_dir(), app)) as view:
        return [json.loads(message.body) for message in reversed(view.page(limit=10_000))]


def find(module: str, name: str) -> Any:
    found: Any = importlib.import_module(f"outtray.{module}" if module else "outtray")
    for part in name.split("."):
        found = getattr(found, part)
    return found


def parameters_of(found: Any) -> list[inspect.Parameter]:
    parameters = list(inspect.signature(found).parameters.values())
    return parameters[1:] if parameters and parameters[0].name == "self" else parameters


def modern(annotation: str) -> str:
    """Spell a type as the page's Python 3.8 would not: without `typing`'s capitals."""
    return re.sub(r"\b(Tuple|Dict|List)\b", lambda match: match.group().lower(), annotation)


# Names and signatures


@pytest.mark.parametrize(("module", "name", "parameters", "returns"), SEED, ids=lambda value: str(value)[:40])
def test_every_name_of_the_page_is_here_with_its_signature(
    module: str, name: str, parameters: tuple[tuple[str, object], ...], returns: str | None
) -> None:
    found = find(module, name)
    here = parameters_of(found)
    theirs, ours = here[: len(parameters)], here[len(parameters) :]
    assert tuple((one.name, one.default) for one in theirs) == parameters
    assert all(one.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD for one in theirs)
    own_kinds = {inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.VAR_KEYWORD}
    assert {one.kind for one in ours} <= own_kinds, "what the page does not have is keyword-only"
    assert all(one.default is not REQUIRED for one in ours if one.kind is inspect.Parameter.KEYWORD_ONLY)
    if returns is not None:
        assert modern(str(inspect.signature(found).return_annotation)) == modern(returns)


@pytest.mark.parametrize(("module", "name", "base"), BASES, ids=lambda value: str(value))
def test_every_class_of_the_page_has_its_base(module: str, name: str, base: type) -> None:
    assert issubclass(find(module, name), base)


def test_the_encoder_takes_what_json_encoders_take() -> None:
    ours, theirs = inspect.signature(find("utils", "AnalyticsEncoder")), inspect.signature(json.JSONEncoder)
    assert list(ours.parameters.values()) == list(theirs.parameters.values())


def test_the_model_mixin_is_a_pydantic_model_with_fields_to_name() -> None:
    from pydantic import BaseModel

    mixin = find("models", "AnalyticsTrackedModelMixin")
    assert issubclass(mixin, BaseModel)
    assert mixin.ANALYTICS_FIELDS == []
    assert mixin.model_fields == {}
    assert mixin.model_computed_fields == {}


def test_in_server_is_a_property_that_gives_a_bool(monkeypatch: pytest.MonkeyPatch) -> None:
    assert isinstance(inspect.getattr_static(AnalyticsContext, "in_server"), property)
    with AnalyticsContext() as analytics:
        assert analytics.in_server is False
        monkeypatch.setenv("OUTTRAY_SERVER", "1")
        assert analytics.in_server is True


def test_all_37_events_of_the_page_are_there() -> None:
    assert len(EVENTS_OF_THE_PAGE) == 37
    assert {name: AnalyticsEvent[name].value for name in EVENTS_OF_THE_PAGE} == EVENTS_OF_THE_PAGE


def test_the_events_that_upstream_added_since_are_there_and_no_others() -> None:
    assert {event.name: event.value for event in AnalyticsEvent} == {**EVENTS_OF_THE_PAGE, **LATER_EVENTS}


def test_the_source_context_is_a_context_variable_that_says_python() -> None:
    assert outtray.source_context.name == "Source-Context"
    assert outtray.source_context.get() is SourceContext.PYTHON
    assert SourceContext.PYTHON.value == "python"


def test_every_public_name_can_be_had_from_the_package() -> None:
    for name in outtray.__all__:
        assert getattr(outtray, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        getattr(outtray, "nothing")  # noqa: B009 - mypy would know


def test_the_names_for_type_checkers_are_the_ones_that_load_lazily() -> None:
    tree = ast.parse(Path(outtray.__file__).read_text("utf-8"))
    block = next(node for node in tree.body if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING")
    typed = {
        alias.name: (node.module or "").removeprefix("outtray.")
        for node in block.body
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("outtray")
        for alias in node.names
    }
    assert typed == outtray._LAZY
    functions = {"alias", "flush", "group", "identify", "status", "track"}
    assert set(outtray.__all__) == set(typed) | functions


@pytest.mark.parametrize("name", ["track", "identify", "group", "alias", "flush"])
def test_the_tray_offers_what_the_module_offers(name: str) -> None:
    of_module, of_tray = inspect.signature(getattr(outtray, name)), inspect.signature(getattr(outtray.Tray, name))
    assert list(of_module.parameters.values()) == list(of_tray.parameters.values())[1:]
    assert of_module.return_annotation == of_tray.return_annotation


# What the page does not say, and upstream does


def test_track_says_that_the_event_succeeded_where_the_caller_did_not() -> None:
    assert outtray.track("silent") is True
    assert outtray.track("told", {"event_success": False, "other": 1}) is True
    silent, told = stored()
    assert silent["properties"]["event_success"] is True
    assert told["properties"]["event_success"] is False


def test_identify_without_metadata_returns_false_and_stores_nothing(home: Path) -> None:
    assert outtray.identify(None) is False
    assert outtray.identify() is False
    assert list(home.iterdir()) == []


def test_a_message_has_the_keys_of_its_type() -> None:
    assert outtray.track("an event", {"a": 1})
    assert outtray.identify({"email": "a@example.org"})
    assert outtray.group(OTHER, {"name": "a group"})
    assert outtray.alias(USER, OTHER)
    messages = {message["type"]: message for message in stored()}
    assert {kind: set(message) for kind, message in messages.items()} == KEYS
    client_id = messages["track"]["properties"]["client_id"]
    assert messages["track"]["event"] == "an event"
    assert messages["track"]["properties"]["a"] == 1
    assert messages["identify"]["traits"] == {"email": "a@example.org"}
    assert messages["group"]["group_id"] == str(OTHER)
    assert messages["group"]["traits"] == {"name": "a group"}
    assert messages["alias"]["user_id"] == str(USER)
    assert messages["alias"]["previous_id"] == str(OTHER)
    assert {messages[kind]["user_id"] for kind in ("track", "identify", "group")} == {client_id}
    assert all(message["debug"] is False for message in messages.values())


def test_the_timestamp_is_iso_8601_in_utc_with_milliseconds() -> None:
    assert outtray.track("now")
    assert re.fullmatch(r"20\d\d-\d\d-\d\dT\d\d:\d\d:\d\d\.\d\d\dZ", stored()[0]["timestamp"])


def test_id_timestamp_and_user_of_a_message_can_be_given() -> None:
    own: dict[str, Any] = {"message_id": "mine", "timestamp": 1_700_000_000.25}
    assert outtray.track("one", user_id=USER, **own)
    assert outtray.identify({"a": 1}, user_id=str(USER), **own)
    assert outtray.group(OTHER, user_id=USER, **own)
    assert outtray.alias(USER, OTHER, **own)
    for message in stored():
        assert message["message_id"] == "mine"
        assert message["timestamp"] == "2023-11-14T22:13:20.250Z"
        assert message["user_id"] == str(USER)


def test_a_timestamp_that_is_none_costs_the_timestamp_and_not_the_message() -> None:
    for nonsense in ("yesterday", float("nan"), float("inf"), -1e15, 1e15, object()):
        assert outtray.track("when?", timestamp=nonsense)  # type: ignore[arg-type]
    assert all(re.fullmatch(r"20\d\d-.*Z", message["timestamp"]) for message in stored())


def test_an_event_or_an_id_without_words_costs_its_words_and_not_the_message() -> None:
    for event in (Hostile(), Mock(spec=str)):
        assert outtray.track(event, user_id=Hostile(), message_id=Hostile())  # type: ignore[arg-type]
    hostile, mock = stored()
    assert (hostile["event"], hostile["user_id"], hostile["properties"]["user_id"]) == ("<Hostile>",) * 3
    assert mock["event"].startswith("<Mock spec='str'")
    assert hostile["message_id"] != mock["message_id"], "receivers would drop the second as a repeat"


def test_a_client_returns_whether_it_stored_and_the_encoded_message() -> None:
    client = Client()
    answers = [
        client.track(USER, AnalyticsEvent.RUN_PIPELINE, {"a": 1}),
        client.identify(USER, {"a": 1}),
        client.group(USER, OTHER, {"a": 1}),
        client.alias(USER, OTHER),
    ]
    assert all(type(answer) is tuple and answer[0] is True for answer in answers)
    assert [json.loads(text) for _, text in answers] == stored()
    assert json.loads(answers[0][1])["event"] == "Pipeline run"


def test_a_client_that_does_not_send_returns_the_message_and_makes_no_directory(home: Path) -> None:
    client = Client(send=False)
    assert client.track(USER, "e", {"a": 1})[0] is True
    assert client.identify(USER, None)[0] is True
    assert client.group(USER, OTHER, None)[0] is True
    success, text = client.alias(USER, OTHER)
    assert success is True
    assert set(json.loads(text)) == KEYS["alias"]
    assert list(home.iterdir()) == []


@pytest.mark.parametrize("event", ["any string", AnalyticsEvent.RUN_PIPELINE, ""])
def test_an_event_is_any_string(event: str) -> None:
    assert outtray.track(event) is True
    assert stored()[0]["event"] == str.__str__(event)


def test_the_callers_dict_is_not_written_to() -> None:
    given = {"a": [1, {"b": 2}]}
    outtray.track("e", given)
    outtray.identify(given)
    outtray.group(OTHER, given)
    assert given == {"a": [1, {"b": 2}]}


def test_the_error_of_the_api_reads_as_upstreams_with_the_destinations_name() -> None:
    assert str(AnalyticsAPIError(500, "x")) == "[ZenML Analytics] 500: x"
    assert str(AnalyticsAPIError(500, "x", destination="Other")) == "[Other] 500: x"


def test_nothing_is_stored_and_no_directory_made_when_consent_is_denied(
    home: Path, run_python: Callable[..., CompletedProcess[str]]
) -> None:
    code = (
        "import outtray, uuid\n"
        "print(outtray.track('e'), outtray.identify({'a': 1}), outtray.group(uuid.uuid4()),"
        " outtray.alias(uuid.uuid4(), uuid.uuid4()))"
    )
    result = run_python("-c", code, OUTTRAY_CONSENT="denied")
    assert result.stdout.split() == ["False"] * 4
    assert result.stderr == ""
    assert list(home.iterdir()) == []


@pytest.mark.parametrize("suffix", ["", "/", "//"])
def test_post_joins_the_batch_into_one_array_at_one_slash_from_the_url(server: FakeServer, suffix: str) -> None:
    messages = [Client(send=False).alias(USER, OTHER)[1] for _ in range(3)]
    response = outtray.post(messages, url=server.url + suffix)
    assert response.status_code == 200
    (request,) = server.requests
    assert request.path == "/batch"
    assert [json.dumps(message) for message in server.received] == [json.dumps(json.loads(text)) for text in messages]
    headers = {name.lower(): value for name, value in request.headers.items()}
    assert headers["accept"] == "application/json"
    assert headers["content-type"] == "application/json"
    assert headers["source-context"] == "python"


def test_post_raises_the_api_error_for_any_other_status(server: FakeServer) -> None:
    server.set_mode(500, body="x")
    with pytest.raises(AnalyticsAPIError) as caught:
        outtray.post([Client(send=False).alias(USER, OTHER)[1]], url=server.url)
    assert caught.value.status == 500
    assert str(caught.value) == "[ZenML Analytics] 500: x"


def test_post_without_an_answer_raises_the_api_error_with_status_0(server: FakeServer) -> None:
    server.set_mode("refuse")
    with pytest.raises(AnalyticsAPIError) as caught:
        outtray.post(["{}"], url=server.url)
    assert caught.value.status == 0


def test_the_source_context_goes_out_with_a_post(server: FakeServer) -> None:
    token = outtray.source_context.set(SourceContext.CLI)
    try:
        outtray.post([Client(send=False).alias(USER, OTHER)[1]], url=server.url)
    finally:
        outtray.source_context.reset(token)
    assert {name.lower(): value for name, value in server.requests[0].headers.items()}["source-context"] == "cli"


# The module's functions never raise


class Hostile:
    """What every look at it makes fail."""

    def __getattribute__(self, name: str) -> Any:
        raise RuntimeError("hostile")

    def __repr__(self) -> str:
        raise RuntimeError("hostile")

    def __str__(self) -> str:
        raise RuntimeError("hostile")


HOSTILE: dict[str, Callable[[], Any]] = {  # made in the test: pytest looks at its parameters
    "object": Hostile,
    "number": lambda: 1,
    "bytes": lambda: b"x",
    "list": lambda: [1],
    "inside": lambda: {"a": Hostile()},
    "key": lambda: {Hostile(): 1},
    "class": lambda: object,
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_no_function_of_the_module_raises_for_what_it_is_given(kind: str) -> None:
    value = HOSTILE[kind]()
    assert outtray.track("e", value) is True
    assert outtray.identify(value) is True
    assert outtray.group(value, value) is True
    assert outtray.alias(value, value) is True
    assert outtray.track(value) is True
    assert outtray.track("e", user_id=value, message_id=value, timestamp=value) is True
    assert outtray.identify({}, user_id=value, message_id=value) is True
    assert outtray.flush(value).outcome in ("failed", "not configured", "timeout")


def test_status_says_what_is_wrong_with_an_outbox_and_the_next_message_goes_to_another_file(home: Path) -> None:
    directory = Path(paths.state_dir()) / "default"
    directory.mkdir(parents=True)
    (directory / "outbox-1-0.db").write_bytes(b"no database " * 1000)
    (directory / "outbox-1.gate").write_bytes(b"")
    found = outtray.status()
    assert "outbox-1-0.db" in found["error"]
    assert found["error"] in found["why"]
    assert found["pending"] is None, "unknown is not 0"
    assert outtray.track("e") is True
    found = outtray.status()
    assert (found["error"], found["pending"], found["ledger"]) == (None, 1, {"file_damaged": 1})


def test_flush_says_what_is_wrong_with_an_outbox_of_another_format_and_does_not_raise(home: Path) -> None:
    assert outtray.track("e") is True
    gate = Path(paths.state_dir()) / "default" / "outbox-1.gate"
    fields = list(Header.LAYOUT.unpack(gate.read_bytes()[: Header.LAYOUT.size]))
    fields[1] = 2
    data = Header.LAYOUT.pack(*fields)
    gate.write_bytes(data + zlib.crc32(data).to_bytes(4, "little"))
    assert outtray.track("e") is False
    assert outtray.flush(1).outcome == "failed"
    found = outtray.status()
    assert "use the newer release" in found["error"]
    assert gate.read_bytes().startswith(data), "left as it is"


def test_status_of_a_sound_outbox_has_no_error() -> None:
    outtray.track("e")
    found = outtray.status()
    assert found["error"] is None
    assert found["pending"] == 1


def test_functions_do_not_raise_where_the_folder_cannot_be_made(home: Path) -> None:
    (home / ".local").write_text("a file where a folder should be")
    assert outtray.track("e") is False
    assert outtray.identify({"a": 1}) is False
    assert outtray.flush(1).outcome in ("drained", "failed")
    assert isinstance(outtray.status(), dict)
    assert outtray.configure(app="default").reset_identity() in (True, False)


def test_a_deleted_working_directory_costs_no_exception(
    tmp_path: Path, run_python: Callable[..., CompletedProcess[str]]
) -> None:
    code = (
        "import os, tempfile\n"
        "gone = tempfile.mkdtemp(); os.chdir(gone); os.rmdir(gone)\n"
        "import outtray\n"
        "print(outtray.track('e'), outtray.flush(1).outcome, bool(outtray.status()['error']))"
    )
    result = run_python("-c", code, OUTTRAY_DIR="relative")
    assert result.stderr == ""
    assert result.stdout.split() == ["False", "failed", "True"]


def test_a_logging_handler_of_the_host_that_fails_does_not_reach_the_call() -> None:
    import logging

    class Broken(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            raise RuntimeError("the host's own fault")

    logger = logging.getLogger("outtray")
    handler = Broken()
    logger.addHandler(handler)
    try:
        assert outtray.track("x" * 3_000_000) is False
    finally:
        logger.removeHandler(handler)
