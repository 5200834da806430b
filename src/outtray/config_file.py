"""The config file, TOML: options for all applications, and in `[app.NAME]` for one; `options.py` lists them."""

from __future__ import annotations

import os

from outtray.errors import SettingsError
from outtray.options import OPTIONS
from outtray.paths import config_path, make_directory, without_waiting

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


def read(path: str, problems: list[str]) -> dict[str, Any] | None:
    """Return the content, {} for no file, None for one that cannot be understood; then *problems* tells of it."""
    if not _is_there(path):
        return {}
    import tomllib

    try:
        with open(path, "rb", opener=without_waiting) as file:
            content = tomllib.load(file)
        if not _is_table_of_tables(content.get("app", {})):
            raise ValueError("'app' is not a table of applications")
    except (OSError, ValueError, RecursionError) as error:  # what tomllib raises is a ValueError
        problems.append(f"the config file {path} was passed over: {error}")
        return None
    return content


def _is_there(path: str) -> bool:
    """Tell whether something lies at *path*, and where that cannot be found out, that it does."""
    try:
        os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError:
        return True
    return True


def for_app(content: dict[str, Any], app: str, path: str, problems: list[str]) -> dict[str, Any]:
    """Return what the config file says to *app*: its options for all applications, and over them [app.NAME]."""
    known = {option.name for option in OPTIONS} - {"app"}
    section = content.get("app", {}).get(app, {})
    found: dict[str, Any] = {}
    for where, table in (("", {**content, "app": None}), (f"app.{app}: ", section)):
        for name, value in table.items():
            if name in known:
                found[name] = value
            elif value is not None:
                problems.append(f"{path}: {where}{name!r} is not an option and was passed over")
    return found


def _is_table_of_tables(value: object) -> bool:
    return isinstance(value, dict) and all(isinstance(table, dict) for table in value.values())


def remember_key(app: str, write_key: str | None) -> str:
    """Write *write_key* as that of *app* into the config file, mode 0600, and return the file's path.

    Other lines of the file stay as they are. Raises SettingsError where the file cannot be read or written.
    """
    import json
    import tempfile
    import tomllib

    path = config_path()
    if write_key is None:
        raise SettingsError("remember_key=True needs a write_key to remember, as an argument or in OUTTRAY_WRITE_KEY")
    key = json.dumps(write_key, ensure_ascii=False)
    header, line = f'[app."{app}"]', f"write_key = {key}"
    try:
        make_directory(os.path.dirname(path))
        lines: list[str] = []
        if os.path.exists(path):
            with open(path, encoding="utf-8", opener=without_waiting) as file:
                lines = file.read().splitlines()
        start = next((n for n, text in enumerate(lines) if text.strip() in (header, f"[app.{app}]")), None)
        if start is None:
            lines += [header, line]
        else:
            end = next((n for n in range(start + 1, len(lines)) if lines[n].lstrip().startswith("[")), len(lines))
            kept = [text for text in lines[start + 1 : end] if text.split("=")[0].strip() != "write_key"]
            lines[start + 1 : end] = [line, *kept]
        text = "\n".join(lines) + "\n"
        tomllib.loads(text)
        descriptor, temporary = tempfile.mkstemp(dir=os.path.dirname(path))
        try:
            os.chmod(temporary, 0o600)  # mkstemp makes it so, less what the umask takes away
            with open(descriptor, "w", encoding="utf-8") as file:
                file.write(text)
            os.replace(temporary, path)
        except BaseException:
            os.unlink(temporary)  # it holds the key
            raise
    except (OSError, UnicodeError, tomllib.TOMLDecodeError) as error:
        raise SettingsError(f"the write key could not be remembered in {path}: {error}") from error
    return path
