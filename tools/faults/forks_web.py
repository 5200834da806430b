"""A web application for `gunicorn --preload`: it tracks when it is loaded and in each request."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from faults import host

host.configure()
host.track_some(5, "loaded")


def application(_environ: dict[str, Any], start_response: Callable[..., Any]) -> list[bytes]:
    """Answer with the pid of the worker, 500 if the call returned False."""
    taken = host.track("request")
    start_response("200 OK" if taken else "500 Refused", [("Content-Type", "text/plain")])
    return [str(os.getpid()).encode()]
