"""``mlops-ext zenml check`` on the double: what is ready, what is not, and what mends it."""

import importlib.util
import json
from types import SimpleNamespace

import pytest

pytest.importorskip("kubernetes")

from click.testing import CliRunner
from kubernetes import client

from mlops_ext.errors import MlopsExtError
from mlops_ext.hookspecs import Severity
from zenml_ext import check as module
from zenml_ext import cli
from zenml_ext.kubernetes.client import KubeApi
from zenml_ext.kubernetes.settings import KubernetesOomConfig, KubernetesOomStepOperatorConfig
from zenml_ext.kubernetes.steps import SupervisedSteps


class Component(SupervisedSteps):
    """A component of a stack, without ZenML's server."""

    def __init__(self, kind, config):
        self.kind, self._config = kind, config

    config = property(lambda self: self._config)
    type = property(lambda self: SimpleNamespace(value=self.kind))
    name = "survives"

    def kube_api(self):
        return KubeApi(client.BatchV1Api(), client.CoreV1Api(), "zenml")


def stack(**settings):
    config = KubernetesOomConfig(service_account_name="zenml-orchestrator", **settings)
    component = Component("orchestrator", config)
    return SimpleNamespace(name="s", all_components=[component], container_registry=None)


@pytest.fixture(autouse=True)
def no_pip(monkeypatch):
    """What pip would say, also where uv has made the environment, without pip."""
    done, find = SimpleNamespace(returncode=0), importlib.util.find_spec
    monkeypatch.setattr(module.subprocess, "run", lambda *_, **__: done)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name == "pip" or find(name))


def findings(**settings):
    return {one.check: one for one in module.check(stack(**settings))}


def test_a_cluster_on_which_all_is_ready_has_no_problem(cluster):
    found = findings(step_pod_service_account_name="zenml-steps")
    assert {one.severity for one in found.values()} == {Severity.OK}
    assert found["version"].message == "Kubernetes 1.36 is recent enough"
    assert found["rights pods/resize"].message == "account zenml-steps may grow in place"
    assert "mlops-ext[zenml]==" in found["image"].message


def test_a_right_that_is_missing_is_told_with_the_commands_that_grant_it(cluster):
    cluster.denied = lambda user, verb, resource: (
        (user, verb, resource)
        in {
            ("zenml-orchestrator", "patch", "jobs"),
            ("zenml-orchestrator", "list", "nodes"),
            ("zenml-steps", "patch", "pods/resize"),
        }
    )
    found = findings(step_pod_service_account_name="zenml-steps")
    jobs = found["rights jobs.batch"]
    assert jobs.severity is Severity.PROBLEM
    assert "account zenml-orchestrator may not patch jobs.batch" in jobs.message
    assert "kubectl create role mlops-ext-jobs-batch -n zenml --verb=patch" in jobs.advice
    assert "--role=mlops-ext-jobs-batch --serviceaccount=zenml:zenml-orchestrator" in jobs.advice
    nodes, resize = found["rights nodes everywhere"], found["rights pods/resize"]
    assert (nodes.severity, resize.severity) == (Severity.NOTE, Severity.NOTE)
    assert "kubectl create clusterrolebinding" in nodes.advice
    assert "--resource=pods/resize" in resize.advice
    assert "rights pods/resize" not in findings(in_place=False)


def test_a_step_operators_rights_are_those_of_whoever_asks(cluster):
    cluster.denied = lambda user, verb, resource: user == "zenml-orchestrator"
    operator = KubernetesOomStepOperatorConfig(service_account_name="zenml-orchestrator")
    component = Component("step_operator", operator)
    asked = SimpleNamespace(name="s", all_components=[component], container_registry=None)
    found = {one.check: one for one in module.check(asked)}
    assert found["rights jobs.batch"].message == "your account may run steps"
    assert found["rights pods/resize"].severity is Severity.NOTE


@pytest.mark.parametrize(
    ("hard", "used", "severity"),
    [
        ("500Mi", "0", Severity.PROBLEM),
        ("2Gi", "1800Mi", Severity.NOTE),
        ("2Gi", "0", Severity.OK),
    ],
)
def test_a_quota_is_told_with_what_it_leaves(cluster, hard, used, severity):
    status = {"hard": {"limits.memory": hard}, "used": {"limits.memory": used}}
    meta = {"kind": "ResourceQuota", "metadata": {"name": "team"}}
    cluster.store.create("resourcequotas", "zenml", {**meta, "spec": {}, "status": status})
    found = findings()["quota"]
    assert found.severity is severity
    assert "quota team leaves" in found.message
    assert found.advice == "kubectl edit resourcequota team -n zenml"


def test_a_limit_range_below_the_orchestrators_memory_is_a_problem(cluster):
    item = {"type": "Container", "max": {"memory": "400Mi"}}
    meta = {"kind": "LimitRange", "metadata": {"name": "small"}}
    cluster.store.create("limitranges", "zenml", {**meta, "spec": {"limits": [item]}})
    assert findings()["limits"].severity is Severity.PROBLEM
    assert findings(orchestrator_memory="300Mi")["limits"].severity is Severity.OK


def test_a_package_that_pip_does_not_find_and_a_registry_that_is_away_are_problems(
    cluster, monkeypatch
):
    failed = SimpleNamespace(returncode=1)
    monkeypatch.setattr(module.subprocess, "run", lambda *_, **__: failed)
    asked = stack()
    registry = SimpleNamespace(uri="localhost:1/zenml", is_local=True)
    asked.container_registry = SimpleNamespace(name="mine", config=registry)
    found = {one.check: one for one in module.check(asked)}
    assert found["image"].severity is found["registry"].severity is Severity.PROBLEM
    assert "--mlops_ext_requirement=" in found["image"].advice
    assert "zenml container-registry update mine --uri=" in found["registry"].advice


def test_without_pip_nothing_is_said_against_the_image(cluster, monkeypatch):
    """As in an environment that uv has made."""
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: (name != "pip" and find(name)) or None
    )
    found = findings()["image"]
    assert found.severity is Severity.NOTE
    assert "there is no pip here" in found.message


def test_a_stack_without_the_flavor_and_a_cluster_that_is_away_are_told_in_a_line(cluster):
    other = SimpleNamespace(name="s", all_components=[], container_registry=None)
    with pytest.raises(MlopsExtError, match="mlops-ext zenml register"):
        list(module.check(other))
    asked = stack()
    asked.all_components[0].kube_api = lambda: KubeApi(
        client.BatchV1Api(client.ApiClient(client.Configuration(host="http://localhost:1"))),
        None,
        "zenml",
    )
    with pytest.raises(MlopsExtError, match="does not answer"):
        list(module.check(asked))


def test_the_command_prints_each_finding_and_fails_if_one_is_a_problem(cluster, monkeypatch):
    shown = {"active_stack_model": None}
    monkeypatch.setattr(cli, "_client", lambda: SimpleNamespace(**shown))
    monkeypatch.setattr("zenml.stack.Stack.from_model", lambda _: stack())
    done = CliRunner().invoke(cli.zenml, ["check", "--json"])
    assert done.exit_code == 0
    assert {"check", "severity", "message", "advice"} == set(json.loads(done.stdout)[0])
    cluster.denied = lambda user, verb, resource: (verb, resource) == ("create", "jobs")
    done = CliRunner().invoke(cli.zenml, ["check"])
    assert done.exit_code == 1
    assert "problem rights jobs.batch: account zenml-orchestrator may not create" in done.stdout
