"""What is promised when programs are killed, forked, run at once, or end: counted through a real receiver."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import pytest

import outtray
from outtray.testing import FakeServer
from tests.conftest import wait_until

Run = Callable[..., CompletedProcess[str]]


def start(environment: dict[str, str], code: str, *arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)


def finish(process: subprocess.Popen[str]) -> str:
    """Wait for the end of a process that must succeed, and return what it printed."""
    try:
        output, _ = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 0
    return output


def test_a_killed_program_loses_none_of_a_thousand_events(
    server: FakeServer, environment: dict[str, str], run_python: Run
) -> None:
    server.set_mode("refuse")
    code = f"""
import outtray, os, signal
outtray.configure(app="killed", url={server.url!r})
assert all([outtray.track("event", {{"number": number}}) for number in range(1000)])
os.kill(os.getpid(), signal.SIGKILL)
"""
    killed = start(environment, code)
    killed.communicate(timeout=60)
    assert killed.returncode == -signal.SIGKILL
    server.set_mode("ok")
    flushed = run_python("-m", "outtray", "flush", "--all")
    assert flushed.returncode == 0, flushed.stderr
    assert len({message["message_id"] for message in server.received}) == 1000
    assert [message["properties"]["number"] for message in server.received] == list(range(1000))
    assert not server.repeats


def test_eight_programs_and_two_flushes_at_once_keep_every_order(
    server: FakeServer, environment: dict[str, str], run_python: Run
) -> None:
    code = f"""
import outtray, sys
outtray.configure(app="busy", url={server.url!r}, flush="manual")
for number in range(500):
    assert outtray.track("event", {{"process": sys.argv[1], "number": number}})
"""
    running = [start(environment, code, str(number)) for number in range(8)]
    flushing: list[subprocess.Popen[bytes]] = []
    flushes = 0
    command = [sys.executable, "-m", "outtray", "flush", "--app", "busy"]
    while any(process.poll() is None for process in running):
        flushing = [process for process in flushing if process.poll() is None]
        while len(flushing) < 2:
            flushing.append(subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL))
            flushes += 1
        time.sleep(0.05)
    assert [process.wait() for process in running] == [0] * 8
    for process in flushing:
        process.wait(60)
    last = run_python("-m", "outtray", "flush", "--app", "busy")
    assert last.returncode == 0, last.stderr
    assert flushes >= 2
    received = [(message["properties"]["process"], message["properties"]["number"]) for message in server.received]
    assert len(received) == 4000
    assert not server.repeats
    for number in range(8):
        assert [n for process, n in received if process == str(number)] == list(range(500))
    for process in running:
        assert process.stdout is not None
        process.stdout.close()


def test_cron_delivers_what_a_program_left_knowing_nothing_of_it(
    server: FakeServer, environment: dict[str, str], home: Path, tmp_path: Path
) -> None:
    code = (
        f'import outtray; outtray.configure(app="nightly", url={server.url!r}, flush="manual"); outtray.track("event")'
    )
    finish(start(environment, code))
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    source = environment["PYTHONPATH"]
    bare = [
        sys.executable,
        "-c",
        f"import sys; sys.path.insert(0, {source!r}); import outtray.cli; sys.exit(outtray.cli.main(['flush']))",
    ]
    flushed = subprocess.run(bare, env={"HOME": str(home)}, cwd=elsewhere, capture_output=True, text=True, check=False)
    assert (flushed.returncode, flushed.stdout, flushed.stderr) == (0, "", "")
    assert [message["event"] for message in server.received] == ["event"]


def test_a_key_is_never_stored_and_its_absence_is_explained(
    server: FakeServer, environment: dict[str, str], home: Path, run_python: Run
) -> None:
    code = """
