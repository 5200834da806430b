"""Receive batches by hand: a fake server on this machine that can be told to misbehave.

    python tools/fake_server.py --mode 429 --option retry_after=3
    curl -d '{"mode": "trickle", "times": 2}' http://127.0.0.1:8765/__control
    curl http://127.0.0.1:8765/__received

In mode "refuse" the port is closed, so that /__control cannot be reached either. It is left by the option
for_seconds, as in {"mode": "refuse", "for_seconds": 5}: after them the mode before comes back.
"""

from __future__ import annotations

import argparse
import ipaddress
import signal
import sys
import threading
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "src"))

from outtray.testing import FakeServer
from outtray.testing.choice import find_mode
from outtray.testing.modes import MODES


def main() -> int:
    """Run until Ctrl-C or SIGTERM. Returns 0, or 1 if the port cannot be had."""
    parser = _parser()
    arguments = parser.parse_args()
    if not (arguments.allow_remote or _is_loopback(arguments.host)):
        parser.error(f"{arguments.host} can be reached by other machines; if you mean it: --allow-remote")
    server = FakeServer(arguments.port, host=arguments.host)
    try:
        server.set_mode(arguments.mode, **dict(arguments.option))
    except ValueError as error:
        parser.error(str(error))

    stopped = threading.Event()
    for each in (signal.SIGINT, signal.SIGTERM):
        signal.signal(each, lambda *_: stopped.set())
    try:
        server.start()
    except (OSError, OverflowError) as error:
        print(f"cannot listen on {arguments.host} port {arguments.port}: {error}", file=sys.stderr)
        return 1
    try:
        print(_greeting(server), flush=True)
        # Without a timeout Windows would not let Ctrl-C through.
        while not stopped.wait(0.5):
            continue
    finally:
        server.stop()
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog=_modes_help(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--port", type=int, default=8765, help="default %(default)s; 0 takes a free one")
    parser.add_argument("--host", default="127.0.0.1", help="IPv4 address to bind, default %(default)s")
    parser.add_argument("--allow-remote", action="store_true", help="allow a host that is not this machine's")
    parser.add_argument("--mode", default="ok", help="a mode from the list below, default %(default)s")
    parser.add_argument(
        "--option",
        type=_option,
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="an option of the mode; may be repeated",
    )
    return parser


def _option(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not (name and equals):
        raise argparse.ArgumentTypeError(f"expected NAME=VALUE, not {text!r}")
    return name, value


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _modes_help() -> str:
    modes = {**MODES, "200 to 599": find_mode("200")}
    lines = [
        f"  {name:20}" + " ".join(f"{option}={_shown(default)}" for option, default in mode.options.items())
        for name, mode in modes.items()
    ]
    return "\n".join(
        [
            "modes, with their options and defaults (None: not set):",
            *(line.rstrip() for line in lines),
            "All but refuse also take delay=SECONDS (before the answer) and",
            "times=REQUESTS (after which the mode before comes back).",
        ]
    )


def _shown(default: object) -> str:
    return ",".join(map(str, default)) if isinstance(default, tuple) else str(default)


def _greeting(server: FakeServer) -> str:
    line = f"{server.url}/batch answers in mode {server.mode}"
    if server.mode == "refuse":
        return f"{line}: the port is closed, for good unless the option for_seconds was given"
    order = """-d '{"mode": "503"}'"""
    return f"{line}; change it: curl {order} {server.url}/__control; look: {server.url}/__received"


if __name__ == "__main__":
    sys.exit(main())
