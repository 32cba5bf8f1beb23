"""A step operator's pod that is killed for memory: under ZenML's own local orchestrator, and ours."""

import subprocess
import sys
from pathlib import Path

import pytest
from tests.doubles.kubernetes import Cluster
from tests.doubles.kubernetes.cgroups import Cgroup
from tests.doubles.kubernetes.pipelines import Zenml

pytestmark = pytest.mark.skipif(
    not Cgroup.usable(), reason="memory cgroups and namespaces cannot be made here"
)

SETUP = """
from zenml.client import Client
from zenml.enums import StackComponentType as Kind
from zenml_ext import flavors

client = Client()
assert {one.outcome.value for one in flavors.register(client)} <= {
    "registered", "already registered"}
for name, flavor in (("bare", "kubernetes"), ("ours", "kubernetes_oom")):
    client.create_stack_component(
        f"{name}-steps", flavor=flavor, component_type=Kind.STEP_OPERATOR,
        configuration={"kubernetes_context": "double", "kubernetes_namespace": "zenml"})
client.create_stack_component(
    "laptop", flavor="local_oom", component_type=Kind.ORCHESTRATOR, configuration={})
for stack, orchestrator, operator in (
    ("local-bare", "default", "bare"), ("local-ours", "default", "ours"),
    ("oom-ours", "laptop", "ours"),
):
    client.create_stack(stack, components={
        Kind.ORCHESTRATOR: orchestrator, Kind.ARTIFACT_STORE: "default",
        Kind.CONTAINER_REGISTRY: "registry", Kind.IMAGE_BUILDER: "builder",
        Kind.STEP_OPERATOR: f"{operator}-steps",
    })
"""

PIPELINE = """
from zenml.integrations.kubernetes.flavors import KubernetesStepOperatorConfig
from zenml.integrations.kubernetes.step_operators import KubernetesStepOperator

# The double's pods see this machine's files and its embedded store.
KubernetesStepOperator.validator = property(lambda self: None)
KubernetesStepOperatorConfig.is_remote = property(lambda self: False)

def pod(limit):
    resources = {"limits": {"memory": limit}, "requests": {"memory": limit}}
    stores = {"name": "ZENML_LOCAL_STORES_PATH", "value": os.environ["ZENML_LOCAL_STORES_PATH"]}
    operator = {"pod_settings": {"resources": resources, "env": [stores]}}
    if "bare" not in os.environ.get("TEST_STACK", "bare"):
        operator["in_place"] = False
    return {"step_operator": operator}

@step(enable_cache=False, step_operator=True, settings=pod("600Mi"))
def hungry() -> int:
    return eat(700)

@step(enable_cache=False)
def after(eaten: int) -> int:
    return eaten

@pipeline(enable_cache=False, settings={"docker": docker})
def the_pipeline():
    after(hungry())
"""


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    project = Zenml(tmp_path_factory.mktemp("zenml"))
    project._python(SETUP)
    return project


@pytest.mark.parametrize(
    "stack",
    [
        pytest.param("local-bare", marks=pytest.mark.integration),
        pytest.param("local-ours", marks=pytest.mark.integration),
        pytest.param("oom-ours", marks=pytest.mark.integration),
    ],
)
def test_a_step_operators_step_that_is_killed_runs_again_with_more(project, stack):
    with Cluster() as cluster:
        found = project.run(cluster, PIPELINE, stack)
        jobs = cluster.list("jobs", "step_name=hungry")
        pods = cluster.list("pods", "step_name=hungry")
        if stack == "local-bare":
            assert found.status == "failed", found.output
            assert len(pods) == 1
            return
        assert found.status == "completed", found.output + cluster.logs()
        attempts = found.attempts("hungry")
        assert [one["outcome"] for one in attempts] == ["killed for memory", "completed"]
        assert [one["memory"] for one in attempts] == ["600Mi", "1.17Gi"]
        assert found.run["metadata"]["memory_attempts.hungry"]
        assert [(one["name"], one["version"]) for one in found.run["steps"]] == [
            ("hungry", 1),
            ("after", 1),
        ]
        assert len(jobs) == len(pods) == 2
        if stack == "oom-ours":  # what waits for it on this machine needs no memory of its own
            shown = subprocess.run(
                [Path(sys.executable).with_name("mlops-ext"), "zenml", "memory"],
                env=project.environment(COLUMNS="200"),
                cwd=project.project,
                capture_output=True,
                text=True,
                check=False,
            )
            assert "1.17Gi" in shown.stdout, shown.stderr
