"""Messages as strict JSON, whatever a property holds; message ids; timestamps."""

from __future__ import annotations

import copy
import dataclasses
import enum
import json
import math
import os
import time
from collections import UserDict, deque
from collections.abc import Callable, Iterator
from datetime import UTC, date, datetime, timedelta, timezone
from datetime import time as time_of_day
from decimal import Decimal
from fractions import Fraction
from functools import partial
from pathlib import PurePosixPath
from subprocess import CompletedProcess
from typing import Any
from unittest.mock import MagicMock, Mock
from uuid import UUID

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from pydantic import BaseModel, SecretStr

from outtray import encoding
from outtray.encoding import (
    CUT,
    MAX_DEPTH,
    MAX_REPR,
    AnalyticsEncoder,
    as_properties,
    clock_text,
    encode,
    new_message_id,
    timestamp_text,
)
from outtray.enums import AnalyticsEvent


def refuse_constant(name: str) -> None:
    raise AssertionError(f"{name} is no JSON")


def strict(text: str) -> Any:
    """Parse *text* as a strict receiver does."""
    assert "\n" not in text
    return json.loads(text.encode("utf-8"), parse_constant=refuse_constant)


def form_of(value: object) -> Any:
    """Return what a receiver sees of a property."""
    return strict(encode({"p": value}))["p"]


class Colour(enum.Enum):
    RED = "red"
    NESTED = (1, "two")


class Level(enum.IntEnum):
    HIGH = 3


class Flags(enum.Flag):
    A = 1
    B = 2


@dataclasses.dataclass
class Point:
    x: int
    y: object = None


class Model(BaseModel):
    when: datetime
    secret: SecretStr
    inner: dict[str, Any]


class Index:
    """As numpy's integers do it."""

    def __index__(self) -> int:
        return 7


class Float:
    """As numpy's floats do it."""

    def __init__(self, value: float) -> None:
        self.value = value

    def __float__(self) -> float:
        return self.value

    def __eq__(self, other: object) -> bool:
        return self.value == other

    __hash__ = None  # type: ignore[assignment]


class Array:
    """As an array of more than one number does it."""

    def __index__(self) -> int:
        raise TypeError("only integer scalar arrays can be converted to a scalar index")

    def __repr__(self) -> str:
        return "array([1, 2])"


class BrokenRepr:
    def __repr__(self) -> str:
        raise ValueError("no repr")

    __str__ = __repr__


class BrokenDump(BaseModel):
    def model_dump(self, **_: Any) -> Any:
        raise ValueError("no dump")


class Liar:
    """Says that it is a string, as Mock(spec=str) does, or fails to say what it is."""

    def __init__(self, kind: type | None) -> None:
        object.__setattr__(self, "kind", kind)

    @property  # type: ignore[misc]
    def __class__(self) -> Any:
        kind = object.__getattribute__(self, "kind")
        if kind is None:
            raise RuntimeError("no class")
        return kind


class Hostile:
    def __getattribute__(self, name: str) -> Any:
        raise RuntimeError("hostile")

    def __repr__(self) -> str:
        raise RuntimeError("hostile")


class HostileDict(dict[str, Any]):
    def items(self) -> Any:
        raise RuntimeError("no items")

    def keys(self) -> Any:
        raise RuntimeError("no keys")

    def __iter__(self) -> Iterator[str]:
        raise RuntimeError("no iteration")

    def __repr__(self) -> str:
        raise RuntimeError("no repr")


class Shout(str):
    __slots__ = ()

    def __str__(self) -> str:
        raise RuntimeError("no str")

    def encode(self, *_: Any) -> bytes:
        raise RuntimeError("no encode")


class LyingInt(int):
    def __repr__(self) -> str:
        return "no number"

    def __int__(self) -> int:
        raise RuntimeError("no int")


class LyingFloat(float):
    def __repr__(self) -> str:
        return "no number"

    def __float__(self) -> float:
        raise RuntimeError("no float")


# The seed's encoder


def test_the_encoder_knows_uuids_and_events_only() -> None:
    uuid = UUID(int=5)
    assert json.dumps({"a": uuid}, cls=AnalyticsEncoder) == f'{{"a": "{uuid}"}}'
    assert AnalyticsEncoder().default(AnalyticsEvent.RUN_PIPELINE) == "Pipeline run"
    with pytest.raises(TypeError):
        json.dumps({"a": object()}, cls=AnalyticsEncoder)