import outtray, sys
remember = len(sys.argv) > 2
outtray.configure(app="keyed", url=sys.argv[1], write_key="tulip-secret", flush="manual", remember_key=remember)
outtray.track("event")
"""
    finish(start(environment, code, server.url))
    stored = home / ".local/state/outtray/keyed"
    for path in stored.iterdir():
        assert b"tulip" not in path.read_bytes(), path.name
    without = run_python("-m", "outtray", "flush")
    assert without.returncode == 78
    assert all(place in without.stderr for place in ("OUTTRAY_WRITE_KEY", "write_key_file", "config.toml"))
    assert not server.received
    with_key = run_python("-m", "outtray", "flush", OUTTRAY_WRITE_KEY="tulip-secret")
    assert with_key.returncode == 0, with_key.stderr
    assert server.requests[-1].headers["authorization"] == "Bearer tulip-secret"
    finish(start(environment, code, server.url, "remember"))
    remembered = run_python("-m", "outtray", "flush")
    assert remembered.returncode == 0, remembered.stderr
    assert len(server.received) == 2


def test_credentials_in_a_url_are_not_stored(server: FakeServer, environment: dict[str, str], home: Path) -> None:
    url = server.url.replace("http://", "http://me:tulip@")
    code = f'import outtray; outtray.configure(app="cred", url={url!r}, flush="manual"); outtray.track("event")'
    finish(start(environment, code))
    for path in (home / ".local/state/outtray/cred").iterdir():
        assert b"tulip" not in path.read_bytes(), path.name


# Threads, exits and detached flushes


def test_the_thread_delivers_without_being_asked(server: FakeServer) -> None:
    outtray.configure(app="threaded", url=server.url, flush_interval=0.05)
    for number in range(50):
        assert outtray.track("event", {"number": number})
    assert wait_until(lambda: len(server.received) == 50)
    assert [message["properties"]["number"] for message in server.received] == list(range(50))


def test_the_thread_goes_on_after_the_receiver_was_away(server: FakeServer) -> None:
    server.set_mode("500", times=2)
    outtray.configure(app="threaded", url=server.url, flush_interval=0.05)
    assert outtray.track("event")
    assert wait_until(lambda: len(server.received) == 1)


@pytest.mark.parametrize("mode", ["refuse", "hang", "trickle", "500"])
def test_the_end_of_a_program_does_not_wait_for_the_network(
    mode: str, server: FakeServer, environment: dict[str, str]
) -> None:
    server.set_mode(mode)
    code = f"""
import outtray, time
outtray.configure(app="ending", url={server.url!r}, flush_interval=0.01)
outtray.track("event")
time.sleep(0.3)
print(time.monotonic(), flush=True)
"""
    ended = float(finish(start(environment, code)))
    assert time.monotonic() - ended < 5  # the receiver would have kept it for 15 s


def test_a_program_that_ends_leaves_a_detached_flush_behind(server: FakeServer, environment: dict[str, str]) -> None:
    code = f"""
import outtray, sys
outtray.configure(app="detached", url={server.url!r}, flush="exit")
for number in range(20):
    assert outtray.track("event", {{"number": number}})
"""
    finish(start(environment, code))
    assert wait_until(lambda: len(server.received) == 20)
    finish(start(environment, code))  # within the interval: no second flush
    time.sleep(1.5)
    assert len(server.received) == 20
    finish(start({**environment, "OUTTRAY_EXIT_INTERVAL": "0"}, code))
    assert wait_until(lambda: len(server.received) == 60)
    assert not server.repeats


@pytest.mark.parametrize("why", ["CI", "frozen"])
def test_no_flush_is_detached_where_it_must_not_be(why: str, server: FakeServer, environment: dict[str, str]) -> None:
    code = f"""
import outtray, sys
{"sys.frozen = True" if why == "frozen" else ""}
outtray.configure(app="detached", url={server.url!r}, flush="exit")
outtray.track("event")
"""
    finish(start({**environment, **({"CI": "true"} if why == "CI" else {})}, code))
    time.sleep(1.5)
    assert not server.requests


def test_an_event_tracked_while_the_interpreter_ends_is_kept(
    server: FakeServer, environment: dict[str, str], run_python: Run
) -> None:
    code = f"""
import atexit
atexit.register(lambda: print(outtray.track("at the very end")))
import outtray
outtray.configure(app="late", url={server.url!r}, flush="manual")
outtray.track("before")
"""
    assert finish(start(environment, code)) == "True\n"
    assert run_python("-m", "outtray", "flush").returncode == 0
    assert [message["event"] for message in server.received] == ["before", "at the very end"]


# Forks


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_fork_with_the_thread_running_loses_and_repeats_nothing(
    server: FakeServer, environment: dict[str, str]
) -> None:
    code = f"""
import os, outtray, sys, threading, time
outtray.configure(app="forked", url={server.url!r}, flush_interval=0.01)
stop = threading.Event()
counted = [0]
def load():
    while not stop.is_set():
        assert outtray.track("thread", {{"number": counted[0]}})
        counted[0] += 1
