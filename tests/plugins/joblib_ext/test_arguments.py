"""Calls are told apart as joblib does it, by the same digests, without its slow way to them."""

import copyreg
import dataclasses
import decimal
import functools
import inspect
import pickle
import sys
from types import FunctionType, SimpleNamespace

import joblib
import joblib.func_inspect
import joblib.memory
import numpy as np
import pytest
import wrapt
from hypothesis import given
from hypothesis import strategies as st
from joblib import Memory
from joblib.func_inspect import filter_args
from joblib.memory import MemorizedFunc

import joblib_ext  # noqa: F401  # registers the backend, and applies the patches
from joblib_ext.arguments import bind, digest
from joblib_ext.plugin import ARGUMENTS
from mlops_ext.patching import Outcome, PatchSet

BARE = MemorizedFunc._get_args_id.__wrapped__


class Text(str):
    __slots__ = ()


class Count(int):
    pass


PLAIN = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.integers(-(1 << 3000), 1 << 3000),
    st.floats(),
    st.text(st.characters()),  # surrogates too
    st.binary(max_size=400),
)


class Model:
    def __init__(self, **state):
        vars(self).update(state)


class Slotted:
    __slots__ = ("x",)

    def __init__(self, x):
        self.x = x


class Reduced(Model):
    def __reduce__(self):
        return Model, ()


class Stated(Model):
    def __getstate__(self):
        return ("state", vars(self))


class Listed(list):
    pass


@dataclasses.dataclass
class Record:
    x: object


DTYPES = [
    *("f8", "f4", "i2", "u1", "?", "c16", "S3", "U2", ">i4", "M8[s]", "m8[D]"),
    [("a", "i4"), ("b", "f8")],
]


@st.composite
def arrays(draw):
    made = np.zeros(draw(st.sampled_from([(0,), (3,), (2, 3), (2, 0), (1, 2, 2)])), "u1")
    made = made.astype(np.dtype(draw(st.sampled_from(DTYPES))))
    return draw(st.sampled_from([made, made, made.T, made[::2], made.reshape(-1)[:1].squeeze()]))


OTHER = st.one_of(
    st.frozensets(st.integers(), max_size=3),
    st.builds(Text, st.text(max_size=3)),
    st.builds(Count, st.integers()),
    st.complex_numbers(),
    st.just(decimal.Decimal("1.5")),
    st.just(np.float64(0.5)),
    st.just(len),
    st.builds(Reduced),
    st.builds(Listed, st.lists(PLAIN, max_size=2)),
    st.just({1: "a", "b": 2}),
)
ALIKE = st.one_of(arrays(), st.builds(Slotted, PLAIN), st.builds(Stated, x=PLAIN), st.just(Model))


def nested(leaves):
    return st.one_of(
        st.lists(leaves, max_size=4),
        st.lists(leaves, max_size=5).map(tuple),
        st.dictionaries(st.text(max_size=3), leaves, max_size=4),
        st.dictionaries(st.integers(), leaves, max_size=3),
        st.builds(Model, x=leaves, y=leaves),
        st.builds(Record, leaves),
        leaves.map(lambda value: [value, (value, value), {"a": value}]),  # the same object again
    )


VALUES = st.recursive(PLAIN | ALIKE, nested, max_leaves=10)


@given(st.dictionaries(st.text(max_size=4), PLAIN, max_size=12))
def test_plain_values_have_joblibs_digest(arguments):
    assert digest(arguments) == joblib.hash(arguments)


@given(st.dictionaries(st.text(max_size=4), VALUES, max_size=4))
def test_nested_values_arrays_and_objects_have_joblibs_digest_or_none(arguments):
    assert digest(arguments) in (None, joblib.hash(arguments))


@pytest.mark.parametrize("count", [0, 1, 2, 3, 4, 300, 1000, 1001, 2001])
def test_containers_of_any_length_have_joblibs_digest(count):
    row = list(range(count))
    for value in (row, tuple(row), [[x] for x in row], {x: str(x) for x in row}, {"a": (row, row)}):
        assert digest({"x": value}) == joblib.hash({"x": value})


@pytest.mark.parametrize("dtype", DTYPES)
def test_contiguous_arrays_have_joblibs_digest(dtype):
    array = np.zeros((4, 3), "u1").astype(np.dtype(dtype))
    same = pickle.loads(pickle.dumps(array.dtype))
    for value in (array, [array, array, array[0]], {"a": array.astype(same)}):
        assert digest({"x": value}) == joblib.hash({"x": value})


@pytest.mark.parametrize("count", [1, 50, 51, 52, 300])
def test_many_arrays_have_joblibs_digest(count):
    """Each takes numbers in the pickle: from 256 on they are written in another way."""
    values = [np.full((number % 3 + 1, 2), number, "i4") for number in range(count)]
    assert digest({"x": values}) == joblib.hash({"x": values})
    assert digest({"x": values[:1], "y": values}) == joblib.hash({"x": values[:1], "y": values})


