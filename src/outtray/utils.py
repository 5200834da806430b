"""Helpers for application code: tracking by decorator and by context manager, and switching it off."""

from __future__ import annotations

import functools
import inspect
import sys
from typing import TYPE_CHECKING, Any, TypeVar, cast

from outtray import consent, journal, tray
from outtray.encoding import AnalyticsEncoder, as_properties
from outtray.enums import AnalyticsEvent
from outtray.errors import AnalyticsAPIError

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Generator
    from types import TracebackType

    from outtray.tray import Tray

__all__ = [
    "AnalyticsAPIError",
    "AnalyticsEncoder",
    "analytics_disabler",
    "email_opt_int",
    "is_analytics_disabled_internally",
    "track_decorator",
    "track_handler",
]

F = TypeVar("F", bound="Callable[..., Any]")


def email_opt_int(opted_in: bool, email: str | None, source: str) -> None:
    """Track the answer to the prompt for an e-mail address, and identify the user who opted in with one.

    *source* says where the user answered, such as "zenml go" or "zenml server".
    """
    if opted_in and email:
        tray.default_tray.identify({"email": email, "source": source})
    tray.default_tray.track(AnalyticsEvent.OPT_IN_OUT_EMAIL, {"opted_in": opted_in, "source": source})


class analytics_disabler:  # noqa: N801 - the seed's name
    """A context manager inside which nothing is stored, in this thread or task and the tasks started in it.

    It nests, one instance may be used again and at once in many threads, and an exception ends it as well.
    """

    def __enter__(self) -> None:
        consent.disabled.set(consent.disabled.get() + 1)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        consent.disabled.set(max(0, consent.disabled.get() - 1))


def is_analytics_disabled_internally() -> bool:
    """Return whether the caller is inside an `analytics_disabler`."""
    return consent.disabled.get() > 0


class track_handler:  # noqa: N801 - the seed's name
    """A context manager that tracks *event* when its block ends, with whether and how it failed.

    Adds `event_success` and, after an exception, `event_error_type` to *metadata* (a copy of what was given;
    the block may add to it). Never swallows the exception. *tray* is by default the default one.
    """

    def __init__(
        self, event: AnalyticsEvent | str, metadata: dict[str, Any] | None = None, *, tray: Tray | None = None
    ) -> None:
        self.event = event
        self.metadata = as_properties(metadata)
        self._tray = tray

    def __enter__(self) -> track_handler:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        failed = kind is not None and kind is not GeneratorExit  # a generator that is closed early has not failed
        outcome: dict[str, Any] = {"event_success": not failed}
        if failed and kind is not None:
            outcome["event_error_type"] = kind.__name__
        # The block may have put a dict of its own, or something else, into the attribute.
        (self._tray or tray.default_tray).track(self.event, {**as_properties(self.metadata), **outcome})


def track_decorator(event: AnalyticsEvent | str, *, tray: Tray | None = None) -> Callable[[F], F]:
    """Return a decorator that tracks *event* at each call of a function, method, coroutine or generator.

    The metadata come from the first argument, then from the result (which wins), that is an
    `AnalyticsTrackedModelMixin`. A generator's call lasts until it is exhausted or closed. Stands above or
    below `classmethod` and `staticmethod`.
    """

    def decorate(function: F) -> F:
        if isinstance(function, (classmethod, staticmethod)):
            return cast("F", type(function)(decorate(function.__func__)))
        return cast("F", _wrapped(function, lambda: track_handler(event, tray=tray)))

    return decorate


def _wrapped(function: Callable[..., Any], handler: Callable[[], track_handler]) -> Callable[..., Any]:
    if inspect.isasyncgenfunction(function):

        @functools.wraps(function)
        async def stream(*args: Any, **kwargs: Any) -> AsyncGenerator[Any, Any]:
            with handler() as tracked:
                _describe(tracked, *args, *kwargs.values())
                inner = function(*args, **kwargs)
                try:
                    item = await anext(inner)
                    while True:
                        try:
                            answer = yield item
                        except GeneratorExit:
                            raise
                        except BaseException as error:  # thrown in by the consumer: the generator's to deal with
                            item = await inner.athrow(error)
                        else:
                            item = await inner.asend(answer)
                except StopAsyncIteration:
                    return
                finally:
                    await inner.aclose()

        return stream
    if inspect.isgeneratorfunction(function):

        @functools.wraps(function)
        def generate(*args: Any, **kwargs: Any) -> Generator[Any, Any, Any]:
            with handler() as tracked:
                _describe(tracked, *args, *kwargs.values())
                result = yield from function(*args, **kwargs)
                _describe(tracked, result)
                return result

        return generate
    if inspect.iscoroutinefunction(function):

        @functools.wraps(function)
        async def coroutine(*args: Any, **kwargs: Any) -> Any:
            with handler() as tracked:
                _describe(tracked, *args, *kwargs.values())
                result = await function(*args, **kwargs)
                _describe(tracked, result)
                return result

        return coroutine

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        with handler() as tracked:
            _describe(tracked, *args, *kwargs.values())
            result = function(*args, **kwargs)
            _describe(tracked, result)
            return result

    return call


def _describe(tracked: track_handler, *candidates: Any) -> None:
    """Add the metadata of the first candidate that is a tracked model; a failing one costs its metadata only."""
    models = sys.modules.get("outtray.models")
    if models is None:  # not loaded, so nothing can be an instance of its class
        return
    try:
        for candidate in candidates:
            if isinstance(candidate, models.AnalyticsTrackedModelMixin):
                tracked.metadata.update(candidate.get_analytics_metadata())
                return
    except Exception as error:  # the model's own code
        journal.failed("describing a model", error)
