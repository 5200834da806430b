"""Which outboxes a command is about, and what lies in them."""

from __future__ import annotations

import os
import time
from contextlib import closing, contextmanager

from outtray.cli.exits import UsageError
from outtray.cli.output import say
from outtray.consent import stored
from outtray.delivery.target import delivery_settings
from outtray.errors import DiskFull, OutboxBusy, OutboxDamaged, OutboxError, SettingsError
from outtray.options import checked, named
from outtray.outbox import look
from outtray.outbox.connection import translated
from outtray.outbox.files import exists, has_outbox
from outtray.outbox.transaction import ERASING
from outtray.settings import resolve

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Iterator
    from typing import Any

    from outtray.outbox.look import StoredMessage
    from outtray.outbox.store import Outbox
    from outtray.settings import Settings

BETWEEN_PAGES = 0.002
"""Seconds in which the gate is left to others before the next page is read."""


def chosen(arguments: argparse.Namespace, **options: Any) -> list[Settings]:
    """Return the settings of the app that was named (--app, OUTTRAY_APP), else of every outbox of this user.

    *options* are settings given on the command line; None is not given. The list is empty if there is no outbox.
    Raises OutboxUnusable where there could never be one.
    """
    options = {"dir": arguments.dir, **options}
    base = resolve({"app": arguments.app, **options})
    if base.sources["app"] == "default" and (names := apps(base.dir)):
        return [resolve({"app": app, **options}) for app in names]
    return [base] if exists(base.directory) else []


def to_examine(arguments: argparse.Namespace) -> list[Settings]:
    """Return the settings of the app that was named, else of all that has, or had, or should have, an outbox.

    That is more than `chosen`: also a link, what is left of an outbox, and one of a newer release. Raises
    OutboxUnusable where there is none of it, and could never be one.
    """
    base = resolve({"app": arguments.app, "dir": arguments.dir})
    if base.sources["app"] == "default":
        found = [resolve({"app": app, "dir": arguments.dir}) for app in _apps(base.dir, _has_traces)]
    else:
        found = [base] if os.path.lexists(base.directory) else []
    return found or ([base] if exists(base.directory) else [])


def the_one(arguments: argparse.Namespace) -> Settings:
    """Return the settings of the one outbox that is meant, which need not exist. Raises UsageError if several are."""
    base = resolve({"app": arguments.app, "dir": arguments.dir})
    found = chosen(arguments)
    if len(found) > 1:
        raise _several(base.dir, [settings.app for settings in found])
    if found:
        return _told(found[0])
    _told(base)
    named = base.sources["app"] != "default"
    say(f"there is no outbox in {base.dir}" + (f" for {base.app!r}" if named else ""))
    return base


def the_application(arguments: argparse.Namespace) -> Settings:
    """Return the settings of the one application that is meant: the named one, even if it has nothing here yet.

    Else the only one that has an outbox or a choice of consent. Raises UsageError if several have.
    """
    base = resolve({"app": arguments.app, "dir": arguments.dir})
    if base.sources["app"] != "default":
        return _told(base)
    names = apps(base.dir, or_choice=True)
    if len(names) > 1:
        raise _several(base.dir, names)
    return _told(resolve({"app": names[0], "dir": arguments.dir}) if names else base)


def _told(settings: Settings) -> Settings:
    """Say what is wrong in environment and config file, and return *settings*."""
    for problem in settings.problems:
        say(f"outtray: {problem}")
    return settings


def _several(folder: str, names: list[str]) -> UsageError:
    return UsageError(f"there are several outboxes in {folder}, choose one with --app: {', '.join(names)}")


def apps(folder: str, *, or_choice: bool = False) -> list[str]:
    """Return the names of the applications that have an outbox in *folder*, usable or not, sorted.

    With *or_choice* also of those that have only the user's choice of consent. Raises OutboxError.
    """
    return _apps(folder, lambda directory: has_outbox(directory) or (or_choice and stored(directory) is not None))


def effective(settings: Settings) -> Settings:
    """Return *settings* with what the host stored for drainers. Raises OutboxError."""
    if not exists(settings.directory):
        return settings
    with look.look(settings.directory) as view:
        return settings.over(delivery_settings(view))


def newest_first(
    settings: Settings,
    *,
    state: str | None = None,
    event: str | None = None,
    message_id: str | None = None,
    since: float = 0.0,
) -> Iterator[StoredMessage]:
    """Give the messages, newest first, read a page at a time: whoever tracks goes in between. Raises OutboxError."""
    before_id: int | None = 2**62
    while before_id is not None and exists(settings.directory):
        with look.look(settings.directory) as view:
            page = view.some(state=state, event=event, message_id=message_id, since=since, before_id=before_id)
        yield from page.messages
        before_id = page.next_before_id
        time.sleep(BETWEEN_PAGES)


def find(settings: Settings, id: str) -> list[StoredMessage]:
    """Return the message with this id or message_id, once for each destination; empty if there is none.

    Raises OutboxError.
    """
    if id.isdecimal() and len(id) < 19 and exists(settings.directory):
        with look.look(settings.directory) as view:
            found = view.find(int(id))
        if found:
            return found
    return list(newest_first(settings, message_id=id))


def unread(settings: Settings) -> str:
    """Return words for what a count of messages leaves out, "" where that is nothing, or cannot be told.

    Raises OutboxUnusable where there could never be an outbox.
    """
    if not exists(settings.directory):
        return ""
    from outtray.delivery.status import unsalvaged

    try:
        with look.look(settings.directory) as view:
            is_all = not unsalvaged(settings.directory, view)
    except OutboxError as error:  # whoever goes on will say what else is wrong
        is_all = not isinstance(error, OutboxDamaged)
    return "" if is_all else " and what damaged files hold (not counted)"


def is_erasing(settings: Settings) -> bool:
    """Tell whether an erasure has begun and is not through. Raises OutboxError."""
    with look.look(settings.directory) as view:
        return view.meta(ERASING) is not None


def cause(error: OutboxError) -> str:
    """Return why an erasure is not through; a full disk in words that do not say that all is kept."""
    return "there is no room on the disk" if isinstance(error, DiskFull) else str(error)


@contextmanager
def opened(settings: Settings) -> Iterator[Outbox]:
    """Give the outbox for changing it, and close it afterwards. Raises OutboxError; a busy one with who keeps it."""
    from outtray.outbox import shared  # which loads all that changes an outbox

    try:
        with closing(shared.of(settings)) as outbox:
            yield outbox
    except OutboxBusy as error:
        from outtray.cli import processes

        raise processes.explained(error, settings.directory) from error


def _apps(folder: str, is_one: Callable[[str], bool]) -> list[str]:
    """Return the names in *folder* that can be an app's and whose directory *is_one*, sorted. Raises OutboxError."""
    if not os.path.isdir(folder):
        return []
    try:
        names = os.listdir(folder)
    except OSError as error:
        raise translated(error, folder) from error
    return sorted(name for name in names if _is_app(name) and _is(is_one, os.path.join(folder, name)))


def _is(is_one: Callable[[str], bool], directory: str) -> bool:
    try:
        return is_one(directory)
    except OSError:
        return True  # whoever uses it will say what is wrong with it


def _has_traces(directory: str) -> bool:
    if os.path.islink(directory):
        return True
    return os.path.isdir(directory) and any(name.startswith("outbox-") for name in os.listdir(directory))


def _is_app(name: str) -> bool:
    try:
        checked(named("app"), name)
    except SettingsError:
        return False
    return True
