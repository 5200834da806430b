"""What an HTTP answer that is no success means for a batch: the table of answers that all HTTP destinations share."""

from __future__ import annotations

import time
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING

from outtray.errors import DeliveryError, Held, Postponed, Rejected
from outtray.settings import without_credentials

if TYPE_CHECKING:
    import requests

REFUSALS = frozenset({400, 413, 422})
PATIENCE = frozenset({408, 425, 429})
CONFIGURATION = frozenset({401, 403, 404, 405})

EXCERPT_BYTES = 500


def failure(response: requests.Response, url: str) -> DeliveryError:
    """Return the error that *response* stands for; it is no success."""
    status = response.status_code
    named = f"{status} {response.reason or ''}".strip()
    if status in REFUSALS:
        return Rejected(named, status=status, excerpt=excerpt(response))
    if status in CONFIGURATION:
        return Held(f"check url and key: {named} from {without_credentials(url)}", status=status)
    if 300 <= status < 400:
        target = without_credentials(response.headers.get("location")) or "nowhere"
        return Held(f"check url and key: {named}, a redirect to {target}", status=status)
    if status in PATIENCE or status >= 500:
        return Postponed(named, status=status, retry_after=retry_after(response))
    return not_ours(response)


def not_ours(response: requests.Response) -> Postponed:
    """Return the error for an answer that does not come from the destination, such as a captive portal's page."""
    kind = response.headers.get("content-type", "no content type")
    return Postponed(f"{response.status_code} ({kind}) is not the receiver's answer", status=response.status_code)


def retry_after(response: requests.Response) -> float | None:
    """Return the seconds that the answer asks to wait (RFC 9110: seconds or a date), None if it does not."""
    text = response.headers.get("retry-after", "").strip()
    if text.isdecimal():
        return float(text[:12])
    try:
        return max(0.0, parsedate_to_datetime(text).timestamp() - time.time())
    except (ValueError, TypeError, OverflowError):
        return None


def excerpt(response: requests.Response) -> str:
    """Return the beginning of the answer's body as text."""
    return bytes(response.content[:EXCERPT_BYTES]).decode("utf-8", "replace")
