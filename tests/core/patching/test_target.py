"""Places that a patch changes, and how what stands there is named in a message."""

import collections
import functools

import pytest

from mlops_ext.patching.target import MISSING, describe, parse_target


def function(_self=None):
    """Something of this module."""


HERE = __name__


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (MISSING, "missing"),
        (function, f"{HERE}.function"),
        (staticmethod(function), f"{HERE}.function"),
        (classmethod(function), f"{HERE}.function"),
        (property(function), f"{HERE}.function"),
        (print, "builtins.print"),
        (collections.OrderedDict, "collections.OrderedDict"),
        (functools.partial(function), "functools.partial"),
        (3, "builtins.int"),
    ],
)
def test_what_stands_at_a_place_is_named_by_where_it_was_defined(value, words):
    assert describe(value) == words


@pytest.mark.parametrize(
    ("target", "parts"),
    [
        ("a.b:c", ("a.b", ["c"], None)),
        ("a:B.c", ("a", ["B", "c"], None)),
        ("a:B.C[d.e]", ("a", ["B", "C"], "d.e")),
    ],
)
def test_a_target_is_a_module_a_path_and_perhaps_a_key(target, parts):
    assert parse_target(target) == parts


@pytest.mark.parametrize("target", ["a.b", "a:", ":b", "a:b[", "a:b[]", "a b:c", "a:b[c]d"])
def test_a_target_of_another_form_is_refused_and_shown(target):
    with pytest.raises(ValueError, match="is not of the form module:attribute") as caught:
        parse_target(target)
    assert repr(target) in str(caught.value)
