"""The programs of the fork matrix: `python forks_child.py NAME [ARGUMENT]`. Each is what some host program does."""

from __future__ import annotations

import asyncio
import atexit
import concurrent.futures
import dis
import functools
import json
import multiprocessing
import os
import random
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from types import CodeType, FrameType
from typing import Any

from faults import host

PROGRAMS: dict[str, Callable[..., int]] = {}


def program(function: Callable[..., int]) -> Callable[..., int]:
    PROGRAMS[function.__name__] = function
    return function


def wait_for(children: list[int]) -> int:
    """Return the sum of the exit codes."""
    return sum(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children)


# Forks


@program
def fork_idle(way: str) -> int:
    """Fork while the thread has nothing to do; the children leave by os._exit or by a normal exit."""
    host.configure()
    host.track_some(20)
    host.flush()
    children = []
    for _ in range(5):
        if (child := os.fork()) == 0:
            host.track_some(10, "child")
            if way == "abrupt":
                os._exit(1)
            return 1
        children.append(child)
    host.track_some(20)
    return wait_for(children)


@program
def fork_delivers() -> int:
    """Fork with the thread running: what the child tracks is delivered by a thread of the child's own."""
    host.configure()
    host.track("parent")
    host.flush()
    if (child := os.fork()) == 0:
        host.track("child")
        host.say("ready")
        host.wait_for_go()
        host.close()
        os._exit(0)
    return wait_for([child])


@program
def fork_mid_drain() -> int:
    """Fork while the thread awaits an answer: the child must not end the parent's right to drain."""
    host.configure()
    host.track_some(5)
    host.wait_for_go()
    if (child := os.fork()) == 0:
        os._exit(0)
    code = wait_for([child])
    host.say("forked")
    host.wait_for_go()
    host.flush()
    host.close()
    return code


@program
def orphan() -> int:
    """Fork while the thread awaits an answer, and end: the child lives on, and must not keep the parent's locks."""
    host.configure()
    host.track_some(5)
    host.wait_for_go()
    if os.fork() == 0:
        host.say("forked")
        host.wait_for_go()
        os._exit(0)
    os._exit(0)


@program
def fork_mid_append(number: str) -> int:
    """Fork again and again while three threads append; the children append too."""
    host.configure()
    stopped = threading.Event()

    def load() -> None:
        while not stopped.is_set():
            host.track("thread")

    threads = [threading.Thread(target=load) for _ in range(3)]
    for thread in threads:
        thread.start()
    children = []
    for each in range(int(number)):
        time.sleep(0.005)
        if (child := os.fork()) == 0:
            host.track_some(5, "child")
            host.close()
            os._exit(each % 2)
        children.append(child)
    code = wait_for(children)
    stopped.set()
    for thread in threads:
        thread.join()
    host.flush()
    return code


