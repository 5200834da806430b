"""Helpers for application code: the decorator, the handler, the disabler, the answer to the e-mail prompt."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import json
import os
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest

import outtray
from outtray import paths, utils
from outtray.enums import AnalyticsEvent
from outtray.models import AnalyticsTrackedModelMixin
from outtray.outbox import look


class Model(AnalyticsTrackedModelMixin):
    ANALYTICS_FIELDS: ClassVar[list[str]] = ["kind"]

    kind: str
    secret: str = "hidden"


class Failing(AnalyticsTrackedModelMixin):
    def get_analytics_metadata(self) -> dict[str, Any]:
        raise RuntimeError("no metadata")


def stored(app: str = "default") -> list[dict[str, Any]]:
    """Return the stored messages of *app*, oldest first; empty if there is no outbox."""
    directory = Path(paths.state_dir()) / app
    if not directory.exists():
        return []
    with look.look(os.fspath(directory)) as view:
        return [json.loads(message.body) for message in reversed(view.page(limit=10_000))]


def outcomes() -> list[tuple[bool, str | None]]:
    """Return, for each stored event, whether it succeeded and the type of its error."""
    found = [message["properties"] for message in stored()]
    return [(properties["event_success"], properties.get("event_error_type")) for properties in found]


def kinds() -> list[str | None]:
    return [message["properties"].get("kind") for message in stored()]


# analytics_disabler


def test_nothing_is_stored_inside_the_disabler(home: Path) -> None:
    with outtray.analytics_disabler():
        assert outtray.track("e") is False
        assert outtray.identify({"a": 1}) is False
        assert outtray.Client().track("u", "e", {})[0] is False  # type: ignore[arg-type]
        with outtray.track_handler("e"):
            pass
    assert list(home.iterdir()) == []
    assert outtray.track("e") is True


def test_the_disabler_nests() -> None:
    with outtray.analytics_disabler():
        with outtray.analytics_disabler():
            assert outtray.track("inner") is False
        assert outtray.track("outer") is False
        assert utils.is_analytics_disabled_internally()
    assert not utils.is_analytics_disabled_internally()
    assert outtray.track("after") is True


def test_one_disabler_can_be_used_again_and_inside_itself() -> None:
    disabler = outtray.analytics_disabler()
    for _ in range(2):
        with disabler:
            with disabler:
                assert outtray.track("e") is False
            assert outtray.track("e") is False
        assert outtray.track("e") is True


def test_an_exception_ends_the_disabler_and_passes() -> None:
    with pytest.raises(ZeroDivisionError), outtray.analytics_disabler(), outtray.analytics_disabler():
        raise ZeroDivisionError
    assert outtray.track("e") is True


def test_the_disabler_of_one_thread_does_not_hold_another() -> None:
    disabler = outtray.analytics_disabler()
    inside, seen = threading.Event(), threading.Event()
    answers: dict[str, bool] = {}

    def disabled() -> None:
        with disabler:
            inside.set()
            seen.wait(20)
            answers["disabled"] = outtray.track("disabled")

    thread = threading.Thread(target=disabled)
    thread.start()
    assert inside.wait(20)
    answers["free"] = outtray.track("free")
    with disabler:
        seen.set()
        thread.join(20)
    answers["after"] = outtray.track("after")
    assert answers == {"disabled": False, "free": True, "after": True}


def test_the_disabler_holds_a_task_and_the_tasks_started_in_it_and_no_others() -> None:
    disabler = outtray.analytics_disabler()
    answers: dict[str, bool] = {}

    async def child() -> None:
        answers["child"] = outtray.track("child")

    async def disabled(entered: asyncio.Event, leave: asyncio.Event) -> None:
        with disabler:
            entered.set()
            await leave.wait()
            answers["task"] = outtray.track("task")
            await asyncio.create_task(child())
        answers["after"] = outtray.track("after")

    async def main() -> None:
        entered, leave = asyncio.Event(), asyncio.Event()
        task = asyncio.create_task(disabled(entered, leave))
        await entered.wait()
        answers["other"] = outtray.track("other")
        leave.set()
        await task

    asyncio.run(main())
    assert answers == {"other": True, "task": False, "child": False, "after": True}


# track_handler


def test_the_handler_tracks_success() -> None:
    given = {"a": 1}
    with outtray.track_handler(AnalyticsEvent.RUN_PIPELINE, given) as handler:
        handler.metadata["b"] = 2
        assert stored() == []
    (message,) = stored()
    assert message["event"] == "Pipeline run"
    assert {"a": 1, "b": 2, "event_success": True}.items() <= message["properties"].items()
    assert "event_error_type" not in message["properties"]
    assert given == {"a": 1}


def test_the_handler_tracks_the_type_of_an_error_and_lets_the_same_error_pass() -> None:
    error = KeyError("a")
    with pytest.raises(KeyError) as caught, outtray.track_handler("e", {"event_success": True}):
        raise error
    assert caught.value is error
    assert outcomes() == [(False, "KeyError")]


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit, asyncio.CancelledError])
def test_the_handler_lets_what_is_no_exception_pass(kind: type[BaseException]) -> None:
    with pytest.raises(kind), outtray.track_handler("e"):
        raise kind
    assert outcomes() == [(False, kind.__name__)]


def test_a_block_may_put_another_dict_into_the_handler_and_it_is_not_written_to() -> None:
    own = {"a": 1}
    with outtray.track_handler("e") as handler:
        handler.metadata = own
    assert own == {"a": 1}
    assert stored()[0]["properties"]["a"] == 1


@pytest.mark.parametrize("value", [None, 5, "text", [1, 2]])
def test_metadata_that_is_no_dict_costs_no_exception(value: Any) -> None:
    with outtray.track_handler("given", value):
        pass
    with outtray.track_handler("set") as handler:
        handler.metadata = value
    assert outcomes() == [(True, None), (True, None)]


def test_the_handler_and_the_decorator_can_be_given_a_tray(tmp_path: Path) -> None:
    tray = outtray.Tray(app="library")

    @outtray.track_decorator("decorated", tray=tray)
    def function() -> None: ...

    with outtray.track_handler("handled", tray=tray):
        function()
    assert [message["event"] for message in stored("library")] == ["decorated", "handled"]
    assert stored() == []
    tray.close()


# track_decorator


class Subject:
    """Every kind of method, with the decorator on either side."""

    @outtray.track_decorator("e")
    def method(self, model: Model, factor: int = 2) -> tuple[object, int]:
        """Do it."""
        return self, factor

    @classmethod
    @outtray.track_decorator("e")
    def class_inside(cls, model: Model, factor: int = 2) -> tuple[object, int]:
        """Do it."""
        return cls, factor

    @outtray.track_decorator("e")
    @classmethod
    def class_outside(cls, model: Model, factor: int = 2) -> tuple[object, int]:
        """Do it."""
        return cls, factor

    @staticmethod
    @outtray.track_decorator("e")
    def static_inside(model: Model, factor: int = 2) -> tuple[object, int]:
        """Do it."""
        return None, factor

    @outtray.track_decorator("e")
    @staticmethod
    def static_outside(model: Model, factor: int = 2) -> tuple[object, int]:
        """Do it."""
        return None, factor


@outtray.track_decorator("e")
def function(model: Model, factor: int = 2) -> tuple[object, int]:
    """Do it."""
    return None, factor


@outtray.track_decorator("e")
async def coroutine(model: Model, factor: int = 2) -> tuple[object, int]:
    """Do it."""
    await asyncio.sleep(0)
    return None, factor


@outtray.track_decorator("e")
def generator(model: Model, factor: int = 2) -> Iterator[int]:
    """Do it."""
    yield factor


@outtray.track_decorator("e")
async def stream(model: Model, factor: int = 2) -> AsyncIterator[int]:
    """Do it."""
    yield factor


@pytest.mark.parametrize("name", ["method", "class_inside", "class_outside", "static_inside", "static_outside"])
@pytest.mark.parametrize("through", ["instance", "class"])
def test_every_kind_of_method_can_be_decorated(name: str, through: str) -> None:
    subject = Subject()
    called_on: Any = subject if through == "instance" or name == "method" else Subject
    first, factor = getattr(called_on, name)(Model(kind=name), factor=3)
    expected = subject if name == "method" else Subject if name.startswith("class") else None
    assert first is expected
    assert factor == 3
    assert kinds() == [name]
    assert outcomes() == [(True, None)]


@pytest.mark.parametrize("decorated", [function, coroutine, generator, stream, Subject.method])
def test_a_decorated_function_still_looks_like_itself(decorated: Any) -> None:
    assert decorated.__doc__ == "Do it."
    parameters = [name for name in inspect.signature(decorated).parameters if name != "self"]
    assert parameters == ["model", "factor"]
    assert decorated.__name__ in ("function", "coroutine", "generator", "stream", "method")
    assert decorated.__module__ == __name__


def test_a_decorated_function_is_still_of_its_kind() -> None:
    assert inspect.iscoroutinefunction(coroutine)
    assert inspect.isgeneratorfunction(generator)
    assert inspect.isasyncgenfunction(stream)
    assert not inspect.iscoroutinefunction(function)
    assert not inspect.isgeneratorfunction(function)


def test_a_coroutine_is_tracked_when_it_ends() -> None:
    running = coroutine(Model(kind="async"))
    assert stored() == []
    assert asyncio.run(running) == (None, 2)
    assert kinds() == ["async"]


def test_a_cancelled_coroutine_is_a_failure_and_stays_cancelled() -> None:
    @outtray.track_decorator("e")
    async def endless() -> None:
        await asyncio.sleep(3600)

    async def main() -> None:
        task = asyncio.create_task(endless())
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())
    assert outcomes() == [(False, "CancelledError")]


def test_metadata_come_from_the_first_argument_that_has_some() -> None:
    @outtray.track_decorator("e")
    def call(*args: Any, **kwargs: Any) -> None: ...

    call(1, "x", Model(kind="first"), Model(kind="second"))
    call(1, by_name=Model(kind="by name"))
    call(1)
    assert kinds() == ["first", "by name", None]
    assert "secret" not in stored()[0]["properties"]


def test_the_result_wins_over_the_argument() -> None:
    class Wide(AnalyticsTrackedModelMixin):
        ANALYTICS_FIELDS: ClassVar[list[str]] = ["kind", "only_argument", "missing"]
        kind: str = "argument"
        only_argument: int = 1

    @outtray.track_decorator("e")
    def call(model: Wide) -> Model:
        return Model(kind="result")

    call(Wide())
    properties = stored()[0]["properties"]
    assert properties["kind"] == "result"
    assert properties["only_argument"] == 1
    assert properties["missing"] is None


def test_metadata_that_fail_cost_the_metadata_and_not_the_call() -> None:
    @outtray.track_decorator("e")
    def call(model: Failing) -> Failing:
        return model

    model = Failing()
    assert call(model) is model
    assert outcomes() == [(True, None)]


@pytest.mark.parametrize("given", [None, 5, "text", [1]])
def test_metadata_that_are_no_dict_cost_no_exception(given: Any) -> None:
    class Odd(AnalyticsTrackedModelMixin):
        def get_analytics_metadata(self) -> dict[str, Any]:
            return given  # type: ignore[no-any-return]

    @outtray.track_decorator("e")
    def call(model: Odd) -> str:
        return "result"

    assert call(Odd()) == "result"
    assert outcomes() == [(True, None)]


def test_an_exception_passes_unchanged_and_its_type_is_tracked() -> None:
    error = LookupError("mine")

    @outtray.track_decorator("e")
    def call(model: Model) -> None:
        raise error

    with pytest.raises(LookupError) as caught:
        call(Model(kind="k"))
    assert caught.value is error
    assert outcomes() == [(False, "LookupError")]
    assert kinds() == ["k"]


def test_an_exception_of_a_coroutine_passes_unchanged() -> None:
    error = LookupError("mine")

    @outtray.track_decorator("e")
    async def call() -> None:
        raise error

    with pytest.raises(LookupError) as caught:
        asyncio.run(call())
    assert caught.value is error
    assert outcomes() == [(False, "LookupError")]


# Generators


@outtray.track_decorator("e")
def echo(log: list[Any]) -> Any:
    """Yield what is sent, note what is thrown, return the log."""
    received = None
    try:
        while received != "stop":
            try:
                received = yield received
            except ValueError as error:
                log.append(error)
                received = "caught"
    finally:
        log.append("closed")
    return Model(kind="returned")


def test_a_generator_is_tracked_when_it_is_exhausted() -> None:
    @outtray.track_decorator("e")
    def numbers() -> Iterator[int]:
        yield from range(3)

    running = numbers()
    assert next(running) == 0
    assert stored() == []
    assert list(running) == [1, 2]
    assert outcomes() == [(True, None)]


def test_send_throw_and_the_return_value_go_through() -> None:
    log: list[Any] = []
    running = echo(log)
    assert next(running) is None
    assert running.send("a") == "a"
    error = ValueError("thrown in")
    assert running.throw(error) == "caught"
    assert log == [error]
    with pytest.raises(StopIteration) as ended:
        running.send("stop")
    assert ended.value.value == Model(kind="returned")
    assert outcomes() == [(True, None)]
    assert kinds() == ["returned"]


def test_a_generator_that_is_closed_early_is_closed_and_has_not_failed() -> None:
    log: list[Any] = []
    running = echo(log)
    next(running)
    running.close()
    assert log == ["closed"]
    assert outcomes() == [(True, None)]


def test_a_generator_that_raises_has_failed() -> None:
    log: list[Any] = []
    running = echo(log)
    next(running)
    with pytest.raises(KeyError):
        running.throw(KeyError("not for it"))
    assert log == ["closed"]
    assert outcomes() == [(False, "KeyError")]


def test_a_generator_that_never_began_is_not_tracked() -> None:
    echo([]).close()
    assert stored() == []


def test_a_decorated_generator_can_be_a_context_manager() -> None:
    log: list[str] = []

    @contextlib.contextmanager
    @outtray.track_decorator("e")
    def block() -> Iterator[str]:
        try:
            yield "inside"
        except KeyError:
            log.append("handled")

    with block() as value:
        assert value == "inside"
        raise KeyError
    assert log == ["handled"]
    assert outcomes() == [(True, None)]


# Asynchronous generators


@outtray.track_decorator("e")
async def async_echo(log: list[Any], model: Model | None = None) -> Any:
    """Yield what is sent, note what is thrown."""
    received = None
    try:
        while received != "stop":
            try:
                received = yield received
            except (ValueError, asyncio.CancelledError) as error:
                log.append(error)
                received = "caught"
    finally:
        log.append("closed")


def run(main: Callable[[], Any]) -> Any:
    return asyncio.run(main())


def test_an_asynchronous_generator_is_tracked_when_it_is_exhausted() -> None:
    async def main() -> list[int]:
        return [number async for number in stream(Model(kind="stream"), 5)]

    assert run(main) == [5]
    assert outcomes() == [(True, None)]
    assert kinds() == ["stream"]


@pytest.mark.parametrize("kind", [ValueError, asyncio.CancelledError])
def test_send_and_throw_go_through_an_asynchronous_generator(kind: type[BaseException]) -> None:
    log: list[Any] = []
    error = kind("thrown in")

    async def main() -> None:
        running = async_echo(log)
        assert await anext(running) is None
        assert await running.asend("a") == "a"
        assert await running.athrow(error) == "caught"
        assert log == [error]
        with pytest.raises(StopAsyncIteration):
            await running.asend("stop")

    run(main)
    assert log == [error, "closed"]
    assert outcomes() == [(True, None)]


def test_an_asynchronous_generator_that_is_closed_early_is_closed_and_has_not_failed() -> None:
    log: list[Any] = []

    async def main() -> None:
        running = async_echo(log)
        await anext(running)
        await running.aclose()

    run(main)
    assert log == ["closed"]
    assert outcomes() == [(True, None)]


def test_an_asynchronous_generator_that_raises_has_failed() -> None:
    log: list[Any] = []
    error = KeyError("not for it")

    async def main() -> None:
        running = async_echo(log)
        await anext(running)
        with pytest.raises(KeyError) as caught:
            await running.athrow(error)
        assert caught.value is error

    run(main)
    assert log == ["closed"]
    assert outcomes() == [(False, "KeyError")]


def test_a_decorated_asynchronous_generator_can_be_a_context_manager() -> None:
    log: list[str] = []

    @contextlib.asynccontextmanager
    @outtray.track_decorator("e")
    async def block() -> AsyncIterator[str]:
        try:
            yield "inside"
        except asyncio.CancelledError:
            log.append("cancelled")
            raise

    async def main() -> None:
        with pytest.raises(asyncio.CancelledError):
            async with block():
                raise asyncio.CancelledError

    run(main)
    assert log == ["cancelled"]
    assert outcomes() == [(False, "CancelledError")]


# When tracking itself cannot work


def test_a_decorated_function_works_where_nothing_can_be_stored(home: Path) -> None:
    (home / ".local").write_text("a file where a folder should be")
    assert function(Model(kind="k")) == (None, 2)
    assert asyncio.run(coroutine(Model(kind="k"))) == (None, 2)
    assert list(generator(Model(kind="k"))) == [2]


# email_opt_int


def test_an_opt_in_with_an_email_identifies_and_tracks() -> None:
    outtray.email_opt_int(opted_in=True, email="a@example.org", source="zenml go")
    identified, tracked = stored()
    assert identified["type"] == "identify"
    assert identified["traits"] == {"email": "a@example.org", "source": "zenml go"}
    assert tracked["event"] == "Response for Email prompt"
    assert {"opted_in": True, "source": "zenml go"}.items() <= tracked["properties"].items()


@pytest.mark.parametrize(("opted_in", "email"), [(False, "a@example.org"), (True, None), (True, ""), (False, None)])
def test_without_opt_in_or_email_only_the_answer_is_tracked(opted_in: bool, email: str | None) -> None:
    outtray.email_opt_int(opted_in, email, "zenml server")
    (tracked,) = stored()
    assert tracked["type"] == "track"
    assert tracked["properties"]["opted_in"] is opted_in
    assert "a@example.org" not in json.dumps(tracked)
