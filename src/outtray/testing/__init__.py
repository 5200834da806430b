"""For tests of one's own tracking: a receiver of batches that misbehaves on demand.

``with FakeServer() as server: ...`` is a real HTTP server on the loopback interface. It remembers what it
accepted, and `FakeServer.set_mode` makes it fail in one of the ways listed in `outtray.testing.modes`.
"""

from __future__ import annotations

from outtray.testing.memory import SeenRequest
from outtray.testing.server import FakeServer

__all__ = ["FakeServer", "SeenRequest"]