# Each kind


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (UUID(int=5), "00000000-0000-0000-0000-000000000005"),
        (AnalyticsEvent.RUN_PIPELINE, "Pipeline run"),
        (Colour.RED, "red"),
        (Colour.NESTED, [1, "two"]),
        (Level.HIGH, 3),
        (Flags.A | Flags.B, 3),
        (datetime(2026, 1, 31, 12, 30, tzinfo=UTC), "2026-01-31T12:30:00+00:00"),
        (date(2026, 1, 31), "2026-01-31"),
        (time_of_day(12, 30), "12:30:00"),
        (timedelta(minutes=1, milliseconds=250), 60.25),
        (Decimal("1.25"), 1.25),
        (Decimal("3"), 3),
        (Decimal("1E+400"), "1E+400"),
        (Decimal("NaN"), None),
        (Decimal("Infinity"), None),
        (Fraction(1, 4), 0.25),
        (b"text", "text"),
        (b"\xff\x00", "/wA="),
        (bytearray(b"text"), "text"),
        (memoryview(b"text"), "text"),
        ({3, 1, 2}, [1, 2, 3]),
        (frozenset("b"), ["b"]),
        (PurePosixPath("/a/b"), "/a/b"),
        (Point(1, Point(2)), {"x": 1, "y": {"x": 2, "y": None}}),
        (
            Model(when=datetime(2026, 1, 31, tzinfo=UTC), secret=SecretStr("hidden"), inner={"p": {1}}),
            {"when": "2026-01-31T00:00:00+00:00", "secret": "SecretStr('**********')", "inner": {"p": [1]}},
        ),
        (math.nan, None),
        (math.inf, None),
        ([1.5, -math.inf], [1.5, None]),
        (Index(), 7),
        (Float(1.5), 1.5),
        (Float(2.0), 2),
        (Float(math.nan), None),
        ((1, "a"), [1, "a"]),
        (True, True),
        (None, None),
        ("\ud83d\ude00 \ud800 end", "😀 \ufffd end"),
        ("\udcff", "\ufffd"),
        (10**5000, hex(10**5000)[:MAX_REPR]),
        (object, "<class 'object'>"),
        (Array(), "array([1, 2])"),
        (BrokenRepr(), "<BrokenRepr>"),
        (LyingInt(4), 4),
        (LyingFloat(4.5), 4.5),
        (Shout("loud"), "loud"),
        (1j, "1j"),
        (deque([1]), "deque([1])"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_each_kind_has_its_natural_form(value: object, expected: object) -> None:
    assert form_of(value) == expected
    # With a NaN beside it the careful way is taken: it must say the same.
    assert strict(encode({"p": value, "nan": math.nan})) == {"p": expected, "nan": None}


def test_what_is_unknown_is_its_repr_of_200_characters_at_most() -> None:
    class Long:
        def __repr__(self) -> str:
            return "x" * 1000

    assert form_of(Long()) == "x" * MAX_REPR
    assert MAX_REPR == 200


def test_keys_are_strings_whatever_they_were() -> None:
    keys: dict[Any, str] = {1: "a", None: "b", 2.5: "c", (1, 2): "e", b"x": "f", Colour.RED: "g", "\ud800": "h"}
    expected = {"1": "a", "null": "b", "2.5": "c", "[1, 2]": "e", "x": "f", "red": "g", "\ufffd": "h"}
    found = strict(encode(keys))
    assert found == expected
    assert form_of({True: 1}) == {"true": 1}
    assert form_of({math.nan: 1}) == {"null": 1}


def test_a_cycle_is_cut_at_the_point_where_it_closes() -> None:
    loop: dict[str, Any] = {"before": 1}
    loop["self"] = loop
    loop["list"] = [loop, 2]
    assert form_of(loop) == {"before": 1, "self": CUT, "list": [CUT, 2]}
    point = Point(1)
    point.y = [point]
    assert form_of(point) == {"x": 1, "y": [CUT]}


def test_a_cycle_does_not_end_the_stack_of_a_host_that_allows_deep_recursion(run_python: Callable[..., Any]) -> None:
    code = """
import sys, threading
sys.setrecursionlimit(200_000)
from outtray.encoding import encode
cycle = {"big": "x" * 1000}
cycle["self"] = cycle
threads = [threading.Thread(target=lambda: [encode(cycle) for _ in range(50)]) for _ in range(2)]
for thread in threads: thread.start()
for thread in threads: thread.join()
print(encode({"sound": 1}), encode(cycle)[-15:])
"""
    done = run_python("-c", code)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.split(maxsplit=1)[0] == '{"sound":1}'


def test_what_cannot_be_encoded_leaves_nothing_behind() -> None:
    for value in ({"a": float("nan")}, {"a": [{1, (2,)}, object()]}, {"a": {"b": float("inf")}}):
        encode(value)
    assert encoding._markers == {}


def test_the_same_object_twice_is_no_cycle() -> None:
    shared = {"a": [1]}
    assert form_of([shared, shared, math.nan]) == [shared, shared, None]


@pytest.mark.parametrize("depth", [MAX_DEPTH, 300, 5_000, 50_000])
def test_nesting_that_is_too_deep_is_cut_and_the_rest_is_kept(depth: int) -> None:
    deep: Any = "bottom"
    for _ in range(depth):
        deep = [deep]
    found = strict(encode({"deep": deep, "beside": 1}))
    assert found["beside"] == 1
    level = 0
    inner = found["deep"]
    while isinstance(inner, list):
        (inner,) = inner
        level += 1
    assert inner == CUT
    assert 10 < level <= MAX_DEPTH


def test_nesting_that_receivers_take_is_kept_whole() -> None:
    deep: Any = {"bottom": True}
    for _ in range(MAX_DEPTH - 10):
        deep = {"in": deep}
    assert form_of(deep) == deep
    assert form_of([deep, math.nan]) == [deep, None]


LIARS: dict[str, Callable[[], Any]] = {  # made in the test: pytest looks at its parameters
    "mock": Mock,
    "magic mock": MagicMock,
    **{f"mock of {kind.__name__}": partial(Mock, spec=kind) for kind in (str, int, float, dict, list, datetime)},
    "magic mock of float": partial(MagicMock, spec=float),
    **{f"liar of {kind}": partial(Liar, kind) for kind in (str, int, float, dict, list, bytes, datetime, None)},
    "broken dump": BrokenDump,
    "hostile dict": lambda: HostileDict(a=1),
    "hostile": Hostile,
    "user dict": lambda: UserDict(a=1),
}


@pytest.mark.parametrize("kind", LIARS)
@pytest.mark.parametrize("beside", [1.0, math.nan])
def test_an_object_that_lies_or_fails_costs_itself_only(kind: str, beside: float) -> None:
    found = strict(encode({"before": "b", "p": LIARS[kind](), "after": beside}))
    assert found["before"] == "b"
    assert set(found) == {"before", "p", "after"}


def test_a_generator_is_not_consumed() -> None:
    numbers = (number for number in range(3))
    assert "generator" in form_of(numbers)
    assert list(numbers) == [0, 1, 2]


def test_a_keyboard_interrupt_in_a_property_passes() -> None:
    class Interrupted:
        def __repr__(self) -> str:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        encode({"p": Interrupted()})


# Anything

plain = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), inner, max_size=4)
    ),
    max_leaves=20,
)


