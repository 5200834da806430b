"""What every harness of tools/faults counts: no promise is broken, and something was tried."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
MAIN = ROOT / "tools" / "faults" / "__main__.py"
README = (ROOT / "README.md").read_text()

QUICK_WITHIN, WHOLE_WITHIN = 600.0, 7_200.0
"""Seconds for one harness: far more than it takes; a harness that hangs ends the test, and not the whole run."""


def harnesses() -> dict[str, str]:
    """Return the table of `tools/faults`: each harness and what it tries."""
    specification = importlib.util.spec_from_file_location("faults_table", MAIN)
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    path = list(sys.path)
    try:
        specification.loader.exec_module(module)
    finally:
        sys.path[:] = path
    table: dict[str, str] = module.HARNESSES
    return table


HARNESSES = harnesses()


def run(*arguments: str, seconds: float) -> tuple[int, str]:
    """Return the exit code and the output of `python tools/faults` with *arguments*."""
    with subprocess.Popen(
        [sys.executable, str(MAIN.parent), *arguments], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        try:
            output, _ = process.communicate(timeout=seconds)
        except BaseException:
            process.terminate()  # it ends its own programs and mounts
            raise
    return process.returncode, output


def require_promises_kept(name: str, *options: str, seconds: float) -> None:
    code, output = run(name, *options, seconds=seconds)
    print(output)
    if reason := re.match(rf"{name}: not tried: (.*) \[", output):
        pytest.skip(reason[1])
    assert code == 0, output
    counted = re.match(rf"{name}: ([\d,]+) .*, 0 violations", output)
    assert counted, output
    assert int(counted[1].replace(",", "")) > 0


@pytest.mark.parametrize("name", HARNESSES)
def test_no_promise_is_broken(name: str) -> None:
    require_promises_kept(name, seconds=QUICK_WITHIN)


@pytest.mark.slow
@pytest.mark.parametrize("name", HARNESSES)
def test_no_promise_is_broken_in_the_whole_run(name: str) -> None:
    require_promises_kept(name, "--whole", seconds=WHOLE_WITHIN)


@pytest.mark.parametrize("name", HARNESSES)
def test_every_harness_is_in_the_table(name: str) -> None:
    assert f"\n| `{name}` | {HARNESSES[name]} | " in README


def test_a_harness_that_does_not_exist_is_refused() -> None:
    code, output = run("no_such_harness", seconds=QUICK_WITHIN)
    assert code == 2
    assert "kill_points" in output
