"""Harnesses that break the machine under outtray and count what is lost: `python tools/faults --help`."""
