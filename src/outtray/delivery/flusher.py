"""The one background thread of an outbox: it syncs what was accepted, delivers it, and ends with the program."""

from __future__ import annotations

import atexit
import os
import threading
import time
from queue import Empty, SimpleQueue

from outtray import consent, journal
from outtray.errors import OuttrayError
from outtray.forking import importing

TYPE_CHECKING = False
if TYPE_CHECKING:
    from outtray.outbox.store import Outbox
    from outtray.settings import Settings

SYNC_WITHIN = 0.8
"""Seconds after which what was accepted is synced, at most; the promise is one second."""

LEAVE_WITHIN = 0.04
"""Seconds that the end of the program waits for an answer on its way."""

PRUNE_EVERY = 60.0
"""Seconds between two looks for delivered messages that are past their retention."""


class Flusher:
    """Delivers the messages of *outbox* in the background, in the way that `settings.flush` says.

    The thread starts with the first `wake` and is a daemon; in the modes "exit" and "manual" it only syncs.
    """

    def __init__(self, outbox: Outbox, settings: Settings) -> None:
        self.settings = settings
        self._outbox = outbox
        self._is_registered = False
        self._thread: threading.Thread | None = None
        self._accepted: SimpleQueue[None] = SimpleQueue()
        self._stopped = threading.Event()
        self._starting = threading.Lock()
        self._next_prune = 0.0

    def wake(self) -> None:
        """Say that a message was accepted."""
        if self._thread is None:
            self._start()
        if self._accepted.empty():
            self._accepted.put(None)  # unlike Event.set, this may come in on top of itself, in a signal handler

    def stop(self, *, leaving: bool = False) -> None:
        """End the thread, sync, and close the outbox; with *leaving* for good, as the interpreter ends.

        In the mode "exit" a program that stored something then leaves a detached flush behind. An answer on
        its way is waited for during `LEAVE_WITHIN`.
        """
        thread, self._thread = self._thread, None
        self._stopped.set()
        self._accepted.put(None)
        if thread is not None:
            thread.join(LEAVE_WITHIN)
        try:
            self._sync_if_needed()
            if thread is not None and self.settings.flush == "exit" and self._may_send():
                from outtray.delivery import detached

                detached.launch(self._outbox, self.settings)
            self._outbox.close(leaving=leaving)
        except (OuttrayError, OSError) as error:
            journal.failed("closing the outbox", error)

    def after_fork_in_child(self) -> None:
        """Forget the parent's thread; the child's first message starts one."""
        self._thread = None
        self._accepted = SimpleQueue()
        self._stopped = threading.Event()
        self._starting = threading.Lock()

    def _start(self) -> None:
        if not self._starting.acquire(blocking=False):
            return  # another thread is at it, or this one is, below a signal handler
        try:
            if self._thread is None:
                self._register()
                self._stopped = threading.Event()
                thread = threading.Thread(target=self._run, args=(self._stopped,), name="outtray-flusher", daemon=True)
                thread.start()
                self._thread = thread
        except RuntimeError as error:  # the interpreter is ending: the outbox syncs when it closes
            journal.failed("starting the background thread", error)
        finally:
            self._starting.release()

    def _register(self) -> None:
        if not self._is_registered:
            atexit.register(self.stop, leaving=True)
            self._is_registered = True

    def _run(self, stopped: threading.Event) -> None:
        wait: float | None = None
        while not stopped.is_set():
            self._wait_for_message(wait)
            stopped.wait(min(self.settings.flush_interval, SYNC_WITHIN))
            if stopped.is_set():
                return
            while not self._accepted.empty():
                self._accepted.get()
            try:
                self._sync_if_needed()
                wait = self._deliver(stopped) if self.settings.flush == "thread" and self._may_send() else None
            except Exception as error:  # a thread that ends here would end delivery for the program's life
                journal.failed("delivering in the background", error)
                wait = self.settings.timeout

    def _wait_for_message(self, seconds: float | None) -> None:
        try:
            self._accepted.get(timeout=seconds)
        except Empty:
            return  # a stored wait is over

    def _deliver(self, stopped: threading.Event) -> float | None:
        """Drain what is due and return the seconds to wait, None until the next message."""
        with importing:
            from outtray.delivery.drain import Drain, delivery_settings
            from outtray.delivery.lock import DrainLock
            from outtray.outbox.upkeep import prune

        if self.settings.url is None and not delivery_settings(self._outbox).get("url"):
            return None
        lock = DrainLock(self._outbox.directory)

        def meanwhile() -> None:
            lock.beat()
            self._sync_if_needed()

        try:
            if not lock.try_acquire():
                return self.settings.flush_interval
            drain = Drain(self._outbox, self.settings, meanwhile=meanwhile, is_leaving=stopped.is_set)
            wait: float | None = 0.0
            while wait == 0.0 and not stopped.is_set():
                wait = drain.step()
                meanwhile()
        finally:
            lock.release()
        if drain.delivered and (time.monotonic() >= self._next_prune or self.settings.retention == 0):
            self._next_prune = time.monotonic() + PRUNE_EVERY
            prune(self._outbox, retention=self.settings.retention)
        return wait

    def _sync_if_needed(self) -> None:
        if self._outbox.unsynced:
            self._outbox.sync()

    def _may_send(self) -> bool:
        return consent.decide(self.settings).state == consent.GRANTED


_shared: dict[str, Flusher] = {}


def shared(outbox: Outbox, settings: Settings) -> Flusher:
    """Return this process's one flusher for *outbox*, now with *settings*."""
    flusher = _shared.get(outbox.directory)
    if flusher is None:
        flusher = _shared.setdefault(outbox.directory, Flusher(outbox, settings))
    flusher.settings = settings
    return flusher


def _after_fork_in_child() -> None:
    for flusher in list(_shared.values()):
        flusher.after_fork_in_child()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
