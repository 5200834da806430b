"""A program that does what it is told, line by line, and says in JSON what came of it."""

from __future__ import annotations

import json
import sys
import uuid

import outtray
from faults import host


def track_with_own_ids(number: int) -> bool:
    """Track with the ids that outtray makes."""
    client = outtray.Client()
    user = uuid.UUID(int=1)
    good = True
    for each in range(number):
        taken, text = client.track(user, "own", {"number": each})
        message_id = json.loads(text)["message_id"]
        host.note("tried", message_id)
        host.note("accepted" if taken else "refused", message_id)
        good = good and taken
    return good


def main() -> int:
    host.configure()
    for line in sys.stdin:
        word, number = line.split()
        if word == "track":
            answer: object = host.track_some(int(number))
        elif word == "own":
            answer = track_with_own_ids(int(number))
        elif word == "flush":
            answer = outtray.flush(float(number)).outcome
        else:
            host.close()
            return int(number)
        host.say(json.dumps(answer))
    return 1


if __name__ == "__main__":
    sys.exit(main())
