"""A state is restored from its image unchanged; an image that does not fit is refused with a message."""

from collections import OrderedDict, deque
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import msgpack
import pytest

from pelago.core.dedupe import Outcomes
from pelago.core.durable import durable
from pelago.core.errors import CheckpointError
from pelago.core.frozen import frozen
from pelago.core.leases import LeaseTable, SampleLedger
from pelago.core.names import Lease, PushId, Version
from pelago.core.spans import SpanSet
from pelago.durable.image import Plain, restore, take
from pelago.protocol.staging import Staging


@durable()
class Box:
    """A machine with one attribute."""

    def __init__(self, content: Any = None) -> None:
        self.content = content


@durable(settings=("limit", "get"))
class Cupboard:
    """A part with settings, and a method of its dict."""

    def __init__(self, limit: int, *names: str) -> None:
        self.limit = limit
        self.boxes = {name: Box(0) for name in names}
        self.get = self.boxes.get


@frozen
class Label:
    text: Literal["fragile", "heavy"] = "heavy"
    pair: tuple[int, str] = (1, "a")
    numbers: tuple[float, ...] = ()
    maybe: int | None = None


@durable()
@dataclass(slots=True)
class Drawer:
    label: Label
    spans: SpanSet


def there_and_back(value: Any) -> Any:
    """A value as the content of another box, by way of bytes."""
    image = take(Box(value))
    assert msgpack.packb(take(Box(value))) == msgpack.packb(image)
    box = Box()
    restore(box, msgpack.unpackb(msgpack.packb(image)))
    assert take(box) == image
    return box.content


@pytest.mark.parametrize(
    "value",
    [
        None,
        True,
        1,
        -(2**63),
        2**64 - 1,
        1.0,
        float("inf"),
        "",
        "Version",
        "größer",
        b"\x00\xff",
        [],
        [1, [True], (1.0, None)],
        (),
        ((0, 8), (9, 12)),
        deque([("eu#1", PushId(1, 2)), ("us#1", PushId(3, 4))]),
        {},
        {"b": 1, "a": {2: "x", (3, "y"): b"z"}, PushId(1, 2): [None]},
        OrderedDict([(7, "applied"), (3, "fenced")]),
        Version(9, 4),
        Lease(PushId(1, 2), ((0, 8),), 0),
        Label("fragile", (2, "b"), (1, 2.5), 3),
        [Label(), {"tuple": ("dict", "list")}],
    ],
    ids=repr,
)
def test_a_value_comes_back_as_it_was(value: Any) -> None:
    back = there_and_back(value)
    assert back == value
    assert repr(back) == repr(value)  # So is every type inside, and the order of dicts.


def test_an_image_is_small_and_legible() -> None:
    assert take(Box({"eu": (Version(9, 4), 0)})) == [
        "Box",
        "content",
        ["dict", "eu", ["tuple", ["Version", "incarnation", 9, "counter", 4], 0]],
    ]


def test_the_order_of_a_dict_is_state() -> None:
    assert take(Box({"a": 1, "b": 2})) != take(Box({"b": 2, "a": 1}))


def test_the_parts_of_a_server_come_back() -> None:
    ledger, table, outcomes = SampleLedger(), LeaseTable(3), Outcomes()
    ledger.lend("eu", 8)
    ledger.give_back("eu", ((2, 4),))
    table.add(ledger.held["eu"].spans(), 2)
    lease = table.lend(0, 1, 3)
    assert lease is not None
    outcomes.record(4, "rejected")
    for part, fresh in (
        (ledger, SampleLedger()),
        (table, LeaseTable(4)),
        (outcomes, Outcomes()),
        (SpanSet([(1, 5), (7, 8)]), SpanSet()),
    ):
        restore(fresh, take(part))
        assert take(fresh) == take(part)
    assert table.lend(0, 1, 1) == Lease(PushId((3 << 32) + 2, 1), ((5, 6),), 5)


def test_settings_are_those_of_the_fresh_machine() -> None:
    used, fresh = Staging(1), Staging(2)
    used.ask("a", PushId(1, 1))
    used.ask("b", PushId(2, 1))
    restore(fresh, take(used))
    assert fresh.granted == {"a": PushId(1, 1)}
    assert fresh.ask("c", PushId(3, 1))
    assert fresh.free("c") == [("b", PushId(2, 1))]


def test_what_only_the_fresh_machine_has_stays_and_what_only_the_image_has_comes() -> None:
    used, fresh = Cupboard(1, "a", "b"), Cupboard(2, "b", "c")
    used.boxes["b"].content, fresh.boxes["c"].content = 5, 7
    boxes = fresh.boxes
    restore(fresh, take(used))
    assert fresh.limit == 2
    assert fresh.boxes is boxes
    assert [(name, box.content) for name, box in boxes.items()] == [("a", 0), ("b", 5), ("c", 7)]
    assert fresh.get("a") is boxes["a"]


def test_what_a_part_holds_is_filled_where_it_is_and_a_record_is_made_again() -> None:
    inner, entry = Box(), Drawer(Label("fragile"), SpanSet([(0, 4)]))
    fresh = Box(inner)
    restore(fresh, take(Box(Box(entry))))
    assert fresh.content is inner
    assert inner.content is not entry
    assert (inner.content.label, inner.content.spans.spans()) == (entry.label, ((0, 4),))


