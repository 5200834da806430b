"""A real ZenML on a local stack, its own analytics, and a receiver that is down while its pipeline runs.

ZenML takes minutes to install: OUTTRAY_TEST_CACHE names a folder that keeps its virtual environment, and
OUTTRAY_TEST_ZENML_PYTHON an interpreter that has ZenML already (outtray is then taken from this checkout).
"""

from __future__ import annotations

import fcntl
import os
import re
import subprocess
import venv
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from outtray.testing import FakeServer
from tests.conftest import SRC

pytestmark = pytest.mark.slow

# Read now, as the tests' own environment has nothing of it.
CACHE = os.environ.get("OUTTRAY_TEST_CACHE")
GIVEN_PYTHON = os.environ.get("OUTTRAY_TEST_ZENML_PYTHON")

PIPELINE = """
from zenml import pipeline, step

@step
def count() -> int:
    return 3

@step
def show(number: int) -> None:
    print("the number is", number)

@pipeline(enable_cache=False)
def counting() -> None:
    show(count())

if __name__ == "__main__":
    counting()
"""

EVENTS = ("Pipeline created", "Pipeline run", "Pipeline run ended")
"""What ZenML sends of the first run of a pipeline."""

UUID7 = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}")
TIMESTAMP = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z")

Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="session")
def zenml_python(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The path of an interpreter that has ZenML."""
    if GIVEN_PYTHON is not None:
        return GIVEN_PYTHON
    folder = Path(CACHE).absolute() if CACHE else tmp_path_factory.mktemp("zenml")
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder / "lock"):
        python = folder / "venv/bin/python"
        is_complete = folder / "complete"
        if not is_complete.exists():
            venv.create(folder / "venv", with_pip=True, clear=True)
            pip(python, "zenml[local]", str(SRC.parent))
            is_complete.touch()
        # The cached environment has the outtray of another day.
        pip(python, "--force-reinstall", "--no-deps", str(SRC.parent))
    return str(python)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Let no other test session make the environment meanwhile."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def pip(python: Path, *arguments: str) -> None:
    command = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1800, check=False)
    assert done.returncode == 0, done.stderr


@pytest.fixture
def run_zenml(zenml_python: str, home: Path, tmp_path: Path) -> Run:
    """Run a command in ZenML's environment, with a configuration of its own and analytics as by default: on."""
    variables = {
        "HOME": str(home),
        "PATH": f"{Path(zenml_python).parent}{os.pathsep}{os.environ['PATH']}",
        "ZENML_CONFIG_PATH": str(tmp_path / "zenml"),
        "ZENML_ANALYTICS_OPT_IN": "true",
    }
    if GIVEN_PYTHON is not None:
        variables["PYTHONPATH"] = str(SRC)
    work = tmp_path / "work"
    work.mkdir()

    def run(*command: str, **more: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [zenml_python if word == "python" else word for word in command],
            env={**variables, **more},
            cwd=work,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )

    return run


def write_pipeline(tmp_path: Path, before: str = "") -> None:
    (tmp_path / "work/pipeline.py").write_text(before + PIPELINE)


def flush(run_python: Run) -> None:
    """Deliver from another directory, by another interpreter that knows nothing but its home."""
    done = run_python("-m", "outtray", "flush", "--wait", "--max-time", "120")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def check_events(server: FakeServer) -> None:
    """Check that the three events of a pipeline arrived, each once and with an id and a moment of its own."""
    counts = Counter(message.get("event") for message in server.received)
    assert {event: counts[event] for event in EVENTS} == dict.fromkeys(EVENTS, 1), counts
    assert server.repeats == {}
    assert all(UUID7.fullmatch(message["message_id"]) for message in server.received)
    assert all(TIMESTAMP.fullmatch(message["timestamp"]) for message in server.received)
    assert all(message["properties"]["event_success"] is True for message in server.received if "event" in message)


def test_a_pipeline_that_knows_nothing_of_outtray_loses_no_event_while_the_receiver_is_down(
    run_zenml: Run, run_python: Run, server: FakeServer, tmp_path: Path
) -> None:
    write_pipeline(tmp_path)
    server.set_mode("refuse")
    done = run_zenml("python", "-m", "outtray", "run", "--url", server.url, "--", "python", "pipeline.py")
    assert done.returncode == 0, done.stderr
    assert "the number is 3" in done.stdout
    assert server.requests == []
    server.set_mode("ok")
    flush(run_python)
    check_events(server)


def test_a_pipeline_that_installs_the_bridge_itself_loses_no_event_while_the_receiver_is_down(
    run_zenml: Run, run_python: Run, server: FakeServer, tmp_path: Path
) -> None:
    settings = f"import outtray\nouttray.configure(app='pipelines', url={server.url!r})\n"
    write_pipeline(tmp_path, f"{settings}from outtray.bridges.zenml import install\ninstall()\n")
    server.set_mode("refuse")
    done = run_zenml("python", "pipeline.py")
    assert done.returncode == 0, done.stderr
    assert server.requests == []
    server.set_mode("ok")
    flush(run_python)
    check_events(server)


def test_a_user_who_opted_out_of_zenmls_analytics_stores_nothing(run_zenml: Run, home: Path, tmp_path: Path) -> None:
    write_pipeline(tmp_path)
    command = ("python", "-m", "outtray", "run", "--", "python", "pipeline.py")
    done = run_zenml(*command, ZENML_ANALYTICS_OPT_IN="false")
    assert done.returncode == 0, done.stderr
    assert not (home / ".local/state/outtray").exists()


def test_a_zenml_command_works_as_ever_and_its_exit_code_passes_through(run_zenml: Run) -> None:
    for words, exit_code in [(("zenml", "version"), 0), (("zenml", "no-such-command"), 2)]:
        plain = run_zenml(*words)
        bridged = run_zenml("python", "-m", "outtray", "run", "--", *words)
        assert plain.returncode == exit_code, plain.stderr
        assert (bridged.returncode, bridged.stdout) == (plain.returncode, plain.stdout), bridged.stderr
