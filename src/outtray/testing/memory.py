"""What the fake server has seen and accepted."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any


@dataclass
class SeenRequest:
    """One request that reached the server, whatever came of it.

    *method* is "POST", or "GET" where a client followed a redirect to a batch path. *headers* have their
    names as sent. *bytes* is the size of the body as read from the wire. *status* is None as long as no
    answer was sent. *count* and *message_ids* are 0 and empty if the body could not be read as a batch.
    """

    method: str
    path: str
    headers: dict[str, str]
    count: int
    bytes: int
    status: int | None
    message_ids: list[str]


class Memory:
    """Thread-safe: accepted messages, their repeats, and the requests. What it returns are copies."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._received: dict[str, dict[str, Any]] = {}
        self._repeats: dict[str, int] = {}
        self._requests: list[SeenRequest] = []

    def note(self, request: SeenRequest, accepted: Iterable[dict[str, Any]]) -> None:
        """Keep a request and the messages that were accepted from it."""
        with self._lock:
            self._requests.append(request)
            for message in accepted:
                message_id = message["message_id"]
                if message_id in self._received:
                    self._repeats[message_id] = self._repeats.get(message_id, 0) + 1
                else:
                    self._received[message_id] = message

    def answered(self, request: SeenRequest, status: int | None) -> None:
        """Write down what a noted request was answered."""
        with self._lock:
            request.status = status

    @property
    def received(self) -> list[dict[str, Any]]:
        """The distinct accepted messages in the order of their first acceptance."""
        with self._lock:
            return list(self._received.values())

    @property
    def repeats(self) -> dict[str, int]:
        """How many times beyond the first a message was accepted, for those that were."""
        with self._lock:
            return dict(self._repeats)

    @property
    def requests(self) -> list[SeenRequest]:
        """The requests in the order of their arrival."""
        with self._lock:
            return [replace(request) for request in self._requests]

    def summary(self) -> dict[str, Any]:
        """Return everything as one JSON object; *count* includes the repeats."""
        with self._lock:
            return {
                "count": len(self._received) + sum(self._repeats.values()),
                "distinct": len(self._received),
                "repeats": dict(self._repeats),
                "messages": list(self._received.values()),
                "requests": len(self._requests),
            }

    def clear(self) -> None:
        """Forget everything."""
        with self._lock:
            self._received.clear()
            self._repeats.clear()
            self._requests.clear()
