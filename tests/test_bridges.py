"""The bridge to ZenML and `run`, with a small ZenML of our own whose `post` must never be called."""

from __future__ import annotations

import ast
import json
import os
import signal
import subprocess
import sys
import textwrap
import venv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import outtray.bridges
from outtray.testing import FakeServer
from tests.conftest import SRC

Run = Callable[..., "subprocess.CompletedProcess[str]"]

AUTOLOAD = Path(outtray.bridges.__file__).parent / "autoload"

FAKE = {
    "zenml/__init__.py": "",
    "zenml/analytics/__init__.py": "",
    "zenml/analytics/request.py": """
        def post(batch, timeout=15):
            raise RuntimeError("posted directly")
    """,
    "zenml/analytics/client.py": """
        import json
        from zenml.analytics.request import post

        def track(event, **more):
            message = {"user_id": "u", "event": event, "properties": {}, "type": "track", "debug": False, **more}
            return post(timeout=15, batch=[json.dumps(message)])
    """,
}
"""File to text: as much of ZenML as the bridge touches."""

TRACK = "from zenml.analytics.client import track; track('a'); "


def write(folder: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(text))
    return folder


@pytest.fixture
def fake(tmp_path: Path) -> Path:
    """A folder that holds the small ZenML."""
    return write(tmp_path / "fake", FAKE)


