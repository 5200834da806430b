"""What must hold after the power was cut: what was accepted, what is there, and what the receiver got, compared."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from faults.power_cut_child import text_of
from faults.report import Report

PROMISED = 1.0
"""Seconds after which a message is safe with `durability="process"`."""

SHOWN = 5  # examples in one violation's text


@dataclass(frozen=True)
class Accepted:
    """One call that returned True, with the monotonic times of call and return."""

    message_id: str
    called_at: float
    returned_at: float

    @property
    def program(self) -> str:
        """The name of the program that called."""
        return self.message_id.rpartition("-")[0]


@dataclass
class Life:
    """One outbox across its cuts: its *app* and the number of *cuts*.

    *counted* is how many messages it has counted as lost so far, and *restarts* how many unclean restarts, *repeats*
    how many messages came to the receiver once more.
    """

    app: str
    cuts: int = 0
    counted: int = 0
    restarts: int = 0
    repeats: int = 0


@dataclass(frozen=True)
class Cut:
    """The power was cut between *began_at* and *ended_at* (monotonic); *name* says which cut it is.

    *returned* are the calls that returned True at any time, *late* is how many seconds too late a sleeping thread was
    woken at worst, *exited* names the programs that had ended by themselves before, *delivered* holds the message ids
    that the receiver had.
    """

    name: str
    began_at: float
    ended_at: float
    returned: list[Accepted]
    late: float
    exited: set[str]
    delivered: set[str]

    @property
    def accepted(self) -> list[Accepted]:
        """The calls that had returned True when the power was cut."""
        return [each for each in self.returned if each.returned_at < self.began_at]


@dataclass(frozen=True)
class Found:
    """What lies in the files: *rows* (id, message id, state, body) lowest id first, and what is wrong with them.

    *header_id* is the last id that the gate's header knows of, None where there is no sound header; *log_bytes* the
    size of the write-ahead log, None where there is none.
    """

    rows: list[tuple[int, str, str, str]] = field(default_factory=list)
    header_id: int | None = None
    log_bytes: int | None = None
    problems: list[str] = field(default_factory=list)

    @property
    def highest_id(self) -> int:
        """The highest id of a row, 0 without any."""
        return self.rows[-1][0] if self.rows else 0


class Verdict:
    """Compares one *cut* with what was *found* on the disk before anything opened it again."""

    def __init__(self, report: Report, mode: str, life: Life, cut: Cut, found: Found) -> None:
        self._report = report
        self._mode = mode
        self._life = life
        self._cut = cut
        self._found = found
        self._ids = {message_id: id for id, message_id, _, _ in found.rows}

    def give(self, reopened: dict[str, Any], now: Found, received: list[dict[str, Any]], repeats: int) -> None:
        """Count, and note what is broken: *reopened* is what the next program saw, *now* what lies there after it.

        *received* is all that the receiver got of this outbox, *repeats* how much of it came more than once.
        """
        self._look_at_calls()
        self._look_at_rows()
        self._look_at_next_program(reopened, now)
        self._look_at_bodies("delivered", ((each["message_id"], json.dumps(each)) for each in received))
        got = {message["message_id"] for message in received}
        lost = [each for each in self._cut.accepted if each.message_id not in got]
        self._look_at_lost(lost)
        self._look_at_ledger({each.message_id for each in lost}, reopened["ledger"] or {})
        self._count("cuts")
        self._count("accepted", len(self._cut.accepted))
        self._count("lost", len(lost))
        self._count("delivered twice", repeats - self._life.repeats)
        self._life.repeats = repeats
        self._report.raise_to(f"{self._mode}: woken late by (s)", round(self._cut.late, 3))
        self._report.tried += 1

    def _look_at_calls(self) -> None:
        self._break(
            "calls that began after the cut returned True",
            [each.message_id for each in self._cut.returned if each.called_at > self._cut.ended_at],
        )

    def _look_at_rows(self) -> None:
        self._break("on the disk, before anything opened the outbox", self._found.problems)
        rows = self._found.rows
        self._look_at_bodies("on the disk", ((message_id, body) for _, message_id, _, body in rows))
        settled = [message_id for _, message_id, state, _ in rows if state != "pending"]
        self._break(
            "messages are settled that no receiver got",
            [message_id for message_id in settled if message_id not in self._cut.delivered],
        )
        stored = [each for each in self._cut.accepted if each.message_id in self._ids]
        self._break("ids are not in the order of acceptance", _out_of_order(stored, self._ids))

    def _look_at_bodies(self, where: str, messages: Iterable[tuple[str, str]]) -> None:
        altered = []
        for message_id, body in messages:
            message = json.loads(body)
            if message["message_id"] != message_id or (
                message["event"] == "power cut" and message["properties"]["text"] != text_of(message_id)
            ):
                altered.append(message_id)
        self._break(f"messages are altered {where}", altered)

    def _look_at_next_program(self, reopened: dict[str, Any], now: Found) -> None:
        if not reopened["stored"]:
            self._break("the next program's first call returned False", [reopened["why"]])
        elif reopened["id"] <= max(self._found.highest_id, self._found.header_id or 0):
            self._break("the next program's message got an id that was given before", [str(reopened["id"])])
        if not reopened["flush"].startswith("drained") or reopened["pending"] != 0:
            self._break("the next program could not deliver all", [f"{reopened['flush']}, {reopened['why']}"])
        self._break("on the disk, after the next program", now.problems)
        if not now.rows:
            self._break("on the disk, after the next program", ["no message"])

    def _look_at_lost(self, lost: list[Accepted]) -> None:
        ages = {each.message_id: self._cut.began_at - each.returned_at for each in lost}
        if ages:
            self._report.raise_to(f"{self._mode}: oldest lost (s)", round(max(ages.values()), 3))
        allowed = 0.0 if self._mode == "power" else PROMISED + self._cut.late
        self._break(
            f"messages are lost that were accepted more than {allowed:.3f} s before the cut",
            [f"{message_id} ({age:.3f} s)" for message_id, age in ages.items() if age > allowed],
        )
        self._break(
            "messages are lost whose program had ended before the cut",
            [each.message_id for each in lost if each.program in self._cut.exited],
        )
        if self._cut.exited:
            self._count("programs ended before", len(self._cut.exited))

    def _look_at_ledger(self, lost: set[str], ledger: dict[str, int]) -> None:
        """See that the next program says that something was lost: how much as far as the header knew, else that."""
        counted = ledger.get("lost", self._life.counted) - self._life.counted
        restarts = ledger.get("unclean_restart", self._life.restarts) - self._life.restarts
        self._life.counted += counted
        self._life.restarts += restarts
        gone = [each.message_id for each in self._cut.accepted if each.message_id not in self._ids]
        recovered = len([id for id in gone if id not in self._cut.delivered and id not in lost])
        known = max(0, (self._found.header_id or 0) - self._found.highest_id)
        if counted + recovered < min(len(gone), known):
            self._break(
                "lost messages are not counted",
                [f"{len(gone)} gone, {recovered} recovered, {known} known to the header, {counted} counted"],
            )
        if restarts > 1:
            self._break("one restart is counted more than once", [str(restarts)])
        if lost and not counted and not restarts:
            self._break("nobody says that something was lost", sorted(lost))
        self._count("cuts with a loss", int(bool(lost)))
        self._count("with messages counted as lost", int(bool(lost and counted)))
        self._count("with nothing but an unclean restart counted", int(bool(lost and restarts and not counted)))
        self._count("unclean restarts counted", restarts)
        self._count("headers lost", int(self._found.header_id is None))

    def _count(self, name: str, number: int = 1) -> None:
        self._report.add(f"{self._mode}: {name}", number)

    def _break(self, what: str, examples: list[str]) -> None:
        if examples:
            more = f" and {len(examples) - SHOWN} more" if len(examples) > SHOWN else ""
            self._report.violated(f"{self._cut.name}: {what}: {', '.join(examples[:SHOWN])}{more}; {self._scene()}")

    def _scene(self) -> str:
        """Return what a reader needs to judge a violation: how far the files and the header had come."""
        found = self._found
        return (
            f"{len(self._cut.accepted)} accepted, {len(found.rows)} rows up to id {found.highest_id}, "
            f"header at {found.header_id}, log of {found.log_bytes} bytes, {len(self._cut.delivered)} delivered"
        )


def _out_of_order(stored: list[Accepted], ids: dict[str, int]) -> list[str]:
    return list(_overtaken(sorted(stored, key=lambda each: ids[each.message_id])))


def _overtaken(by_id: list[Accepted]) -> Iterator[str]:
    """Give each message that was accepted before an earlier one in the log was even called for."""
    latest = None
    for each in by_id:
        if latest is not None and each.returned_at < latest.called_at:
            yield f"{each.message_id} behind {latest.message_id}"
        if latest is None or each.called_at > latest.called_at:
            latest = each
