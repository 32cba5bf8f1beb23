"""What was encoded is decoded whole, or refused: nothing is dropped on the way."""

import json
from dataclasses import dataclass

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
