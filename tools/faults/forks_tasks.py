"""A Celery application with its broker in a folder: `forks_tasks.py` sends, `celery -A faults.forks_tasks` works."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import celery

from faults import host

FOLDER = Path(os.environ["HOME"]) / "broker"
FOLDER.mkdir(exist_ok=True)

app = celery.Celery("tasks", broker="filesystem://")
app.conf.broker_transport_options = {
    "data_folder_in": str(FOLDER),
    "data_folder_out": str(FOLDER),
    "control_folder": str(FOLDER / "control"),
}
app.conf.worker_hijack_root_logger = False

host.configure()
host.track_some(5, "loaded")


@app.task(name="work")
def work(number: int) -> None:
    host.track("task", number=number)
    (FOLDER.parent / "done").open("a").write("x")


if __name__ == "__main__":
    for each in range(int(sys.argv[1])):
        work.delay(each)
