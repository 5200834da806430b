"""Remembering a write key: it goes into the user's config file, for drainers such as cron."""

from __future__ import annotations

import os
import time

from outtray.errors import SettingsError
from outtray.outbox.filelock import FileLock
from outtray.paths import config_path, make_directory, without_waiting

LOCK_NAME = "config.lock"
"""The file beside the config file by whose lock those who write at once are parted."""

LONGEST_WAIT = 10.0
"""Seconds that another program may write."""


def remember_key(app: str, write_key: str | None) -> str:
    """Write *write_key* as that of *app* into the config file, mode 0600, and return the file's path.

    Other lines of the file stay as they are; where it is a link, what it leads to is written. Raises SettingsError
    where the file cannot be read or written.
    """
    import tomllib

    path = config_path()
    if write_key is None:
        raise SettingsError("remember_key=True needs a write_key to remember, as an argument or in OUTTRAY_WRITE_KEY")
    try:
        make_directory(os.path.dirname(path))
        lock = _locked(os.path.join(os.path.dirname(path), LOCK_NAME))
        try:
            text = _with_key(_read(path), app, write_key)
            tomllib.loads(text)
            _replace(os.path.realpath(path), text)
        finally:
            lock.close()
    except (OSError, UnicodeError, tomllib.TOMLDecodeError) as error:
        raise SettingsError(f"the write key could not be remembered in {path}: {error}") from error
    return path


def _locked(path: str) -> FileLock:
    """Return the lock *path*, taken: who writes meanwhile would drop the other's key. Raises OSError."""
    lock = FileLock(path)
    lock.open(create=True)
    end = time.monotonic() + LONGEST_WAIT
    try:
        while not lock.try_acquire():
            if time.monotonic() > end:
                raise TimeoutError(f"another program has kept {path} for {LONGEST_WAIT:.0f} s")
            time.sleep(0.005)
    except BaseException:
        lock.close()
        raise
    return lock


def _read(path: str) -> list[str]:
    """Return the lines of the file, none where there is no file. Raises OSError, UnicodeError."""
    if not os.path.exists(path):
        return []
    with open(path, encoding="utf-8", opener=without_waiting) as file:
        return file.read().splitlines()


def _with_key(lines: list[str], app: str, write_key: str) -> str:
    """Return the text of *lines* with the key in the section of *app*."""
    import json

    header, line = f'[app."{app}"]', f"write_key = {json.dumps(write_key, ensure_ascii=False)}"
    start = next((n for n, text in enumerate(lines) if text.strip() in (header, f"[app.{app}]")), None)
    if start is None:
        lines += [header, line]
    else:
        end = next((n for n in range(start + 1, len(lines)) if lines[n].lstrip().startswith("[")), len(lines))
        kept = [text for text in lines[start + 1 : end] if text.split("=")[0].strip() != "write_key"]
        lines[start + 1 : end] = [line, *kept]
    return "\n".join(lines) + "\n"


def _replace(path: str, text: str) -> None:
    """Put a new file with *text* in place of that at *path*, at once and with mode 0600. Raises OSError."""
    import tempfile

    descriptor, temporary = tempfile.mkstemp(dir=os.path.dirname(path))
    try:
        os.chmod(temporary, 0o600)  # mkstemp makes it so, less what the umask takes away
        with open(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)  # it holds the key
        raise
