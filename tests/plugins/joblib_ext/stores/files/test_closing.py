"""Closing files that were read: at once, or by a thread where a close is a round trip."""

import os
import queue
import threading

import pytest
from tests.faults.nodes import wait_for

import joblib_ext  # noqa: F401  # registers the backend
from joblib_ext.stores.files import closing as _closing


class TestClosing:
    @staticmethod
    def pipes(count):
        pairs = [os.pipe() for _ in range(count)]
        for _, write in pairs:
            os.close(write)
        return [read for read, _ in pairs]

    @staticmethod
    def is_open(descriptor):
        try:
            os.fstat(descriptor)
        except OSError:
            return False
        return True

    @pytest.fixture
    def closed(self, monkeypatch):
        """Descriptors that the thread closed; it may go on when `allowed` is set."""
        allowed, done, close = threading.Event(), queue.SimpleQueue(), os.close

        def watched(descriptor):
            if threading.current_thread().name != "mlops-ext-close":
                close(descriptor)
                return
            assert allowed.wait(60)
            close(descriptor)
            done.put(descriptor)

        monkeypatch.setattr(_closing.os, "close", watched)
        yield allowed, done
        allowed.set()

    def test_quick_closes_are_done_at_once(self):
        closer = _closing.Closer(slow_s=60)
        for descriptor in self.pipes(10):
            closer.close(descriptor)
            assert not self.is_open(descriptor)
        assert not closer.deferring

    def test_after_three_slow_ones_a_thread_closes(self, closed):
        allowed, done = closed
        closer = _closing.Closer(slow_s=-1)
        early = self.pipes(3)
        for descriptor in early:
            closer.close(descriptor)
            assert not self.is_open(descriptor)
        assert closer.deferring
        late = self.pipes(_closing._MOST + 1)
        for descriptor in late:
            closer.close(descriptor)
        assert self.is_open(late[0])
        over = self.pipes(5)
        for descriptor in over:
            closer.close(descriptor)
        assert not self.is_open(over[-1])  # no more than so many wait
        allowed.set()
        assert done.get(timeout=60) == late[0]
        for descriptor in late[1:-1]:
            assert done.get(timeout=60) == descriptor

    def test_a_quick_one_ends_it(self, closed):
        allowed, done = closed
        allowed.set()
        closer = _closing.Closer(slow_s=60)
        closer.deferring = True
        (descriptor,) = self.pipes(1)
        closer.close(descriptor)
        assert done.get(timeout=60) == descriptor
        wait_for(lambda: not closer.deferring)
        (second,) = self.pipes(1)
        closer.close(second)
        assert not self.is_open(second)

    def test_a_forked_child_closes_what_waits(self, closed):
        allowed, _ = closed
        closer = _closing.Closer(slow_s=-1)
        closer.deferring = True
        waiting = self.pipes(3)
        for descriptor in waiting:
            closer.close(descriptor)
        child = os.fork()
        if not child:
            left = [self.is_open(descriptor) for descriptor in waiting[1:]]
            os._exit(1 if any(left) else 0)
        _, status = os.waitpid(child, 0)
        allowed.set()
        assert os.waitstatus_to_exitcode(status) == 0
