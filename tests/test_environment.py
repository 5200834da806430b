"""Facts about where the code runs."""

from __future__ import annotations

import platform
import sys
import time
from types import ModuleType

import pytest

from outtray import environment


@pytest.fixture(autouse=True)
def _plain(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in (*environment.CI_VARIABLES, "KUBERNETES_SERVICE_HOST", "LC_ALL", "LC_CTYPE", "LANG"):
        monkeypatch.delenv(variable, raising=False)


@pytest.mark.parametrize(("variable", "expected"), environment.CI_VARIABLES.items())
def test_a_ci_service_is_told_by_its_variable(variable: str, expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(variable, "true")
    assert environment.kind() == expected
    monkeypatch.setenv(variable, "false")
    assert environment.kind() != expected


def test_a_service_is_named_rather_than_ci_in_general(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CI", "true")
    monkeypatch.setenv("GITLAB_CI", "true")
    assert environment.kind() == "gitlab_ci"


def test_notebooks_and_clusters_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
    assert environment.kind() == "kubernetes"
    monkeypatch.setitem(sys.modules, "ipykernel", ModuleType("ipykernel"))
    assert environment.kind() == "notebook"
    monkeypatch.setitem(sys.modules, "google.colab", ModuleType("google.colab"))
    assert environment.kind() == "colab"


@pytest.mark.skipif(not hasattr(platform, "freedesktop_os_release"), reason="os-release")
@pytest.mark.skipif(sys.platform != "linux", reason="os-release")
def test_the_distribution_is_what_the_standard_library_reads() -> None:
    try:
        expected = platform.freedesktop_os_release()
    except OSError:
        expected = {}
    found = environment.system_facts()
    assert found["os"] == "linux"
    assert found["linux_distro"] == expected.get("ID", "")
    assert found["linux_distro_version"] == expected.get("VERSION_ID", "")
    assert found["linux_distro_like"] == expected.get("ID_LIKE", "")


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX variables")
@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({}, ""),
        ({"LANG": "de_CH.UTF-8"}, "de_CH"),
        ({"LANG": "de_CH", "LC_ALL": "en_GB.UTF-8@euro"}, "en_GB"),
        ({"LANG": "de_CH", "LC_CTYPE": "fr_FR"}, "fr_FR"),
        ({"LANG": "C.UTF-8"}, ""),
        ({"LANG": "POSIX"}, ""),
        ({"LC_ALL": "", "LANG": "it_IT"}, "it_IT"),
    ],
)
def test_the_locale_follows_posix(variables: dict[str, str], expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert environment.language_code() == expected


@pytest.mark.skipif(not hasattr(time, "tzset"), reason="POSIX time zones")
def test_the_time_zone_is_the_one_in_force_now(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "XYZ-3")
    monkeypatch.setattr(environment, "_zone", (-1.0, "what held before"))
    time.tzset()
    try:
        assert environment.timezone() == "XYZ"
    finally:
        monkeypatch.delenv("TZ")
        time.tzset()


def test_facts_are_found_once() -> None:
    assert environment.facts() is environment.facts()
    assert {"os", "environment", "python_version"} <= set(environment.facts())


def test_a_version_comes_from_the_module_or_its_distribution_and_never_costs_an_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(environment, "_versions", {})
    assert environment.package_version("pytest") == pytest.__version__
    assert environment.package_version("not-loaded-at-all") is None
    monkeypatch.setitem(sys.modules, "without_version", ModuleType("without_version"))
    assert environment.package_version("without-version") is None