def _cyclic(value: Any) -> Any:
    loop = [value]
    loop.append(loop)
    return loop


def _tower(levels: int) -> Any:
    value: Any = levels
    for level in range(levels):
        value = {"in": value} if level % 2 else [value]
    return value


huge = st.integers(5000, 5010).map(lambda digits: 10**digits)  # made late: hypothesis shows its strategies in errors
any_text = st.text(st.characters())  # lone surrogates too
odd_leaves = (
    st.floats()
    | any_text
    | st.binary(max_size=20)
    | st.integers()
    | st.decimals()
    | st.fractions()
    | st.complex_numbers()
    | st.datetimes(timezones=st.none() | st.just(UTC) | st.just(timezone(timedelta(hours=14))))
    | st.timedeltas()
    | st.uuids()
    | st.sampled_from([Colour.RED, Level.HIGH, Flags.A, AnalyticsEvent.RUN_PIPELINE, object, len, ...])
    | huge
    | st.builds(Index)
    | st.builds(Float, st.floats())
    | st.builds(Array)
    | st.builds(BrokenRepr)
    | st.builds(BrokenDump)
    | st.builds(Hostile)
    | st.builds(Mock)
    | st.builds(Liar, st.sampled_from([None, str, int, float, dict, list, bytes]))
    | st.builds(Shout, any_text)
    | st.builds(HostileDict)
    | st.builds(_tower, st.integers(0, 3000))
    | st.builds(lambda: (n for n in [1]))
)
odd_keys = (
    any_text
    | st.integers()
    | st.floats()
    | st.none()
    | st.booleans()
    | st.binary(max_size=8)
    | st.tuples(any_text, st.floats())
    | st.sampled_from([Colour.RED, Level.HIGH, object])
    | huge
)
anything = st.recursive(
    odd_leaves,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.tuples(inner, inner)
        | st.dictionaries(odd_keys, inner, max_size=4)
        | st.builds(Point, st.integers(), inner)
        | st.builds(_cyclic, inner)
        | st.builds(
            Model, when=st.datetimes(), secret=st.builds(SecretStr, st.just("a secret")), inner=st.just({"p": b"\xff"})
        )
    ),
    max_leaves=25,
)
thorough = hypothesis_settings(
    max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large]
)


