"""Sizes read and print as Kubernetes writes them, exact to the byte."""

import json
import pickle

import pytest

from mlops_ext.errors import QuantityError
from mlops_ext.memory import Quantity

GI = 1024**3


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("1.5Gi", 3 * GI // 2),
        ("500M", 500_000_000),
        ("2e9", 2_000_000_000),
        ("2E9", 2_000_000_000),
        ("1E", 10**18),
        ("7Ei", 7 * 1024**6),
        ("129e6", 129_000_000),
        ("128974848000m", 128_974_848),
        ("1000000000n", 1),
        ("5e-1", 1),
        ("1.1Gi", 1_181_116_007),
        ("0.5", 1),
        (".5Ki", 512),
        ("5.Ki", 5120),
        ("+1k", 1000),
        ("-0", 0),
        ("0", 0),
        ("0Gi", 0),
        ("0e999", 0),
        (" 400Mi ", 400 * 1024**2),
        ("9223372036854775807", 2**63 - 1),
        ("1e-999", 1),
        (12, 12),
        (12.5, 13),
    ],
)
def test_parse_means_what_kubernetes_means(text, size):
    found = Quantity.parse(text)
    assert found == size
    assert type(found) is Quantity
    assert Quantity.parse(str(found)) == found


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("100m", "did you mean 100M?"),
        ("5n", "less than a byte"),
        ("-1Gi", "negative"),
        (-1, "negative"),
        ("4GiB", "without the B"),
        ("2gb", "without the B"),
        ("1K", "suffixes"),
        ("1 Gi", "without a space"),
        ("1gi", "suffixes"),
        ("", "form"),
        ("Gi", "form"),
        (".", "form"),
        ("1e5Gi", "form"),
        ("1.5.Gi", "form"),
        ("nan", "form"),
        ("1_000", "form"),
        ("٣Gi", "form"),
        (float("nan"), "finite"),
        (float("inf"), "finite"),
        (True, "not a finite number"),
        (None, "not a finite number"),
        ("8Ei", "2**63-1"),
        ("1e999", "2**63-1"),
        (2**63, "2**63-1"),
        ("9" * 100, "form"),
    ],
)
def test_what_is_no_size_is_refused_with_the_reason(text, hint):
    with pytest.raises(QuantityError) as caught:
        Quantity.parse(text)
    assert hint in str(caught.value)
    assert caught.value.text is text


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (3 * GI // 2, "1536Mi"),
        (2_000_000_000, "2G"),
        (500_000_000, "500M"),
        (GI + 1, "1073741825"),
        (1000 * 1024, "1024k"),
        (0, "0"),
    ],
)
def test_str_is_the_shortest_exact_spelling(size, text):
    assert str(Quantity(size)) == text
    assert f"{Quantity(size)}" == text


def test_a_quantity_is_an_int_to_everyone_else():
    size = Quantity.parse("1Gi")
    assert json.dumps({"memory": size}) == '{"memory": 1073741824}'
    assert pickle.loads(pickle.dumps(size)) == size
    assert type(size + 1) is int
    assert max(size, Quantity(5)) is size
    assert repr(size) == "Quantity('1Gi')"


def test_human_is_for_sentences():
    assert Quantity.parse("1.5Gi").human == "1.5Gi"
    assert Quantity(1_181_116_007).human == "1.1Gi"
    assert Quantity(512).human == "512"
    assert [Quantity(1024**power).human for power in (1, 2, 3, 4)] == ["1Ki", "1Mi", "1Gi", "1Ti"]
    assert Quantity(0).human == "0"


def test_a_size_of_a_thousand_units_reads_without_an_exponent():
    assert Quantity.parse("1000Mi").human == "1000Mi"
    assert Quantity.parse("999.7Mi").human == "1000Mi"
    assert Quantity.parse("1023Gi").human == "1023Gi"
