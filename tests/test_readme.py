"""What the README says is so: its tables are the program's, its Python runs, its commands exist."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from outtray.cli import COMMANDS, exits
from outtray.options import OPTIONS, environment_name
from outtray.testing import FakeServer

README = (Path(__file__).parent.parent / "README.md").read_text()
PYTHON = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
SHELL = re.findall(r"```sh\n(.*?)```", README, re.DOTALL)


def shown_default(default: object, kind: object) -> str:
    if default is None:
        return ""
    if isinstance(default, bool):
        return str(default).lower()
    if isinstance(default, float):
        return f"{default:g}"
    return f"{default:_}" if kind == "bytes" else str(default)


def option_row(option: object) -> str:
    name, kind, default, unit, text = option  # type: ignore[misc]
    if isinstance(kind, tuple):
        text = f"{text} ({', '.join(kind)})"
    return f"| `{name}` | `{environment_name(name)}` | {shown_default(default, kind)} | {unit} | {text} |"


def command_row(name: str) -> str:
    return f"| `{name}` | {COMMANDS[name][1]} |"


@pytest.mark.parametrize("option", OPTIONS, ids=lambda option: option.name)
def test_every_option_is_in_the_table(option: object) -> None:
    assert option_row(option) in README


def test_the_table_has_no_option_that_does_not_exist() -> None:
    named = set(re.findall(r"^\| `\w+` \| `(OUTTRAY_\w+)`", README, re.MULTILINE))
    assert named == {environment_name(option.name) for option in OPTIONS}
    (server,) = (option.default for option in OPTIONS if option.name == "server_variable")
    assert set(re.findall(r"OUTTRAY_[A-Z_]+", README)) <= {*named, server}


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_is_in_the_table(name: str) -> None:
    assert command_row(name) in README


def test_the_exit_codes_are_the_table() -> None:
    table = README[README.index("| code | means |\n") :].partition("\n\n")[0]
    assert table.splitlines()[2:] == [f"| {code} | {text} |" for code, text in exits.MEANINGS.items()]
    named = {value for name, value in vars(exits).items() if name.isupper() and isinstance(value, int)}
    assert named == set(exits.MEANINGS)


def test_every_command_that_is_shown_exists() -> None:
    used = set(re.findall(r"python3? -m outtray (\w+)", README))
    assert used <= set(COMMANDS)
    for path in re.findall(r"tools/[\w.]+", README):
        assert (Path(__file__).parent.parent / path).exists(), path


@pytest.mark.parametrize("number", range(len(PYTHON)))
def test_the_python_of_the_readme_runs(number: int, environment: dict[str, str], tmp_path: Path) -> None:
    with FakeServer() as server:
        code = PYTHON[number].replace("http://127.0.0.1:8765", server.url)
        subprocess.run([sys.executable, "-c", code], env=environment, cwd=tmp_path, check=True, timeout=60)


def test_the_readme_opens_with_the_two_commands() -> None:
    assert re.match(r"# outtray\n\n```sh\ntools/demo .*\ntools/test ", README)