@thorough
@given(anything)
def test_whatever_a_property_holds_the_message_is_strict_json(value: Any) -> None:
    text = encode({"event": "e", "properties": {"p": value}})
    found = strict(text)
    assert found["event"] == "e"
    assert set(found["properties"]) == {"p"}
    assert "a secret" not in text


@thorough
@given(st.dictionaries(odd_keys, st.integers() | any_text, max_size=6))
def test_whatever_the_keys_are_the_message_is_strict_json(value: dict[Any, Any]) -> None:
    assert isinstance(strict(encode({"properties": value}))["properties"], dict)


@thorough
@given(st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), plain, max_size=5))
def test_a_plain_message_comes_back_as_it_was(message: dict[str, Any]) -> None:
    before = copy.deepcopy(message)
    assert strict(encode(message)) == message == before
    # And by the careful way.
    assert strict(encode({"message": message, "": math.nan}))["message"] == message == before


@thorough
@given(st.lists(st.floats() | any_text | st.binary(max_size=5) | st.decimals(), max_size=6))
def test_encoding_leaves_its_input_as_it_was(values: list[Any]) -> None:
    message = {"properties": {"list": values, "set": {"a"}, "point": Point(1, values)}}
    before = repr(message)
    encode(message)
    assert repr(message) == before


# Properties


def test_properties_are_a_new_dict_whatever_was_given() -> None:
    given_dict = {"a": 1}
    copied = as_properties(given_dict)
    assert copied == given_dict
    assert copied is not given_dict
    assert as_properties(None) == {}
    assert as_properties(UserDict(a=1)) == {"a": 1}
    assert as_properties([1]) == {"value": [1]}
    for broken in (HostileDict(a=1), Hostile(), Mock(), Liar(dict), Liar(None)):
        assert list(as_properties(broken)) == ["value"]
        strict(encode({"properties": as_properties(broken)}))


# Message ids


def test_a_message_id_is_a_uuid_of_version_7_with_the_time_of_its_making() -> None:
    before = time.time_ns() // 1_000_000
    made = [UUID(new_message_id()) for _ in range(100)]
    after = time.time_ns() // 1_000_000
    for uuid in made:
        assert str(uuid).count("-") == 4
        assert uuid.version == 7
        assert uuid.variant == "specified in RFC 4122"
        assert before <= uuid.int >> 80 <= after


def test_100_000_message_ids_are_distinct() -> None:
    assert len({new_message_id() for _ in range(100_000)}) == 100_000


