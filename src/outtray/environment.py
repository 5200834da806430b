"""Facts about where the code runs, found once: operating system, environment, Python, time zone, locale."""

from __future__ import annotations

import os
import sys
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

CI_VARIABLES = {
    "GITHUB_ACTIONS": "github_actions",
    "GITLAB_CI": "gitlab_ci",
    "CIRCLECI": "circle_ci",
    "BITBUCKET_BUILD_NUMBER": "bitbucket_ci",
    "JENKINS_URL": "jenkins",
    "TF_BUILD": "azure_pipelines",
    "CI": "generic_ci",
}
"""Variables that services for continuous integration document as theirs, and the environment they stand for."""

_facts: dict[str, Any] = {}
_versions: dict[str, str | None] = {}


def facts() -> dict[str, Any]:
    """Return the facts that are the same for the whole process."""
    if not _facts:
        python_version = ".".join(map(str, sys.version_info[:3]))
        surroundings = {"environment": kind(), "python_version": python_version, "locale": language_code() or None}
        _facts.update({**system_facts(), **surroundings})
    return _facts


_zone = (-1.0, "")


def timezone() -> str:
    """Return the abbreviation of the local time zone, as it was within the last minute: "CET", "CEST"."""
    global _zone
    minute = time.time() // 60
    kept, name = _zone
    if kept != minute:
        name = time.tzname[time.localtime().tm_isdst > 0]
        _zone = (minute, name)
    return name


def system_facts() -> dict[str, str]:
    """Return the operating system with its version: on Linux from os-release, read here as `platform` costs 16 ms."""
    if sys.platform == "linux":
        release = _os_release()
        return {
            "os": "linux",
            "linux_distro": release.get("ID", ""),
            "linux_distro_like": release.get("ID_LIKE", ""),
            "linux_distro_version": release.get("VERSION_ID", ""),
        }
    import platform

    if sys.platform == "darwin":
        return {"os": "mac", "mac_version": platform.mac_ver()[0]}
    if sys.platform == "win32":
        release_name, version, service_pack, kind_of_system = platform.win32_ver()
        return {
            "os": "windows",
            "windows_version_release": release_name,
            "windows_version": version,
            "windows_version_service_pack": service_pack,
            "windows_version_os_type": kind_of_system,
        }
    return {"os": "unknown"}


def kind() -> str:
    """Return what the code runs in: a CI service, a kind of notebook or container, "wsl", else "native"."""
    for variable, name in CI_VARIABLES.items():
        if os.environ.get(variable, "").lower() not in ("", "0", "false"):
            return name
    if "google.colab" in sys.modules:
        return "colab"
    if "ipykernel" in sys.modules:
        return "notebook"
    if "KUBERNETES_SERVICE_HOST" in os.environ:
        return "kubernetes"
    if os.path.exists("/.dockerenv"):
        return "docker"
    if os.path.exists("/run/.containerenv"):
        return "container"
    if sys.platform == "linux" and "microsoft" in os.uname().release.lower():
        return "wsl"
    return "native"


def language_code() -> str:
    """Return the locale's language, such as "en_DE", and "" for the C locale or none."""
    if sys.platform == "win32":
        import locale

        return locale.getlocale()[0] or ""
    for variable in ("LC_ALL", "LC_CTYPE", "LANG"):  # in POSIX's order
        name = os.environ.get(variable, "").partition(".")[0].partition("@")[0]
        if name:
            return "" if name in ("C", "POSIX") else name
    return ""


def package_version(app: str) -> str | None:
    """Return the version of the application, if it is a loaded package of the name *app*."""
    if app not in _versions and app.replace("-", "_") in sys.modules:
        _versions[app] = _package_version(app)
    return _versions.get(app)


def _package_version(app: str) -> str | None:
    try:
        version = getattr(sys.modules[app.replace("-", "_")], "__version__", None)
        if isinstance(version, str):
            return version
        from importlib import metadata

        return metadata.version(app)
    except Exception:  # no distribution of that name, or the module's own __getattr__: the event goes without it
        return None


def _os_release() -> dict[str, str]:
    for path in ("/etc/os-release", "/usr/lib/os-release"):
        try:
            with open(path, encoding="utf-8", errors="replace") as file:
                pairs = [line.strip().partition("=") for line in file if "=" in line and not line.startswith("#")]
        except OSError:
            continue
        return {name: value.strip("\"'") for name, _, value in pairs}
    return {}
