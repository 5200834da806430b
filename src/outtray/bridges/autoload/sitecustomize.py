"""Python imports this at its start in programs below `python -m outtray run`, as its folder leads PYTHONPATH.

It must be readable for any Python, as the program may start another one: no annotations, no f-strings. The program
never fails for what fails here; OUTTRAY_AUTOLOAD_DEBUG shows it on stderr.
"""

import os
import sys


def _report(error):  # type: ignore[no-untyped-def]
    if os.environ.get("OUTTRAY_AUTOLOAD_DEBUG", "").lower() not in ("", "0", "false", "no", "off"):
        sys.stderr.write("outtray: no bridge is installed: " + repr(error) + "\n")


if sys.version_info >= (3, 11):  # noqa: UP036 - the program's Python, not ours
    try:
        __import__("outtray_autoload").install(_report)
    except Exception as error:
        _report(error)  # type: ignore[no-untyped-call]

# Now the sitecustomize that this one hides. Its faults are its own: Python reports them as ever.
_folder = os.path.dirname(os.path.abspath(__file__))
sys.path[:] = [entry for entry in sys.path if os.path.abspath(entry) != _folder]
_this = sys.modules.pop("sitecustomize")
try:
    __import__("sitecustomize")
except ImportError as error:
    if getattr(error, "name", "sitecustomize") != "sitecustomize":
        raise
finally:
    sys.modules.setdefault("sitecustomize", _this)
