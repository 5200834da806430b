"""Installs the bridge when the program imports ZenML; until then it costs two entries in `sys.meta_path`."""

from __future__ import annotations

import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from importlib.machinery import ModuleSpec
    from types import ModuleType

PACKAGE = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
"""The folder of the package `outtray` that this file is part of."""


def install(report: Callable[[Exception], None]) -> None:
    """Wait for ZenML, and make `outtray` importable where the program's interpreter does not have it.

    *report* is called with what keeps the bridge from being installed later.
    """
    sys.meta_path.insert(0, _Starter(report))
    sys.meta_path.append(_Fallback())


class _Starter:
    """A finder that finds nothing, and installs the bridge when it is asked for ZenML."""

    def __init__(self, report: Callable[[Exception], None]) -> None:
        self._report = report

    def find_spec(self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None) -> None:
        if name != "zenml":
            return
        # A new list, since the import system is going through the old one, and would miss a finder.
        sys.meta_path = [finder for finder in sys.meta_path if finder is not self]
        try:
            from outtray.bridges.zenml import install

            install()
        except Exception as error:  # the program works without the bridge, too
            self._report(error)


class _Fallback:
    """A finder, asked last, that finds `outtray` where this file lies, without a folder more in `sys.path`."""

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        file = os.path.join(PACKAGE, "__init__.py")
        if name != "outtray" or not os.path.isfile(file):
            return None
        from importlib.util import spec_from_file_location

        return spec_from_file_location(name, file, submodule_search_locations=[PACKAGE])
