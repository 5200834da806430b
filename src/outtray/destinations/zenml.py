"""ZenML's analytics server: ``POST {url}/batch`` with a JSON array of messages, 200 is success."""

from __future__ import annotations

from typing import TYPE_CHECKING

from outtray.destinations import answers
from outtray.request import MAX_ANSWER_BYTES, batch_line

if TYPE_CHECKING:
    from collections.abc import Callable

    import requests

    from outtray.outbox.records import Batch
    from outtray.settings import Settings


class ZenML:
    """The seed's own wire format; the key, where there is one, goes as a bearer token."""

    title = "ZenML Analytics"

    def __init__(self, settings: Settings, key: str | None) -> None:
        self._url = settings.url or ""
        self._line = batch_line(self._url, key)

    def deliver(self, batch: Batch, timeout: float, meanwhile: Callable[[], None]) -> int:
        """Deliver the messages, all or none, and return the status. Raises Postponed, Held or Rejected."""
        response = self._line.exchange(batch.array, timeout, meanwhile)
        if response.status_code != 200:
            raise answers.failure(response, self._url)
        if not _is_own_success(response):
            raise answers.not_ours(response)
        return response.status_code

    def close(self) -> None:
        """End the thread that makes the requests."""
        self._line.close()


def _is_own_success(response: requests.Response) -> bool:
    """Tell the receiver's 200 (an empty body or JSON) from a captive portal's."""
    if "text/html" in response.headers.get("content-type", "").lower() or len(response.content) >= MAX_ANSWER_BYTES:
        return False
    if not response.content.strip():
        return True
    try:
        response.json()
    except (ValueError, RecursionError):
        return False
    return True
