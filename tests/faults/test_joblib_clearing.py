"""Clearing and reducing on one machine while others read and write."""

import contextlib
import threading
import warnings

import pytest
from joblib import Memory
from tests.faults.nodes import mount, need_fuse

import joblib_ext  # noqa: F401  # registers the backend
from mlops_ext.files.removal import HAS_DESCRIPTORS


def value(x):
    return [x] * 10


def stored(folder):
    """The entries of the cache below *folder*."""
    return [path for path in folder.rglob("items/*/*/*/*") if path.is_file()]


@pytest.mark.skipif(not HAS_DESCRIPTORS, reason="this system removes by path")
@pytest.mark.parametrize("depth", range(4))
@pytest.mark.parametrize("way", ["clear", "clear one function", "reduce"])
def test_a_folder_swapped_for_a_link_to_another_cache_loses_nothing_there(tmp_path, way, depth):
    """As anybody can who may write in a shared cache; names in the other one are the same."""
    for name in ("shared", "private"):
        cached = Memory(tmp_path / name, backend="shared", verbose=0).cache(value)
        assert [cached(x) for x in range(5)] == [value(x) for x in range(5)]
    private = stored(tmp_path / "private")
    assert len(private) == 5
    (root,) = (tmp_path / "private").glob("mlops-shared-*")
    inside = private[0].relative_to(root).parts[:depth]
    swapped = tmp_path.joinpath("shared", root.name, *inside)
    swapped.rename(tmp_path / "aside")
    swapped.symlink_to(root.joinpath(*inside))
    memory = Memory(tmp_path / "shared", backend="shared", verbose=0)
    with contextlib.suppress(OSError):  # it may refuse
        if way == "clear":
            memory.clear(warn=False)
        elif way == "reduce":
            memory.reduce_size(items_limit=0)
        else:
            memory.cache(value).clear(warn=False)
    for thread in threading.enumerate():
        if thread.name == "mlops-ext-trash":
            thread.join()
    assert sorted(stored(tmp_path / "private")) == sorted(private)


def leases(folder):
    """Leases that stand in a store: smaller than any entry."""
    found = [path for path in folder.rglob("items/*/*/*/*") if path.suffix != ".tmp"]
    return [path for path in found if path.stat().st_size < 64]


@pytest.mark.needs_fuse
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
