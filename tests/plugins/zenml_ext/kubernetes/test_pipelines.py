"""Pipelines on the double: ZenML's own processes, real kills; bare ZenML beside ours."""

import pytest
from tests.doubles.kubernetes import Cluster
from tests.doubles.kubernetes.cgroups import Cgroup
from tests.doubles.kubernetes.pipelines import Zenml

pytestmark = pytest.mark.skipif(
    not Cgroup.usable(), reason="memory cgroups and namespaces cannot be made here"
)


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    return Zenml(tmp_path_factory.mktemp("zenml"))


HUNGRY = """
EXTRA = {} if os.environ.get("TEST_STACK") == "bare" else {"in_place": False}

@step(enable_cache=False, settings=memory("600Mi", **EXTRA))
def hungry() -> int:
    return eat(700)

@pipeline(enable_cache=False, settings={"docker": docker})
def the_pipeline():
    hungry()
"""


@pytest.mark.parametrize("stack", [pytest.param("bare", marks=pytest.mark.integration), "ours"])
def test_a_step_killed_for_memory_fails_on_zenml_and_completes_here(project, stack):
    with Cluster() as cluster:
        found = project.run(cluster, HUNGRY, stack)
        if stack == "bare":
            assert found.status == "failed", found.output
            assert found.statuses() == {"hungry": "failed"}
            return
        assert found.status == "completed", found.output + cluster.logs()
        attempts = found.attempts("hungry")
        assert [one["outcome"] for one in attempts] == ["killed for memory", "completed"]
        assert [one["memory"] for one in attempts] == ["600Mi", "1.17Gi"]
        assert found.run["metadata"]["memory_attempts.hungry"]
        assert [step_run["version"] for step_run in found.run["steps"]] == [1]
        jobs = cluster.list("jobs", f"run_id={found.run['id']},step_name=hungry")
        assert [job["metadata"]["name"][-3:] for job in jobs] == ["-m2"]


GROWING = """
@step(enable_cache=False, settings=memory("500Mi", memory_policy="double"))
def growing() -> int:
    return eat(700, seconds=8)

@pipeline(enable_cache=False, settings={"docker": docker})
def the_pipeline():
    growing()
"""


@pytest.mark.integration
def test_a_growing_step_is_resized_in_place_and_never_restarted(project):
    with Cluster() as cluster:
        found = project.run(cluster, GROWING)
        assert found.status == "completed", found.output + cluster.logs()
        (attempt,) = found.attempts("growing")
        assert attempt["outcome"] == "completed"
        assert "grown in place" in attempt["reason"]
        assert attempt["memory_bytes"] > 500 << 20
        resizes = [c for c in cluster.calls if c.sub == "resize"]
        assert resizes
        assert len(cluster.list("pods", "step_name=growing")) == 1


@pytest.mark.slow
def test_without_the_right_to_resize_the_step_is_run_again(project):
    with Cluster() as cluster:
        cluster.denied = lambda user, verb, resource: resource == "pods/resize"
        found = project.run(cluster, GROWING)
        assert found.status == "completed", found.output + cluster.logs()
        outcomes = [one["outcome"] for one in found.attempts("growing")]
        assert outcomes == ["killed for memory", "completed"]
        assert "cannot be resized while it runs" in cluster.logs()
