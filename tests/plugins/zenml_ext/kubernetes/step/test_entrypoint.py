"""What a step's pod does about an error that a kill has caused."""

from contextlib import nullcontext
from uuid import uuid4

import pytest

pytest.importorskip("kubernetes")

from zenml.orchestrators import step_runner

from mlops_ext import apply
from zenml_ext.kubernetes.monitor import MemoryMonitor, TerminationReport
from zenml_ext.kubernetes.step import entrypoint
from zenml_ext.memory.cgroup import MemoryReading
from zenml_ext.processes import STEP_POD


class Left(BaseException):
    """The process ends here."""


@pytest.mark.parametrize(
    ("kills", "patched", "published"), [(1, False, 1), (1, True, 0), (0, True, 1)]
)
def test_a_failure_that_a_kill_caused_is_not_published(
    tmp_path, monkeypatch, kills, patched, published
):
    counted, updates = [0], []

    class Cgroup:
        def read(self):
            return MemoryReading(limit=None, used=5, resident=5, oom_kills=counted[0])

    class Store:
        def update_run_step(self, **update):
            updates.append(update)

    class Client:
        zen_store = Store()

    def leave(code):
        raise Left(code)

    monkeypatch.setattr("zenml.client.Client", Client)
    monkeypatch.setattr(entrypoint, "leave", leave)
    report = TerminationReport(path=tmp_path / "report")
    monkeypatch.setattr(entrypoint, "_monitor", MemoryMonitor(Cgroup(), report))
    counted[0] = kills
    with apply("zenml", process=STEP_POD if patched else "no such process"):
        try:
            raise BrokenPipeError("a worker is gone")
        except BrokenPipeError:
            if kills and patched:
                with pytest.raises(Left, match="137"):
                    step_runner.publish_failed_step_run(uuid4())
            else:
                step_runner.publish_failed_step_run(uuid4())
    assert len(updates) == published


@pytest.mark.parametrize("fails", [False, True])
def test_the_peak_while_outputs_are_saved_and_how_that_ended_are_recorded(
    tmp_path, monkeypatch, fails
):
    """ZenML asks for a step's metadata before it saves the outputs."""
    used, written = [221 << 20], []

    class Cgroup:
        def read(self):
            return MemoryReading(limit=1500 << 20, used=used[0], resident=used[0], oom_kills=0)

    report = TerminationReport(path=tmp_path / "report")
    monkeypatch.setattr(entrypoint, "_monitor", MemoryMonitor(Cgroup(), report))
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
