"""The orchestrator's own pod: its limit, and what is said where that is too small."""

import json
import logging

import pytest

pytest.importorskip("kubernetes")

from zenml_ext.kubernetes.supervisor import own_memory
from zenml_ext.kubernetes.supervisor.own_memory import OrchestratorMemory, earlier_kills
from zenml_ext.memory import records
from zenml_ext.memory.cgroup import MemoryCgroup

RUN = "11111111-1111-1111-1111-111111111111"
MIB = 1 << 20


@pytest.fixture
def recorded(monkeypatch):
    found = []
    monkeypatch.setattr(
        records, "record_orchestrator", lambda run_id, values: found.append((str(run_id), values))
    )
    return found


def cgroup(folder, *, used, limit=600):
    """The files of a version 2 cgroup, with *used* MiB of anonymous memory."""
    folder.mkdir(exist_ok=True)
    (folder / "memory.stat").write_text(f"anon {used * MIB}\nshmem 0\n")
    (folder / "memory.max").write_text(f"{limit * MIB}\n")
    (folder / "memory.current").write_text(f"{used * MIB}\n")
    (folder / "memory.events").write_text("oom_kill 0\n")
    return MemoryCgroup(path=folder, version=2)


def own(tmp_path, used):
    return OrchestratorMemory(RUN, cgroup=cgroup(tmp_path / "group", used=used))


def test_a_limit_that_was_nearly_reached_is_recorded_and_told(tmp_path, recorded, caplog):
    with caplog.at_level(logging.WARNING), own(tmp_path, 560):
        pass
    assert caplog.text.count("used 560Mi of its limit of 600Mi") == 1
    ((run_id, values),) = recorded
    assert run_id == RUN
    assert (values["limit_bytes"], values["peak_bytes"]) == (600 * MIB, 560 * MIB)
    assert "Set orchestrator_memory" in values["advice"]
    assert "to 900Mi or more" in values["advice"]


def test_a_limit_with_room_is_not_mentioned(tmp_path, recorded, caplog):
    with caplog.at_level(logging.WARNING), own(tmp_path, 300):
        pass
    assert recorded == []
    assert caplog.text == ""


def pod(name, reason, code, peak=None):
    message = {"message": json.dumps({"mlops-ext": 1, "peak": peak})} if peak else {}
    end = {"terminated": {"reason": reason, "exitCode": code, **message}}
    limits = {"limits": {"memory": "600Mi"}}
    phase = "Failed" if code else "Running"
    return {
        "metadata": {"name": name, "labels": {"job-name": "run"}},
        "spec": {"containers": [{"name": "main", "resources": limits}]},
        "status": {"phase": phase, "containerStatuses": [{"name": "main", "state": end}]},
    }


class Api:
    """A namespace with the pods of the orchestrator's Job."""

    def __init__(self, *pods):
        self.all = list(pods)

    def pod(self, name):
        return next(one for one in self.all if one["metadata"]["name"] == name)

    def pods_of(self, job):
        return [one for one in self.all if one["metadata"]["labels"]["job-name"] == job]


def test_a_pod_that_follows_one_killed_for_memory_says_so(tmp_path, recorded, monkeypatch, caplog):
    monkeypatch.setattr(own_memory.socket, "gethostname", lambda: "third")
    api = Api(
        pod("first", "OOMKilled", 137, 580 * MIB),
        pod("second", "OOMKilled", 137),
        pod("third", "Running", 0),
    )
    with caplog.at_level(logging.WARNING), own(tmp_path, 100) as memory:
        memory.report_earlier_kills(api, RUN)
    ((run_id, values),) = recorded
    assert run_id == RUN
    assert values["kills"] == 2
    assert "was killed for memory 2 times at its limit of 600Mi" in values["advice"]
    assert "to 900Mi or more" in values["advice"]
    assert values["advice"] in caplog.text


def test_no_limit_is_told_of_a_pod_that_had_none(tmp_path, recorded, monkeypatch):
    """As that of a dynamic pipeline: its node ran out of memory."""
    monkeypatch.setattr(own_memory.socket, "gethostname", lambda: "second")
    first = pod("first", "OOMKilled", 137)
    first["spec"]["containers"][0]["resources"] = {}
    with own(tmp_path, 100) as memory:
        memory.report_earlier_kills(Api(first, pod("second", "Running", 0)), RUN)
    ((_, values),) = recorded
    assert values.keys() == {"kills", "advice"}
    assert "was killed for memory 1 time at its node's memory, and goes on" in values["advice"]
    assert "orchestrator_pod_settings)." in values["advice"]


def test_a_pod_that_was_deleted_was_not_killed_for_memory():
    assert earlier_kills([pod("first", "Error", 137), pod("second", "Running", 0)], "second") == []
