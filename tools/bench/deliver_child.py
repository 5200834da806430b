"""One contender of the rows `delivered`, `drain` and `far`: prints the seconds until all messages are delivered."""

from __future__ import annotations

import json
import sys
import time

from bench.events import TWELVE, USER

BATCH = 500
"""Messages in a body of the bare loop: outtray's default."""


def tracked(url: str, count: int) -> float:
    import outtray
    from outtray.client import default_client

    outtray.configure(app="bench", url=url)
    default_client.track(USER, "report made", TWELVE)
    assert outtray.flush(timeout=60).settled
    start = time.perf_counter()
    for _ in range(count):
        default_client.track(USER, "report made", TWELVE)
    report = outtray.flush(timeout=None)
    seconds = time.perf_counter() - start
    assert report.settled, report
    assert outtray.status()["delivered"] == count + 1
    return seconds


def waiting(url: str, count: int) -> float:
    import outtray
    from outtray.client import default_client

    outtray.configure(app="bench", url=url, flush="manual")
    default_client.track(USER, "report made", TWELVE)
    assert outtray.flush(timeout=60).settled
    for _ in range(count):
        default_client.track(USER, "report made", TWELVE)
    start = time.perf_counter()
    report = outtray.flush(timeout=None)
    seconds = time.perf_counter() - start
    assert report.delivered == count, report
    return seconds


def segment(url: str, count: int) -> float:
    from segment.analytics.client import Client

    errors: list[object] = []
    client = Client("a-write-key", host=url, max_queue_size=count, on_error=lambda error, _: errors.append(error))
    client.track(USER, "report made", TWELVE)
    client.flush()
    start = time.perf_counter()
    for _ in range(count):
        is_taken, _ = client.track(USER, "report made", TWELVE)
        assert is_taken
    client.flush()
    seconds = time.perf_counter() - start
    assert not errors, errors
    return seconds


def bare(url: str, count: int) -> float:
    import requests

    from outtray.client import Client

    client = Client(send=False)
    bodies = []
    for first in range(0, count, BATCH):
        texts = [client.track(USER, "report made", TWELVE)[1] for _ in range(first, min(first + BATCH, count))]
        bodies.append(f"[{','.join(texts)}]".encode())
    session = requests.Session()
    headers = {"accept": "application/json", "content-type": "application/json"}
    session.post(f"{url}/batch", data=b"[]", headers=headers)
    start = time.perf_counter()
    for body in bodies:
        assert session.post(f"{url}/batch", data=body, headers=headers).status_code == 200
    return time.perf_counter() - start


WAYS = {"tracked": tracked, "waiting": waiting, "segment": segment, "bare": bare}


def main() -> None:
    way, url, count = sys.argv[1], sys.argv[2], int(sys.argv[3])
    print(json.dumps(WAYS[way](url, count)))


if __name__ == "__main__":
    main()