def test_marking_changes_nothing_of_a_class() -> None:
    class Inner:
        pass

    assert durable()(Inner) is Inner
    assert not vars(Inner).keys() - vars(type("Inner", (), {})).keys()


def test_two_classes_of_one_name_cannot_both_be_durable() -> None:
    other = type("Version", (), {"__module__": "elsewhere"})
    with pytest.raises(AssertionError, match="two durable classes are called Version"):
        durable()(other)


# --- what is no state ----------------------------------------------------------------------------


class Sub(Box):
    """A class that is not marked as durable."""


class TwoValues(NamedTuple):
    left: int


@pytest.mark.parametrize(
    "value",
    [
        {1, 2},
        frozenset(),
        range(3),
        object(),
        Box,
        print,
        [].append,
        bytearray(b"1"),
        deque([1], maxlen=2),
        2**64,
        -(2**63) - 1,
        Sub(),
        TwoValues(1),
        {"a": [({1},)]},
        Label("light"),  # type: ignore[arg-type]
        Label(pair=(1, 2)),  # type: ignore[arg-type]
        Label(pair=(1, "a", "b")),  # type: ignore[arg-type]
        Label(numbers=("1",)),  # type: ignore[arg-type]
        Label(maybe=True),  # The type checker allows it; an image does not.
        Label(maybe="1"),  # type: ignore[arg-type]
        Version(1.0, 2),  # type: ignore[arg-type]
    ],
    ids=lambda each: type(each).__name__,
)
def test_what_cannot_come_back_as_it_was_is_not_written(value: Any) -> None:
    with pytest.raises(AssertionError):
        take(Box(value))


def test_a_setting_that_does_not_exist_is_noticed() -> None:
    shelf = Cupboard(1)
    del shelf.limit
    with pytest.raises(AssertionError, match="limit"):
        take(shelf)


# --- images that do not fit ----------------------------------------------------------------------

FAULT = "the image does not fit this version of Pelago: "


@pytest.mark.parametrize(
    ("image", "fault"),
    [
        (None, "Box should be Box, not NoneType"),
        (7, "Box should be Box, not int"),
        ([], "Box holds a list without a class"),
        ([["Box"]], "Box holds a list without a class"),
        ({"content": 1}, "Box holds a dict"),
        (["Cupboard", "boxes", ["dict"]], "Box should be Box, not Cupboard"),
        (["Box"], "Box.content is missing"),
        (["Box", "content"], "Box has a Box in which something lacks its value"),
        (["Box", "content", 1, "colour", 2], "Box has no field 'colour'"),
        (["Box", "content", 1, 5, 2], "Box has no field 5"),
        (
            ["Box", "content", ["Crate", 1, 2]],
            "Box.content is of class 'Crate', which is not known",
        ),
        (
            ["Box", "content", ["int", 1]],
            "Box.content has a int in which something lacks its value",
        ),
        (
            ["Box", "content", ["dict", 1]],
            "Box.content has a dict in which something lacks its value",
        ),
        (["Box", "content", ["dict", ["list"], 1]], "Box.content has a list as a key"),
        (["Box", "content", ["dict", ["tuple", ["list"]], 1]], "Box.content has a tuple as a key"),
        (["Box", "content", ["dict", 1, []]], "Box.content[1] holds a list without a class"),
        (
            ["Box", "content", ["Cupboard", "boxes", 1]],
            "Box.content is a Cupboard, where there is none",
        ),
        (["Box", "content", ["Version", "counter", 1]], "Box.content.incarnation is missing"),
        (
            ["Box", "content", ["Version", "incarnation", 1, "counter", "2"]],
            "Box.content.counter has a value of another type or shape",
        ),
        (
            ["Box", "content", ["Lease", "push", ["tuple", 1, 2], "spans", ["tuple"], "clock", 0]],
            "Box.content.push has a value of another type or shape",
        ),
    ],
    ids=repr,
)
def test_an_image_that_does_not_fit_is_refused_in_words(image: Any, fault: str) -> None:
    with pytest.raises(CheckpointError) as caught:
        restore(Box(), image)
    assert str(caught.value) == FAULT + fault


@pytest.mark.parametrize(
    ("held", "image", "fault"),
    [
        (1, "1", "Box.content should be int, not str"),
        (1, True, "Box.content should be int, not bool"),
        ("", None, "Box.content should be str, not NoneType"),
        ((), ["list"], "Box.content should be tuple, not list"),
        ({}, ["OrderedDict"], "Box.content should be dict, not OrderedDict"),
        (Box(), ["Drawer"], "Box.content should be Box, not Drawer"),
        (SpanSet(), ["SpanSet", "total", 0], "Box.content._starts is missing"),
        ({"eu": Box()}, ["dict", "eu", 1], "Box.content['eu'] should be Box, not int"),
    ],
)
def test_what_the_fresh_machine_has_is_replaced_by_the_same_type_only(
    held: Any, image: Plain, fault: str
) -> None:
    with pytest.raises(CheckpointError) as caught:
        restore(Box(held), ["Box", "content", image])
    assert str(caught.value) == FAULT + fault
