"""Which outboxes a command is about, and what lies in them."""

from __future__ import annotations

import argparse
import os
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from outtray.cli.arguments import setting
from outtray.cli.exits import UsageError
from outtray.cli.output import say
from outtray.delivery.drain import delivery_settings
from outtray.outbox import look, store
from outtray.outbox.files import exists
from outtray.settings import resolve

if TYPE_CHECKING:
    from collections.abc import Iterator

    from outtray.outbox.look import StoredMessage
    from outtray.outbox.store import Outbox
    from outtray.settings import Settings

read_app = setting("app")

PAGE = 100
"""Messages read at once: the gate is held meanwhile, and each of them may have a megabyte."""


def chosen(arguments: argparse.Namespace, **options: Any) -> list[Settings]:
    """Return the settings of the app that was named (--app, OUTTRAY_APP), else of every outbox of this user.

    *options* are settings given on the command line; None is not given. The list is empty if there is no outbox.
    """
    options = {"dir": arguments.dir, **options}
    base = resolve({"app": arguments.app, **options})
    if base.sources["app"] != "default":
        return [base] if exists(base.directory) else []
    return [resolve({"app": app, **options}) for app in apps(base.dir)]


def the_one(arguments: argparse.Namespace) -> Settings:
    """Return the settings of the one outbox that is meant, which need not exist. Raises UsageError if several are."""
    base = resolve({"app": arguments.app, "dir": arguments.dir})
    for problem in base.problems:
        say(f"outtray: {problem}; the default stands")
    found = chosen(arguments)
    if len(found) > 1:
        names = ", ".join(settings.app for settings in found)
        raise UsageError(f"there are several outboxes in {found[0].dir}, choose one with --app: {names}")
    if found:
        return found[0]
    named = base.sources["app"] != "default"
    say(f"there is no outbox in {base.dir}" + (f" for {base.app!r}" if named else ""))
    return base


def apps(folder: str) -> list[str]:
    """Return the names of the applications that have an outbox in *folder*, sorted. Raises OSError."""
    if not os.path.isdir(folder):
        return []
    return sorted(name for name in os.listdir(folder) if _is_app(name) and exists(os.path.join(folder, name)))


def effective(settings: Settings) -> Settings:
    """Return *settings* with what the host stored for drainers. Raises OutboxError."""
    if not exists(settings.directory):
        return settings
    with look.look(settings.directory) as view:
        return settings.over(delivery_settings(view))


def newest_first(
    settings: Settings, *, state: str | None = None, event: str | None = None, since: float = 0.0
) -> Iterator[StoredMessage]:
    """Give the messages, newest first, read a page at a time. Raises OutboxError."""
    before_id = 2**62
    while exists(settings.directory):
        with look.look(settings.directory) as view:
            page = view.page(state=state, event=event, since=since, before_id=before_id, limit=PAGE)
        yield from page
        if len(page) < PAGE:
            return
        before_id = page[-1].id


@contextmanager
def opened(settings: Settings) -> Iterator[Outbox]:
    """Give the outbox for changing it, and close it afterwards. Raises OutboxError."""
    outbox = store.shared(settings.directory, destination=settings.destination, max_bytes=settings.max_bytes)
    try:
        yield outbox
    finally:
        outbox.close()


def _is_app(name: str) -> bool:
    try:
        read_app(name)
    except argparse.ArgumentTypeError:
        return False
    return True
