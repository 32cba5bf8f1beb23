"""An unsigned store that everybody can write is warned of: reading it runs what stands there."""

import warnings

import pytest
from joblib import Memory

import joblib_ext  # noqa: F401  # registers the backend


def warned(folder, mode, **options):
    """The warnings of a first call in a store below *folder* with these permissions."""
    folder.mkdir()
    folder.chmod(mode)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        memory = Memory(folder, backend="shared", verbose=0, backend_options=options)
        cached = memory.cache(abs)
        assert (cached(-1), cached(-1)) == (1, 1)
    return [str(one.message) for one in caught]


@pytest.mark.parametrize("mode", [0o777, 0o1777, 0o757])
def test_everybody_can_write(tmp_path, mode):
    (message,) = warned(tmp_path / "cache", mode)
    assert str(tmp_path / "cache") in message
    for way_out in ("chmod o-w", "sign_key", "trust_folder"):
        assert way_out in message


@pytest.mark.parametrize(
    ("mode", "options"),
    [
        (0o700, {}),
        (0o755, {}),
        (0o2775, {}),
        (0o777, {"sign_key": "secret"}),
        (0o777, {"trust_folder": True}),
    ],
)
def test_nothing_to_warn_of(tmp_path, mode, options):
    assert warned(tmp_path / "cache", mode, **options) == []