@pytest.fixture
def run(run_python: Run, fake: Path) -> Run:
    """Run this interpreter with the small ZenML on its path."""

    def run_with_zenml(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
        return run_python(*arguments, **{"PYTHONPATH": f"{SRC}{os.pathsep}{fake}", **variables})

    return run_with_zenml


@pytest.fixture
def stored(run_python: Run) -> Callable[..., list[dict[str, Any]]]:
    """Return what lies in the outbox of an application, oldest first."""

    def messages(app: str = "default") -> list[dict[str, Any]]:
        listed = run_python("-m", "outtray", "list", "--app", app, "--json")
        assert listed.returncode == 0, listed.stderr
        shown = []
        for each in reversed(json.loads(listed.stdout)):
            shown += json.loads(run_python("-m", "outtray", "show", "--app", app, "--json", str(each["id"])).stdout)
        return [each["message"] for each in shown]

    return messages


def code(text: str) -> str:
    return textwrap.dedent(text)


def passes(run: Run, text: str, **variables: str) -> str:
    """Run the program *text*, which must succeed in silence on stderr, and return what it prints."""
    done = run("-c", code(text), **variables)
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    return done.stdout


# install and uninstall


def test_a_client_that_is_imported_later_is_patched(run: Run, stored: Callable[..., Any]) -> None:
    passes(
        run,
        """
        import sys
        from outtray.bridges import zenml
        zenml.install()
        assert not any(name.split(".")[0] == "zenml" for name in sys.modules), "install() imported ZenML"
        from zenml.analytics.client import track
        assert track("later").status_code == 200
        """,
    )
    assert [each["event"] for each in stored()] == ["later"]


def test_a_client_that_was_imported_before_is_patched_at_once(run: Run, stored: Callable[..., Any]) -> None:
    passes(
        run,
        """
        import zenml.analytics.client as client
        from outtray.bridges import zenml
        zenml.install()
        assert client.track("before").ok
        """,
    )
    assert [each["event"] for each in stored()] == ["before"]


def test_messages_keep_their_fields_and_get_an_id_and_a_timestamp(run: Run, stored: Callable[..., Any]) -> None:
    passes(
        run,
        """
        from outtray.bridges import zenml
        zenml.install()
        from zenml.analytics.client import track
        track("one", properties={"n": 1, "text": "\\u00e4"}, user_id="somebody")
        track("two", message_id="mine", timestamp="2024-05-06T07:08:09.123Z")
        """,
    )
    one, two = stored()
    made = {one.pop("message_id"), one.pop("timestamp")}
    assert len(made) == 2
    assert all(made)
    properties = {"n": 1, "text": "\u00e4"}
    assert one == {"user_id": "somebody", "event": "one", "properties": properties, "type": "track", "debug": False}
    assert (two["message_id"], two["timestamp"]) == ("mine", "2024-05-06T07:08:09.123Z")


@pytest.mark.parametrize("is_imported", [True, False])
def test_uninstall_gives_zenml_its_own_post_back(run: Run, is_imported: bool) -> None:
    passes(
        run,
        f"""
        import sys
        finders = list(sys.meta_path)
        from outtray.bridges import zenml
        zenml.uninstall()
        zenml.install()
        if {is_imported}:
            import zenml.analytics.client
        zenml_bridge = sys.modules["outtray.bridges.zenml"]
        zenml_bridge.uninstall()
        assert sys.meta_path == finders
        from zenml.analytics.client import post, track
        from zenml.analytics import request
        assert post is request.post
        try:
            track("a")
        except RuntimeError as error:
            assert str(error) == "posted directly"
        else:
            raise AssertionError("the bridge is still there")
        """,
    )


@pytest.mark.parametrize("is_imported", [True, False])
def test_a_second_install_changes_nothing(run: Run, stored: Callable[..., Any], is_imported: bool) -> None:
    passes(
        run,
        f"""
        import sys
        from outtray.bridges.zenml import install, uninstall
        finders = list(sys.meta_path)
        if {is_imported}:
            import zenml.analytics.client
        install()
        install()
        from zenml.analytics.client import track
        install()
        track("once")
        assert sys.meta_path == finders
        uninstall()
        from zenml.analytics import client, request
        assert client.post is request.post
        """,
    )
    assert [each["event"] for each in stored()] == ["once"]


def test_the_watch_leaves_no_trace_in_the_module_or_the_import_system(run: Run) -> None:
    passes(
        run,
        """
        import importlib.machinery, importlib.util, inspect, sys
        finders = list(sys.meta_path)
        from outtray.bridges.zenml import install
        install()
        assert "track" in importlib.util.find_spec("zenml.analytics.client").loader.get_source("zenml.analytics.client")
        import zenml.analytics.client as client
        assert sys.meta_path == finders
        assert type(client.__loader__) is type(client.__spec__.loader) is importlib.machinery.SourceFileLoader
        assert "def track" in inspect.getsource(client)
        """,
    )


def test_a_failing_import_of_the_client_stays_the_programs_own_and_the_next_one_is_patched(
    run: Run, stored: Callable[..., Any], fake: Path
) -> None:
    client = fake / "zenml/analytics/client.py"
    whole = client.read_text()
    client.write_text("raise ValueError('not today')")
    passes(
        run,
        f"""
        import pathlib
        from outtray.bridges.zenml import install
        install()
        try:
            import zenml.analytics.client
        except ValueError as error:
            assert str(error) == "not today"
        else:
            raise AssertionError("the fault was hidden")
        pathlib.Path({str(client)!r}).write_text({whole!r})
        {TRACK}
        """,
        PYTHONDONTWRITEBYTECODE="1",
    )
    assert [each["event"] for each in stored()] == ["a"]


def test_a_zenml_without_post_is_left_alone(run: Run, fake: Path) -> None:
    (fake / "zenml/analytics/client.py").write_text("value = 1")
    passes(
        run,
        """
        from outtray.bridges.zenml import install, uninstall
        install()
        from zenml.analytics import client
        assert client.value == 1 and not hasattr(client, "post")
        uninstall()
        """,
    )


def test_a_program_without_zenml_sees_no_difference(run_python: Run) -> None:
    done = run_python(
        "-c",
        code(
            """
            from outtray.bridges.zenml import install
            install()
            try:
                import zenml.analytics.client
            except ModuleNotFoundError as error:
                print(error.name)
            """
        ),
    )
    assert done.stdout == "zenml\n", done.stderr


# What the bridge does with messages


def test_what_is_no_message_does_not_raise_and_does_not_hold_the_others(run: Run, stored: Callable[..., Any]) -> None:
    passes(
        run,
        """
        import json
        from outtray.bridges.zenml import install
        install()
        from zenml.analytics import client
        good = json.dumps({"type": "track", "event": "good", "user_id": "u", "properties": {}})
        answer = client.post(batch=["no json", "[1]", "null", "[" * 100_000, 5, good], timeout=15)
        assert (answer.status_code, answer.ok, answer.text) == (200, True, "")
        """,
    )
    assert [each["event"] for each in stored()] == ["good"]


def test_a_refused_message_is_counted_and_zenml_does_not_notice(run: Run, run_python: Run) -> None:
    passes(
        run,
        """
        from outtray.bridges.zenml import install
        install()
        from zenml.analytics.client import track
        assert track("small").ok and track("large", properties={"x": "y" * 5000}).ok
        """,
        OUTTRAY_MAX_MESSAGE_BYTES="1000",
    )
    found = json.loads(run_python("-m", "outtray", "status", "--json").stdout)
    assert (found["pending"], found["refused"], found["ledger"]) == (1, 1, {"too_large": 1})


@pytest.mark.parametrize("denial", [{"DO_NOT_TRACK": "1"}, {"OUTTRAY_CONSENT": "denied"}])
def test_without_consent_nothing_is_stored_and_nothing_is_posted(
    run: Run, tmp_path: Path, denial: dict[str, str]
) -> None:
    outboxes = tmp_path / "outboxes"
    text = f"from outtray.bridges.zenml import install; install(); {TRACK}"
    passes(run, text, OUTTRAY_DIR=str(outboxes), **denial)
    assert not outboxes.exists()
    passes(run, text, OUTTRAY_DIR=str(outboxes))
    assert outboxes.exists()


def test_an_unusable_home_does_not_reach_zenml(run: Run, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    passes(
        run,
        f"from outtray.bridges.zenml import install; install(); {TRACK}",
        OUTTRAY_DIR=str(tmp_path / "file" / "below"),
    )


def test_a_tray_that_is_named_gets_the_messages_and_its_flush_delivers_them(
    run: Run, stored: Callable[..., Any], server: FakeServer
) -> None:
    passes(
        run,
        f"""
        import outtray
        from outtray.bridges.zenml import install
        tray = outtray.Tray(app="flows", url={server.url!r}, flush="manual")
        install(tray)
        from zenml.analytics.client import track
        track("a")
        assert tray.flush(timeout=60).settled
        """,
    )
    assert [each["event"] for each in server.received] == ["a"]
    assert [each["event"] for each in stored("flows")] == ["a"]


def test_the_default_tray_is_the_one_that_is_configured_when_a_message_comes(
    run: Run, stored: Callable[..., Any]
) -> None:
    passes(
        run,
        f"""
        import outtray
        from outtray.bridges.zenml import install
        install()
        outtray.configure(app="mine")
        {TRACK}
        """,
    )
    assert [each["event"] for each in stored("mine")] == ["a"]


# run: the messages


def test_a_program_that_knows_nothing_is_bridged_and_its_app_is_zenml(run: Run, stored: Callable[..., Any]) -> None:
    done = run("-m", "outtray", "run", "--", sys.executable, "-c", TRACK)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert [each["event"] for each in stored("zenml")] == ["a"]


def test_the_programs_that_it_starts_are_bridged_too(run: Run, stored: Callable[..., Any]) -> None:
    starter = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {TRACK!r}], check=True)"
    done = run("-m", "outtray", "run", "--", "sh", "-c", '"$@"', "sh", sys.executable, "-c", starter)
    assert done.returncode == 0, done.stderr
    assert [each["event"] for each in stored("zenml")] == ["a"]


