"""What a forked child makes anew."""

import gc
import os
import weakref

import pytest
from tests.support.forks import held_by_another_thread, in_child

from mlops_ext import tempdirs
from mlops_ext.memory.history import HistoryPolicy, InMemoryHistory
from mlops_ext.patching import patchset as patching
from mlops_ext.processes import forks

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")


POLICY = HistoryPolicy(records=InMemoryHistory())


@pytest.mark.parametrize(
    "lock",
    [
        pytest.param(lambda: patching._lock, id="patching"),
        pytest.param(lambda: tempdirs._lock, id="tempdirs"),
        pytest.param(lambda: POLICY._cache.lock, id="history policy"),
    ],
)
def test_a_child_can_have_a_lock_that_another_thread_held_at_the_fork(lock):
    with held_by_another_thread(lock()):
        assert in_child(lambda: lock().acquire(blocking=False))


def test_a_block_that_forks_inside_its_own_lock_can_be_left_in_the_child():
    def leave_the_block():
        return not held.__exit__(None, None, None)

    held = patching._lock
    with held:
        assert in_child(leave_the_block)


def test_an_object_is_followed_as_long_as_it_lives():
    class Counted:
        def __init__(self):
            self.forks = 0

        def after_fork(self):
            self.forks += 1

    counted = Counted()
    forks.follow_forks(counted)
    assert in_child(lambda: counted.forks == 1)
    assert counted.forks == 0
    followed = weakref.ref(counted)
    counted = None
    gc.collect()
    assert followed() is None


def test_nothing_is_registered_where_no_process_can_fork(monkeypatch):
    monkeypatch.delattr(os, "register_at_fork")
    called = []
    assert forks.in_forked_child(called.clear) == called.clear
