"""Threads of one process that meet at one key, or at a backend that is new to both."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import joblib  # noqa: F401  # the backend registers itself with its import
import pytest

import joblib_ext  # noqa: F401  # registers the backend
from joblib_ext.entries.lease_record import LeaseRecord
from joblib_ext.stores.files.lease_source import LeaseSource
from mlops_ext.processes.identity import Liveness

pytestmark = pytest.mark.usefixtures("no_leases_left")

PATIENCE_S = 60
"""The longest wait for another thread: a hang fails long before the test's own time is up."""


class TestThreadsOfOneProcess:
    """They know of each other without any lease."""

    def test_a_silent_heart_takes_no_lease_from_a_thread_that_computes(self, memory, monkeypatch):
        monkeypatch.setattr(LeaseSource, "renew", lambda _: None)
        monkeypatch.setattr(LeaseRecord, "owner", lambda _: Liveness.UNKNOWN)
        started, waited = threading.Event(), threading.Event()
        calls, looks = [], []
        store = memory.store_backend._runtime.store
        look = type(store).look

        def count(self, slot):
            looks.append(time.monotonic())
            if looks[-1] - looks[0] > 4 * store.options.lease_s:
                waited.set()
            return look(self, slot)

        def function(x):
            calls.append(x)
            started.set()
            assert waited.wait(PATIENCE_S)
            return x

        cached = memory.cache(function)
        with ThreadPoolExecutor(2) as pool:
            owner = pool.submit(cached, 1)
            assert started.wait(PATIENCE_S)
            monkeypatch.setattr(type(store), "look", count)
            waiter = pool.submit(cached, 1)
            assert (owner.result(PATIENCE_S), waiter.result(PATIENCE_S)) == (1, 1)
        assert calls == [1]
        assert not store.events_so_far()["takeover"]

    def test_a_waiter_does_not_resume_the_lease_of_a_thread_that_publishes(
        self, memory, monkeypatch
    ):
        """The entry is about to stand; the waiter still sees the lease, which is its process's."""
        store = memory.store_backend._runtime.store
        publish, look = type(store).publish, type(store).look
        publishing, looked = threading.Event(), threading.Event()
        calls, seen = [], []

        def publish_late(self, *arguments):
            publishing.set()
            assert looked.wait(PATIENCE_S)
            publish(self, *arguments)

        def look_again(self, slot):
            found = look(self, slot)
            if publishing.is_set():
                seen.append(found)
                if len(seen) > 1:  # once to find the lease, once after having judged it
                    looked.set()
            return found

        monkeypatch.setattr(type(store), "publish", publish_late)
        monkeypatch.setattr(type(store), "look", look_again)

        def function(x):
            calls.append(x)
            if len(calls) > 1:
                looked.set()
            return x

        cached = memory.cache(function)
        with ThreadPoolExecutor(2) as pool:
            owner = pool.submit(cached, 1)
            assert publishing.wait(PATIENCE_S)
            waiter = pool.submit(cached, 1)
            assert (owner.result(PATIENCE_S), waiter.result(PATIENCE_S)) == (1, 1)
        assert calls == [1]