@pytest.mark.parametrize(
    ("options", "variables", "app"),
    [
        ([], {"OUTTRAY_APP": "given"}, "given"),
        ([], {"OUTTRAY_APP": ""}, "zenml"),
        (["--app", "option"], {"OUTTRAY_APP": "given"}, "option"),
    ],
)
def test_the_app_is_the_option_or_the_environments_or_zenml(
    run: Run, stored: Callable[..., Any], options: list[str], variables: dict[str, str], app: str
) -> None:
    done = run("-m", "outtray", "run", *options, "--", sys.executable, "-c", TRACK, **variables)
    assert done.returncode == 0, done.stderr
    assert [each["event"] for each in stored(app)] == ["a"]


def test_options_before_the_program_are_settings_of_the_program_and_those_behind_are_its_own(run: Run) -> None:
    show = "import os, sys; print(os.environ['OUTTRAY_URL'], os.environ['OUTTRAY_DESTINATION'], *sys.argv[1:])"
    options = ["--url", "http://localhost:1", "--destination", "zenml"]
    behind = ["--url", "x", "--", "--app", "y", "-h"]
    for separator in (["--"], []):
        done = run("-m", "outtray", "run", *options, *separator, sys.executable, "-c", show, *behind)
        assert done.stdout == f"http://localhost:1 zenml {' '.join(behind)}\n", done.stderr


