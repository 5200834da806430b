"""The gate: one lock that every write, checkpoint and close passes, and a header read and written under it.

It keeps SQLite's own busy handler out of play (which starves writers), and with it the WAL-reset bug of
SQLite 3.7.0 to 3.51.2: no checkpoint ever meets a write.
"""

from __future__ import annotations

import os
import struct
import sys
import threading
import time
import zlib

from outtray.consent import CHOICES
from outtray.errors import OutboxBusy, OutboxUnusable
from outtray.outbox.filelock import FileLock
from outtray.outbox.files import MAJOR

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import FrameType

DEADLINE = 2.0
"""Seconds that a call waits for the gate; a stopped process may hold it for ever."""

_FIRST_PAUSE, _LAST_PAUSE = 0.012, 0.0001  # seconds; pauses shrink, so that who waited longest asks most often


CHOICE_BITS = 0b11
"""The bits of the flags that hold the user's choice: its place in `consent.CHOICES`."""

REWRITE_WAL = 4
"""Flag: the disk did not confirm the write-ahead log; nothing is stored until it was moved into the database."""

NO_ROOM = 8
"""Flag: the reserve was given back, so that deliveries can be written down; nothing is stored until there is room."""


def new_epoch() -> int:
    """Return a number that no earlier outbox at this path had: a settle on its way is not for this one."""
    return int.from_bytes(os.urandom(6), "little")


_boot: int | None = None


def boot_number() -> int:
    """Return a number that each start of the system changes, 0 where that cannot be told (not on Linux)."""
    global _boot
    if _boot is None:
        try:
            with open("/proc/sys/kernel/random/boot_id", "rb") as file:
                _boot = zlib.crc32(file.read())
        except OSError:
            _boot = 0
    return _boot


class Header:
    """What the gate's file says.

    *generation* and *epoch* count database files and withdrawals, *last_id* is the newest id ever given, all
    up to *settled_id* is settled for every destination, as was last written down (for `recovery`),
    *pid* wrote the header last, when `boot_number` was *boot*; *flags* are bits: `CHOICE_BITS`, `REWRITE_WAL`,
    `NO_ROOM`.
    """

    LAYOUT = struct.Struct("<8sHHIQQQII")  # and 4 bytes of crc32 behind it
    MAGIC = b"outtray\0"
    SIZE = LAYOUT.size + 4

    __slots__ = ("boot", "epoch", "flags", "generation", "last_id", "pid", "settled_id")

    def __init__(
        self, generation: int, epoch: int, last_id: int, *, settled_id: int = 0, pid: int = 0, flags: int = 0
    ) -> None:
        self.generation = generation
        self.epoch = epoch
        self.last_id = last_id
        self.settled_id = settled_id
        self.pid = pid
        self.boot = 0
        self.flags = flags

    @property
    def choice(self) -> str | None:
        """The user's choice of consent, as whoever wrote it last found it in its file."""
        return CHOICES[self.flags & CHOICE_BITS]

    @choice.setter
    def choice(self, choice: str | None) -> None:
        self.flags = self.flags & ~CHOICE_BITS | CHOICES.index(choice)

    def to_bytes(self) -> bytes:
        """Return the header as it stands in the file."""
        fields = (self.flags, self.generation, self.epoch, self.last_id, self.settled_id, self.pid, self.boot)
        data = self.LAYOUT.pack(self.MAGIC, MAJOR, *fields)
        return data + zlib.crc32(data).to_bytes(4, "little")

    @classmethod
    def from_bytes(cls, data: bytes) -> Header | None:
        """Return the header in *data*, None if it is missing or damaged.

        Raises OutboxUnusable if a release with another major format wrote it.
        """
        body, crc = data[: cls.LAYOUT.size], data[cls.LAYOUT.size : cls.SIZE]
        if len(data) < cls.SIZE or zlib.crc32(body).to_bytes(4, "little") != crc:
            return None
        magic, major, flags, generation, epoch, last_id, settled_id, pid, boot = cls.LAYOUT.unpack(body)
        if magic != cls.MAGIC:
            return None
        if major != MAJOR:
            raise OutboxUnusable(f"the outbox has format {major}, this release reads {MAJOR}: use the newer release")
        header = cls(generation, epoch, last_id, settled_id=settled_id, pid=pid, flags=flags)
        header.boot = boot
        return header


