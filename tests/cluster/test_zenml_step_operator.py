"""A single step of a local pipeline on a real cluster, by the step operator."""

from tests.cluster.project import CONTEXT, ON_A_CLUSTER, kubectl, objects, outcomes

pytestmark = ON_A_CLUSTER
SETUP = f"""
from zenml.client import Client
from zenml.enums import StackComponentType as Kind
from zenml_ext import flavors

client = Client()
list(flavors.register(client))
if not client.list_stacks(name="operator").total:
    client.create_stack_component(
        "operator", flavor="kubernetes_oom", component_type=Kind.STEP_OPERATOR,
        configuration={{"kubernetes_context": {CONTEXT!r}, "kubernetes_namespace": "zenml"}})
    client.create_stack("operator", components={{
        Kind.ORCHESTRATOR: "default", Kind.ARTIFACT_STORE: "shared",
        Kind.CONTAINER_REGISTRY: "registry", Kind.IMAGE_BUILDER: "builder",
        Kind.STEP_OPERATOR: "operator"}})
"""
PIPELINE = """
from zenml.integrations.kubernetes.step_operators import KubernetesStepOperator

# The nodes and this machine share the folder in which the artifacts are.
KubernetesStepOperator.validator = property(lambda self: None)

def pod(limit):
    return {"step_operator": {"pod_settings": orchestrator(limit)["orchestrator"]["pod_settings"]}}

@step(enable_cache=False, step_operator=True, settings=pod("600Mi"))
def hungry() -> int:
    return eat(700)

@step(enable_cache=False)
def after(eaten: int) -> int:
    return eaten

@pipeline(enable_cache=False, settings={"docker": docker})
def one_step_elsewhere():
    after(hungry())

the_pipeline = one_step_elsewhere
"""


def test_a_step_operators_step_that_is_killed_runs_again_with_more(project):
    kubectl("create", "serviceaccount", "zenml-service-account")
    done = project.command("python", "-c", SETUP)
    assert done.returncode == 0, done.stderr
    found = project.run(PIPELINE, "operator")
    assert found.status == "completed", found.output
    assert outcomes(found, "hungry") == ["killed for memory", "completed"]
    assert len(objects("pods", f"run_id={found.run['id']},step_name=hungry")) == 2