def test_what_was_stored_while_the_receiver_was_down_is_delivered_by_a_bare_flush(
    run: Run, run_python: Run, server: FakeServer, tmp_path: Path
) -> None:
    server.set_mode("refuse")
    done = run("-m", "outtray", "run", "--url", server.url, "--", sys.executable, "-c", TRACK)
    assert done.returncode == 0, done.stderr
    assert server.received == []
    server.set_mode("ok")
    flushed = run_python("-m", "outtray", "flush", "--all")
    assert flushed.returncode == 0, flushed.stderr
    assert [each["event"] for each in server.received] == ["a"]


# run: the program is itself


@pytest.mark.parametrize("exit_code", [0, 1, 2, 75, 255])
def test_the_exit_code_is_the_programs_own(run: Run, exit_code: int) -> None:
    assert run("-m", "outtray", "run", "--", "sh", "-c", f"exit {exit_code}").returncode == exit_code


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGPIPE, signal.SIGXFSZ])
def test_signals_do_to_the_program_what_they_do_without_us(run: Run, number: signal.Signals) -> None:
    done = run("-m", "outtray", "run", "--", "sh", "-c", f"kill -{int(number)} $$; echo survived")
    assert (done.returncode, done.stdout) == (-number, "")


def test_the_program_takes_the_place_of_the_command(environment: dict[str, str], tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "outtray", "run", "--", sys.executable, "-c", "import os; print(os.getpid())"],
        env=environment,
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        text=True,
    )
    output, _ = process.communicate(timeout=60)
    assert int(output) == process.pid


def test_the_streams_are_the_programs_own(environment: dict[str, str], tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "outtray", "run", "--", "sh", "-c", "cat; echo words >&2"],
        env=environment,
        cwd=tmp_path,
        input="data",
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "data", "words\n")