_BEFORE_ID = struct.calcsize("<8sHHIQ")
_BEHIND_ID = _BEFORE_ID + 8


def signature() -> bytes:
    """Return the fields of a header that say who wrote it, as they stand in the file."""
    return struct.pack("<II", os.getpid(), boot_number())


def with_last_id(data: bytes, id: int, signature: bytes) -> bytes:
    """Return the bytes of a header after a message: all that it changes are the last_id and who wrote it."""
    fields = data[:_BEFORE_ID] + id.to_bytes(8, "little") + data[_BEHIND_ID : -len(signature) - 4] + signature
    return fields + zlib.crc32(fields).to_bytes(4, "little")


class Gate:
    """The gate of one outbox in this process; `enter` and `leave` bracket every write."""

    def __init__(self, path: str) -> None:
        self.file = FileLock(path)
        self._threads = threading.RLock()
        self._frames: dict[int, FrameType] = {}
        self._alone = False
        self._forks = 0
        self._patience = DEADLINE

    def enter(self, frame: FrameType, *, alone: bool = True) -> None:
        """Wait for the gate and go in; *frame* is the caller's, on the stack until it calls `leave`.

        With *alone* False only this process's threads are kept out, which is enough for reading. Raises
        OutboxBusy after `DEADLINE`, OSError where the gate's file cannot be opened.

        After one deadline that ran out, each call tries once without waiting until one succeeds: a stopped
        process costs the host two seconds, not two for every event.
        """
        me = threading.get_ident()
        if me in self._frames:
            if _is_on_stack(self._frames[me]):  # below this call, in the same thread
                raise OutboxBusy("called from inside another call of this thread (a signal handler or finaliser)")
            self.leave(self._frames[me])  # an exception of a signal handler tore that call before it could leave
        self._frames[me] = frame
        try:
            waited = 0.0 if self._threads.acquire(blocking=False) else self._wait_for_threads()
            if alone:
                self._alone = True
                if not self.file.is_open:
                    self.file.open(create=True)
                if not self.file.try_acquire():
                    self._wait_for_file(time.monotonic() + self._patience - waited)
                self._patience = DEADLINE
        except BaseException:
            self.leave(frame)
            raise

    def leave(self, frame: FrameType) -> None:
        """Go out and let the next one in; does nothing unless *frame* is inside."""
        me = threading.get_ident()
        if self._frames.get(me) is not frame:
            return
        threads = self._threads  # a child that a signal handler forks in here has another one
        try:
            if threads._is_owned():  # type: ignore[attr-defined]
                self.leave_file()
        finally:
            if threads._is_owned():  # type: ignore[attr-defined]
                threads.release()
            del self._frames[me]
            if self.file.is_inherited:
                self.file = FileLock(self.file.path)

    def is_inside(self, frame: FrameType) -> bool:
        """Tell whether *frame* is inside, in this thread."""
        return self._frames.get(threading.get_ident()) is frame and _is_mine(self._threads)

    def leave_file(self) -> None:
        """Let other processes in; this process's other threads stay out until `leave`."""
        if self._alone:
            self._alone = False
            try:
                self.file.release()
            except OSError:
                self.file.close()  # which gives the lock back too; the next one in opens the file again

    def try_file(self, patience: float) -> bool:
        """Keep other processes out too, and tell whether that worked within *patience* (seconds); only inside."""
        if not self.file.is_open:
            return False
        usual = self._patience
        try:
            self._wait_for_file(time.monotonic() + min(patience, usual))
        except (OutboxBusy, OSError):
            self._patience = usual
            return False
        self._alone = True
        return True

    def reopen(self) -> None:
        """Leave a file that is no longer at the path for the one that is there now, made if missing."""
        self.file.close()
        self.file.open(create=True)
        self._wait_for_file(time.monotonic() + DEADLINE)

    def before_fork(self, frame: FrameType) -> bool:
        """Keep the other threads out while *frame* forks; tell whether this thread is in no call that is inside.

        A thread that is inside may hold one of SQLite's own mutexes, and the child would wait for it for ever.
        """
        torn = self._frames.get(threading.get_ident())
        if torn is not None and not _is_on_stack(torn):
            self.leave(torn)
        self._forks += self._threads.acquire(timeout=DEADLINE)
        try:
            self.enter(frame, alone=False)
        except OutboxBusy:
            return False  # the fork comes out of a call of this very thread, or a thread does not come out
        return True

    def after_fork_in_parent(self, frame: FrameType) -> None:
        """End what `before_fork` began."""
        self.leave(frame)
        threads = self._threads
        if self._forks:
            self._forks -= 1
            if _is_mine(threads):  # not in a child that was itself forked in the middle of this
                threads.release()

    def after_fork_in_child(self, frame: FrameType) -> bool:
        """Begin anew in the child that *frame* forked; tell whether a call goes on there that could use the files.

        That call comes from the parent, and ends there. Here it can do no more than leave: its lock is closed. Until
        then it is inside, so that nothing is opened that it could write to.
        """
        me = threading.get_ident()
        inside, is_mine = self._frames.get(me), _is_mine(self._threads)
        self._frames.clear()
        self._threads = threading.RLock()
        self._alone = False
        self._forks = 0
        self._patience = DEADLINE
        if inside is None or inside is frame or not _is_on_stack(inside):
            self.file = FileLock(self.file.path)
            return False
        self._frames[me] = inside
        return is_mine

    def read(self) -> Header | None:
        """Return the header, None if it is missing or damaged. Outside the gate a torn read counts as damaged."""
        return Header.from_bytes(self.file.read(Header.SIZE))

    def write(self, header: Header) -> bytes:
        """Write the header and return it as it stands in the file; only inside the gate."""
        header.pid = os.getpid()
        header.boot = boot_number() if _boot is None else _boot
        data = header.to_bytes()
        self.file.write(data)
        return data

    def _wait_for_threads(self) -> float:
        """Wait for the other threads and return how long that took, in seconds. Raises OutboxBusy."""
        start = time.monotonic()
        if not self._threads.acquire(timeout=self._patience):
            self._give_up("another thread")
        return time.monotonic() - start

    def _wait_for_file(self, end: float) -> None:
        """Try again and again until *end*, on the monotonic clock. Raises OutboxBusy."""
        pause = _FIRST_PAUSE
        while not self.file.try_acquire():
            if time.monotonic() >= end:
                self._give_up(self._holder())
            time.sleep(pause * os.urandom(1)[0] / 255)
            pause = max(pause * 0.7, _LAST_PAUSE)

    def _give_up(self, holder: str) -> None:
        waited, self._patience = self._patience, 0.0
        raise OutboxBusy(f"{self.file.path} was held by {holder} for {waited:.0f} s; nothing was stored by this call")

    def _holder(self) -> str:
        header = self.read()
        return "another process" + (f" (process {header.pid} passed it last)" if header and header.pid else "")


def _is_mine(threads: threading.RLock) -> bool:
    """Tell whether this thread has the lock between *threads*: known even where an exception cut `acquire` off."""
    return threads._is_owned()  # type: ignore[attr-defined, no-any-return]


def _is_on_stack(frame: FrameType) -> bool:
    """Tell whether *frame* is one of the calls that led here."""
    here: FrameType | None = sys._getframe()
    while here is not None:
        if here is frame:
            return True
        here = here.f_back
    return False
