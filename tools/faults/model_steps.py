"""The steps of the stateful model: each does one thing and says what may have come of it."""

from __future__ import annotations

import functools
import random
from typing import TYPE_CHECKING, Any

from faults.model_world import (
    DAY,
    DEAD,
    DEFERRED,
    DELIVERED,
    LOCAL,
    LOSES_ANSWERS,
    REMOVED,
    SHORT_TIMEOUT,
    SUSPECTS,
    TAKES_ALL,
    TAKES_NONE,
    TAKES_SOME,
    TIMEOUT,
    WAITING,
    WHOLE_RUN,
    Message,
    Violation,
    World,
)
from outtray.cli import COMMANDS

if TYPE_CHECKING:
    from collections.abc import Callable

    from faults.report import Report

KINDS = ("small",) * 6 + ("marked", "large")
MODES = TAKES_ALL * 4 + TAKES_SOME * 2 + TAKES_NONE + LOSES_ANSWERS * 2
UNDELIVERED = (WAITING, DEFERRED, DEAD, LOCAL)

ANSWERS = {
    DELIVERED: (DELIVERED, 0.0),
    DEAD: (DEAD, 0.0),
    "due now": (DEFERRED, -1.0),
    "due later": (DEFERRED, 600.0),
    "deferred before the clock was put back": (DEFERRED, 3_650 * DAY),
}
"""What a receiver says of one message: the state that it is then in, and the seconds until it is due."""

LONGEST_KILL = 0.012
"""Seconds into a step in which its process is killed, at most: most steps last some milliseconds."""


def has_recovery() -> bool:
    """Tell whether this release has recovery from a damaged database."""
    from importlib.util import find_spec

    return find_spec("outtray.outbox.recovery") is not None


