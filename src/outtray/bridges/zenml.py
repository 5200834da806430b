"""The bridge to ZenML: its own analytics are stored in the outbox instead of being posted one by one.

All messages of ZenML pass the name ``post`` in its module ``zenml.analytics.client``; that name is replaced.
ZenML's opt-out stays in force, as it then makes no message, and outtray's consent applies on top of it.

ZenML sends the header ``Source-Context`` by process. Here a batch is posted later, maybe by another process, so
its header is the drainer's ("python" by default), not the one of the ZenML process that made the message.
"""

from __future__ import annotations

import json
import sys

from outtray import journal

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from importlib.machinery import ModuleSpec
    from types import ModuleType
    from typing import Any

    from requests import Response

    from outtray.tray import Tray

MODULE = "zenml.analytics.client"
"""The module of ZenML that holds the name to be replaced."""


def install(tray: Tray | None = None) -> None:
    """Store ZenML's messages with *tray*, by default the default tray with the settings it has when they come.

    If ZenML's client is not imported yet it is patched when it is; this function imports nothing of ZenML. A
    repeated call only changes the tray. Raises nothing.
    """
    _bridge.tray = tray
    module = sys.modules.get(MODULE)
    if module is None:
        _bridge.watch()
    else:
        _bridge.patch(module)


def uninstall() -> None:
    """Give ZenML its own ``post`` back; without `install` before, do nothing."""
    _bridge.stop_watching()
    _bridge.unpatch()
    _bridge.tray = None


def _keep(batch: list[str], timeout: int = 15) -> Response:
    """Store a batch and return a success, whatever became of it: what was refused is in the ledger.

    *timeout* is for the signature; nothing here waits for the network.
    """
    from requests import Response  # ZenML has loaded it

    for text in batch:
        try:
            _bridge.store(text)
        except Exception as error:  # tracking must not hurt the host, whatever is wrong here
            journal.failed("storing a message of ZenML", error)
    response = Response()
    response.status_code = 200
    return response


class _Bridge:
    """What is installed: the tray, the finder that waits for ZenML's client, the ``post`` that was replaced."""

    def __init__(self) -> None:
        self.tray: Tray | None = None
        self._watcher: _Watcher | None = None
        self._module: ModuleType | None = None
        self._post: Callable[..., Any] | None = None

    def store(self, text: str) -> None:
        from outtray.tray import default_tray

        message = json.loads(text)
        if not isinstance(message, dict):
            raise TypeError(f"expected a JSON object, not {type(message).__name__}")
        # The tray's own client, so that `Tray.flush` waits for these messages too.
        (self.tray or default_tray).client.store_foreign(message)

    def patch(self, module: ModuleType) -> None:
        post = getattr(module, "post", None)
        if post is None:
            journal.failed("installing the bridge to ZenML", AttributeError(f"{MODULE} has no function post"))
        elif post is not _keep:
            self._module, self._post = module, post
            module.post = _keep  # type: ignore[attr-defined]

    def unpatch(self) -> None:
        module, self._module = self._module, None
        if module is not None and getattr(module, "post", None) is _keep:
            module.post = self._post  # type: ignore[attr-defined]

    def watch(self) -> None:
        if self._watcher is None:
            self._watcher = _Watcher()
            sys.meta_path.insert(0, self._watcher)

    def stop_watching(self) -> None:
        # A new list, since another thread may be going through the old one, and would miss a finder.
        sys.meta_path = [finder for finder in sys.meta_path if finder is not self._watcher]
        self._watcher = None


class _Watcher:
    """A finder that finds ZenML's client as the others do, and has it patched once it is loaded."""

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name != MODULE:
            return None
        for finder in list(sys.meta_path):
            find_spec = getattr(finder, "find_spec", None)  # the import system passes over those without it, too
            spec: ModuleSpec | None = find_spec(name, path, target) if find_spec and finder is not self else None
            if spec is not None:
                if spec.loader is not None:
                    spec.loader = _Loader(spec.loader)  # type: ignore[assignment]  # it has all that a Loader has
                return spec
        return None


class _Loader:
    """Stands in for ZenML's client's loader *real* until that has run, and leaves no trace in the module."""

    def __init__(self, real: Any) -> None:
        self._real = real

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        module: ModuleType | None = self._real.create_module(spec)
        return module

    def exec_module(self, module: ModuleType) -> None:
        module.__loader__ = self._real
        if module.__spec__ is not None:
            module.__spec__.loader = self._real
        self._real.exec_module(module)
        _bridge.patch(module)
        _bridge.stop_watching()


_bridge = _Bridge()