def test_arrays_whose_dtypes_are_equal_and_pickle_otherwise_have_joblibs_digests():
    plain = np.dtype("f8")
    noted = np.dtype("f8", metadata={"unit": "m"})
    fields = [("a", "i1"), ("b", "i8")]
    for dtype in (plain, noted, plain.newbyteorder(), np.dtype(fields), np.dtype(fields, True)):
        array = np.zeros(3, dtype)
        assert digest({"x": array}) == joblib.hash({"x": array}), dtype


def test_what_holds_itself_has_joblibs_digest_or_none():
    row, pair = [1], ([],)
    row.append(row)
    pair[0].append(pair)
    model = Model()
    model.me = model
    for value in (row, pair, model):
        assert digest({"x": value}) in (None, joblib.hash({"x": value}))


def test_a_class_that_is_registered_otherwise_is_left_to_joblib(monkeypatch):
    monkeypatch.setitem(copyreg.dispatch_table, Model, lambda model: (Model, ()))
    assert digest({"x": Model(a=1)}) is None


@given(st.dictionaries(st.text(max_size=4), PLAIN | OTHER, max_size=5))
def test_other_values_have_joblibs_digest_or_none(arguments):
    assert digest(arguments) in (None, joblib.hash(arguments))


@pytest.mark.parametrize("count", [0, 1, 2, 99, 100, 101, 2500])
def test_many_arguments_have_joblibs_digest(count):
    arguments = {f"x{number}": number for number in range(count)}
    assert digest(arguments) == joblib.hash(arguments)


def test_long_values_have_joblibs_digest():
    arguments = {"a": "a" * 300, "b": "b" * 70_000, "c": b"c" * 300, "d": b"d" * 70_000}
    assert digest(arguments) == joblib.hash(arguments)


@given(OTHER)
def test_what_is_not_plain_is_left_to_joblib(value):
    assert digest({"x": value}) is None


def one(x): ...
def two(x, y): ...
def defaults(x, y=2, z=None): ...
def only_defaults(x=1, y=2): ...
def nothing(): ...
def variadic(x, *rest): ...
def keywords(x, **rest): ...
def keyword_only(x, *, y=3): ...
def positional_only(x, /, y=1): ...
def annotated(x: int, y: "unknown" = 1) -> int: ...  # noqa: F821  # need not resolve


def everything(x, y=1, *rest, z=2, w, **more): ...


@functools.wraps(two)
def wrapped(*args): ...
@functools.wraps(wrapped)
def wrapped_twice(*args): ...
def wraps_a_class(*args): ...


wraps_a_class.__wrapped__ = Model


def signed(x, y): ...


signed.__signature__ = inspect.signature(one)


def too_many_defaults(x): ...
def no_default(x=inspect.Parameter.empty): ...


too_many_defaults.__defaults__ = (1, 2)


def strange_keyword_default(x, *, y): ...


strange_keyword_default.__kwdefaults__ = {"x": 1, "q": 2}


class Thing:
    def method(self, x, y=1): ...
    def keywords(self, x, *rest, y=2, **more): ...
    def formless(*args, **more): ...

    @classmethod
    def of_class(cls, x): ...

    @functools.wraps(method)
    def wrapped(self, *args, **more): ...

    def __call__(self, x): ...

    def __repr__(self):
        return "Thing()"


THING = Thing()
OF_AN_EXPRESSION = FunctionType((x for x in ()).gi_code, {})
FUNCTIONS = [
    *(one, two, defaults, only_defaults, nothing, variadic, keywords, keyword_only),
    *(positional_only, annotated, wrapped, signed, too_many_defaults, no_default, everything),
    *(wrapped_twice, wraps_a_class, strange_keyword_default, THING.keywords, THING.formless),
    *(
        THING.of_class,
        THING.wrapped,
        THING.method,
        THING,
        Thing.method,
        len,
        functools.partial(two, 1),
        lambda x, y=3: (x, y),
    ),
    *(wrapt.ObjectProxy(two), OF_AN_EXPRESSION),
]


def outcome(call, *arguments):
    """What a call gives or raises."""
    try:
        return call(*arguments)
    except Exception as error:
        return type(error), str(error)


NAMES = st.sampled_from(["x", "y", "z", "w", "self", "*", Text("x"), Text("y"), np.str_("x")])


@pytest.mark.filterwarnings("ignore:Cannot inspect object")
@given(
    st.sampled_from(FUNCTIONS),
    st.lists(st.integers(), max_size=4),
    st.dictionaries(NAMES, st.integers(), max_size=3),
    st.lists(st.sampled_from(["x", "y", "*", "**"]), max_size=1),
)
def test_arguments_are_bound_as_joblib_does_or_left_to_it(func, args, kwargs, ignored):
    ours = bind(func, tuple(args), kwargs, ignored)
    assert ours in (None, outcome(filter_args, func, ignored, tuple(args), kwargs))
    assert {type(name) for name in ours or ()} <= {str}


