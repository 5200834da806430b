"""Outboxes as programs leave them, set up once and copied for each try: for `kill_points` and `io_errors`."""

from __future__ import annotations

import queue
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from faults.promises import Promised, Received
from faults.traced import ForkServer
from outtray.testing import FakeServer

Task = TypeVar("Task")
Result = TypeVar("Result")

MODES = {"with_dead": "refuse_marked"}
"""How the receiver answers while a template is set up, if not "ok"."""


@dataclass
class Template:
    """A folder as a function of `jobs_child` left it, and what had been promised and delivered by then."""

    folder: Path
    promised: Promised
    delivered: set[int]


class Templates:
    """The templates that were needed so far, in *folder*."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._made: dict[str, Template] = {}
        self._making = threading.Lock()

    def get(self, name: str, programs: ForkServer, server: FakeServer) -> Template:
        """Return the template *name*, set up by *programs* if it is the first time."""
        with self._making:
            if name not in self._made:
                self._made[name] = self._make(name, programs, server)
            return self._made[name]

    def _make(self, name: str, programs: ForkServer, server: FakeServer) -> Template:
        folder = self._folder / name
        folder.mkdir()
        server.clear()
        server.set_mode(MODES.get(name, "ok"))
        outcome = programs.run(name, folder, server.url)
        if outcome.code:
            raise RuntimeError(f"the template {name} ended with {outcome.code}: {outcome.errors}")
        promised = Promised()
        promised.add(outcome.said)
        return Template(folder, promised, set(Received.by(server).numbers))


class Worker:
    """What one thread needs to try things: programs, a receiver, a folder of its own, and the templates of all."""

    def __init__(self, programs: ForkServer, server: FakeServer, folder: Path, templates: Templates) -> None:
        self.programs = programs
        self.server = server
        self.folder = folder
        self._templates = templates
        self._count = 0

    def begin(self, template_name: str, mode: str = "ok") -> tuple[Template, Path]:
        """Return a template and a copy of its folder, with the receiver in *mode* and nothing received."""
        template = self._templates.get(template_name, self.programs, self.server)
        self._count += 1
        folder = self.folder / f"try-{self._count}"
        shutil.copytree(template.folder, folder)
        self.server.clear()
        self.server.set_mode(mode)
        return template, folder


def workers_with_templates(stack: ExitStack, count: int) -> list[Worker]:
    """Return workers that share templates; their programs, receivers and folders end with *stack*."""

    def folder() -> Path:
        return Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="outtray-faults-")))

    templates = Templates(folder())
    workers = []
    for _ in range(count):
        own = folder()
        server = stack.enter_context(FakeServer())
        workers.append(Worker(stack.enter_context(ForkServer(own)), server, own, templates))
    return workers


def shared_out(workers: list[Worker], do: Callable[[Worker, Task], Result], tasks: Iterable[Task]) -> list[Result]:
    """Return what *do* returns for each of *tasks*, done by *workers* side by side; the first exception ends it."""
    free: queue.SimpleQueue[Worker] = queue.SimpleQueue()
    for worker in workers:
        free.put(worker)

    def done(task: Task) -> Result:
        worker = free.get()
        try:
            return do(worker, task)
        finally:
            free.put(worker)

    with ThreadPoolExecutor(len(workers)) as pool:
        futures = [pool.submit(done, task) for task in tasks]
        try:
            return [future.result() for future in futures]
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