thread = threading.Thread(target=load); thread.start()
children = []
for child in range(10):
    time.sleep(0.02)
    pid = os.fork()
    if pid == 0:
        good = all([outtray.track("child", {{"child": child, "number": number}}) for number in range(20)])
        outtray.flush(20)
        outtray.tray.default_tray.close()  # or an answer on its way is lost, and its batch repeated
        os._exit(0 if good else 1)
    children.append(pid)
stop.set(); thread.join()
assert all(os.waitpid(pid, 0)[1] == 0 for pid in children)
report = outtray.flush(30)
assert report.settled, report
print(counted[0])
"""
    output = finish(start(environment, code))
    by_thread = [m["properties"]["number"] for m in server.received if m["event"] == "thread"]
    assert by_thread == list(range(int(output)))
    for child in range(10):
        own = [m for m in server.received if m["event"] == "child" and m["properties"]["child"] == child]
        assert [m["properties"]["number"] for m in own] == list(range(20))
    assert not server.repeats


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_child_that_lives_on_does_not_keep_its_dead_parents_locks(
    server: FakeServer, environment: dict[str, str], run_python: Run
) -> None:
    server.set_mode("hang")
    code = f"""
import os, outtray, sys, time
outtray.configure(app="orphan", url={server.url!r}, flush_interval=0.01)
assert outtray.track("event")
sys.stdin.readline()  # the thread is delivering now, and holds the drain lock
if os.fork() == 0:
    print(os.getpid(), flush=True)
    os.close(1)
    time.sleep(60)
os._exit(0)
"""
    command = [sys.executable, "-c", code]
    with subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as parent:
        assert wait_until(lambda: len(server.requests) == 1)
        output, _ = parent.communicate("go\n", timeout=30)
    child = int(output)
    try:
        server.set_mode("ok")
        flushed = run_python("-m", "outtray", "flush", "--all", OUTTRAY_TIMEOUT="1")
        assert flushed.returncode == 0, flushed.stderr
        assert len(server.received) == 1
    finally:
        os.kill(child, signal.SIGKILL)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_child_forked_while_another_program_holds_the_gate_is_refused_and_the_parent_goes_on(
    environment: dict[str, str], home: Path
) -> None:
    gate = home / ".local/state/outtray/held/outbox-1.gate"
    code = f"""
import fcntl, os, outtray, time
outtray.configure(app="held", flush="manual")
assert outtray.track("before")
held = os.open({str(gate)!r}, os.O_RDWR)  # a descriptor of its own: the lock of another program
fcntl.flock(held, fcntl.LOCK_EX)
began = time.monotonic()
child = os.fork()
if child == 0:
    os.close(held)
    time.sleep(0.5)
    os._exit(1 if outtray.track("child") or outtray.track("child") else 0)
print(time.monotonic() - began < 10)
fcntl.flock(held, fcntl.LOCK_UN)
assert os.waitpid(child, 0)[1] == 0
assert outtray.track("parent")
print(outtray.status()["pending"])
"""
    assert finish(start(environment, code)) == "True\n2\n"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.parametrize(
    "place", ["open_database", "_require_sound_frame", "_heed_choice", "_append_with_care", "_commit", "leave_file"]
)
def test_what_is_accepted_around_a_fork_in_a_signal_handler_is_kept_wherever_in_a_call_that_comes(
    place: str, environment: dict[str, str], run_python: Run
) -> None:
    code = f"""
import os, outtray, signal, sys
outtray.configure(app="handler", flush="manual")

def track(event):
    if outtray.track(event):
        os.write(1, event.encode() + b"\\n")

def handle(*_):
    pids.append(os.fork())
    if pids[0] == 0:
        track("child in the handler")

def trace(frame, *_):
    if not pids and frame.f_code.co_name == {place!r}:
        signal.raise_signal(signal.SIGUSR1)

pids = []
to_child, to_parent = os.pipe(), os.pipe()
signal.signal(signal.SIGUSR1, handle)
track("before")
outtray.tray.default_tray.close()
sys.settrace(trace)
track("the call that the handler comes into, which opens the outbox")
sys.settrace(None)
if pids[0] == 0:
    os.write(to_parent[1], b"1")
    os.read(to_child[0], 1)
    track("child later")
    os._exit(0)
