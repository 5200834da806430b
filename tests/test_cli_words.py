"""Words that are read without the parser are read as the parser reads them."""

from __future__ import annotations

from importlib import import_module
from types import ModuleType, SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from outtray.cli import COMMANDS, _command_parser, arguments
from outtray.cli.words import plain

VALUES = [
    *("a", "7", "0.5", "2h", "2025-06-01", "http://host/x", "zenml", "dead", "granted", "a b"),
    *("", "-", "-1", "--", "--limit=3", "\udcff"),
]


def module_of(command: str) -> ModuleType:
    return import_module(COMMANDS[command][0])


def options_of(command: str) -> list[str]:
    return [name for action in _command_parser(command, module_of(command))._actions for name in action.option_strings]


def takes_options_only(command: str) -> bool:
    return all(action.option_strings for action in _command_parser(command, module_of(command))._actions)


def parsed(command: str, words: list[str]) -> dict[str, object]:
    return vars(_command_parser(command, module_of(command)).parse_args(words))


LINES = {command: st.lists(st.sampled_from([*options_of(command), *VALUES]), max_size=5) for command in COMMANDS}


@pytest.fixture(autouse=True)
def _a_clock_that_stands(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arguments, "time", SimpleNamespace(time=lambda: 1.75e9))  # an age is read as a moment


@pytest.mark.parametrize("command", COMMANDS)
def test_no_words_give_the_defaults_of_the_parser(command: str) -> None:
    found = plain(module_of(command).add_arguments, [])
    assert (found is not None) == takes_options_only(command)
    assert found is None or vars(found) == parsed(command, [])


@pytest.mark.parametrize("command", [*filter(takes_options_only, COMMANDS)])
def test_each_option_is_read_as_the_parser_reads_it(command: str) -> None:
    names = set(options_of(command)) - {"-h", "--help"}
    read = set()
    for name in names:
        for words in ([name], *([name, value] for value in VALUES), *([name, value, name, "7"] for value in VALUES)):
            found = plain(module_of(command).add_arguments, words)
            if found is not None:
                read.add(name)
                assert vars(found) == parsed(command, words), words
    assert read == names


@pytest.mark.parametrize("command", COMMANDS)
@given(st.data())
def test_a_line_is_read_as_the_parser_reads_it_or_left_to_it(command: str, data: st.DataObject) -> None:
    words = data.draw(LINES[command])
    found = plain(module_of(command).add_arguments, words)
    assert found is None or vars(found) == parsed(command, words)
