"""Installed versions, and which of them a specifier means."""

import pytest

from mlops_ext.versions import check_specifier, in_range, installed_version


@pytest.mark.parametrize(
    ("version", "specifier", "meets"),
    [
        ("1.5", ">=1,<2", True),
        ("2.0", ">=1,<2", False),
        ("1.5rc1", ">=1,<2", True),  # who runs a release candidate gets its fixes
        ("1.5.dev3", ">=1,<2", True),
        ("2.0rc1", ">=1,<2", False),
        ("1.5+local", ">=1,<2", True),
        ("1.5", "", True),
        ("unknown", "", False),
        ("1.0-local_build.x!", ">=1", False),
    ],
)
def test_a_version_meets_a_specifier_or_not(version, specifier, meets):
    assert in_range(version, specifier) is meets


def test_a_specifier_that_cannot_be_read_is_refused_with_the_field():
    assert str(check_specifier("Patch.needed", ">=1")) == ">=1"
    with pytest.raises(ValueError, match=r"Patch\.needed = 'newest' is not a version specifier"):
        check_specifier("Patch.needed", "newest")


def test_what_is_not_installed_has_no_version():
    assert installed_version("pytest") == pytest.__version__
    assert installed_version("nobody-has-this") is None
