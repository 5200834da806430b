"""Where files of the user go, and how they are made and opened."""

from __future__ import annotations

import errno
import os
import stat
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping


def make_directory(path: str) -> None:
    """Make *path* with mode 0700 whatever the umask, and each parent that is missing. Raises OSError."""
    if os.path.isdir(path):
        return
    if os.path.dirname(path) != path:
        make_directory(os.path.dirname(path))
    try:
        os.mkdir(path, 0o700)
    except FileExistsError:
        return  # another process was first, and gives it its mode
    os.chmod(path, 0o700)


def without_waiting(path: str, flags: int, mode: int = 0o600) -> int:
    """Open *path* and return the descriptor, as an *opener* of `open` does; a pipe, which may block, is refused.

    Raises OSError.
    """
    descriptor = os.open(path, flags | getattr(os, "O_NONBLOCK", 0), mode)
    if stat.S_ISFIFO(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "a pipe, where a file should be", path)
    return descriptor


def state_dir(environ: Mapping[str, str] = os.environ) -> str:
    """Return `platformdirs.user_state_path("outtray")`; on Linux by the XDG rule, as that import costs 20 to 33 ms."""
    return _user_dir("XDG_STATE_HOME", "~/.local/state", "user_state_dir", environ)


def config_path(environ: Mapping[str, str] = os.environ) -> str:
    """Return the path of the config file, below `platformdirs.user_config_path("outtray")`."""
    return os.path.join(_user_dir("XDG_CONFIG_HOME", "~/.config", "user_config_dir", environ), "config.toml")


def _user_dir(variable: str, fallback: str, function: str, environ: Mapping[str, str]) -> str:
    if sys.platform == "linux":
        base = environ.get(variable, "")
        if not base.startswith("/"):  # the XDG rule: a relative path is passed over
            base = _home(environ) + fallback.removeprefix("~")
        return os.path.join(base, "outtray")
    import platformdirs

    return str(getattr(platformdirs, function)("outtray", appauthor=False))


def _home(environ: Mapping[str, str]) -> str:
    home = environ.get("HOME", "")
    if not home.startswith("/"):
        import pwd

        try:
            home = pwd.getpwuid(os.getuid()).pw_dir
        except KeyError:  # a user without an entry, as in containers
            return os.path.expanduser("~")
    return home.rstrip("/")
