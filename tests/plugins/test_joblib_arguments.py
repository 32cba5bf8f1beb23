"""Calls are told apart as joblib does it, by the same digests, without its slow way to them."""

import decimal
import functools
import pickle
import sys

import joblib
import joblib.func_inspect
import joblib.hashing
import joblib.memory
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from joblib import Memory

import joblib_ext  # noqa: F401  # registers the backend, and applies the patches
from joblib_ext._arguments import quick_filter_args, quick_hash
from joblib_ext.plugin import QUICK_ARGUMENTS
from mlops_ext.patching import Outcome, PatchSet

BARE_FILTER = joblib.func_inspect.filter_args  # the patch is where Memory looks it up
BARE_HASH = joblib.hashing.hash.__wrapped__


class Text(str):
    __slots__ = ()


class Count(int):
    pass


def refuse(*arguments, **_):
    raise AssertionError(f"joblib was asked for what is plain: {arguments}")


PLAIN = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.integers(-(1 << 3000), 1 << 3000),
    st.floats(),
    st.text(st.characters()),  # surrogates too
    st.binary(max_size=400),
)
OTHER = st.one_of(
    st.lists(PLAIN, max_size=3),
    st.tuples(PLAIN, PLAIN),
    st.frozensets(st.integers(), max_size=3),
    st.dictionaries(st.text(max_size=2), PLAIN, max_size=2),
    st.builds(Text, st.text(max_size=3)),
    st.builds(Count, st.integers()),
    st.complex_numbers(),
    st.just(decimal.Decimal("1.5")),
    st.just(np.arange(3)),
    st.just(np.float64(0.5)),
    st.just(len),
)


@given(st.dictionaries(st.text(max_size=4), PLAIN, max_size=12))
def test_plain_values_have_joblibs_digest_without_asking_joblib(arguments):
    assert quick_hash(refuse)(arguments) == BARE_HASH(arguments)


@given(st.dictionaries(st.text(max_size=4), PLAIN | OTHER, max_size=5))
def test_any_values_have_joblibs_digest(arguments):
    assert quick_hash(BARE_HASH)(arguments) == BARE_HASH(arguments)


@pytest.mark.parametrize(
    "thing",
    [
        {"text": "a" * 300, "long": "b" * 70_000, "bytes": b"c" * 300, "more": b"d" * 70_000},
        {f"x{number}": number for number in range(2500)},
        {f"x{number}": number for number in range(100)},
        {1: 2},
        {Text("x"): 1},
        {None: 1, "x": 2},
        functools.partial,
        [1, "x"],
        "x",
        np.ones((2, 3), order="F"),
    ],
    ids=lambda thing: f"{type(thing).__name__}-{len(thing) if hasattr(thing, '__len__') else 0}",
)
def test_whatever_is_hashed_has_joblibs_digest(thing):
    assert quick_hash(BARE_HASH)(thing) == BARE_HASH(thing)
    assert quick_hash(BARE_HASH)(thing, "sha1") == BARE_HASH(thing, "sha1")
    assert quick_hash(BARE_HASH)(thing, coerce_mmap=True) == BARE_HASH(thing, coerce_mmap=True)


def test_an_unknown_algorithm_is_refused_as_joblib_does():
    with pytest.raises(ValueError, match="hash_name"):
        quick_hash(BARE_HASH)({"x": 1}, "crc")


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


@functools.wraps(two)
def wrapped(*args): ...


def signed(x, y): ...


signed.__signature__ = joblib.func_inspect.inspect.signature(one)


class Thing:
    def method(self, x, y=1): ...

    def __call__(self, x): ...

    def __repr__(self):
        return "Thing()"


THING = Thing()
FUNCTIONS = [
    *(one, two, defaults, only_defaults, nothing, variadic, keywords, keyword_only),
    *(positional_only, annotated, wrapped, signed, THING.method, THING, Thing.method, len),
    *(functools.partial(two, 1), lambda x, y=3: (x, y)),
]


def outcome(call, *arguments):
    try:
        return call(*arguments)
    except Exception as error:  # compared below
        return type(error), str(error)


@pytest.mark.filterwarnings("ignore:Cannot inspect object")
@given(
    st.sampled_from(FUNCTIONS),
    st.lists(st.integers(), max_size=4),
    st.dictionaries(st.sampled_from(["x", "y", "z", "w"]), st.integers(), max_size=3),
    st.lists(st.sampled_from(["x", "y", "*"]), max_size=1),
)
def test_arguments_are_bound_as_joblib_does_wrong_calls_included(func, args, kwargs, ignored):
    ours = outcome(quick_filter_args(BARE_FILTER), func, ignored, tuple(args), kwargs)
    assert ours == outcome(BARE_FILTER, func, ignored, tuple(args), kwargs)


def test_what_was_set_on_a_function_counts():
    def changing(x, y=1): ...

    bind = quick_filter_args(BARE_FILTER)
    assert bind(changing, [], (1,)) == {"x": 1, "y": 1}
    changing.__defaults__ = (2,)
    assert bind(changing, [], (1,)) == {"x": 1, "y": 2}
    changing.__code__ = two.__code__
    changing.__defaults__ = None
    assert outcome(bind, changing, [], (1,)) == outcome(BARE_FILTER, changing, [], (1,))
    assert outcome(bind, changing, "x", (1,)) == outcome(BARE_FILTER, changing, "x", (1,))
    assert outcome(bind, changing, "", (1,)) == outcome(BARE_FILTER, changing, "", (1,))


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
    monkeypatch.setattr(joblib.memory, "filter_args", BARE_FILTER)
    monkeypatch.setattr(joblib.hashing, "hash", BARE_HASH)


@pytest.mark.parametrize("backend", ["shared", "local"])
@pytest.mark.usefixtures("bare")
def test_a_call_is_told_apart_without_signature_and_python_pickler(tmp_path, backend):
    cached = Memory(tmp_path, backend=backend, verbose=0).cache(defaults)
    cached(1)
    assert slow_ways(cached, 1) == {"signature", "dump"}
    with PatchSet(QUICK_ARGUMENTS) as patches:
        assert [report.outcome for report in patches.status()] == [Outcome.APPLIED] * 2
        assert slow_ways(cached, 1) == set()
    assert slow_ways(cached, 1) == {"signature", "dump"}


@pytest.mark.usefixtures("bare")
def test_what_was_stored_without_is_found_with_and_the_other_way_round(tmp_path):
    computed = []

    def double(x, name="ä"):
        computed.append(x)
        return x * 2

    cached = Memory(tmp_path, verbose=0, backend="shared").cache(double)
    assert cached(1) == 2
    with PatchSet(QUICK_ARGUMENTS):
        assert (cached(1), cached(x=1), cached(1, "ä"), cached(2, name="b")) == (2, 2, 2, 4)
    assert (cached(1), cached(2, "b")) == (2, 4)
    assert computed == [1, 2]


def test_joblibs_hash_is_still_pickled_and_documented_under_its_name():
    assert joblib.hashing.hash is not BARE_HASH
    assert pickle.loads(pickle.dumps(joblib.hashing.hash)) is joblib.hashing.hash
    assert joblib.hashing.hash.__doc__ == BARE_HASH.__doc__
