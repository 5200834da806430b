"""Keeping keys and credentials out of what is stored, logged or shown."""

from __future__ import annotations

import json
from base64 import b64encode
from urllib.parse import unquote

HIDDEN = "…"

LEAST_SECRET = 4
"""Characters: a shorter part of a url is found in every other word and not looked for."""


def without_secrets(text: str, url: str | None, key: str | None) -> str:
    """Return *text* with `HIDDEN` in place of *key* and of what the credentials and the query of *url* hold.

    A secret that is cut off at the end of *text* is hidden too.
    """
    for secret in sorted(_secrets(url or "", key), key=len, reverse=True):
        text = text.replace(secret, HIDDEN)
        cut = next((n for n in range(len(secret) - 1, LEAST_SECRET - 1, -1) if text.endswith(secret[:n])), 0)
        text = text[: len(text) - cut] + HIDDEN if cut else text
    return text


def _secrets(url: str, key: str | None) -> set[str]:
    """Return the secrets as they are sent, as they are written, and as JSON would show them."""
    place, _, query = url.partition("#")[0].partition("?")
    credentials = place.partition("//")[2].partition("/")[0].rpartition("@")[0]
    user, _, password = credentials.partition(":")
    basic = b64encode(f"{unquote(user)}:{unquote(password)}".encode()).decode() if credentials else ""
    values = [pair.partition("=")[2] or pair for pair in query.split("&")]
    found = {secret for secret in (user, password, basic, query, *values) if len(secret) >= LEAST_SECRET}
    found |= {unquote(secret) for secret in found} | ({key} if key else set())
    return found | {json.dumps(secret)[1:-1] for secret in found}
