"""A receiver that costs as little as one can: nginx, which takes every body and answers `200 {}`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from faults import nginx

SETTINGS = (
    "client_max_body_size 0;",
    "keepalive_requests 1000000;",
    "location ~ ^/ { default_type application/json; return 200 '{}'; }",
)
"""Nothing is passed on to the receiver that `faults.nginx` expects behind it."""

MISSING = "" if nginx.PROGRAM else "there is no nginx here"
"""Why rows that need it are not measured."""


@contextmanager
def running() -> Iterator[str]:
    """Give the url of one that runs."""
    with TemporaryDirectory(prefix="outtray-bench-sink-") as folder, nginx.running(Path(folder), 9, SETTINGS) as url:
        yield url