@pytest.mark.filterwarnings("ignore:Cannot inspect object")
@given(
    st.sampled_from(FUNCTIONS),
    st.lists(VALUES | OTHER, max_size=4),
    st.dictionaries(NAMES, VALUES | OTHER, max_size=3),
    st.lists(st.sampled_from(["x", "y", "*"]), max_size=1),
)
def test_calls_have_joblibs_digest_or_its_error(func, args, kwargs, ignored):
    cached = SimpleNamespace(func=func, ignore=ignored, mmap_mode=None)

    def args_id(way):
        return outcome(lambda: way(cached, *args, **kwargs))

    assert args_id(MemorizedFunc._get_args_id) == args_id(BARE)


def test_plain_calls_are_not_left_to_joblib():
    assert bind(defaults, (1,), {}) == {"x": 1, "y": 2, "z": None}
    assert bind(defaults, (1,), {"z": 3}) == {"x": 1, "y": 2, "z": 3}
    assert bind(two, (1, 2), {}) == {"x": 1, "y": 2}
    assert bind(nothing, (), {}) == {}
    assert bind(keyword_only, (1,), {"y": 2}) == {"x": 1, "y": 2}
    assert bind(variadic, (1, 2, 3), {}) == {"x": 1, "*": [2, 3]}
    assert bind(keywords, (1,), {"a": 2}) == {"x": 1, "**": {"a": 2}}
    assert bind(wrapped_twice, (1, 2), {}) == {"x": 1, "y": 2}
    assert bind(THING.method, (1,), {}) == {"self": THING, "x": 1, "y": 1}
    assert bind(defaults, (1,), {}, ["z"]) == {"x": 1, "y": 2}
    for value in ([1], (1, [2]), {"a": 1.0}, np.arange(3.0), Model(a=1)):
        assert digest({"x": value}) is not None


def test_what_was_set_on_a_function_counts():
    def changing(x, y=1): ...

    assert bind(changing, (1,), {}) == {"x": 1, "y": 1}
    changing.__defaults__ = (2,)
    assert bind(changing, (1,), {}) == {"x": 1, "y": 2}
    changing.__code__, changing.__defaults__ = two.__code__, None
    assert bind(changing, (1,), {}) is None


def slow_ways(function, *arguments):
    """Which of joblib's slow ways a call takes: `inspect.signature`, the pickler's `dump`."""
    entered = set()

    def note(frame, event, _):
        if event == "call" and frame.f_globals["__name__"] in ("inspect", "pickle"):
            entered.add(frame.f_code.co_name)

    sys.setprofile(note)
    try:
        function(*arguments)
    finally:
        sys.setprofile(None)
    return entered & {"signature", "dump"}


@pytest.fixture
def bare(monkeypatch):
    """joblib as it is without the patches."""
    monkeypatch.setattr(MemorizedFunc, "_get_args_id", BARE)


@pytest.mark.parametrize("backend", ["shared", "local"])
@pytest.mark.usefixtures("bare")
def test_a_call_is_told_apart_without_signature_and_python_pickler(tmp_path, backend):
    cached = Memory(tmp_path, backend=backend, verbose=0).cache(defaults)
    cached(1)
    assert slow_ways(cached, 1) == {"signature", "dump"}
    with PatchSet(ARGUMENTS) as patches:
        assert [report.outcome for report in patches.status()] == [Outcome.APPLIED]
        assert slow_ways(cached, 1) == set()
    assert slow_ways(cached, 1) == {"signature", "dump"}


def test_a_miss_binds_without_signature(tmp_path):
    cached = Memory(tmp_path, backend="shared", verbose=0).cache(defaults)
    cached(0)
    assert slow_ways(cached, 2) == set()


@pytest.mark.usefixtures("bare")
def test_what_was_stored_without_is_found_with_and_the_other_way_round(tmp_path):
    computed = []

    def double(x, name="ä"):
        computed.append(x)
        return x * 2

    cached = Memory(tmp_path, verbose=0, backend="shared").cache(double)
    assert cached(1) == 2
    with PatchSet(ARGUMENTS):
        assert (cached(1), cached(x=1), cached(1, "ä"), cached(2, name="b")) == (2, 2, 2, 4)
    assert (cached(1), cached(2, "b")) == (2, 4)
    assert computed == [1, 2]


def test_what_joblib_offers_stays_its_own():
    for function in (joblib.hash, joblib.func_inspect.filter_args):
        assert pickle.loads(pickle.dumps(function)) is function
