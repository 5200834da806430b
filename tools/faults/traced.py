"""Jobs of `jobs_child` in processes of their own, with strace attached to do harm at chosen system calls."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

ROOT = Path(__file__).resolve().parent.parent.parent

PATIENCE = 60.0
"""Seconds after which a job that does not end is killed; that counts as a failure."""


WAITING_CALL = "rt_sigtimedwait"
"""The system call in which a child waits for `Job.go_on`: not one of the job's own."""


@dataclass
class Outcome:
    """How a job ended: *code* is its exit code, or minus a signal; what it logged, and what it wrote to stderr."""

    code: int = 0
    said: list[dict[str, Any]] = field(default_factory=list)
    errors: str = ""
    hung: bool = False

    @property
    def is_killed(self) -> bool:
        """Whether SIGKILL ended it."""
        return self.code == -signal.SIGKILL

    def last(self, key: str) -> Any:
        """Return what was logged last under *key*, None if nothing was."""
        return next((line[key] for line in reversed(self.said) if key in line), None)

    def all(self, key: str) -> list[Any]:
        """Return all that was logged under *key*, in order."""
        return [line[key] for line in self.said if key in line]


class Job:
    """One job under way in a forked child, which waits for the first `go_on`."""

    def __init__(self, server: ForkServer, pid: int, log: Path, errors: Path) -> None:
        self.pid = pid
        self._server = server
        self._log = log
        self._errors = errors
        self._strace: subprocess.Popen[str] | None = None
        self._timer = threading.Timer(PATIENCE, self._give_up)
        self._timer.daemon = True
        self._timer.start()
        self._hung = False

    def attach(self, *options: str, output: Path) -> None:
        """Attach strace with *options*; its trace goes to *output*."""
        command = ["strace", "-y", "-s", "0", "-e", f"trace=!{WAITING_CALL}", *options]
        command += ["-o", str(output), "-p", str(self.pid)]
        self._strace = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        assert self._strace.stderr is not None
        line = self._strace.stderr.readline()
        if "attached" not in line:
            raise RuntimeError(f"{' '.join(command)}: {line}")

    def detach(self) -> None:
        """End the harm."""
        if self._strace is not None:
            self._strace.terminate()
            self._strace.communicate(timeout=PATIENCE)
            self._strace = None

    def go_on(self) -> None:
        """Let the child begin, or go on where it waits."""
        os.kill(self.pid, signal.SIGUSR1)

    def wait_until_waiting(self, times: int = 1) -> bool:
        """Wait until the child has said *times* times that it waits; False if it ended before."""
        while self._alive():
            if len(Outcome(said=read_log(self._log)).all("waiting")) >= times:
                return True
            threading.Event().wait(0.002)
        return False

    def finish(self) -> Outcome:
        """Wait for the end and return what came of it."""
        status = self._server.answer()["status"]
        self._timer.cancel()
        if self._strace is not None:
            self._strace.communicate(timeout=PATIENCE)  # it ends with what it traced
            self._strace = None
        said, errors = read_log(self._log), self._errors.read_text(errors="replace")
        self._log.unlink()
        self._errors.unlink()
        return Outcome(os.waitstatus_to_exitcode(status), said, errors, self._hung)

    def _alive(self) -> bool:
        try:
            state = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()[0]
        except FileNotFoundError:
            return False
        return state != "Z"

    def _give_up(self) -> None:
        self._hung = True
        os.kill(self.pid, signal.SIGKILL)


class ForkServer:
    """`jobs_child` at work in *folder*; one job at a time."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        home = folder / "home"
        home.mkdir()
        environment = {"HOME": str(home), "PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT / "src")}
        self._process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("jobs_child.py"))],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._count = 0

    def __enter__(self) -> ForkServer:
        return self

    def __exit__(self, *_: object) -> None:
        self._pipe(self._process.stdin).close()
        try:
            self._process.wait(PATIENCE)
        finally:
            self._process.kill()
            self._process.wait()
            self._pipe(self._process.stdout).close()

    def start(self, job: str, folder: Path, url: str) -> Job:
        """Fork a child for *job* on the outboxes in *folder*; it waits for `Job.go_on`."""
        self._count += 1
        log, errors = (self._folder / f"{kind}-{self._count}" for kind in ("log", "errors"))
        log.touch()
        order = {"job": job, "folder": str(folder), "url": url, "log": str(log), "errors": str(errors)}
        errors.touch()
        stdin = self._pipe(self._process.stdin)
        stdin.write(json.dumps(order) + "\n")
        stdin.flush()
        return Job(self, self.answer()["pid"], log, errors)

    def run(self, job: str, folder: Path, url: str) -> Outcome:
        """Do *job* undisturbed."""
        started = self.start(job, folder, url)
        started.go_on()
        return started.finish()

    def answer(self) -> dict[str, int]:
        """Return the program's next answer."""
        line = self._pipe(self._process.stdout).readline()
        if not line:
            raise RuntimeError(f"the program of the jobs ended with {self._process.wait()}")
        answer: dict[str, int] = json.loads(line)
        return answer

    @staticmethod
    def _pipe(pipe: IO[str] | None) -> IO[str]:
        assert pipe is not None
        return pipe


def read_log(path: Path) -> list[dict[str, Any]]:
    """Return the lines that are complete."""
    return [json.loads(line) for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]


def cannot_trace() -> str:
    """Return why strace cannot be attached to a process here, "" if it can."""
    if sys.platform != "linux":
        return "strace is for Linux"
    with subprocess.Popen(["sleep", "60"]) as sleeper:
        command = ["strace", "-o", os.devnull, "-p", str(sleeper.pid)]
        try:
            strace = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
            words = ForkServer._pipe(strace.stderr).readline()
        except FileNotFoundError:
            return "strace is not installed"
        finally:
            sleeper.kill()
        strace.communicate(timeout=PATIENCE)
    return "" if "attached" in words else f"strace may not be attached to a process: {words.strip()}"