@program
def fork_at_busy_gate() -> int:
    """Fork while another program is at the gate, and be killed before the child's hooks run.

    The open database crosses this fork, and the child must not touch what the parent wrote after it.
    """
    reading, writing = os.pipe()

    def late() -> None:
        os.close(writing)
        os.read(reading, 1)  # nobody writes: until the parent is dead

    os.register_at_fork(after_in_child=late)  # before outtray's own: the child gets its first time slice late
    host.configure(flush="manual")
    host.track_some(50)
    holder = subprocess.Popen(
        [sys.executable, __file__, "hold_gate"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert holder.stdin is not None
    assert holder.stdout is not None
    holder.stdout.readline()
    if os.fork() == 0:
        os._exit(0)
    holder.stdin.write("go\n")
    holder.stdin.close()
    holder.wait()
    host.close()
    host.track_some(50)
    os.kill(os.getpid(), signal.SIGKILL)
    return 0


@program
def hold_gate() -> int:
    """Stay at the gate until told."""
    from outtray.outbox.files import gate_path
    from outtray.outbox.gate import Gate

    gate = Gate(gate_path(os.path.join(os.environ["OUTTRAY_DIR"], os.environ["OUTTRAY_APP"])))
    frame = sys._getframe()
    if not host.PLAIN:
        gate.enter(frame)
    host.say("ready")
    host.wait_for_go()
    gate.leave(frame)
    return 0


@program
def fork_in_thread() -> int:
    """Fork in a thread that is not the main one: in the child it is the main one."""
    host.configure()
    host.track("parent")
    codes = []

    def work() -> None:
        if (child := os.fork()) == 0:
            host.track_some(10, "child")
            host.close()
            os._exit(3)
        codes.append(wait_for([child]))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    host.track("parent")
    return codes[0]


@program
def fork_in_handler(way: str) -> int:
    """Fork in a signal handler that comes in anywhere, also in the middle of a transaction.

    The child leaves in the handler, or goes on with the call that the handler came into.
    """
    host.configure()
    children: list[int] = []
    is_child = False

    def handle(_number: int, _frame: FrameType | None) -> None:
        nonlocal is_child
        if (child := os.fork()) == 0:
            is_child = True
            host.track("child of a handler")
            if way == "leaves":
                os._exit(0)
            return
        children.append(child)
        if len(children) < 40:
            signal.setitimer(signal.ITIMER_REAL, 0.01)

    # Forked while it starts a thread, a child waits for that thread for ever: Python's own, with or without outtray.
    host.track("parent")
    host.flush()
    signal.signal(signal.SIGALRM, handle)
    signal.setitimer(signal.ITIMER_REAL, 0.01)
    while len(children) < 40 and not is_child:
        host.track("parent")
    if is_child:
        host.track("child behind the handler")
        host.close()
        os._exit(0)
    host.track("behind them")  # a call that the handler came into has ended
    code = wait_for(children)
    host.flush()
    return code


@program
def fork_in_mid_call(call: str, first: str, step: str, order: str) -> int:
    """Make a call again and again, each time with a fork at another point at which a signal handler can come into it.

    The child goes on in the call, but for some that leave, and from then on parent and child take turns.
    """
    is_first = call == "first track"
    if not is_first:
        host.configure(flush="manual")
    wrong: list[str] = []
    number, forks = int(first), 0
    while True:
        arguments = (call, number, order)
        points, found = in_a_new_process(around_a_fork, *arguments) if is_first else around_a_fork(*arguments)
        if points < number:
            break
        wrong += found
        number += int(step)
        forks += 1
    host.say(json.dumps({"forks": forks, "points": points, "wrong": wrong}))
    return 0


def around_a_fork(call: str, number: int, order: str) -> tuple[int, list[str]]:
    """Fork at the point *number* of *call*; return how many points there are, and what went wrong in the parent."""
    prepare, make = CALLS[call]
    prepare()
    fork = ForkAt(number, order)
    taken = [fork.during(make)]
    if fork.where is None:
        return fork.points, []
    for act in (lambda: host.track("parent"), host.close) * 2:
        taken.append(act())
        fork.let_child_go()
    code = fork.end()
    wrong = [f"the child ended with {code}"] if code else []
    if False in taken:
        wrong.append(f"the parent was refused its {taken.index(False) + 1}. call")
    return fork.points, [f"forked at {fork.where}, {each}" for each in wrong]


def in_a_new_process(function: Callable[..., Any], *arguments: object) -> Any:
    """Return what *function* returns in a child of its own, which shares nothing of outtray with others."""
    reading, writing = os.pipe()
    if (child := os.fork()) == 0:
        os.write(writing, json.dumps(function(*arguments)).encode())
        os._exit(0)
    os.close(writing)
    with open(reading, "rb") as file:
        result = json.loads(file.read())
    wait_for([child])
    return result


def track_and_close() -> None:
    host.track("before")
    host.close()


def track_and_damage() -> None:
    """Leave an outbox whose file says that it is none; all of its messages can be brought back."""
    track_and_close()
    if not host.PLAIN:
        from outtray.outbox.files import database_path, newest_generation

        directory = os.path.join(os.environ["OUTTRAY_DIR"], os.environ["OUTTRAY_APP"])
        with open(database_path(directory, newest_generation(directory)), "r+b") as file:
            file.write(b"no such database")


def fork_and_wait() -> None:
    pid = os.getpid()
    if (child := os.fork()) == 0:
        os._exit(0)
    if os.getpid() == pid:
        wait_for([child])


CALLS: dict[str, tuple[Callable[[], object], Callable[[], object]]] = {
    "first track": (lambda: host.configure(flush="manual"), lambda: host.track("in it")),
    "track": (lambda: host.track("before"), lambda: host.track("in it")),
    "track that opens": (track_and_close, lambda: host.track("in it")),
    "track that finds damage": (track_and_damage, lambda: host.track("in it")),
    "close": (lambda: host.track("before"), host.close),
    "flush": (lambda: host.track("before"), host.flush),
    "status": (lambda: host.track("before"), host.status),
    "fork": (lambda: host.track("before"), fork_and_wait),
}
"""What is done before the call in which a fork comes, and the call."""


@functools.cache
def operations(code: CodeType) -> dict[int, str]:
    """Return the names of the instructions by their offsets."""
    return {each.offset: each.opname for each in dis.get_instructions(code)}


class ForkAt:
    """A fork at the point *number* of a call; *where* says which that is, None if there are only so many *points*.

    Points are those in outtray's own code at which Python lets signal handlers in: at the beginning of a function,
    behind a call, and where a loop begins again. Chance, always the same for one number and *order*, says who of parent
    and child is next, and whether the child leaves.
    """

    SOURCE = os.path.join(os.path.dirname(__file__).partition("tools")[0], "src", "outtray", "")
    PATIENCE = 0.03  # seconds that the parent waits for a turn of the child, which may itself wait for the parent
    ENOUGH = 40  # seconds after which a child is taken for one that hangs

    def __init__(self, number: int, order: str) -> None:
        self.where: str | None = None
        self.points = 0
        self._number = number
        self._last: dict[FrameType, int] = {}
        self._pid = os.getpid()
        self._chance = random.Random(f"{number} {order}")
        self._leaves = self._chance.random() < 0.2
        self._turns = ["parent"] * 4 + ["child"] * (1 if self._leaves else 4)
        self._chance.shuffle(self._turns)
        self._parents, self._childs = socket.socketpair()
        self._child = -1

    def during(self, call: Callable[[], object]) -> object:
        """Make *call* and return its result; the child does the rest of what it has to do, and ends."""
        sys._getframe().f_trace_opcodes = True  # Python 3.12 asks only now whether any frame wants that
        sys.settrace(self._trace)
        result = call()
        sys.settrace(None)
        if self._child == 0:
            self._end_turn()
            for event in ("child behind it", "child later"):
                self._wait_for_turn()
                host.track(event)
                self._end_turn()
            host.close()
            os._exit(0)
        return result

    def let_child_go(self) -> None:
        """Let the child take its turns, until the parent's is next."""
        while self._turns and self._turns.pop() == "child":
            self._parents.send(b"1")
            if select.select([self._parents], [], [], self.PATIENCE)[0]:
                self._parents.recv(1)

    def end(self) -> int:
        """Let the child do what is left and return its exit code."""
        while self._turns:
            self.let_child_go()
        code = wait_for([self._child])
        self._parents.close()
        return code

    def _trace(self, frame: FrameType, event: str, _argument: object) -> Callable[..., Any] | None:
        code = frame.f_code
        if not code.co_filename.startswith(self.SOURCE) or os.getpid() != self._pid:
            return None
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        if event == "opcode":
            before = self._last.get(frame)
            self._last[frame] = frame.f_lasti
            if before is not None and operations(code)[before].startswith(("CALL", "RESUME", "JUMP_BACKWARD")):
                self.points += 1
                if self.points == self._number:
                    self._fork(f"{os.path.basename(code.co_filename)}:{frame.f_lineno} in {code.co_name}")
        return self._trace

    def _fork(self, where: str) -> None:
        self.where = where
        self._child = os.fork()
        if self._child != 0:
            self._childs.close()
            self.let_child_go()
            return
        self._parents.close()
        signal.alarm(self.ENOUGH)
        self._wait_for_turn()
        host.track("child")
        self._end_turn()
        if self._leaves:
            os._exit(0)
        self._wait_for_turn()

    def _wait_for_turn(self) -> None:
        self._childs.recv(1)

    def _end_turn(self) -> None:
        self._childs.send(b"1")


@program
def grandchild() -> int:
    """Fork in a forked child; all three track and end normally."""
    host.configure()
    host.track_some(5)
    if (child := os.fork()) == 0:
        host.track_some(5, "child")
        if (below := os.fork()) == 0:
            host.track_some(5, "grandchild")
            return 2
        host.track_some(5, "child")
        return wait_for([below])
    host.track_some(5)
    return wait_for([child])


@program
def fork_and_exec() -> int:
    """Fork with the thread running and become another program at once; then without a fork."""
    host.configure()
    host.track_some(5)
    command = [sys.executable, __file__, "just_track"]
    children = []
    for _ in range(3):
        if (child := os.fork()) == 0:
            os.execv(sys.executable, command)
        children.append(child)
        host.track_some(5)
    code = wait_for(children) + subprocess.run(command, close_fds=False, check=False).returncode
    host.track_some(5)
    os.execv(sys.executable, [*command, str(code)])


@program
def just_track(code: str = "1") -> int:
    host.track_some(5, "after exec")
    return int(code)


@program
def descriptors() -> int:
    """Count in a child, before outtray does anything there, the database files that crossed the fork."""
    crossed: list[str] = []

    def look() -> None:
        for name in os.listdir("/proc/self/fd"):
            try:
                target = os.readlink(f"/proc/self/fd/{name}")
            except OSError:
                continue  # the one that listed them
            if ".db" in os.path.basename(target):
                crossed.append(os.path.basename(target))

    os.register_at_fork(after_in_child=look)  # in the order of registration: before outtray's own
    host.configure()
    host.track_some(5)
    host.flush()
    if os.fork() == 0:
        host.track_some(5, "child")
        host.close()
        host.say(json.dumps({"crossed": len(crossed)}))
        os._exit(0)
    os.wait()
    return 0


# Other ways to have processes


def work(number: int) -> bool:
    return host.track("child", number=number)


def work_much(number: int) -> None:
    host.track_some(number, "child")


@program
def process(method: str) -> int:
    """multiprocessing.Process."""
    host.configure()
    host.track_some(5)
    children = [multiprocessing.get_context(method).Process(target=work_much, args=(10,)) for _ in range(3)]
    for child in children:
        child.start()
        host.track_some(5)
    for child in children:
        child.join()
    return sum(child.exitcode or 0 for child in children)


@program
def pool(method: str) -> int:
    """multiprocessing.Pool, left with workers that are replaced, and are terminated at the end."""
    host.configure()
    host.track_some(5)
    with multiprocessing.get_context(method).Pool(2, maxtasksperchild=5) as workers:
        return 0 if all(workers.map(work, range(20), chunksize=1)) else 1


@program
def executor(method: str) -> int:
    """concurrent.futures.ProcessPoolExecutor."""
    host.configure()
    host.track_some(5)
    context = multiprocessing.get_context(method)
    with concurrent.futures.ProcessPoolExecutor(2, mp_context=context) as workers:
        good = all(workers.map(work, range(20)))
    host.track_some(5)
    return 0 if good else 1


INTERPRETER = """
import os, sys
sys.path[:0] = {path!r}
from faults import host
host.configure()
taken = [host.track("subinterpreter") for _ in range(5)]
os.write(1, ("taken" if all(taken) else "refused" if not any(taken) else "some taken").encode() + b"\\n")
"""


@program
def subinterpreters() -> int:
    """Two subinterpreters beside the main one, all with the same outbox."""
    import _xxsubinterpreters as interpreters

    host.configure()
    host.track_some(5)
    for _ in range(2):
        interpreter = interpreters.create()
        interpreters.run_string(interpreter, INTERPRETER.format(path=sys.path))
        host.track_some(5)
        interpreters.destroy(interpreter)
    host.track_some(5)
    return 0


# Ends


@program
def end_mid_drain() -> int:
    """End while the thread awaits an answer."""
    host.configure()
    host.track_some(5)
    host.wait_for_go()
    host.track_some(5)
    return 4


@program
def end_detached() -> int:
    """End with flush="exit", a forked child too: a detached process delivers."""
    host.configure(flush="exit")
    host.track_some(5)
    if (child := os.fork()) == 0:
        host.track_some(5, "child")
        return 0
    return wait_for([child])


@program
def exit_handlers() -> int:
    """Track in handlers registered before and after outtray's own, and in one registered by a handler."""
    atexit.register(host.track, "registered first")
    host.configure()
    host.track_some(5)
    host.flush()
    atexit.register(host.track, "registered last")
    threading._register_atexit(host.track, "as threads are joined")  # type: ignore[attr-defined]
    return 0


@program
def killed_by(way: str) -> int:
    """Track until a signal comes, with the default action, or with a handler that tracks and leaves."""
    host.configure()

    def handle(_number: int, _frame: FrameType | None) -> None:
        host.track("in the handler")
        sys.exit(3)

    if way == "handler":
        signal.signal(signal.SIGTERM, handle)
    number = 0
    try:
        while True:
            host.track("before the signal")
            number += 1
            if number == 50:
                host.say("ready")
    except KeyboardInterrupt:
        host.track("after Ctrl-C")
        return 130


@program
def daemon_threads() -> int:
    """End while daemon threads track."""
    host.configure()

    def load() -> None:
        while True:
            host.track("daemon")

    for _ in range(4):
        threading.Thread(target=load, daemon=True).start()
    time.sleep(0.3)
    return 5


@program
def thread_leaves() -> int:
    """sys.exit in a thread ends the thread alone; an exception there is printed."""
    host.configure()

    def leave() -> None:
        host.track("in the thread")
        sys.exit(6)

    def fail() -> None:
        host.track("in the other thread")
        raise LookupError("in a thread")

    for target in (leave, fail):
        thread = threading.Thread(target=target)
        thread.start()
        thread.join()
    host.track("after it")
    return 0


@program
def exception_at_exit() -> int:
    host.configure()
    host.track_some(5)

    def fail() -> None:
        host.track("in the handler")
        raise LookupError("at exit")

    atexit.register(fail)
    return 0


@program
def uncaught() -> int:
    host.configure()
    host.track_some(5)
    raise LookupError("not caught")


@program
def abort() -> int:
    host.configure()
    host.track_some(5)
    os.abort()


# asyncio


@program
def coroutines() -> int:
    """Track in coroutines while the receiver hangs; a ticker finds out how long the loop stands still."""
    host.configure()
    figures = asyncio.run(_coroutines())
    host.say(json.dumps(figures))
    return 0


async def _coroutines() -> dict[str, float]:
    figures = {"longest stall ms": 0.0, "longest call ms": 0.0, "ticks while flush waits": 0}
    ticks = 0

    async def tick() -> None:
        nonlocal ticks
        while True:
            start = time.perf_counter()
            await asyncio.sleep(0.001)
            ticks += 1
            stall = (time.perf_counter() - start - 0.001) * 1000
            figures["longest stall ms"] = max(figures["longest stall ms"], round(stall, 1))

    async def track_many() -> None:
        for number in range(50):
            start = time.perf_counter()
            host.track("coroutine", number=number)
            spent = (time.perf_counter() - start) * 1000
            figures["longest call ms"] = max(figures["longest call ms"], round(spent, 1))
            await asyncio.sleep(0)

    host.track("first")  # loads what is loaded late, as any program's first call does
    host.say("ready")
    await asyncio.to_thread(host.wait_for_go)
    ticker = asyncio.create_task(tick())
    await asyncio.gather(*(track_many() for _ in range(10)))
    before = ticks
    settled = await asyncio.to_thread(host.flush, 0.5)
    figures["ticks while flush waits"] = ticks - before
    figures["settled while the receiver hangs"] = settled
    figures["settled in the end"] = await asyncio.to_thread(host.flush, 30)
    ticker.cancel()
    return figures


# Stopped processes


@program
def stop_at_gate() -> int:
    """Go in at the gate and stop there."""
    from outtray.outbox.files import gate_path
    from outtray.outbox.gate import Gate

    gate = Gate(gate_path(os.path.join(os.environ["OUTTRAY_DIR"], os.environ["OUTTRAY_APP"])))
    frame = sys._getframe()
    gate.enter(frame)
    host.say("ready")
    os.kill(os.getpid(), signal.SIGSTOP)
    gate.leave(frame)
    return 0


@program
def idle() -> int:
    """Deliver, and wait; the harness stops this one."""
    host.configure()
    host.track_some(5)
    host.flush()
    host.say("ready")
    host.wait_for_go()
    host.track_some(5)
    host.flush()
    host.close()
    return 0


@program
def timed(number: str) -> int:
    """Track some, say how long each call took, and again once it may go on."""
    host.configure(flush="manual")
    for _ in range(2):
        calls = []
        for _ in range(int(number)):
            start = time.monotonic()
            taken = host.track("timed")
            calls.append([taken, round(time.monotonic() - start, 3)])
        host.say(json.dumps(calls))
        host.wait_for_go()
    host.close()
    return 0


if __name__ == "__main__":
    sys.exit(PROGRAMS[sys.argv[1]](*sys.argv[2:]))
