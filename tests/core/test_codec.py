"""What was encoded is decoded whole, or refused: nothing is dropped on the way."""

import enum
import json
from dataclasses import dataclass
from typing import Any

import pytest

from mlops_ext.codec import decode, encode


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    at: tuple[int, str]
    path: tuple[int, ...] = ()
    name: str | None = None


@pytest.mark.parametrize("point", [Point(at=(1, "a")), Point(at=(1, "a"), path=(1, 2), name="x")])
def test_a_value_comes_back_from_json(point):
    assert decode(Point, json.loads(json.dumps(encode(point)))) == point


@pytest.mark.parametrize("at", [[1], [1, "a", 2]])
def test_a_tuple_of_another_length_is_refused(at):
    with pytest.raises(ValueError, match="zip"):
        decode(Point, {"at": at})


class Colour(str, enum.Enum):
    RED = "red"


class Size(int):
    """A number of a kind of its own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Whole:
    point: Point
    other: Point | None = None
    points: tuple[Point, ...] = ()
    colour: Colour = Colour.RED
    size: Size | None = None
    named: dict[str, int] | None = None
    anything: Any = None


def test_what_is_nested_comes_back_with_its_types():
    point = Point(at=(1, "a"), path=(2,))
    whole = Whole(
        point=point, other=point, points=(point, point), size=Size(7), named={"a": 1}, anything=[{}]
    )
    again = decode(Whole, json.loads(json.dumps(encode(whole))))
    assert again == whole
    assert (type(again.other), type(again.points[1])) == (Point, Point)
    assert (type(again.size), again.colour) == (Size, Colour.RED)


def test_what_an_older_release_left_out_has_its_default():
    again = decode(Whole, {"point": {"at": [1, "a"]}})
    assert again == Whole(point=Point(at=(1, "a")))
    assert decode(tuple[int, ...], [1, 2]) == (1, 2)


@pytest.mark.parametrize(
    "data", [None, [], "text", {"at": 3}, {"unknown": 1}, {}, {"at": ["x", "a"]}]
)
def test_what_is_no_such_value_is_refused(data):
    with pytest.raises((TypeError, ValueError, KeyError)):
        decode(Point, data)


def test_the_refusal_names_what_was_expected_and_what_was_found():
    with pytest.raises(TypeError, match=r"Point: a mapping is needed; found \[1\]"):
        decode(Point, [1])
