"""The one background thread of an outbox: it syncs what was accepted, delivers it, and ends with the program."""

from __future__ import annotations

import atexit
import threading
import time
from queue import Empty, SimpleQueue

from outtray import consent, forking, journal
from outtray.errors import OutboxDamaged, OuttrayError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import FrameType

    from outtray.outbox.store import Outbox
    from outtray.settings import Settings

SYNC_WITHIN = 0.5
"""Seconds after which what was accepted is synced, at most; the promise is one second."""

LEAVE_WITHIN = 0.02
"""Seconds that the end of the program waits for an answer on its way."""

WRITE_WITHIN = 2.0
"""Seconds that closing waits, beyond the deadline of a request, for its outcome to be written down."""

LOOK_AGAIN = 0.1
"""Seconds between two tries to drain, at least, while somebody else does."""

TIDY_EVERY = 60.0
"""Seconds between two looks for what is to be tidied, such as delivered messages that are past their retention."""


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
        self._stopped = threading.Event()  # the thread begins nothing new
        self._leaving = threading.Event()  # and writes nothing down any more
        self._starting = threading.Lock()
        self._next_tidy = 0.0
        self._waits_until: float | None = None  # the moment of the stored wait, and on the monotonic clock
        self._due = 0.0

    def wake(self) -> None:
        """Say that a message was accepted."""
        if self._thread is None:
            self._start()
        if self._accepted.empty():
            self._accepted.put(None)  # unlike Event.set, this may come in on top of itself, in a signal handler

    def stop(self, *, leaving: bool = False) -> None:
        """End the thread, sync, and close the outbox; with *leaving* for good, as the interpreter ends.

        In the mode "exit" a program that stored something then leaves a detached flush behind. An answer on
        its way is waited for, as long as `settings.timeout` gives it, or with *leaving* `LEAVE_WITHIN`.
        """
        thread, self._thread = self._thread, None
        self._stopped.set()
        self._accepted.put(None)
        if thread is not None:
            thread.join(LEAVE_WITHIN if leaving else self.settings.timeout + WRITE_WITHIN)
        self._leaving.set()
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
        self._stopped, self._leaving = threading.Event(), threading.Event()
        self._starting = threading.Lock()

    def _start(self) -> None:
        starting = self._starting  # which a child forked in here by a signal handler has anew
        if not starting.acquire(blocking=False):
            return  # another thread is at it, or this one is, below a signal handler
        try:
            if self._thread is None:
                self._register()
                self._stopped, self._leaving = events = threading.Event(), threading.Event()
                thread = threading.Thread(target=self._run, args=events, name="outtray-flusher", daemon=True)
                thread.start()
                if self._stopped is events[0]:  # or it is the parent's
                    self._thread = thread
        except RuntimeError as error:  # the interpreter is ending: the outbox syncs when it closes
            journal.failed("starting the background thread", error)
        finally:
            starting.release()

    def _register(self) -> None:
        if not self._is_registered:
            atexit.register(self.stop, leaving=True)
            self._is_registered = True

    def _run(self, stopped: threading.Event, leaving: threading.Event) -> None:
        wait: float | None = None
        while not stopped.is_set():
            is_new = self._is_message_within(wait)
            try:
                if is_new:
                    self._gather(stopped)
                if stopped.is_set():
                    return
                while not self._accepted.empty():
                    self._accepted.get()
                self._sync_if_needed()
                may_send = self.settings.flush == "thread" and self._may_send()
                wait = self._deliver(stopped, leaving) if may_send else None
                if not stopped.is_set():
                    self._tidy_if_due()
            except OutboxDamaged as error:
                journal.failed("delivering in the background", error)
                wait = 0.0  # it goes on in a new generation
            except Exception as error:  # a thread that ends here would end delivery for the program's life
                journal.failed("delivering in the background", error)
                wait = self.settings.timeout

    def _is_message_within(self, seconds: float | None) -> bool:
        """Wait for a message, for ever with None; False if the *seconds* of a stored wait are over before."""
        try:
            self._accepted.get(timeout=seconds)
        except Empty:
            return False
        return True

    def _gather(self, stopped: threading.Event) -> None:
        """Let `flush_interval` pass from the first message on, and sync what is accepted in it."""
        interval = self.settings.flush_interval if self.settings.flush == "thread" else SYNC_WITHIN
        end = time.monotonic() + interval
        while (left := end - time.monotonic()) > 0 and not stopped.wait(min(left, SYNC_WITHIN)):
            self._sync_if_needed()

    def _deliver(self, stopped: threading.Event, leaving: threading.Event) -> float | None:
        """Drain what is due by now and return the seconds to wait, None until the next message.

        What is accepted meanwhile is gathered again: chasing it would post a few messages at a time.
        """
        with forking.importing:
            from contextlib import closing

            from outtray.delivery.drain import Drain
            from outtray.delivery.lock import DrainLock
            from outtray.delivery.target import delivery_settings
            from outtray.outbox.recovery import salvage_if_possible

        lock = DrainLock(self._outbox.directory)

        def go_on() -> bool:
            self._sync_if_needed()
            return lock.beat() and not stopped.is_set() and self._may_send()

        try:
            if not lock.try_acquire():
                return max(self.settings.flush_interval, LOOK_AGAIN)
            salvage_if_possible(self._outbox, go_on)
            if self.settings.url is None and not delivery_settings(self._outbox).get("url"):
                return None
            slept_out = self._waits_until if time.monotonic() >= self._due else None
            drain = Drain(self._outbox, self.settings, slept_out=slept_out, go_on=go_on, is_leaving=leaving.is_set)
            newest_id = self._outbox.header().last_id
            wait: float | None = 0.0
            with closing(drain):
                while wait == 0.0 and go_on():
                    wait = drain.step()
                    if drain.reached_id >= newest_id:
                        wait = None
        finally:
            lock.release()
        if drain.delivered and self.settings.retention == 0:
            self._next_tidy = 0.0
        if not wait:
            return wait
        if drain.waits_until != self._waits_until:
            self._waits_until, self._due = drain.waits_until, time.monotonic() + wait
        return min(wait, max(self._due - time.monotonic(), 0.0))

    def _tidy_if_due(self) -> None:
        if time.monotonic() < self._next_tidy:
            return
        with forking.importing:
            from outtray.outbox.upkeep import tidy

        self._next_tidy = time.monotonic() + TIDY_EVERY
        tidy(self._outbox, retention=self.settings.retention)

    def _sync_if_needed(self) -> None:
        if self._outbox.unsynced:
            self._outbox.sync()

    def _may_send(self) -> bool:
        return consent.decide(self.settings, afresh=True).state == consent.GRANTED


_shared: dict[str, Flusher] = {}


def shared(outbox: Outbox, settings: Settings) -> Flusher:
    """Return this process's one flusher for *outbox*, now with *settings*."""
    flusher = _shared.get(outbox.directory)
    if flusher is None:
        flusher = _shared.setdefault(outbox.directory, Flusher(outbox, settings))
    flusher.settings = settings
    return flusher


def _after_fork_in_child(_: FrameType) -> None:
    for flusher in list(_shared.values()):
        flusher.after_fork_in_child()


forking.in_child.append(_after_fork_in_child)
