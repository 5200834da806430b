"""Settings: one frozen value, from arguments, the environment, the config file, the outbox and the defaults.

The first of these that names an option wins, in that order; `options.py` lists what can be set.
"""

from __future__ import annotations

import os

from outtray import config_file
from outtray.errors import SettingsError
from outtray.options import OPTIONS, checked, environment_name
from outtray.paths import config_path, state_dir, without_waiting

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

STORED = (
    "url",
    "destination",
    "write_key_file",
    "max_bytes",
    "retention",
    "max_batch_count",
    "max_batch_bytes",
    "timeout",
)
"""What is kept in the outbox for drainers that know nothing of the host: nothing secret."""


class Settings:
    """The settings of one application, frozen; one attribute for each of `OPTIONS`.

    *directory* is the application's own, below `dir`.
    *sources* maps each option to "argument", "environment", "file", "stored" or "default"; *problems* lists
    what was found in environment and file but cannot be right, one sentence each that says what holds instead.
    *is_file_unreadable* tells of a config file that is there and cannot be understood.
    """

    app: str
    dir: str
    url: str | None
    destination: str
    write_key: str | None
    write_key_file: str | None
    consent: str
    consent_events: bool
    flush: str
    durability: str
    flush_interval: float
    exit_interval: float
    user_id: str | None
    version: str | None
    server_variable: str
    debug: bool
    max_bytes: int
    max_message_bytes: int
    retention: float
    max_batch_count: int
    max_batch_bytes: int
    timeout: float
    directory: str
    sources: Mapping[str, str]
    problems: tuple[str, ...]
    is_file_unreadable: bool

    __slots__ = (*(option.name for option in OPTIONS), "directory", "is_file_unreadable", "problems", "sources")

    def __init__(
        self,
        values: Mapping[str, Any],
        sources: Mapping[str, str],
        problems: tuple[str, ...],
        *,
        is_file_unreadable: bool,
    ) -> None:
        for option in OPTIONS:
            object.__setattr__(self, option.name, values[option.name])
        object.__setattr__(self, "directory", os.path.join(values["dir"], values["app"]))
        object.__setattr__(self, "sources", sources)
        object.__setattr__(self, "problems", problems)
        object.__setattr__(self, "is_file_unreadable", is_file_unreadable)

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"settings are frozen: make new ones to change {name!r}")

    def __repr__(self) -> str:
        return f"Settings(app={self.app!r}, dir={self.dir!r}, url={without_credentials(self.url)!r})"

    def over(self, stored: Mapping[str, Any]) -> Settings:
        """Return these settings with *stored* values in place of defaults; stored nonsense is passed over."""
        values = {option.name: getattr(self, option.name) for option in OPTIONS}
        sources = dict(self.sources)
        for option in OPTIONS:
            if option.name in STORED and option.name in stored and sources[option.name] == "default":
                try:
                    values[option.name] = checked(option, stored[option.name])
                except SettingsError:
                    continue  # written by a release that knows more values: ours stands
                sources[option.name] = "stored"
        return Settings(values, sources, self.problems, is_file_unreadable=self.is_file_unreadable)

    def to_store(self) -> dict[str, Any]:
        """Return what drainers need to know of these settings: the named part of them, and never a secret.

        ``needs_key`` tells that the host delivers with a key, or with something in its url that is not stored;
        ``consent`` is the host's own word, for who asks why another one has no effect.
        """
        kept = {name: getattr(self, name) for name in STORED if self.sources[name] != "default"}
        if self.url is None:
            return {}
        kept["url"] = without_credentials(self.url)
        kept["needs_key"] = bool(self.write_key or self.write_key_file) or kept["url"] != self.url
        if self.sources["consent"] == "argument":
            kept["consent"] = self.consent
        return kept

    def find_key(self) -> str | None:
        """Return the write key, read from `write_key_file` where only that is set. Raises SettingsError."""
        if self.write_key is not None or self.write_key_file is None:
            return self.write_key
        try:
            with open(self.write_key_file, encoding="utf-8", opener=without_waiting) as file:
                return file.read().strip() or None
        except (OSError, UnicodeDecodeError) as error:
            raise SettingsError(f"write_key_file={self.write_key_file!r} cannot be read: {error}") from error


_arguments: dict[str, Any] = {}
_current: Settings | None = None


def use(arguments: Mapping[str, Any]) -> Settings:
    """Make *arguments* the ones of this process's default application and return its settings. Raises SettingsError."""
    global _arguments, _current
    settings = resolve(arguments)
    _arguments, _current = dict(arguments), settings
    return settings


def current() -> Settings:
    """Return the default application's settings; environment and file are read once, at the first call."""
    global _current
    if _current is None:
        _current = resolve(_arguments)
    return _current


def configured_app() -> str | None:
    """Return the app that `use` was told of, None before."""
    return current().app if _arguments else None


def resolve(arguments: Mapping[str, Any], environ: Mapping[str, str] = os.environ) -> Settings:
    """Return settings from *arguments*, *environ*, the config file and the defaults.

    An argument of None counts as not given. Raises SettingsError for an argument that is unknown or cannot
    be right; faults of environment and file go to `Settings.problems` instead: a program must not end for a typo
    of its user. A config file that cannot be understood may hold a denial, so it counts as one.
    """
    known = {option.name for option in OPTIONS}
    for name in arguments:
        if name not in known:
            raise SettingsError(f"unknown setting {name!r}; known are {', '.join(sorted(known))}")
    values: dict[str, Any] = {}
    sources: dict[str, str] = {}
    problems: list[str] = []
    path = config_path(environ)
    content = config_file.read(path, problems)
    file: dict[str, Any] = {}
    for option in OPTIONS:
        name = option.name
        if arguments.get(name) is not None:
            values[name], sources[name] = checked(option, arguments[name]), "argument"
        else:
            for source, shown, raw in (
                ("environment", environment_name(name), environ.get(environment_name(name)) or None),
                ("file", f"{path}: {name}", file.get(name)),
            ):
                if raw is None:
                    continue
                try:
                    values[name], sources[name] = checked(option, raw, shown), source
                except SettingsError as error:
                    if name != "consent":
                        problems.append(f"{error}; it was passed over")
                        continue
                    problems.append(f"{error}; so consent is denied")  # whoever wrote it wanted something of us
                    values[name], sources[name] = "denied", source
                break
            else:
                values[name], sources[name] = option.default, "default"
        if name == "app":  # the first option: which part of the file is meant depends on it
            file = config_file.for_app(content or {}, values["app"], path, problems)
    if content is None and sources["consent"] == "default":
        values["consent"], sources["consent"] = "denied", "file"
    if values["dir"] is None:
        values["dir"] = state_dir(environ)
    values["dir"] = os.path.abspath(os.path.expanduser(values["dir"]))
    return Settings(values, sources, tuple(problems), is_file_unreadable=content is None)


def without_credentials(url: str | None) -> str | None:
    """Return *url* without user, password, query and fragment: "https://me:pw@host/x?key=k" is "https://host/x"."""
    if url is None:
        return None
    scheme, slashes, rest = url.partition("#")[0].partition("?")[0].partition("//")
    authority, slash, path = rest.partition("/")
    return f"{scheme}{slashes}{authority.rpartition('@')[2]}{slash}{path}"
