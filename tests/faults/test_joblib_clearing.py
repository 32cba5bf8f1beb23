"""Clearing and reducing on one machine while others read and write."""

import warnings

import pytest
from joblib import Memory
from tests.faults.nodes import mount, need_fuse

import joblib_ext  # noqa: F401  # registers the backend

pytestmark = [pytest.mark.needs_fuse]


def leases(folder):
    """Leases that stand in a store: smaller than any entry."""
    found = [path for path in folder.rglob("items/*/*/*/*") if path.suffix != ".tmp"]
    return [path for path in found if path.stat().st_size < 64]


def test_what_another_machine_cleared_is_made_anew_although_a_cache_shows_it(tmp_path):
    """The cache of names would hide that the folders are gone, here for longer than the test."""
    need_fuse()
    calls, claimed = [], []

    def function(x):
        calls.append(x)
        claimed.append(len(leases(backing)))
        return x

    backing = tmp_path / "backing"
    backing.mkdir()
    with (
        mount(backing, tmp_path / "here", 600) as here,
        mount(backing, tmp_path / "there", 600) as there,
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("error")
        cached = Memory(str(here.path), backend="shared", verbose=0).cache(function)
        assert cached(0) == 0
        for path in list(here.path.rglob("*")):  # reading a folder made its attributes old
            path.stat()
        Memory(str(there.path), backend="shared", verbose=0).clear(warn=False)
        for _ in range(2):
            assert [cached(x) for x in range(1, 6)] == [1, 2, 3, 4, 5]
    assert calls == [0, 1, 2, 3, 4, 5]
    assert claimed == [1] * 6, "each was computed under a lease"