def test_message_ids_are_in_order_of_their_milliseconds() -> None:
    made = []
    for _ in range(20):
        made.append(new_message_id())
        time.sleep(0.002)
    assert made == sorted(made)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_message_ids_of_forked_children_are_distinct() -> None:
    new_message_id()
    pipes = []
    for _ in range(4):
        reader, writer = os.pipe()
        pid = os.fork()
        if pid == 0:
            with open(writer, "w") as file:
                file.writelines(f"{new_message_id()}\n" for _ in range(500))
            os._exit(0)
        os.close(writer)
        pipes.append((pid, reader))
    made = [new_message_id() for _ in range(500)]
    for pid, reader in pipes:
        with open(reader) as file:
            made += file.read().split()
        assert os.waitpid(pid, 0)[1] == 0
    assert len(made) == len(set(made)) == 2500


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_child_that_a_handler_forks_while_random_bits_are_fetched_uses_its_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    reader, writer = os.pipe()
    pids = []

    def urandom_with_handler(size: int, urandom: Callable[[int], bytes] = os.urandom) -> bytes:
        bits = urandom(size)
        if not pids:
            pids.append(os.fork())
        return bits

    monkeypatch.setattr(encoding, "_noise", iter(()))
    monkeypatch.setattr(os, "urandom", urandom_with_handler)
    made = [new_message_id() for _ in range(50)]  # the first was begun before the fork, and is the parent's
    if pids[0] == 0:
        with open(writer, "w") as file:
            file.write(" ".join(made[1:]))
        os._exit(0)
    os.close(writer)
    with open(reader) as file:
        others = file.read().split()
    assert os.waitpid(pids[0], 0)[1] == 0
    assert len(others) == 49
    assert not {id[13:] for id in made} & {id[13:] for id in others}


# Timestamps


@pytest.mark.parametrize(
    ("moment", "expected"),
    [
        (0, "1970-01-01T00:00:00.000Z"),
        (1_769_903_999.25, "2026-01-31T23:59:59.250Z"),
        (1_769_903_999.9994, "2026-01-31T23:59:59.999Z"),
        (1_769_903_999.9996, "2026-02-01T00:00:00.000Z"),
        (1.001, "1970-01-01T00:00:01.001Z"),
        (-0.001, "1969-12-31T23:59:59.999Z"),
        (-1, "1969-12-31T23:59:59.000Z"),
        (-0.0004, "1970-01-01T00:00:00.000Z"),
        (-62_135_596_800, "0001-01-01T00:00:00.000Z"),
        (253_402_300_799.5, "9999-12-31T23:59:59.500Z"),
    ],
)
def test_a_timestamp_is_utc_with_milliseconds(moment: float, expected: str) -> None:
    assert timestamp_text(moment) == expected


@pytest.mark.parametrize("moment", [math.nan, math.inf, 1e15, -1e15, 1e300, 253_402_300_800, -62_135_596_801])
def test_a_moment_that_has_no_timestamp_is_an_error(moment: float) -> None:
    with pytest.raises((ValueError, OverflowError, OSError)):
        timestamp_text(moment)


@pytest.mark.parametrize(
    ("moment", "expected"),
    [
        (1e13, "9999-12-31T23:59:59.000Z"),
        (-1e13, "0001-01-01T00:00:00.000Z"),
        (0.25, "1970-01-01T00:00:00.250Z"),
    ],
)
def test_a_clock_beyond_what_a_timestamp_can_say_gives_the_last_one(moment: float, expected: str) -> None:
    assert clock_text(moment) == expected


@pytest.mark.parametrize("clock", [1e13, -1e13])
def test_an_impossible_clock_costs_no_message(run_python: Callable[..., CompletedProcess[str]], clock: float) -> None:
    code = (
        f"import time, uuid; time.time = lambda: {clock}; time.time_ns = lambda: int({clock}) * 10**9\n"
        "import outtray\n"
        "from outtray.client import Client\n"
        "print(outtray.track('e'), outtray.track('e', timestamp='never'), outtray.status()['pending'])\n"
        "print(uuid.UUID(__import__('json').loads(Client(send=False).alias('a', 'b')[1])['message_id']).version)"
    )
    assert run_python("-c", code).stdout.split() == ["True", "True", "2", "7"]


@thorough
@given(st.integers(-62_135_596_800_000, 253_402_300_799_999))
def test_a_timestamp_that_is_read_and_written_again_stays_the_same(milliseconds: int) -> None:
    text = timestamp_text(milliseconds / 1000)
    assert datetime.fromisoformat(text) == datetime(1970, 1, 1, tzinfo=UTC) + timedelta(milliseconds=milliseconds)
    assert timestamp_text(datetime.fromisoformat(text).timestamp()) == text