os.read(to_parent[0], 1)
outtray.tray.default_tray.close()  # and delete the log, unless somebody has it open: a child may believe that it has
track("parent later")
os.write(to_child[1], b"1")
assert os.waitpid(pids[0], 0)[1] == 0
outtray.tray.default_tray.close()
track("at the end")
"""
    accepted = finish(start(environment, code)).splitlines()
    listed = json.loads(run_python("-m", "outtray", "list", "--json").stdout)
    assert {message["event"] for message in listed} == set(accepted)
    assert {"the call that the handler comes into, which opens the outbox", "at the end"} <= set(accepted)
    status = json.loads(run_python("-m", "outtray", "status", "--json").stdout)
    assert "lost" not in status["ledger"]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_child_that_a_signal_handler_forks_in_a_flush_leaves_the_answer_and_the_next_wait_to_its_parent(
    server: FakeServer, environment: dict[str, str]
) -> None:
    server.set_mode("ok", delay=1.0)
    code = f"""
import os, outtray, signal, time
outtray.configure(app="handler", url={server.url!r}, flush="manual", timeout=3.0)
assert outtray.track("event")
pids = []
signal.signal(signal.SIGALRM, lambda *_: pids.append(os.fork()))
signal.setitimer(signal.ITIMER_REAL, 0.5)
began = time.monotonic()
report = outtray.flush(20)
if pids[0] == 0:
    os._exit(0 if report.outcome == "failed" and time.monotonic() - began < 2.5 else 1)
assert report.settled, report
assert os.waitpid(pids[0], 0)[1] == 0
assert outtray.track("event")
status = outtray.status()
print(status["pending"], status["delivered"], status["next_attempt_at"])
assert outtray.flush(20).settled
"""
    assert finish(start(environment, code)) == "1 1 None\n"
    assert len(server.requests) == 2


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_forks_while_the_thread_loads_its_modules_print_nothing(
    server: FakeServer, environment: dict[str, str]
) -> None:
    code = f"""
import os, outtray, time
outtray.configure(app="loading", url={server.url!r}, flush_interval=0.0)
assert outtray.track("event")
end = time.monotonic() + 0.7
while time.monotonic() < end:
    if (child := os.fork()) == 0:
        os._exit(0)
    os.waitpid(child, 0)
"""
    for _ in range(3):
        done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
        assert done.stderr == ""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_fork_does_not_wait_for_an_import_that_waits_for_logging(environment: dict[str, str]) -> None:
    code = """
import os, threading, time
from outtray import forking
import logging  # after outtray, so that its hook comes before outtray's
def load():
    with forking.importing:
        is_loading.set()
        time.sleep(0.5)  # until the fork waits
        logging.getLogger("late")
is_loading = threading.Event()
thread = threading.Thread(target=load, daemon=True)
thread.start()
is_loading.wait()
if (child := os.fork()) == 0:
    logging.getLogger("child")
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0
thread.join(10)
assert not thread.is_alive()
assert not logging._lock._is_owned() and not forking.importing._is_owned()
"""
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, timeout=20, check=True)
    assert done.stderr == b""


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_multiprocessing_children_use_the_outbox(
    method: str, server: FakeServer, environment: dict[str, str], tmp_path: Path
) -> None:
    if method not in multiprocessing.get_all_start_methods():
        pytest.skip(f"no {method} here")
    script = tmp_path / "program.py"
    script.write_text(f"""
import multiprocessing, outtray
def work(number):
    outtray.configure(app="pool", url={server.url!r}, flush="manual")
    return outtray.track("child", {{"number": number}})
if __name__ == "__main__":
    outtray.configure(app="pool", url={server.url!r}, flush="manual")
    outtray.track("parent")
    with multiprocessing.get_context({method!r}).Pool(4) as pool:
        assert all(pool.map(work, range(40)))
    outtray.track("parent")
    assert outtray.flush(20).settled
""")
    subprocess.run([sys.executable, str(script)], env=environment, check=True, timeout=90)
    assert len(server.received) == 42
    assert not server.repeats


# Trays


@pytest.mark.parametrize("how", ["threads", "forks"])
def test_two_trays_of_different_apps_never_mix(how: str, environment: dict[str, str]) -> None:
    with FakeServer() as one, FakeServer() as two:
        code = f"""
