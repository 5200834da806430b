"""Settings: which source wins, what cannot be right, what stays secret, where things lie."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any
from uuid import UUID

import platformdirs
import pytest

import outtray
from outtray import paths, settings
from outtray.errors import SettingsError
from outtray.options import OPTIONS, environment_name

SECRET = "s3cret-key"

# Option: values for argument, environment, [app.NAME], top level of the file, stored; each as it is read.
LADDER: dict[str, tuple[Any, Any, Any, Any, Any]] = {
    "url": tuple(f"http://{name}.example" for name in ("argument", "env", "app", "file", "stored")),  # type: ignore[dict-item]
    "destination": ("a", "b", "c", "d", "e"),
    "write_key_file": ("/a", "/b", "/c", "/d", "/e"),
    "retention": (1.5, 2.0, 3.0, 0.0, 5.0),
    "max_batch_count": (1, 2, 3, 4, 5),
    "timeout": (1.0, 2.5, 3.0, 4.0, 5.0),
    "consent": ("denied", "local", "granted", "denied", None),
    "flush": ("manual", "exit", "thread", "manual", None),
    "durability": ("power", "process", "power", "process", None),
    "debug": (True, False, True, False, None),
    "user_id": ("a", "b", "c", "d", None),
    "max_bytes": (1, 2, 3, 4, None),
    "write_key": ("a", "b", "c", "d", None),
}

BAD: dict[str, tuple[Any, ...]] = {
    "app": ("a/b", "..", ".hidden", "-x", "a b", "ä", "x" * 65, 5, b"app", ["a"]),
    "dir": (5, b"/x", "/a\nb", "/a\x00b", True),
    "url": ("example.org", "ftp://x", "http://", "http://:80", "http://a b", 5, b"http://x", "http://x:port", "http://x:70000",
            "http://?x", "http://#x", "http://me:pw?x@host"),
    "destination": (5, b"zenml", "ze\nnml"),
    "write_key": (5, b"key", "a\nb", "\ud800"),
    "write_key_file": (5, b"/x", "/a\x00b"),
    "consent": ("maybe", 5, 2.5),
    "consent_events": ("maybe", 5, "2"),
    "flush": ("never", True, 1),
    "durability": ("forever", 1, True, [1]),
    "flush_interval": (-1, "soon", float("nan"), float("inf"), True, [1]),
    "exit_interval": (-0.1, "1s", "nan"),
    "user_id": (5, b"me", 1.5, ["me"]),
    "version": (1.0, 1, b"1"),
    "server_variable": (1, b"X"),
    "debug": ("maybe", 7, None.__class__),
    "max_bytes": (0, -1, 1.5, "1 GiB", True, float("inf"), 2**63, "9" * 5000),
    "max_message_bytes": (0, "x", 0.5),
    "retention": (-1, "week", float("nan"), 1e300),
    "max_batch_count": (0, "many", 2.5, False),
    "max_batch_bytes": (0, "x", b"1"),
    "timeout": (-1, "x", float("inf"), object(), True),
}  # fmt: skip


@pytest.fixture(autouse=True)
def _nothing_bad_is_left(home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Take back what the test set before `home` resolves the default settings anew."""
    yield
    for name in list(os.environ):
        if name.startswith("OUTTRAY_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(home))
    (home / ".config" / "outtray" / "config.toml").unlink(missing_ok=True)


def write_config(home: Path, text: str) -> Path:
    path = home / ".config" / "outtray" / "config.toml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


# Precedence


@pytest.mark.parametrize("option", LADDER)
def test_arguments_win_over_environment_file_stored_and_default(
    option: str, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    argument, environment, in_app, in_file, stored = LADDER[option]
    default = next(one.default for one in OPTIONS if one.name == option)

    def found(**arguments: Any) -> tuple[Any, str]:
        now = outtray.Tray(app="mine", **arguments).settings.over({} if stored is None else {option: stored})
        return getattr(now, option), now.sources[option]

    assert found() == ((default, "default") if stored is None else (stored, "stored"))
    write_config(home, f"{option} = {json.dumps(in_file)}\n")
    assert found() == (in_file, "file")
    write_config(home, f"{option} = {json.dumps(in_file)}\n[app.mine]\n{option} = {json.dumps(in_app)}\n")
    assert found() == (in_app, "file")
    assert getattr(outtray.Tray(app="other").settings, option) == in_file
    monkeypatch.setenv(environment_name(option), str(environment))
    assert found() == (environment, "environment")
    monkeypatch.setenv(environment_name(option), "")
    assert found() == (in_app, "file"), "an empty variable counts as not set"
    monkeypatch.setenv(environment_name(option), str(environment))
    assert found(**{option: argument}) == (argument, "argument")
    assert found(**{option: None}) == (environment, "environment"), "None counts as not given"


def test_every_option_has_its_environment_variable_and_default(monkeypatch: pytest.MonkeyPatch) -> None:
    values = outtray.Tray(app="mine").settings
    for option in OPTIONS:
        if option.name not in ("app", "dir"):
            assert getattr(values, option.name) == option.default
            assert values.sources[option.name] == "default"
    assert environment_name("max_bytes") == "OUTTRAY_MAX_BYTES"


def test_the_app_comes_from_the_environment_where_nobody_says_it(
    run_python: Callable[..., CompletedProcess[str]],
) -> None:
    code = "import outtray; print(outtray.configure().settings.app)"
    assert run_python("-c", code, OUTTRAY_APP="from-environment").stdout.strip() == "from-environment"
    assert run_python("-c", code).stdout.strip() == "default"


def test_stored_nonsense_of_another_release_is_passed_over() -> None:
    values = outtray.Tray(app="mine").settings
    assert values.over({"timeout": "soon", "novel": 1, "max_bytes": 7}).timeout == values.timeout
    assert values.over({"max_message_bytes": 7}).max_message_bytes == values.max_message_bytes, (
        "not among what is stored"
    )


# What cannot be right


@pytest.mark.parametrize(("option", "number"), [(option, n) for option in BAD for n in range(len(BAD[option]))])
def test_a_bad_argument_is_a_settings_error_that_names_the_setting(option: str, number: int) -> None:
    arguments = {"app": "mine", option: BAD[option][number]}
    with pytest.raises(SettingsError, match=option):
        outtray.Tray(**arguments)
    with pytest.raises(SettingsError, match=option):
        outtray.configure(**arguments)
    assert outtray.track("still works")


def test_every_option_has_bad_values_to_try() -> None:
    assert set(BAD) == {option.name for option in OPTIONS}


def test_an_unknown_setting_is_an_error_that_lists_the_known_ones() -> None:
    with pytest.raises(SettingsError, match=r"'ulr'.*url"):
        outtray.configure(ulr="http://x.example")


def test_a_uuid_and_a_path_are_text_where_text_is_wanted(tmp_path: Path) -> None:
    values = outtray.Tray(app="mine", user_id=UUID(int=1), dir=tmp_path).settings
    assert values.user_id == str(UUID(int=1))
    assert values.dir == str(tmp_path)


@pytest.mark.parametrize("option", [name for name in BAD if name not in ("app", "dir")])
def test_a_bad_environment_is_a_problem_and_no_error_of_configure_and_tray(
    option: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    bad = next((value for value in BAD[option] if isinstance(value, str) and "\x00" not in value), "a\nb")
    if "\ud800" in bad:
        bad = "a\nb"
    default = next(one.default for one in OPTIONS if one.name == option)
    monkeypatch.setenv(environment_name(option), bad)
    for tray in (outtray.Tray(app="mine"), outtray.configure(app="mine")):
        (problem,) = tray.settings.problems
        assert environment_name(option) in problem
        assert getattr(tray.settings, option) == ("denied" if option == "consent" else default)


def test_a_bad_environment_or_file_never_raises_from_track_and_is_journaled(
    home: Path, run_python: Callable[..., CompletedProcess[str]]
) -> None:
    write_config(home, 'retention = "week"\nnovel = 1\n')
    code = (
        "import logging, sys\n"
        "logging.basicConfig(stream=sys.stdout, format='%(message)s')\n"
        "import outtray\n"
        "print(outtray.track('e'), outtray.status()['pending'])"
    )
    result = run_python("-c", code, OUTTRAY_MAX_BYTES="many", OUTTRAY_URL="nowhere", OUTTRAY_APP="a/b")
    assert result.stderr == ""
    *said, answer = result.stdout.splitlines()
    assert answer == "True 1"
    for name in ("OUTTRAY_MAX_BYTES", "OUTTRAY_URL", "OUTTRAY_APP", "retention", "novel"):
        assert sum(name in line for line in said) == 1, name
    quiet = run_python("-c", "import outtray; outtray.track('e')", OUTTRAY_MAX_BYTES="many")
    assert (quiet.stdout, quiet.stderr) == ("", "")


UNREADABLE = [
    "not = = toml", "\x00", 'app = "x"', "[app]\nmine = 1", '[app]\nconsent = "denied"', f"a = {'[' * 100_000}",
]  # fmt: skip


@pytest.mark.parametrize("text", UNREADABLE, ids=range(len(UNREADABLE)))
def test_a_config_file_that_cannot_be_read_may_say_no_and_counts_as_that(
    home: Path, text: str, caplog: pytest.LogCaptureFixture
) -> None:
    path = write_config(home, text)
    tray = outtray.Tray(app="mine", url="http://127.0.0.1:9")
    assert (tray.settings.consent, tray.settings.sources["consent"]) == ("denied", "file")
    assert str(path) in tray.settings.problems[0]
    assert outtray.configure(app="yours").track("e") is False
    assert str(path) in caplog.text
    assert tray.track("e") is False
    assert tray.status()["consent"] == {"state": "denied", "reason": "the config file cannot be read"}
    assert not (home / ".local").exists()


def test_a_config_file_that_may_not_be_opened_counts_as_a_denial_too(home: Path) -> None:
    path = Path(paths.config_path())
    path.mkdir(parents=True)  # reading it fails, whoever asks
    assert outtray.Tray(app="mine").track("e") is False
    path.rmdir()
    path.symlink_to(home / "gone")
    assert outtray.Tray(app="mine").track("e") is False
    path.unlink()
    assert outtray.Tray(app="mine", flush="manual").track("e") is True


def test_over_a_config_file_that_cannot_be_read_the_host_and_the_environment_decide(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_config(home, "not = = toml")
    assert outtray.Tray(app="mine", consent="local").track("e") is True
    monkeypatch.setenv("OUTTRAY_CONSENT", "granted")
    assert outtray.Tray(app="yours", flush="manual").track("e") is True


def test_what_is_wrong_in_another_applications_section_is_not_this_ones_problem(home: Path) -> None:
    write_config(home, 'odd = 1\n[app.other]\nnovel = 1\ntimeout = "x"\n[app.mine]\nstrange = 1\n')
    mine, other = outtray.Tray(app="mine").settings.problems, outtray.Tray(app="other").settings.problems
    assert [name for name in ("odd", "novel", "timeout", "strange") if any(name in text for text in mine)] == [
        "odd",
        "strange",
    ]
    assert [name for name in ("odd", "novel", "timeout", "strange") if any(name in text for text in other)] == [
        "odd",
        "novel",
        "timeout",
    ]


# Secrets


@pytest.mark.parametrize("option", ["write_key", "url"])
@pytest.mark.parametrize("source", ["argument", "environment", "file"])
def test_no_secret_is_in_the_error_about_it(
    option: str, source: str, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bad = f"ftp://me:{SECRET}@host\n" if option == "url" else f"{SECRET}\n"
    if source == "environment":
        monkeypatch.setenv(environment_name(option), bad)
    if source == "file":
        write_config(home, f"{option} = {json.dumps(bad)}\n")
    if source == "argument":
        with pytest.raises(SettingsError) as caught:
            outtray.Tray(app="mine", **{option: bad})
        said = repr(caught.value)
    else:
        said = repr(outtray.Tray(app="mine").settings.problems)
    assert option in said.lower()
    assert SECRET not in said


def test_no_secret_is_in_what_settings_show_or_store() -> None:
    values = outtray.Tray(app="mine", url=f"https://me:{SECRET}@host.example/x@y", write_key=SECRET).settings
    for shown in (repr(values), str(values), f"{values}", json.dumps(values.to_store())):
        assert SECRET not in shown
    assert values.to_store()["url"] == "https://host.example/x@y"
    assert values.to_store()["needs_key"] is True


def test_credentials_are_not_in_the_outbox_nor_in_its_status(tmp_path: Path) -> None:
    url = f"http://me:{SECRET}@127.0.0.1:9?key={SECRET}#{SECRET}"
    tray = outtray.Tray(app="mine", url=url, write_key=SECRET, flush="manual")
    assert tray.track("e")
    assert tray.status()["url"] == "http://127.0.0.1:9"
    assert SECRET not in json.dumps(tray.status())
    tray.close()
    for file in Path(tray.settings.directory).iterdir():
        assert SECRET.encode() not in file.read_bytes()


@pytest.mark.parametrize(
    ("url", "bare"),
    [
        ("https://me:pw@host/x", "https://host/x"),
        ("https://me@host", "https://host"),
        ("https://me:p@w@host:1/x@y", "https://host:1/x@y"),
        ("https://host/x@y", "https://host/x@y"),
        ("https://host/x?token=secret", "https://host/x"),
        ("https://host?token=me@secret", "https://host"),
        ("https://me:pw@host:1/x/?a=b&c=d#secret", "https://host:1/x/"),
        ("https://host#secret?x", "https://host"),
        ("//me:pw@host/x?y", "//host/x"),
        ("/x?y", "/x"),
        (None, None),
    ],
)
def test_a_url_without_credentials(url: str | None, bare: str | None) -> None:
    assert settings.without_credentials(url) == bare


def test_a_url_that_lost_its_query_needs_what_is_missing() -> None:
    whole = outtray.Tray(app="mine", url="https://host/x").settings.to_store()
    cut = outtray.Tray(app="mine", url=f"https://host/x?key={SECRET}").settings.to_store()
    assert (whole["url"], whole["needs_key"]) == ("https://host/x", False)
    assert (cut["url"], cut["needs_key"]) == ("https://host/x", True)


def test_settings_are_frozen() -> None:
    values = outtray.Tray(app="mine").settings
    with pytest.raises(AttributeError, match="frozen"):
        values.url = "http://x.example"


# Where things lie


@pytest.mark.skipif(os.name == "nt", reason="the XDG rule")
@pytest.mark.parametrize(
    "value", [None, "", "  ", "/abs", "/abs/", "/a/../b", "relative", "./relative", "~/x", " /abs"]
)
@pytest.mark.parametrize("user_home", ["/somewhere", "/somewhere/", "/", "", "relative", None])
def test_folders_are_where_platformdirs_puts_them(
    value: str | None, user_home: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for variable, setting in (("HOME", user_home), ("XDG_STATE_HOME", value), ("XDG_CONFIG_HOME", value)):
        if setting is None:
            monkeypatch.delenv(variable, raising=False)
        else:
            monkeypatch.setenv(variable, setting)
    assert paths.state_dir() == str(platformdirs.user_state_path("outtray"))
    assert paths.config_path() == str(platformdirs.user_config_path("outtray") / "config.toml")


def test_the_directory_is_below_the_one_that_is_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert outtray.Tray(app="mine", dir="below").settings.directory == str(tmp_path / "below" / "mine")
    assert outtray.Tray(app="mine", dir="~/x").settings.directory == os.path.expanduser("~/x/mine")


def test_the_directory_is_private(home: Path) -> None:
    before = os.umask(0)
    try:
        assert outtray.track("e")
    finally:
        os.umask(before)
    directory = Path(paths.state_dir()) / "default"
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    assert {stat.S_IMODE(file.stat().st_mode) for file in directory.iterdir()} == {0o600}


# configure


def test_a_second_application_is_told_to_make_a_tray() -> None:
    outtray.configure(app="first")
    with pytest.raises(SettingsError, match="Tray") as caught:
        outtray.configure(app="second")
    assert "first" in str(caught.value)
    assert "second" in str(caught.value)
    assert outtray.configure(app="first", user_id="me").settings.user_id == "me"
    outtray.Tray(app="second")


def test_a_configure_that_fails_leaves_the_settings_as_they_were() -> None:
    tray = outtray.configure(app="first", user_id="me")
    with pytest.raises(SettingsError):
        outtray.configure(app="first", url="nowhere")
    assert tray.settings.user_id == "me"


# The write key


def test_the_remembered_key_is_in_the_private_config_file_beside_what_was_there(home: Path) -> None:
    path = write_config(
        home,
        '# mine\ntimeout = 3.0\n\n[app.mine]\nuser_id = "me"\nwrite_key = "old"\n\n[app.other]\nwrite_key = "theirs"\n',
    )
    path.chmod(0o644)
    outtray.Tray(app="mine", write_key='new "quoted" 😀 \\', remember_key=True)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    text = path.read_text("utf-8")
    assert text.startswith("# mine\ntimeout = 3.0\n")
    content = tomllib.loads(text)
    assert content["app"]["mine"] == {"write_key": 'new "quoted" 😀 \\', "user_id": "me"}
    assert content["app"]["other"] == {"write_key": "theirs"}
    assert outtray.Tray(app="mine").settings.find_key() == 'new "quoted" 😀 \\'
    assert {file.name for file in path.parent.iterdir()} == {"config.toml", "config.lock"}


def test_a_key_is_remembered_in_a_file_that_did_not_exist(home: Path) -> None:
    outtray.configure(app="mine.app", write_key=SECRET, remember_key=True)
    path = Path(paths.config_path())
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert outtray.Tray(app="mine.app").settings.find_key() == SECRET
    assert outtray.Tray(app="other").settings.find_key() is None


def test_keys_that_are_remembered_at_once_are_all_kept(home: Path, environment: dict[str, str]) -> None:
    code = "import outtray, sys; outtray.Tray(app=sys.argv[1], write_key='key of ' + sys.argv[1], remember_key=True)"
    apps = [f"app{number}" for number in range(12)]
    for process in [subprocess.Popen([sys.executable, "-c", code, app], env=environment) for app in apps]:
        assert process.wait(60) == 0
    content = tomllib.loads(Path(paths.config_path()).read_text("utf-8"))
    assert content["app"] == {app: {"write_key": f"key of {app}"} for app in apps}


def test_threads_that_remember_keys_at_once_drop_none(home: Path) -> None:
    def remember(app: str) -> None:
        outtray.Tray(app=app, write_key=f"key of {app}", remember_key=True)

    apps = [f"app{number}" for number in range(32)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(remember, apps))
    content = tomllib.loads(Path(paths.config_path()).read_text("utf-8"))
    assert content["app"] == {app: {"write_key": f"key of {app}"} for app in apps}


@pytest.mark.skipif(os.name == "nt", reason="links need rights there")
@pytest.mark.parametrize("is_there", [True, False])
def test_a_config_file_that_is_a_link_stays_one_and_what_it_leads_to_gets_the_key(is_there: bool, home: Path) -> None:
    target = home / "dotfiles" / "outtray.toml"
    target.parent.mkdir()
    if is_there:
        target.write_text("# mine\n")
    link = Path(paths.config_path())
    link.parent.mkdir(parents=True)
    link.symlink_to(target)
    outtray.Tray(app="mine", write_key=SECRET, remember_key=True)
    assert link.is_symlink()
    assert target.read_text().startswith("# mine\n") is is_there
    assert stat.S_IMODE(target.stat().st_mode) == 0o600
    assert outtray.Tray(app="mine").settings.find_key() == SECRET


def test_no_key_to_remember_is_an_error_that_says_so(home: Path) -> None:
    with pytest.raises(SettingsError, match="write_key"):
        outtray.Tray(app="mine", remember_key=True)
    assert list(home.iterdir()) == []


def test_a_file_that_cannot_take_the_key_stays_as_it_was(home: Path) -> None:
    text = "[app.mine] # a comment\n[other]\n"
    path = write_config(home, text)
    with pytest.raises(SettingsError, match=str(path)) as caught:
        outtray.Tray(app="mine", write_key=SECRET, remember_key=True)
    assert SECRET not in str(caught.value)
    assert path.read_text() == text
    assert {file.name for file in path.parent.iterdir()} == {"config.toml", "config.lock"}


@pytest.mark.skipif(os.name == "nt", reason="resource limits")
def test_a_full_disk_leaves_no_copy_of_the_key(home: Path, run_python: Callable[..., CompletedProcess[str]]) -> None:
    code = (
        "import resource, outtray\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (4, 4))\n"
        "try: outtray.Tray(app='mine', write_key='a-key', remember_key=True)\n"
        "except outtray.SettingsError as error: print(error)"
    )
    assert "could not be remembered" in run_python("-c", code).stdout
    assert [(file.name, file.stat().st_size) for file in (home / ".config" / "outtray").iterdir()] == [
        ("config.lock", 0)
    ]


def test_a_key_comes_from_the_file_that_is_named(tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.write_text(f"{SECRET}\n")
    values = outtray.Tray(app="mine", url="http://x.example", write_key_file=file).settings
    assert values.find_key() == SECRET
    assert values.to_store()["write_key_file"] == str(file)
    file.unlink()
    with pytest.raises(SettingsError, match="write_key_file"):
        values.find_key()


@pytest.mark.parametrize(
    ("word", "state"),
    [
        ("on", "granted"),
        ("1", "granted"),
        ("off", "denied"),
        ("NO", "denied"),
        ("Local", "local"),
        ("perhaps", "denied"),
    ],
)
def test_a_consent_that_cannot_be_read_is_a_denied_one(word: str, state: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OUTTRAY_CONSENT", word)
    found = settings.resolve({})
    assert found.consent == state
    assert bool(found.problems) == (word == "perhaps")
