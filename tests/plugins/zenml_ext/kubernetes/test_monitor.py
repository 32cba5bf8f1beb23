"""Growth in place: when it is asked for, and what each refusal leads to; cgroups of both versions."""

import contextlib
import json

import pytest

pytest.importorskip("zenml")

from zenml.exceptions import RunStoppedException
from zenml.steps import StepHeartBeatTerminationException

from mlops_ext.memory import InPlace, Quantity
from zenml_ext.kubernetes.monitor import (
    Growth,
    MemoryMonitor,
    Refusal,
    ResizeAnswer,
    TerminationReport,
)
from zenml_ext.kubernetes.objects.capacity import read_refusal, rooms_of
from zenml_ext.kubernetes.step import entrypoint
from zenml_ext.kubernetes.step.resize import _refused
from zenml_ext.memory.cgroup import MemoryCgroup, MemoryReading

MIB = 1 << 20
RULE = InPlace(start=Quantity(0), threshold=0.85, growth=1.5, ceiling=Quantity(1000 * MIB))
AGREED = ResizeAnswer(refusal=None)


class Resizer:
    def __init__(self, *answers):
        self.answers, self.asked = list(answers), []

    def resize(self, limit):
        self.asked.append(limit // MIB)
        return self.answers.pop(0) if self.answers else AGREED


def reading(used, limit=400):
    size = used * MIB
    return MemoryReading(limit=limit * MIB, used=size, resident=size, oom_kills=0)


def test_a_slow_step_is_left_alone_until_it_comes_near_its_limit():
    resizer = Resizer()
    growth = Growth(rule=RULE, resizer=resizer)
    for second in range(0, 300, 10):
        growth.on_reading(reading(second), float(second))
    assert resizer.asked == []
    growth.on_reading(reading(345), 345.0)
    assert resizer.asked == [600]


def test_a_fast_step_is_asked_for_before_it_comes_near():
    resizer = Resizer()
    growth = Growth(rule=RULE, resizer=resizer)
    growth.on_reading(reading(0), 0.0)
    growth.on_reading(reading(150), 1.0)
    assert resizer.asked
    assert resizer.asked[0] >= 600


def test_nothing_more_is_asked_while_a_resize_is_on_its_way_and_it_is_noted_when_done():
    resizer = Resizer()
    growth = Growth(rule=RULE, resizer=resizer)
    growth.on_reading(reading(390), 0.0)
    growth.on_reading(reading(392), 0.2)
    assert resizer.asked == [600]
    growth.on_reading(reading(392, limit=600), 1.0)
    assert growth.grown == [600 * MIB]


def test_it_never_asks_beyond_the_ceiling():
    resizer = Resizer()
    growth = Growth(rule=RULE, resizer=resizer)
    growth.on_reading(reading(890, limit=900), 0.0)
    assert resizer.asked == [1000]
    growth.on_reading(reading(990, limit=1000), 1.0)
    assert resizer.asked == [1000]


@pytest.mark.parametrize(
    ("code", "message", "refusal"),
    [
        (403, 'User "x" cannot patch resource "pods/resize" in API group ""', Refusal.FOR_GOOD),
        (403, "node didn't have enough allocatable resources", Refusal.TOO_MUCH),
        (403, "exceeded quota: team", Refusal.TOO_MUCH),
        (404, "the server could not find the requested resource", Refusal.FOR_GOOD),
        (422, "Pod QoS is immutable", Refusal.FOR_GOOD),
        (401, "Unauthorized", Refusal.FOR_NOW),
        (409, "the object has been modified", Refusal.FOR_NOW),
        (429, "too many requests", Refusal.FOR_NOW),
        (500, "etcd", Refusal.FOR_NOW),
    ],
)
def test_refusals_are_told_apart(code, message, refusal):
    assert _refused(code, json.dumps({"message": message})).refusal is refusal


def test_after_a_refusal_for_good_nothing_more_is_asked():
    resizer = Resizer(ResizeAnswer(refusal=Refusal.FOR_GOOD, message="403"))
    growth = Growth(rule=RULE, resizer=resizer)
    for second in range(5):
        growth.on_reading(reading(390), float(second))
    assert len(resizer.asked) == 1


def test_where_there_is_less_less_is_asked_for():
    resizer = Resizer(ResizeAnswer(refusal=Refusal.TOO_MUCH, message="full"), AGREED)
    growth = Growth(rule=RULE, resizer=resizer)
    growth.on_reading(reading(390), 0.0)
    assert resizer.asked == [600, 500]


def test_a_busy_server_is_asked_again_a_second_later():
    resizer = Resizer(ResizeAnswer(refusal=Refusal.FOR_NOW, message="429"))
    growth = Growth(rule=RULE, resizer=resizer)
    growth.on_reading(reading(390), 0.0)
    growth.on_reading(reading(390), 0.2)
    growth.on_reading(reading(390), 1.2)
    assert resizer.asked == [600, 600]


def test_the_report_can_be_read_after_every_write(tmp_path):
    path = tmp_path / "termination-log"
    path.touch()
    report = TerminationReport(path=path)
    for peak in (10**12, 5, 10**9):
        report.write({"peak": peak})
        assert json.loads(path.read_text()) == {"mlops-ext": 1, "peak": peak}


def test_the_monitor_keeps_the_peak_and_counts_kills_of_its_own_time(tmp_path):
    path = tmp_path / "termination-log"
    path.touch()
    states = [(10, 3), (500, 3), (100, 4)]

    class Cgroup:
        def read(self):
            size, kills = states.pop(0) if len(states) > 1 else states[0]
            return MemoryReading(limit=None, used=size * MIB, resident=size * MIB, oom_kills=kills)

    monitor = MemoryMonitor(Cgroup(), TerminationReport(path=path))
    monitor.poll()
    monitor.poll()
    assert (monitor.peak, monitor.oom_kills) == (500 * MIB, 1)
    assert json.loads(path.read_text())["oom_kills"] == 1


@pytest.mark.parametrize(
    ("error", "outcome", "lost"),
    [
        (None, "completed", 0),
        (ValueError("no"), "failed", 7),
        (RunStoppedException("stopped"), "stopped", 7),
        (StepHeartBeatTerminationException("stopped from afar"), "stopped", 7),
    ],
)
def test_an_attempt_is_recorded_as_what_ended_it(tmp_path, monkeypatch, error, outcome, lost):
    class Cgroup:
        def read(self):
            return reading(100)

    report, now = TerminationReport(path=tmp_path / "report"), [0.0]
    monitor = MemoryMonitor(Cgroup(), report, clock=lambda: now[0])
    now[0] = 7.0
    monkeypatch.setattr(entrypoint, "_monitor", monitor)
    found = {}
    with contextlib.suppress(Exception):
        try:
            if error is not None:
                raise error
        finally:
            found.update(entrypoint.step_metadata())  # where ZenML asks for it
    (attempt,) = found["memory_attempts"]
    assert (attempt["outcome"], attempt["lost_s"], attempt["runtime_s"]) == (outcome, lost, 7)


def write(folder, **files):
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(text)


def test_a_cgroup_of_version_1_is_read(tmp_path):
    write(
        tmp_path / "memory",
        memory__limit_in_bytes="1000\n",
        memory__usage_in_bytes="900\n",
        memory__stat="total_rss 300\ntotal_shmem 50\ntotal_inactive_file 400\ntotal_active_file 100\n",
        memory__oom_control="oom_kill_disable 0\nunder_oom 0\noom_kill 2\n",
    )
    found = MemoryCgroup.own(tmp_path, tmp_path / "none").read()
    assert found == MemoryReading(limit=1000, used=400, resident=350, oom_kills=2)


def test_a_cgroup_of_version_2_is_read(tmp_path):
    write(
        tmp_path,
        memory__max="max\n",
        memory__current="900\n",
        memory__stat="anon 300\nshmem 50\ninactive_file 400\nactive_file 100\n",
        memory__events="low 0\noom 1\noom_kill 2\n",
    )
    found = MemoryCgroup.own(tmp_path, tmp_path / "none").read()
    assert found == MemoryReading(limit=None, used=400, resident=350, oom_kills=2)


def test_where_there_is_no_memory_cgroup_there_is_none(tmp_path):
    assert MemoryCgroup.own(tmp_path, tmp_path / "none") is None


@pytest.mark.parametrize(
    ("text", "for_good", "words"),
    [
        (
            (
                'Error creating: pods "x" is forbidden: exceeded quota: team, requested:'
                " limits.memory=2Gi, used: limits.memory=1Gi, limited: limits.memory=1536Mi"
            ),
            True,
            "can never run",
        ),
        (
            (
                'Error creating: pods "x" is forbidden: exceeded quota: team, requested:'
                " limits.memory=1Gi, used: limits.memory=1Gi, limited: limits.memory=1536Mi"
            ),
            False,
            "starts when others have finished",
        ),
        (
            (
                'Error creating: pods "x" is forbidden: maximum memory usage per Container is 1Gi,'
                " but limit is 2Gi"
            ),
            True,
            "LimitRange allows 1Gi per container",
        ),
    ],
)
def test_refusals_of_admission_are_told_in_the_users_words(text, for_good, words):
    found = read_refusal(text)
    assert found.for_good is for_good
    assert words in found.message


def node(name, memory, **spec):
    meta = {"name": name, "labels": {"pool": name}}
    return {"metadata": meta, "spec": spec, "status": {"allocatable": {"memory": memory}}}


def test_the_room_on_a_node_is_what_daemons_and_the_orchestrator_leave():
    resources = {"requests": {"memory": "1Gi"}}

    def pod(kind, **labels):
        return {
            "metadata": {"ownerReferences": [{"kind": kind}], "labels": labels},
            "spec": {"nodeName": "a", "containers": [{"resources": resources}]},
            "status": {"phase": "Running"},
        }

    pods = [pod("DaemonSet"), pod("Job", run_id="r"), pod("Job", run_id="r", step_name="s")]
    tainted = node("b", "64Gi", taints=[{"key": "gpu", "effect": "NoSchedule"}])
    (room,) = rooms_of([node("a", "8Gi"), tainted], pods, {}, run_id="r")
    assert (room.name, room.room) == ("a", Quantity.parse("6Gi"))
    (others,) = rooms_of([node("a", "8Gi")], pods, {}, run_id="another run")
    assert others.room == Quantity.parse("7Gi")  # a run of somebody else ends some day
    for momentary in (
        node("c", "64Gi", unschedulable=True),
        node("c", "64Gi", taints=[{"key": "node.kubernetes.io/not-ready", "effect": "NoExecute"}]),
        node(
            "c",
            "64Gi",
            taints=[{"key": "node.kubernetes.io/memory-pressure", "effect": "NoSchedule"}],
        ),
    ):
        assert rooms_of([node("a", "8Gi"), momentary], pods, {})[0].name == "c"
    tolerant = {"tolerations": [{"key": "gpu", "operator": "Exists"}]}
    assert [room.name for room in rooms_of([tainted], (), tolerant)] == ["b"]
    assert rooms_of([node("a", "8Gi")], (), {"nodeSelector": {"pool": "z"}}) == []
