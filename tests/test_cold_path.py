"""What a new interpreter loads and starts for `import outtray` and for one `track()`, in processes of their own."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest

import outtray
from outtray.testing import FakeServer

Run = Callable[..., CompletedProcess[str]]

HEAVY = {
    "requests", "urllib3", "pydantic", "platformdirs", "rich", "typing", "dataclasses", "pathlib", "logging", "uuid",
    "tomllib", "platform", "locale", "importlib.metadata", "random", "secrets", "inspect", "asyncio", "urllib", "http",
    "socket", "ssl", "subprocess", "contextlib", "tempfile", "shutil", "decimal", "email", "hashlib", "traceback",
    "multiprocessing", "concurrent", "select", "selectors", "argparse", "textwrap", "glob", "fnmatch",
}  # fmt: skip

REPORT = """
import sys, threading
print(__import__("json").dumps({
    "modules": sorted(loaded),
    "threads": [thread.name for thread in threading.enumerate() if thread is not threading.main_thread()],
    "answers": answers,
}))
"""

# Without `site`, which may load modules of its own for .pth files: that would hide what outtray loads.
ALONE = "-S"


def report_of(run_python: Run, code: str, *options: str, **environment: str) -> dict[str, Any]:
    """Run *code*, which sets `answers`, and return what it loaded, started and answered."""
    prefix = "import sys\nanswers = []\nbefore = set(sys.modules)\n"
    middle = "\nloaded = set(sys.modules) - before\n"
    result = run_python(*options, "-c", prefix + code + middle + REPORT, **environment)
    assert result.stderr == ""
    found: dict[str, Any] = json.loads(result.stdout)
    return found


def test_importing_outtray_loads_outtray_only(run_python: Run) -> None:
    assert report_of(run_python, "import outtray", ALONE)["modules"] == ["__future__", "outtray"]


def test_one_track_loads_nothing_that_is_slow_to_load(run_python: Run, home: Path) -> None:
    found = report_of(run_python, "import outtray; answers = [outtray.track('x', {'a': 1})]", ALONE)
    assert found["answers"] == [True]
    assert "sqlite3" in found["modules"]
    assert "outtray.outbox.store" in found["modules"]
    assert HEAVY & set(found["modules"]) == set()
    for module in ("request", "destinations", "delivery.drain", "delivery.flush", "models", "utils", "outbox.look"):
        assert f"outtray.{module}" not in found["modules"]


def test_all_four_calls_of_a_configured_program_load_nothing_that_is_slow_to_load(run_python: Run) -> None:
    code = (
        "import outtray\n"
        "outtray.configure(app='program', url='http://127.0.0.1:9', flush='manual', version='1.0')\n"
        "answers = [outtray.track('x'), outtray.identify({'a': 1}), outtray.group('g'), outtray.alias('a', 'b')]"
    )
    found = report_of(run_python, code, ALONE)
    assert found["answers"] == [True] * 4
    assert HEAVY & set(found["modules"]) == set()


def test_no_thread_exists_before_the_first_accepted_message_and_one_after(run_python: Run) -> None:
    code = (
        "import outtray, threading\n"
        "outtray.configure(app='program')\n"
        "tray = outtray.Tray(app='program')\n"
        "count = lambda: threading.active_count() - 1\n"
        "answers = [count()]\n"
        "outtray.track('x' * 2_000_000); answers.append(count())\n"
        "outtray.track('x'); answers.append(count())\n"
        "outtray.track('y'); tray.track('z'); answers.append(count())\n"
    )
    found = report_of(run_python, code, ALONE)
    assert found["answers"] == [0, 0, 1, 1]
    assert found["threads"] == ["outtray-flusher"]


@pytest.mark.parametrize("variables", [{"OUTTRAY_CONSENT": "denied"}, {"DO_NOT_TRACK": "1"}])
def test_denied_consent_starts_no_thread_and_makes_no_directory(
    run_python: Run, home: Path, variables: dict[str, str]
) -> None:
    found = report_of(run_python, "import outtray; answers = [outtray.track('x')]", ALONE, **variables)
    assert found["answers"] == [False]
    assert found["threads"] == []
    assert HEAVY & set(found["modules"]) == set()
    assert list(home.iterdir()) == []


def test_a_config_file_is_read_without_the_rest_of_what_is_slow(run_python: Run, home: Path) -> None:
    folder = home / ".config" / "outtray"
    folder.mkdir(parents=True)
    (folder / "config.toml").write_text('user_id = "somebody"\n')
    code = "import outtray; answers = [outtray.track('x'), outtray.Tray(app='default').settings.user_id]"
    found = report_of(run_python, code, ALONE)
    assert found["answers"] == [True, "somebody"]
    assert "tomllib" in found["modules"]
    heavy = {"requests", "pydantic", "platformdirs", "logging", "dataclasses", "asyncio", "subprocess", "socket", "ssl"}
    assert heavy & set(found["modules"]) == set()


@pytest.mark.parametrize(("mode", "code"), [(None, 0), ("ok", 0), ("429", 75)])
def test_a_flush_with_nothing_due_loads_neither_a_parser_nor_what_delivers(
    mode: str | None, code: int, server: FakeServer, run_python: Run
) -> None:
    if mode is not None:
        server.set_mode(mode, **({"retry_after": "3600"} if mode == "429" else {}))
        tray = outtray.Tray(app="default", url=server.url, flush="manual")
        assert tray.track("x")
        tray.flush(10)
        tray.close()
    found = report_of(run_python, "from outtray.cli import main; answers = [main(['flush', '--quiet'])]", ALONE)
    assert found["answers"] == [code]
    assert HEAVY & set(found["modules"]) == {"contextlib"}
    for module in ("request", "delivery.drain", "delivery.flush", "outbox.store", "outbox.pages"):
        assert f"outtray.{module}" not in found["modules"]


def test_what_is_slow_to_load_would_be_noticed(run_python: Run) -> None:
    found = report_of(run_python, "import outtray; outtray.post")
    assert {"requests", "urllib3", "socket", "ssl"} <= HEAVY & set(found["modules"])
