"""The config file, TOML: options for all applications, and in `[app.NAME]` for one; `options.py` lists them."""

from __future__ import annotations

import os

from outtray.options import OPTIONS
from outtray.paths import without_waiting

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
        problems.append(f"the config file {path} was passed over, which counts as a denial of consent: {error}")
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
