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
PROGRAMS = [code for code in PYTHON if "def test_" not in code]
(TEST,) = (code for code in PYTHON if "def test_" in code)


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


@pytest.mark.parametrize("code", PROGRAMS)
def test_the_python_of_the_readme_runs_and_what_it_tracks_arrives(
    code: str, environment: dict[str, str], tmp_path: Path
) -> None:
    with FakeServer() as server:
        flush = ["-m", "outtray", "flush", "--all", "--url", server.url]
        for words in (["-c", code.replace("http://127.0.0.1:8765", server.url)], flush):
            subprocess.run([sys.executable, *words], env=environment, cwd=tmp_path, check=True, timeout=60)
        tracked = set(re.findall(r'(?:track|track_handler)\("([^"]+)"', code))
        assert tracked
        assert tracked <= {message.get("event") for message in server.received}


@pytest.mark.parametrize("variable", ["", "DO_NOT_TRACK", "OUTTRAY_CONSENT", "OUTTRAY_URL"])
def test_the_test_of_the_readme_passes_wherever_it_is_copied_to_and_touches_nothing_there(
    variable: str, environment: dict[str, str], home: Path, tmp_path: Path
) -> None:
    (tmp_path / "test_it.py").write_text(TEST)
    values = {"DO_NOT_TRACK": "1", "OUTTRAY_CONSENT": "denied", "OUTTRAY_URL": "http://127.0.0.1:9"}
    pytest_alone = ["-m", "pytest", "-q", "-p", "no:cacheprovider", "--basetemp", str(tmp_path / "inner"), "test_it.py"]
    done = subprocess.run(
        [sys.executable, *pytest_alone],
        env={**environment, **({variable: values[variable]} if variable else {})},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert "1 passed" in done.stdout, done.stdout + done.stderr
    assert list(home.iterdir()) == []


def test_the_readme_opens_with_the_two_commands() -> None:
    assert re.match(r"# outtray\n\n```sh\ntools/demo .*\ntools/test ", README)
