"""Reading words so plain that they need no parser: to load `argparse` and to set one up takes 10 ms."""

from __future__ import annotations

from types import SimpleNamespace

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any


class _Options:
    """Takes the parser's place in a command's `add_arguments`, and keeps what is said there of each option."""

    def __init__(self) -> None:
        self.said: dict[str, dict[str, Any]] = {}

    def add_argument(self, name: str, **said: Any) -> None:
        """Keep what the parser would be told."""
        self.said[name] = said


def plain(add_arguments: Callable[[Any], None], words: Sequence[str]) -> SimpleNamespace | None:
    """Return what the parser would, if *words* are options in full, each value a word of its own that can be right.

    None for anything else, which is the parser's to read, or to refuse.
    """
    options = _Options()
    add_arguments(options)
    if not all(name.startswith("--") for name in options.said):
        return None
    values = {_attribute(name): _default(said) for name, said in options.said.items()}
    rest = iter(words)
    for word in rest:
        said = options.said.get(word)
        if said is None:
            return None
        if _is_flag(said):
            values[_attribute(word)] = True
            continue
        raw = next(rest, "-")
        if raw.startswith("-"):
            return None
        try:
            value = said.get("type", str)(raw)
        except Exception:  # the parser says what is wrong with it
            return None
        if value not in said.get("choices", (value,)):
            return None
        values[_attribute(word)] = value
    return SimpleNamespace(**values)


def _attribute(name: str) -> str:
    return name.removeprefix("--").replace("-", "_")


def _is_flag(said: dict[str, Any]) -> bool:
    return said.get("action") == "store_true"


def _default(said: dict[str, Any]) -> Any:
    return said.get("default", False if _is_flag(said) else None)
