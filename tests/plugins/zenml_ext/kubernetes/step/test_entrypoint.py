"""What a step's pod does about an error that a kill has caused."""

from contextlib import nullcontext, suppress
from uuid import uuid4

import pytest

pytest.importorskip("kubernetes")

from zenml.exceptions import RunStoppedException
from zenml.orchestrators import step_runner
from zenml.steps import StepHeartBeatTerminationException

from mlops_ext import apply
from zenml_ext.kubernetes.step import entrypoint
from zenml_ext.kubernetes.watcher import Report, Watch
from zenml_ext.memory.attempts import AttemptRecord
from zenml_ext.memory.cgroup import MemoryReading
from zenml_ext.processes import STEP_POD


class Left(BaseException):
    """The process ends here."""


def own_mistake():
    return ValueError("a mistake of the step's own")


def after_a_broken_pool():
    error = ValueError("no result")
    error.__cause__ = BrokenPipeError("a worker is gone")
    return error


@pytest.mark.parametrize(
    ("kills", "patched", "error", "published"),
    [
        (1, False, BrokenPipeError(), 1),
        (1, True, BrokenPipeError(), 0),
        (1, True, after_a_broken_pool(), 0),
        (1, True, own_mistake(), 1),
        (0, True, BrokenPipeError(), 1),
    ],
)
def test_a_failure_that_a_kill_caused_is_not_published(
    tmp_path, monkeypatch, kills, patched, error, published
):
    counted, updates = [0], []

    class Cgroup:
        path, version = "/none", 2

        def read(self):
            return MemoryReading(limit=None, used=5, oom_kills=counted[0])

    class Store:
        def update_run_step(self, **update):
            updates.append(update)

    class Client:
        zen_store = Store()

    def leave(code):
        raise Left(code)

    monkeypatch.setattr("zenml.client.Client", Client)
    monkeypatch.setattr(entrypoint, "leave", leave)
    monkeypatch.setattr(entrypoint, "_watch", Watch(Cgroup(), None, report=tmp_path / "report"))
    counted[0] = kills
    with apply("zenml", process=STEP_POD if patched else "no such process"):
        try:
            raise error
        except Exception:
            if not published:
                with pytest.raises(Left, match="137"):
                    step_runner.publish_failed_step_run(uuid4())
            else:
                step_runner.publish_failed_step_run(uuid4())
    assert len(updates) == published


@pytest.mark.parametrize(
    ("error", "outcome", "lost"),
    [
        (None, "completed", 0),
        (ValueError("no"), "failed", 7),
        (RunStoppedException("stopped"), "stopped", 7),
        (StepHeartBeatTerminationException("stopped from afar"), "stopped", 7),
    ],
)
def test_an_attempt_is_recorded_as_what_ended_it(monkeypatch, error, outcome, lost):
    class Ended:
        runtime_s = 7.0

        def look(self):
            return Report(peak=100 << 20, curve=((0.0, 5),), resizes_s=(1.5,))

    monkeypatch.setattr(entrypoint, "_watch", Ended())
    found = {}
    with suppress(Exception):
        try:
            if error is not None:
                raise error
        finally:
            found.update(entrypoint.step_metadata())  # where ZenML asks for it
    (attempt,) = found["memory_attempts"]
    assert (attempt["outcome"], attempt["lost_s"], attempt["runtime_s"]) == (outcome, lost, 7)
    assert AttemptRecord.load(attempt).curve == ((0.0, 5),)
    assert AttemptRecord.load(attempt).resizes_s == (1.5,)


@pytest.mark.parametrize("fails", [False, True])
def test_the_peak_while_outputs_are_saved_and_how_that_ended_are_recorded(
    tmp_path, monkeypatch, fails
):
    """ZenML asks for a step's metadata before it saves the outputs."""
    used, written = [221 << 20], []

    class Cgroup:
        path, version = "/none", 2

        def read(self):
            return MemoryReading(limit=1500 << 20, used=used[0], oom_kills=0)

    monkeypatch.setattr(entrypoint, "_watch", Watch(Cgroup(), None, report=tmp_path / "report"))
    monkeypatch.setattr(entrypoint, "_step_run_id", None)
    monkeypatch.setattr(entrypoint, "record", lambda *call: written.append(call))
    step_run_id = uuid4()

    def run():
        assert entrypoint.step_metadata(step_run_id)["memory_peak"] == 221 << 20
        used[0] = 881 << 20
        if fails:
            raise OSError("the store is full")

    with pytest.raises(OSError, match="full") if fails else nullcontext(), entrypoint.recording():
        run()
    ((recorded_for, (attempt,)),) = written
    assert recorded_for == step_run_id
    assert attempt.peak == 881 << 20
    assert attempt.outcome == ("failed" if fails else "completed")