def test_a_program_that_is_not_there_is_127_and_one_that_cannot_run_is_126(run: Run, tmp_path: Path) -> None:
    text = tmp_path / "text"
    text.write_text("no program")
    for program, exit_code in [("no-such-program", 127), ("./no/such/program", 127), (str(text), 126)]:
        done = run("-m", "outtray", "run", "--", program, "x")
        assert (done.returncode, done.stdout) == (exit_code, "")
        assert done.stderr.startswith("outtray: ")
        assert program in done.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "no program"),
        (["--"], "no program"),
        (["--app", "x", "--"], "no program"),
        (["--app", "a/b", "--", "touch", "ran"], "a/b"),
        (["--url", "nowhere", "--", "touch", "ran"], "--url"),
        (["--destination", "nobody", "--", "touch", "ran"], "nobody"),
        (["--unknown", "--", "touch", "ran"], "--unknown"),
    ],
)
def test_wrong_arguments_are_usage_and_run_nothing(run: Run, tmp_path: Path, arguments: list[str], said: str) -> None:
    done = run("-m", "outtray", "run", *arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("usage: ")
    assert said in done.stderr.splitlines()[-1]
    assert not (tmp_path / "ran").exists()


# run: the interpreter is as it would be


@pytest.mark.parametrize("path", ["", "one", "one:", ":one", "one::two"])
def test_the_path_is_as_it_is_without_us(environment: dict[str, str], tmp_path: Path, path: str) -> None:
    program = [sys.executable, "-c", "import sys; print(sys.path)"]
    command = f"import sys; sys.path.insert(0, {str(SRC)!r}); from outtray.cli import main; sys.exit(main())"
    variables = {**environment, "PYTHONPATH": path.replace(":", os.pathsep)}
    plain, bridged = (
        subprocess.run(words, env=variables, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=True)
        for words in (program, [sys.executable, "-c", command, "run", "--", *program])
    )
    assert bridged.stdout == plain.stdout


def test_a_program_without_zenml_gets_one_small_module_more(run_python: Run) -> None:
    show = "import sys; print(*sorted(sys.modules))"
    plain = run_python("-c", show)
    bridged = run_python("-m", "outtray", "run", "--", sys.executable, "-c", show)
    added = set(bridged.stdout.split()) - set(plain.stdout.split())
    assert added - {"sitecustomize", "__future__"} == {"outtray_autoload"}


def test_a_sitecustomize_that_is_hidden_by_ours_is_loaded_in_its_place(run: Run, fake: Path) -> None:
    site = write(fake, {"sitecustomize.py": "import os; os.environ['SITE'] = 'seen'"})
    show = "import os, sitecustomize; print(os.environ.get('SITE'), sitecustomize.__file__)"
    done = run("-m", "outtray", "run", "--", sys.executable, "-c", show)
    assert done.stdout == f"seen {site / 'sitecustomize.py'}\n", done.stderr


@pytest.mark.parametrize("fault", ["import no_such_module", "raise ValueError('no')"])
def test_a_fault_of_the_hidden_sitecustomize_is_reported_as_without_us(run: Run, fake: Path, fault: str) -> None:
    write(fake, {"sitecustomize.py": fault})
    plain = run("-c", "print(1)")
    assert "Error in sitecustomize" in plain.stderr
    bridged = run("-m", "outtray", "run", "--", sys.executable, "-c", "print(1)")
    assert bridged.stdout == plain.stdout
    # Python that runs `outtray run` itself has the fault too.
    assert bridged.stderr == plain.stderr * 2


def test_a_nested_run_is_one_run(run: Run, stored: Callable[..., Any]) -> None:
    nested = [sys.executable, "-m", "outtray", "run", "--"]
    show = f"import os; print(os.environ['PYTHONPATH'].count({str(AUTOLOAD)!r})); {TRACK}"
    done = run("-m", "outtray", "run", "--", *nested, sys.executable, "-c", show)
    assert done.stdout == "1\n", done.stderr
    assert [each["event"] for each in stored("zenml")] == ["a"]


@pytest.fixture
def run_elsewhere(environment: dict[str, str], tmp_path: Path, fake: Path) -> Run:
    """Run a program by `outtray run` in an interpreter that has only the small ZenML and what is written to it."""
    venv.create(tmp_path / "venv", with_pip=False)
    # A bare interpreter has no requests; ZenML's always has.
    write(fake, {"requests.py": "class Response: status_code = None"})
    command = f"import sys; sys.path.insert(0, {str(SRC)!r}); from outtray.cli import main; sys.exit(main())"

    def run(program: str, **variables: str) -> subprocess.CompletedProcess[str]:
        words = ["run", "--", str(tmp_path / "venv/bin/python"), "-c", f"import sys; sys.path.append({str(fake)!r})"]
        words[-1] += f"\n{code(program)}"
        return subprocess.run(
            [sys.executable, "-c", command, *words],
            env={**environment, "PYTHONPATH": "", **variables},
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    return run


def test_an_interpreter_without_outtray_is_bridged_and_its_path_stays_its_own(
    run_elsewhere: Run, stored: Callable[..., Any]
) -> None:
    done = run_elsewhere(
        f"""
        {TRACK}
        import sys, outtray
        assert outtray.__file__ == {str(SRC / "outtray/__init__.py")!r}
        assert not [entry for entry in sys.path if {str(SRC)!r} in entry]
        """
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert [each["event"] for each in stored("zenml")] == ["a"]


def test_a_bridge_that_cannot_be_installed_is_silent_unless_debugging(run_elsewhere: Run, fake: Path) -> None:
    write(fake, {"outtray/__init__.py": "raise LookupError('broken')"})
    program = "import zenml.analytics.client; print('runs')"
    silent, told = run_elsewhere(program), run_elsewhere(program, OUTTRAY_AUTOLOAD_DEBUG="1")
    assert (silent.returncode, silent.stdout, silent.stderr) == (0, "runs\n", "")
    assert (told.returncode, told.stdout) == (0, "runs\n")
    assert told.stderr == "outtray: no bridge is installed: LookupError('broken')\n"


def test_the_sitecustomize_can_be_read_by_a_python_of_any_age() -> None:
    tree = ast.parse((AUTOLOAD / "sitecustomize.py").read_text())
    modern = (ast.AnnAssign, ast.JoinedStr, ast.NamedExpr, ast.AsyncFunctionDef, ast.Match, ast.Nonlocal, ast.Starred)
    assert not [node for node in ast.walk(tree) if isinstance(node, modern)]
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
    assert functions
    assert not [each for function in functions for each in function.args.args if each.annotation or function.returns]
    assert not [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module == "__future__"]
    assert (AUTOLOAD / "sitecustomize.py").read_text().isascii()
