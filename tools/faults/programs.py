"""Other processes of a harness: started with a home of their own, and gone when the harness ends."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from types import TracebackType

ROOT = Path(__file__).resolve().parent.parent.parent
SRC = ROOT / "src"
FAULTS = Path(__file__).resolve().parent


class Programs:
    """Processes that know nothing but outtray's source and the home folder *home*; all are killed at the end."""

    def __init__(self, home: Path, **variables: str) -> None:
        self.environment = {"HOME": str(home), "PATH": os.environ["PATH"], "PYTHONPATH": str(SRC), **variables}
        self.home = home
        self._running: list[subprocess.Popen[Any]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.end_all()

    def end_all(self) -> None:
        """Kill all that still run."""
        for process in self._running:
            end(process)

    def start(self, *arguments: str, **options: Any) -> subprocess.Popen[Any]:
        """Start this interpreter with *arguments*; *options* are those of `subprocess.Popen`."""
        return self.start_command([sys.executable, *arguments], **options)

    def start_command(self, command: list[str], **options: Any) -> subprocess.Popen[Any]:
        """Start any program."""
        self._running = [process for process in self._running if process.poll() is None]
        process = subprocess.Popen(command, env=self.environment, cwd=self.home, **options)
        self._running.append(process)
        return process

    def outtray(self, *arguments: str, seconds: float = 120.0) -> subprocess.CompletedProcess[str]:
        """Run ``python -m outtray`` with *arguments* to its end."""
        return subprocess.run(
            [sys.executable, "-m", "outtray", *arguments],
            env=self.environment,
            cwd=self.home,
            capture_output=True,
            text=True,
            timeout=seconds,
            check=False,
        )

    def status(self, app: str) -> dict[str, Any]:
        """Return what ``status --json`` prints. Raises RuntimeError with its words where it does not work."""
        done = self.outtray("status", "--json", "--app", app)
        if done.returncode != 0:
            raise RuntimeError(f"status exits with {done.returncode}: {done.stderr.strip()}")
        found: dict[str, Any] = json.loads(done.stdout)
        return found


def end(process: subprocess.Popen[Any]) -> None:
    """Kill *process*, stopped or not, and wait for its end."""
    if process.poll() is None:
        process.kill()
    process.wait()
    for stream in (process.stdin, process.stdout, process.stderr):
        if stream is not None:
            stream.close()
