"""Stores COUNT events of a SHAPE; prints the bytes of the messages, of the files while open, and the directory."""

from __future__ import annotations

import json
import sys

import outtray
from bench.events import SHAPES, USER
from outtray.client import default_client
from outtray.outbox.look import size


def main() -> None:
    shape, count = sys.argv[1], int(sys.argv[2])
    outtray.configure(app="bench", flush="manual")
    message_bytes = 0
    for _ in range(count):
        is_stored, body = default_client.track(USER, "report made", SHAPES[shape])
        assert is_stored
        message_bytes += len(body.encode())
    directory = default_client.settings.directory
    print(json.dumps([message_bytes, size(directory), directory]))


if __name__ == "__main__":
    main()
