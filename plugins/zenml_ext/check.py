"""Whether the active stack is ready for ``kubernetes_oom``: asks the cluster, changes nothing."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from mlops_ext.errors import MlopsExtError
from mlops_ext.hookspecs import Finding
from mlops_ext.memory import Quantity
from mlops_ext.redaction import redacted
from zenml_ext.doctor import good, note, problem
from zenml_ext.kubernetes.client import UNANSWERED, KubeApi, describe_api_error
from zenml_ext.kubernetes.orchestrator import ORCHESTRATOR_MEMORY
from zenml_ext.kubernetes.steps import SupervisedSteps

if TYPE_CHECKING:
    from zenml.stack import Stack

_REVIEWS = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews"
# The minor version from which Kubernetes 1 can resize pods.
_RESIZE_MINOR = 33
# Verbs, resource, "cluster" if for all namespaces, what for, and what it is to lack them.
_RIGHTS = (
    ("create get list patch delete", "jobs.batch", "", "run steps", problem),
    ("get list", "pods", "", "see how steps end", problem),
    ("create list", "events", "", "say why a step waits", note),
    ("list", "limitranges", "", "stay below a LimitRange", note),
    ("list", "resourcequotas", "", "stay below a quota", note),
    ("list", "nodes", "cluster", "fail at once what no node can run", note),
    ("list", "pods", "cluster", "count what DaemonSets use", note),
)
_PATIENCE_S, _PIP_S = 3.0, 120.0


def check(stack: Stack) -> Iterator[Finding]:
    """What is ready in *stack*, and what is not, each with the command that mends it.

    Raises:
        MlopsExtError: the stack has no component of flavor kubernetes_oom, or its cluster does not
            answer.
    """
    components = [one for one in stack.all_components if isinstance(one, SupervisedSteps)]
    if not components:
        raise MlopsExtError(
            f"stack {stack.name} has nothing of flavor kubernetes_oom; see zenml stack list,"
            " or type mlops-ext zenml register"
        )
    for component in components:
        try:
            yield from _component(component)
        except UNANSWERED as error:
            raise MlopsExtError(
                f"the cluster of {component.name} does not answer: {describe_api_error(error)};"
                " see kubectl config get-contexts"
            ) from error
    yield from _registry(stack)
    yield from _image(components[0])


def _component(component: SupervisedSteps) -> Iterator[Finding]:
    config: Any = component.config
    api, kind = component.kube_api(), component.type.value.replace("_", "-")
    minor = int("".join(filter(str.isdigit, api.call("GET", "/version")["minor"])))
    version = f"Kubernetes 1.{minor}"
    if minor < _RESIZE_MINOR and config.in_place:
        update = f"zenml {kind} update {component.name} --in_place=False"
        yield note("version", f"{version} cannot resize a pod", update)
    else:
        yield good("version", f"{version} is recent enough")
    account = config.service_account_name or ""
    own = account if kind == "orchestrator" else ""
    for row in _RIGHTS:
        yield _right(api, own, *row)
    step = getattr(config, "step_pod_service_account_name", None) or account or "default"
    if config.in_place and minor >= _RESIZE_MINOR:
        yield _right(api, step, "patch", "pods/resize", "", "grow in place", note)
    needed = Quantity.parse(getattr(config, "orchestrator_memory", None) or ORCHESTRATOR_MEMORY)
    yield from _sizes(api, needed)


def _right(
    api: KubeApi, account: str, verbs: str, resource: str, scope: str, purpose: str, level: Any
) -> Finding:
    """Whether *account* (if "": the caller) has the right that is needed."""
    name, where = f"rights {resource}{' everywhere' if scope else ''}", api.namespace
    user = f"system:serviceaccount:{where}:{account}" if account else ""
    who = f"account {account}" if account else "your account"
    try:
        missing = [verb for verb in verbs.split() if not _may(api, verb, resource, scope, user)]
    except UNANSWERED as error:
        ask = f"kubectl auth can-i {verbs.split(maxsplit=1)[0]} {resource} -n {where} --as={user}"
        return note(name, f"not known of {who}: {describe_api_error(error)}", ask)
    if not missing:
        return good(name, f"{who} may {purpose}")
    role = f"mlops-ext-{resource.replace('/', '-').replace('.', '-')}"
    subject = f"--serviceaccount={where}:{account}" if account else "--user=YOU"
    verb, kind = ",".join(missing), "clusterrole" if scope else "role"
    at = "" if scope else f" -n {where}"
    advice = (
        f"kubectl create {kind} {role}{at} --verb={verb} --resource={resource} &&"
        f" kubectl create {kind}binding {role}{at} --{kind}={role} {subject}"
    )
    return level(name, f"{who} may not {verb} {resource}, to {purpose}", advice)  # type: ignore[no-any-return]  # one of the three below


def _may(api: KubeApi, verb: str, resource: str, scope: str, user: str) -> bool:
    name, _, group = resource.partition(".")
    name, _, sub = name.partition("/")
    place = {} if scope else {"namespace": api.namespace}
    asked = {"verb": verb, "resource": name, "group": group, "subresource": sub, **place}
    answer = api.call("POST", _REVIEWS, {"spec": {"resourceAttributes": asked}}, as_user=user)
    return bool(answer["status"]["allowed"])


def _sizes(api: KubeApi, needed: Quantity) -> Iterator[Finding]:
    """Whether quotas and LimitRanges leave the orchestrator's memory, *needed*."""
    place = f"-n {api.namespace}"
    for quota in api.fetch("resourcequotas"):
        name, status = quota["metadata"]["name"], quota.get("status") or {}
        for key, text in (status.get("hard") or {}).items():
            if key.rpartition(".")[2] == "memory":
                hard, used = Quantity.parse(text), Quantity.parse(status["used"].get(key, "0"))
                free = Quantity(max(0, hard - used))
                words = f"quota {name} leaves {free.human} of {hard.human} ({key})"
                level = problem if hard <= needed else note if free <= needed else good
                yield level("quota", words, f"kubectl edit resourcequota {name} {place}")
    for one in api.fetch("limitranges"):
        name = one["metadata"]["name"]
        for item in one["spec"]["limits"]:
            if most := (item.get("max") or {}).get("memory"):
                words = f"LimitRange {name} allows at most {most} a {item['type'].lower()}"
                level = problem if Quantity.parse(most) < needed else good
                yield level("limits", words, f"kubectl edit limitrange {name} {place}")


