"""The defaults: the policy that learns, growth in place; a quota, a server that is away."""

import os
import time
from urllib.parse import urlsplit

from tests.cluster.project import ON_A_CLUSTER, ROLE, kills, kubectl, objects, outcomes, running
from tests.support.gates import Gate

pytestmark = ON_A_CLUSTER


def memory(found, step):
    """The last attempt's limit and peak in MiB."""
    attempt = found.attempts(step)[-1]
    return attempt["memory_bytes"] >> 20, attempt["peak_bytes"] >> 20


SAVES = """
from typing import Any, Type
from zenml.materializers.base_materializer import BaseMaterializer

class Frame:
    pass

class FrameMaterializer(BaseMaterializer):
    ASSOCIATED_TYPES = (Frame,)

    def save(self, data: Any) -> None:
        payload = bytearray(700 << 20)
        payload[::4096] = b"x" * len(payload[::4096])
        with self.artifact_store.open(os.path.join(self.uri, "x"), "wb") as file:
            file.write(payload[:10])

    def load(self, data_type: Type[Any]) -> Any:
        return Frame()

@step(enable_cache=False, output_materializers=FrameMaterializer,
      settings=orchestrator(memory="1500Mi"))
def makes_a_frame() -> Frame:
    return Frame()

@pipeline(enable_cache=False, settings={"docker": docker, **orchestrator()})
def saves():
    makes_a_frame()

the_pipeline = saves
"""


def test_a_step_whose_memory_peaks_while_it_saves_is_not_killed_in_its_second_run(project):
    for _ in range(2):
        found = project.run(SAVES)
        assert found.status == "completed", found.output
        assert kills(found, "makes_a_frame") == 0
        _, peak = memory(found, "makes_a_frame")
        assert peak > 700
    suggested = project.command("mlops-ext", "zenml", "memory", "--suggest").stdout
    (line,) = (one for one in suggested.splitlines() if "memory:" in one)
    assert int(line.split()[-1].removesuffix("Mi")) > 700


LOADS = """
@step(enable_cache=False, settings=orchestrator("600Mi"))
def loads() -> int:
    # one call into C that holds the interpreter's lock for seconds, as unpickling does
    texts = list(map(str, map(float, range(8_000_000))))
    return len(texts)

@step(enable_cache=False, settings=orchestrator("400Mi"))
def adds(one: int) -> int:
    return one + 1

@pipeline(enable_cache=False, settings={"docker": docker, **orchestrator()})
def loads_pipeline():
    adds(loads())

the_pipeline = loads_pipeline
"""


def test_a_limit_grows_with_the_need_and_not_far_beyond(project):
    kubectl("apply", "-f", "-", text=ROLE)
    found = project.run(LOADS)
    assert found.status == "completed", found.output
    limit, peak = memory(found, "loads")
    assert peak > 600
    assert limit <= 1.5 * peak + 1 or kills(found, "loads")
    assert memory(found, "adds")[0] == 400


QUOTA = """
apiVersion: v1
kind: ResourceQuota
metadata: {name: team, namespace: zenml}
spec: {hard: {limits.memory: 2Gi}}
"""
IN_A_QUOTA = """
@step(enable_cache=False, settings=orchestrator("800Mi"))
def needs_1300() -> int:
    return eat(1000, 5)

@pipeline(enable_cache=False, settings={"docker": docker, **orchestrator()})
def in_a_quota():
    needs_1300()

the_pipeline = in_a_quota
"""


def test_a_quota_shared_with_the_orchestrator_is_filled_and_not_waited_for(project):
    kubectl("apply", "-f", "-", text=QUOTA)
    try:
        found = project.run(IN_A_QUOTA)
    finally:
        kubectl("delete", "resourcequota", "team")
    assert found.status == "completed", found.output


LIMITS = """
apiVersion: v1
kind: LimitRange
metadata: {name: team, namespace: zenml}
spec:
  limits: [{type: Container, default: {memory: 500Mi}, defaultRequest: {memory: 500Mi}, max: {memory: 1200Mi}}]
"""
IN_A_RANGE = """
@step(enable_cache=False, settings=orchestrator())
def unsized() -> int:
    return eat(400, 5)

@pipeline(enable_cache=False, settings={"docker": docker, **orchestrator()})
def in_a_range():
    unsized()

the_pipeline = in_a_range
"""


def test_a_step_that_a_limit_range_sized_gets_more_up_to_its_maximum(project):
    kubectl("apply", "-f", "-", text=LIMITS)
    try:
        found = project.run(IN_A_RANGE)
    finally:
        kubectl("delete", "limitrange", "team")
    assert found.status == "completed", found.output
    assert memory(found, "unsized")[0] <= 1200


INLINE = """
# inside the cluster ZenML would try to make an account where none is named
ACCOUNT = {"service_account_name": "zenml-service-account"}

@step(enable_cache=False)
def inline(number: int) -> int:
    return eat(900, 5)

@pipeline(dynamic=True, enable_cache=False,
          settings={"docker": docker, **orchestrator(**ACCOUNT)})
def with_inline_steps():
    inline(inline(1))

the_pipeline = with_inline_steps
"""


def test_inline_steps_of_a_dynamic_pipeline_need_no_memory_of_the_orchestrators(project):
    found = project.run(INLINE)
    assert found.status == "completed", found.output
    (pod,) = objects("pods", f"run_id={found.run['id']}")
    resources = pod["spec"]["containers"][0]["resources"]
    assert resources["requests"]["memory"] == "600Mi"
    assert "memory" not in resources.get("limits", {})


POOL = """
from multiprocessing import Pool

def greedy(mib):
    return eat(mib)

@step(enable_cache=False, settings=orchestrator("700Mi", in_place=False))
def pool() -> int:
    with Pool(2) as workers:
        return sum(workers.map(greedy, [10, 700], chunksize=1))

@pipeline(enable_cache=False, settings={"docker": docker, **orchestrator()})
def pool_pipeline():
    pool()

the_pipeline = pool_pipeline
"""


def test_a_pool_that_waits_for_a_killed_worker_runs_again(project):
    found = project.run(POOL)
    assert found.status == "completed", found.output
    assert outcomes(found, "pool") == ["killed for memory", "completed"]


AWAY = """
@step(enable_cache=False, settings=orchestrator("500Mi"))
def works() -> int:
    time.sleep(40)
    return 1

@step(enable_cache=False, settings=orchestrator("500Mi"))
def after(one: int) -> int:
    return one

@pipeline(enable_cache=False, settings={"docker": docker, **orchestrator()})
def away():
    after(works())

def the_pipeline():
    mine = away()
    while not Client().get_pipeline_run(mine.id).status.is_finished:
        time.sleep(2)
    return mine
"""


def test_a_server_that_is_away_for_minutes_ends_no_step(project, monkeypatch):
    at = urlsplit(os.environ["ZENML_STORE_URL"])
    gate = Gate(at.hostname, (at.hostname, at.port))
    monkeypatch.setenv("ZENML_STORE_URL", gate.url)
    process = project.start(AWAY)
    running("step_name=works")
    with gate.shut():
        time.sleep(100)
    found = project.finish(process)
    assert found.status == "completed", found.output