import os, outtray, threading
trays = [outtray.Tray(app="one", url={one.url!r}, user_id="1", flush_interval=0.01),
         outtray.Tray(app="two", url={two.url!r}, user_id="2", flush_interval=0.01)]
def work(who):
    for number in range(100):
        for tray in trays:
            assert tray.track(tray.settings.app, {{"who": who, "number": number}})
if {how!r} == "threads":
    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    [t.start() for t in threads]; [t.join() for t in threads]
else:
    trays[0].track("one", {{"who": -1}}); trays[1].track("two", {{"who": -1}})
    pids = []
    for n in range(4):
        pid = os.fork()
        if pid == 0:
            work(n)
            [tray.close() for tray in trays]  # or an answer on its way is lost, and its batch repeated
            os._exit(0)
        pids.append(pid)
    assert all(os.waitpid(pid, 0)[1] == 0 for pid in pids)
for tray in trays:
    assert tray.track(tray.settings.app, {{"who": -2}})  # behind all that the children tracked
    assert tray.flush(30).settled
"""
        finish(start(environment, code))
        for server, name, user in ((one, "one", "1"), (two, "two", "2")):
            assert {m["event"] for m in server.received} == {name}
            assert {m["user_id"] for m in server.received} == {user}
            assert not server.repeats
            for who in range(4):
                own = [m["properties"]["number"] for m in server.received if m["properties"]["who"] == who]
                assert own == list(range(100)), (name, who)


def test_trays_differ_in_consent(tmp_path: Path, home: Path) -> None:
    yes = outtray.Tray(app="yes", flush="manual")
    no = outtray.Tray(app="no", flush="manual", consent="denied")
    local = outtray.Tray(app="local", flush="manual", consent="local")
    assert (yes.track("a"), no.track("a"), local.track("a")) == (True, False, True)
    assert yes.status()["pending"] == 1
    assert local.status()["local"] == 1
    assert local.flush(1).outcome == "denied"
    assert not (home / ".local/state/outtray/no").exists()


def test_a_tray_can_be_closed_and_used_again(server: FakeServer) -> None:
    tray = outtray.Tray(app="closed", url=server.url, flush_interval=0.01)
    assert tray.track("before")
    tray.close()
    assert sorted(os.listdir(tray.settings.directory)) == ["client_id", "outbox-1-0.db", "outbox-1.gate"] or (
        "outbox-1.drain" in os.listdir(tray.settings.directory)
    )
    assert tray.track("after")
    assert tray.flush(20).settled
    assert [m["event"] for m in server.received] == ["before", "after"]


def test_a_directory_deleted_under_a_running_program_costs_only_what_was_in_it(server: FakeServer) -> None:
    tray = outtray.Tray(app="gone", url=server.url, flush="manual")
    assert tray.track("before")
    shutil.rmtree(tray.settings.directory)
    assert tray.track("after")
    assert tray.flush(20).settled
    assert [m["event"] for m in server.received] == ["after"]


# Stopped programs


@pytest.mark.skipif(not hasattr(signal, "SIGSTOP"), reason="no SIGSTOP here")
def test_a_stopped_drainer_is_reported_with_its_pid(
    server: FakeServer, environment: dict[str, str], run_python: Run
) -> None:
    tray = outtray.Tray(app="stopped", url=server.url, flush="manual", timeout=1.0)
    for _ in range(3):
        assert tray.track("event")
    tray.close()
    server.set_mode("ok", delay=30)
    flushing = subprocess.Popen(
        [sys.executable, "-m", "outtray", "flush"], env={**environment, "OUTTRAY_TIMEOUT": "30"}
    )
    assert wait_until(lambda: len(server.requests) == 1 or bool(server.received))
    os.kill(flushing.pid, signal.SIGSTOP)
    try:
        waiting = run_python("-m", "outtray", "flush", OUTTRAY_TIMEOUT="0.5")
        assert waiting.returncode == 75
        assert str(flushing.pid) in waiting.stderr
    finally:
        flushing.kill()
        flushing.wait()
    server.set_mode("ok")
    after = run_python("-m", "outtray", "flush", "--json")
    assert after.returncode == 0, after.stderr
    assert json.loads(after.stdout)
    assert {message["event"] for message in server.received} == {"event"}
    assert len(server.received) == 3