def _registry(stack: Stack) -> Iterator[Finding]:
    registry: Any = stack.container_registry
    if registry is None:
        return
    host = registry.config.uri.removeprefix("https://").partition("/")[0]
    scheme = "http" if registry.config.is_local else "https"
    try:
        urllib.request.urlopen(f"{scheme}://{host}/v2/", timeout=_PATIENCE_S).close()  # noqa: S310 - http
    except urllib.error.HTTPError:
        pass  # it answers, and wants to know who asks
    except (OSError, ValueError) as error:
        advice = f"zenml container-registry update {registry.name} --uri=REGISTRY"
        yield problem("registry", f"{host} does not answer: {redacted(error)}", advice)
        return
    yield good("registry", f"{host} answers")


def _image(component: SupervisedSteps) -> Iterator[Finding]:
    """Whether pip finds what an image that ZenML builds is to have."""
    wanted = component.mlops_ext_requirement
    command = [sys.executable, "-m", "pip", "install", "--dry-run", "--no-deps", "--quiet"]
    if importlib.util.find_spec("pip") is None:
        yield note("image", f"whether pip finds {wanted} is not known: there is no pip here")
        return
    try:
        done = subprocess.run(
            [*command, "--ignore-installed", wanted],
            capture_output=True,
            text=True,
            check=False,
            timeout=_PIP_S,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        yield note("image", f"whether pip finds {wanted} is not known: {redacted(error)}")
        return
    if done.returncode:
        kind = component.type.value.replace("_", "-")
        update = f"zenml {kind} update {component.name} --mlops_ext_requirement="
        advice = f"{update}'mlops-ext[zenml] @ git+https://…'"
        yield problem("image", f"pip finds no {wanted}, which images need", advice)
    else:
        yield good("image", f"pip finds {wanted}, for images that ZenML builds")
