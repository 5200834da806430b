"""Where a drain delivers to: what the host stored of it, the write key, and what a stored wait belongs to."""

from __future__ import annotations

import json

from outtray.errors import SettingsError
from outtray.outbox.transaction import DELIVERY_SETTINGS
from outtray.paths import config_path
from outtray.settings import without_credentials

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from outtray.outbox.look import Look
    from outtray.outbox.store import Outbox
    from outtray.settings import Settings


def delivery_settings(outbox: Outbox | Look) -> dict[str, Any]:
    """Return what the host stored for drainers, see `Settings.to_store`."""
    return read_delivery_settings(outbox.meta(DELIVERY_SETTINGS))


def read_delivery_settings(text: str | None) -> dict[str, Any]:
    """Return the same out of the *text* that is kept under `DELIVERY_SETTINGS`."""
    try:
        stored = json.loads(text or "{}")
    except (ValueError, RecursionError):
        return {}  # damaged: then url and the like have to come from elsewhere
    return stored if isinstance(stored, dict) else {}


def required_key(needs_key: bool, settings: Settings) -> str | None:
    """Return the write key. Raises SettingsError if it is missing and the host delivers with one."""
    key = settings.find_key()
    if key is None and needs_key and without_credentials(settings.url) == settings.url:
        raise SettingsError(
            f"the write key of {settings.app!r}, or the credentials in its url, is missing: set OUTTRAY_WRITE_KEY, or "
            "write_key_file, or OUTTRAY_URL, or have the application call configure(remember_key=True), which keeps "
            f"the key in {config_path()}"
        )
    return key


def is_meant(wait: str | None, salt: str, settings: Settings, *, needs_key: bool) -> bool:
    """Tell whether the fingerprint *wait* of a stored wait is that of the url and key in *settings*.

    Also where these are not known here: then they are the host's.
    """
    try:
        key = required_key(needs_key, settings)
    except SettingsError:
        return True
    return settings.url is None or wait == fingerprint(salt, settings.url, key)


def fingerprint(salt: str, url: str, key: str | None) -> str:
    """Return what a stored wait belongs to, from which neither url nor key can be read."""
    try:
        from _blake2 import blake2b  # what hashlib has it from, without OpenSSL: 2.5 of the 35 ms of an idle flush
    except ImportError:
        from hashlib import blake2b

    return blake2b(f"{salt}\0{url}\0{key or ''}".encode(), digest_size=8).hexdigest()