def step(name: str, *, when: Callable[[World], Any] = lambda _: True) -> Callable[..., Callable[..., None]]:
    """Return a decorator that counts the step under *name*, or leaves it out where *when* does not hold."""

    def decorate(method: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(method)
        def counted(doer: Steps, **drawn: Any) -> None:
            if when(doer.world):
                doer.report.tried += 1
                doer.report.add(name)
                method(doer, **drawn)

        return counted

    return decorate


class Steps:
    """What can be done to one outbox; done steps are counted in *report*."""

    def __init__(self, world: World, report: Report) -> None:
        self.world = world
        self.report = report

    def deliver_what_is_left(self) -> None:
        """Deliver to a receiver that takes everything, whatever was before."""
        if self.world.messages and self.world.may_send:
            self._drain("ok", WHOLE_RUN, heed_wait=False)

    # Tracking

    @step("track")
    def track(self, kinds: list[str], local: bool) -> None:
        """Track some messages."""
        world = self.world
        messages = world.new(kinds)
        answers = world.start_process().order("track", messages=_orders(messages), local=local)
        self._take(messages, answers, local=local)
        world.check()

    @step("kill -9", when=lambda world: world.may_send)
    def be_killed_while_tracking(self, kinds: list[str], seconds: float) -> None:
        """Die while tracking: what had returned True is there, of the rest a beginning."""
        world = self.world
        messages = world.new(kinds)
        world.start_process()
        answers = world.kill_in("track", seconds, messages=_orders(messages))
        answered = [answer for answer in answers if "message_id" in answer]
        self._take(messages[: len(answered)], answered, local=False)
        if world.is_unlimited:
            world.maybe = {message.message_id: message for message in messages[len(answered) :]}
            world.check()
        else:  # it may have been full, and the kill may have come before that was counted
            world.maybe = {message.message_id: message for message in messages[len(answered) : len(answered) + 1]}
            world.take_over_ledger()
            world.check()

    @step("refused", when=lambda world: world.messages and world.may_send)
    def track_what_is_too_large(self) -> None:
        """Track a message above the limit."""
        world = self.world
        message = world.new(["too large"])
        answers = world.start_process().order("track", messages=_orders(message))
        if answers[0]["taken"]:
            raise Violation("a message above max_message_bytes was taken")
        world.ledger["too_large"] = world.ledger.get("too_large", 0) + 1
        world.check()

    @step("max_bytes")
    def limit(self, max_bytes: int) -> None:
        """Bound the outbox, at 1 byte so that it is full."""
        self.world.limit(max_bytes)
        self.world.check()

    def _take(self, messages: list[Message], answers: list[dict[str, Any]], *, local: bool) -> None:
        """Have the model know of each message what the call returned."""
        world = self.world
        for message, answer in zip(messages, answers, strict=False):
            if answer["taken"] and world.is_consent_denied and not local:  # the host's word comes before the user's
                raise Violation(f"{message.message_id} was taken though consent is denied")
            if answer["taken"]:
                message.state = LOCAL if local or world.is_consent_local else WAITING
                world.messages[message.message_id] = message
            elif local or not world.is_consent_denied:
                if world.is_unlimited:
                    raise Violation(f"{message.message_id} was refused without a reason")
                world.ledger["full"] = world.ledger.get("full", 0) + 1

    # Delivering

    @step("drain", when=lambda world: world.messages and world.may_send)
    def drain(self, mode: str, steps: int, heed_wait: bool) -> None:
        """Do some steps of a run, or all."""
        self._drain(mode, steps, heed_wait=heed_wait)

    def _drain(self, mode: str, steps: int, *, heed_wait: bool) -> None:
        world = self.world
        world.be_in(mode)
        wait_before, due = world.wait, world.due()
        timeout = SHORT_TIMEOUT if mode == "hang" else TIMEOUT
        result = world.order("drain", steps=steps, heed_wait=heed_wait, timeout=timeout)
        waited = heed_wait and result["wait"] and not result["delivered"]
        allowed = self._allowed(mode, due, is_whole=steps == WHOLE_RUN)
        if waited and wait_before in ("blocked", "unknown"):
            allowed = {}
        elif heed_wait and wait_before == "blocked" and due and result["delivered"]:
            raise Violation("the stored wait was not heeded")
        before = len(world.in_state(DELIVERED)), len(world.in_state(DEAD))
        world.check(allowed)
        gained = len(world.in_state(DELIVERED)) - before[0], len(world.in_state(DEAD)) - before[1]
        if gained != (result["delivered"], result["dead"]):
            raise Violation(f"the run says {result}; delivered and dead are {gained}")
        if not waited and mode in TAKES_ALL and due and not gained[0]:
            raise Violation(f"{len(due)} messages were due and the receiver takes all: nothing was delivered")
        if result["delivered"]:
            world.wait = "none"
        if result["wait"] and not (waited and wait_before == "blocked"):
            world.wait = "blocked" if mode in ("401", "404", "redirect", "429") and not waited else "unknown"

    def _allowed(self, mode: str, due: list[Message], *, is_whole: bool) -> dict[str, set[str]]:
        """Return what may become of the messages that are *due*; of the others nothing."""
        good = [message for message in due if not message.is_bad(mode)]
        bad = [message for message in due if message.is_bad(mode)]
        if mode in TAKES_NONE or mode in LOSES_ANSWERS:
            return {}
        is_clear = len(bad) < SUSPECTS
        if not is_clear:  # then the newest one was tried alone
            due[-1].may_overtake = True
        if is_whole and mode != "flaky" and is_clear:
            dead = {message.message_id: {DEAD} if good else {message.state} for message in bad}
            return {**{message.message_id: {DELIVERED} for message in good}, **dead}
        return {
            **{message.message_id: {message.state, DELIVERED} for message in good},
            **{message.message_id: {message.state, DEAD} for message in bad},
        }

    @step("kill -9", when=lambda world: world.due() and world.may_send)
    def be_killed_while_draining(self, mode: str, seconds: float) -> None:
        """Die while delivering: nothing is lost, what arrived may arrive again."""
        world = self.world
        world.be_in(mode)
        due = world.due()
        allowed = self._allowed(mode, due, is_whole=False)
        world.start_process()
        world.kill_in("drain", seconds, steps=WHOLE_RUN, heed_wait=False, timeout=TIMEOUT)
        refused = world.refused_alone()
        for message in due:
            message.may_arrive_late = True
            if message.message_id in refused:  # the run went on to those behind it and died before it was dead
                message.may_overtake = True
        world.wait = "unknown"
        world.check(allowed)

    @step("flush", when=lambda world: world.messages and world.may_send)
    def flush_by_command(self, mode: str) -> None:
        """Run the command line's flush."""
        world = self.world
        world.be_in(mode)
        due = world.due()
        result = world.command("flush", "--all")
        world.wait = "unknown"
        world.check(self._allowed(mode, due, is_whole=True))
        if mode in TAKES_ALL and result["code"] != 0:
            raise Violation(f"flush exits with {result['code']} though the receiver takes all: {result['err']}")

    @step("answers for each message", when=lambda world: world.due() and world.may_send)
    def answer_each_message(self, answers: list[str]) -> None:
        """A receiver with per-message answers, as Amplitude and Mixpanel are."""
        world = self.world
        states, moments = zip(*(ANSWERS[answer] for answer in answers), strict=True)
        result = world.order("answer", states=states, moments=moments)
        if result.get("refused"):
            raise Violation("a batch was not settled though nothing was withdrawn")
        allowed = {}
        for (message_id, state), answer in zip(result["answered"].items(), answers, strict=False):
            message = world.messages[message_id]
            message.is_due = answer != "due later"
            message.may_overtake = True
            allowed[message_id] = {state}
            if state == DELIVERED:
                world.answered.add(message_id)
                world.wait = "none"
        world.check(allowed)

    # Clock

    @step("clock jump", when=lambda world: world.messages)
    def jump(self, seconds: float) -> None:
        """Meet a wait that was stored when the clock showed another time."""
        self.world.order("jump", seconds=seconds)
        self.world.wait = "blocked" if seconds == 600.0 else "over"
        self.world.check()

    # Removing and retrying

    @step("purge", when=lambda world: world.messages)
    def purge(self, state: str, is_command: bool) -> None:
        """Purge one state, by the command or from inside a program."""
        world = self.world
        before = {message.message_id for message in world.in_state(state)}
        if is_command:
            world.command("purge", "--state", state, "--yes")
        else:
            world.order("purge", state=state)
        if state == DELIVERED:
            world.check(may_prune=True)  # and the ledger is as it was
        else:
            world.ledger["purged"] = world.ledger.get("purged", 0) + len(before)
            world.check({message_id: {REMOVED} for message_id in before})

    @step("kill -9", when=lambda world: world.messages)
    def be_killed_while_purging(self, state: str, seconds: float) -> None:
        """Die while purging: what is gone is counted, unless it was delivered."""
        world = self.world
        before = world.in_state(state)
        world.start_process()
        world.kill_in("purge", seconds, state=state)
        removed = len(before) - len(world.stored_ids() & {message.message_id for message in before})
        if removed and state != DELIVERED:
            world.ledger["purged"] = world.ledger.get("purged", 0) + removed
        world.check({message.message_id: {state, REMOVED} for message in before})

    @step("prune", when=lambda world: world.messages)
    def prune_with_no_retention(self) -> None:
        """Remove what was delivered."""
        self.world.order("prune", retention=0.0)
        self.world.check(may_prune=True)

    @step("kill -9", when=lambda world: world.messages)
    def be_killed_while_pruning(self, seconds: float) -> None:
        """Die while pruning."""
        world = self.world
        world.start_process()
        world.kill_in("prune", seconds, retention=0.0)
        world.check(may_prune=True)

    @step("retry", when=lambda world: world.in_state(DEAD))
    def retry(self, number: int) -> None:
        """Retry some dead messages, with the number 0 all."""
        world = self.world
        dead = world.in_state(DEAD)
        chosen = dead[:number] if number else dead
        ids = [message.id for message in chosen] if number else None
        result = world.order("retry", ids=ids)
        if result["retried"] != len(chosen):
            raise Violation(f"{result['retried']} were retried, {len(chosen)} were dead")
        for message in chosen:
            message.may_overtake, message.is_due = True, True
        world.check({message.message_id: {WAITING} for message in chosen})

    # Processes

    @step("kill -9 at rest", when=lambda world: world.has_process)
    def crash(self) -> None:
        """Die at rest."""
        self.world.end_process(kill=True)
        self.world.check()

    @step("close", when=lambda world: world.messages)
    def close(self) -> None:
        """Sync and close; the process goes on."""
        self.world.order("close")
        self.world.check()

    @step("reopen", when=lambda world: world.has_process)
    def reopen(self) -> None:
        """Go on with a new process."""
        self.world.end_process(kill=False)
        self.world.check()

    # Consent, erasure, recovery: where this release has them

    @step("consent", when=lambda world: "consent" in COMMANDS and world.messages)
    def choose_consent(self, choice: str) -> None:
        """Choose: `off` removes what was not delivered."""
        world = self.world
        result = world.command("consent", choice)
        if result["code"] != 0:
            raise Violation(f"consent {choice} exits with {result['code']}: {result['err']}")
        world.is_consent_denied, world.is_consent_local = choice == "off", choice == "local"
        if choice == "off":
            self._erased()
        else:
            world.check()

    @step("forget", when=lambda world: "forget" in COMMANDS and world.messages)
    def forget(self) -> None:
        """Erase everything."""
        result = self.world.command("forget", "--yes")
        if result["code"] != 0:
            raise Violation(f"forget exits with {result['code']}: {result['err']}")
        self._erased()
        if self.world.stored_ids():
            raise Violation(f"forget left {sorted(self.world.stored_ids())}")

    def _erased(self) -> None:
        """Check after messages were removed by the user's word: nothing is left but what was delivered."""
        world = self.world
        world.take_over_ledger()
        world.wait = "unknown"
        gone = {message.message_id: {REMOVED} for message in world.in_state(*UNDELIVERED)}
        world.check(gone, may_prune=True)

    @step("new generation", when=lambda world: has_recovery() and world.messages and world.may_send)
    def damage_the_database(self) -> None:
        """The call that meets the damage is taken, and the next drain brings back what waited."""
        world = self.world
        world.end_process(kill=False)
        world.damage()
        world.new_generation()
        world.limit(1 << 30)
        message = world.new(["small"])
        answers = world.start_process().order("track", messages=_orders(message))
        if not answers[0]["taken"]:
            raise Violation("the call that met a damaged database was not taken")
        self._take(message, answers, local=False)
        world.be_in("500")
        world.command("flush", "--all")
        world.wait = "unknown"
        world.take_over_ledger()
        world.check(may_prune=True)


def _kinds(chance: random.Random, most: int) -> list[str]:
    return chance.choices(KINDS, k=chance.randint(1, most))


def _moment(chance: random.Random) -> float:
    return round(chance.uniform(0.0, LONGEST_KILL), 4)


DRAWS: dict[str, tuple[int, Callable[[random.Random], dict[str, Any]]]] = {
    "track": (20, lambda chance: {"kinds": _kinds(chance, 6), "local": chance.random() < 0.1}),
    "be_killed_while_tracking": (6, lambda chance: {"kinds": _kinds(chance, 12), "seconds": _moment(chance)}),
    "track_what_is_too_large": (2, lambda _: {}),
    "limit": (2, lambda chance: {"max_bytes": chance.choice((1, 100_000, 1 << 30, 1 << 30, 1 << 30))}),
    "drain": (
        18,
        lambda chance: {
            "mode": chance.choice(MODES),
            "steps": chance.choice((1, 2, 3, 5, WHOLE_RUN, WHOLE_RUN)),
            "heed_wait": chance.random() < 0.4,
        },
    ),
    "be_killed_while_draining": (8, lambda chance: {"mode": chance.choice(MODES), "seconds": _moment(chance) * 2}),
    "flush_by_command": (4, lambda chance: {"mode": chance.choice((*TAKES_ALL, *TAKES_SOME, "500", "401"))}),
    "answer_each_message": (6, lambda chance: {"answers": chance.choices(tuple(ANSWERS), k=chance.randint(1, 5))}),
    "jump": (5, lambda chance: {"seconds": chance.choice((-3_650 * DAY, -1.0, 600.0, 3_650 * DAY))}),
    "purge": (
        5,
        lambda chance: {
            "state": chance.choice((*UNDELIVERED, DELIVERED)),
            "is_command": chance.random() < 0.5,
        },
    ),
    "be_killed_while_purging": (3, lambda chance: {"state": chance.choice(UNDELIVERED), "seconds": _moment(chance)}),
    "prune_with_no_retention": (3, lambda _: {}),
    "be_killed_while_pruning": (2, lambda chance: {"seconds": _moment(chance)}),
    "retry": (6, lambda chance: {"number": chance.randint(0, 3)}),
    "crash": (4, lambda _: {}),
    "close": (2, lambda _: {}),
    "reopen": (2, lambda _: {}),
    "choose_consent": (4, lambda chance: {"choice": chance.choice(("on", "on", "local", "off"))}),
    "forget": (1, lambda _: {}),
    "damage_the_database": (2, lambda _: {}),
}
"""Name of the step, how often it comes, and its arguments, which depend on chance alone: so a run can be repeated."""


def draw(chance: random.Random) -> tuple[str, dict[str, Any]]:
    """Return one step by chance, with its arguments."""
    name = chance.choices(tuple(DRAWS), [weight for weight, _ in DRAWS.values()])[0]
    return name, DRAWS[name][1](chance)


def _orders(messages: list[Message]) -> list[dict[str, str]]:
    return [{"message_id": message.message_id, "text": message.text} for message in messages]
