"""A step's Jobs: the first one made ready for out-of-memory retries, the next one with more memory.

Everything here is pure and works on the JSON form of Kubernetes objects. What a later orchestrator
pod must know of a step stands in the annotations of its Job, so that none of it can be lost with
a process.
"""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from mlops_ext.codec import encode
from mlops_ext.memory import Features, InPlace, MemoryPlan, Quantity
from zenml_ext.kubernetes.objects.placement import place, tolerate_pressure
from zenml_ext.kubernetes.objects.state import PREFIX, STATE_ANNOTATION, AttemptState, state_of
from zenml_ext.memory.exits import SIGKILLED

Manifest = dict[str, Any]

ATTEMPT_LABEL = f"{PREFIX}/attempt"
SUPERSEDED_LABELS = {"run_id": f"{PREFIX}/superseded-run-id", "step_run_id": f"{PREFIX}/superseded"}
ATTEMPTS_VARIABLE = "MLOPS_EXT_MEMORY_ATTEMPTS"
IN_PLACE_VARIABLE = "MLOPS_EXT_IN_PLACE"
TASK_VARIABLE = "MLOPS_EXT_TASK"
POD_VARIABLE = "MLOPS_EXT_POD"
NODE_VARIABLE = "MLOPS_EXT_NODE"
STEP_NAME_ANNOTATION = "zenml.io/step-name"
"""ZenML's own annotation of step Jobs (zenml.integrations.kubernetes.constants)."""
RESUMING_ENTRYPOINT = "zenml_ext.kubernetes.step.entrypoint.KubernetesStepEntrypointConfiguration"
_STEP_OPERATOR_MODULE = "zenml.step_operators.step_operator_entrypoint_configuration"
KNOWN_ENTRYPOINTS = frozenset(
    {
        "zenml.entrypoints.step_entrypoint_configuration.StepEntrypointConfiguration",
        f"{_STEP_OPERATOR_MODULE}.StepOperatorEntrypointConfiguration",
    }
)
MAIN = "main"
_UNKNOWN = Features()
_SOURCE_OPTION = "--entrypoint_config_source"
_STEP_RUN_OPTION = "--step_run_id"
_JOB_KEYS = ("job-name", "controller-uid")
_NAME_LENGTH = 63
_RULES: Sequence[Manifest] = (
    # Order matters: a pod that is taken from its node exits with 137 as well.
    {"action": "FailJob", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
    {
        "action": "FailJob",
        "onExitCodes": {"containerName": MAIN, "operator": "In", "values": [SIGKILLED]},
    },
)


def is_finished(job: Mapping[str, Any]) -> bool:
    """Whether Kubernetes has declared the Job complete or failed."""
    return any(
        condition["type"] in {"Complete", "Failed"} and condition["status"] == "True"
        for condition in (job.get("status") or {}).get("conditions") or ()
    )


def main_container(job: Mapping[str, Any]) -> Manifest:
    """The container that runs the step."""
    containers: list[Manifest] = job["spec"]["template"]["spec"]["containers"]
    return next((one for one in containers if one["name"] == MAIN), containers[0])


def step_name_of(job: Mapping[str, Any]) -> str:
    """Name of the step that a Job runs."""
    return str(job["metadata"]["annotations"][STEP_NAME_ANNOTATION])


def run_id_of(job: Mapping[str, Any]) -> str:
    """Id of the pipeline run that a step's Job belongs to, also of one that was superseded."""
    labels = job["metadata"]["labels"]
    return str(labels.get("run_id") or labels[SUPERSEDED_LABELS["run_id"]])


def memory_of(container: Mapping[str, Any]) -> tuple[Quantity | None, Quantity | None]:
    """Memory limit and request of a container."""
    resources = container.get("resources") or {}
    limit, request = (
        (resources.get(section) or {}).get("memory") for section in ("limits", "requests")
    )
    return (
        Quantity.parse(limit) if limit is not None else None,
        Quantity.parse(request) if request is not None else None,
    )


def set_memory(
    container: Manifest, limit: Quantity | None, request: Quantity | None = None
) -> None:
    """Give a container a memory limit, and the same as its request unless told otherwise.

    A request below the limit makes an out-of-memory kill the node's affair. Without a limit the
    request is set alone.
    """
    resources = copy.deepcopy(container.get("resources") or {})
    for section, value in (("limits", limit), ("requests", request or limit)):
        if value is not None:
            resources[section] = {**(resources.get(section) or {}), "memory": str(value)}
    container["resources"] = resources


def prepare_step_job(
    manifest: Mapping[str, Any],
    *,
    plan: MemoryPlan | None,
    in_place: bool,
    features: Features = _UNKNOWN,
    version: str = "",
) -> Manifest:
    """The step's first Job: labelled, ended at once by a kill, run by our entrypoint.

    ``podFailurePolicy`` gets rules in front of those that are there: a pod that is taken from
    its node, or whose main container ends with 137, ends the Job, and the orchestrator decides
    what follows. Otherwise Kubernetes would run it again with the memory it died of.
    """
    job = copy.deepcopy(dict(manifest))
    meta, spec = job["metadata"], job["spec"]
    container = main_container(job)
    grows = plan.in_place if plan is not None and in_place else None
    first = grows.start if grows else plan.first_limit if plan else None
    if first is not None:
        set_memory(container, first)
    limit, _ = memory_of(container)
    rules = (spec.get("podFailurePolicy") or {}).get("rules") or []
    spec["podFailurePolicy"] = {"rules": [*copy.deepcopy(list(_RULES)), *rules]}
    _label(job, {ATTEMPT_LABEL: "1"})
    if first is not None:
        tolerate_pressure(job)
    state = AttemptState(base=meta["name"], features=features, version=version, plan=plan)
    meta["annotations"] = {**(meta.get("annotations") or {}), STATE_ANNOTATION: state.dump()}
    _use_own_entrypoint(container, step_run_id=None)
    task = {"input_bytes": features.known_input, "version": version}
    growth = _growth_of(plan, limit) if in_place else None
    _set_variables(container, {IN_PLACE_VARIABLE: growth, TASK_VARIABLE: json.dumps(task)})
    return job


@dataclass(frozen=True, slots=True, kw_only=True)
class JobChange:
    """How the Job that succeeds another differs from it.

    Attributes:
        state: what has happened, with this Job counted in.
        limit: the memory limit; None leaves the step without one.
        request: the memory request; None: the same as the limit.
        step_run_id: the step run to resume; None makes a new one.
        backoff_limit: what is left of the user's own retries.
        avoid_node: a node it must not run on, or "".
        in_place: whether its pod may be resized while it runs.
    """

    state: AttemptState
    limit: Quantity | None
    request: Quantity | None = None
    step_run_id: str | None = None
    backoff_limit: int = 0
    avoid_node: str = ""
    in_place: bool = True


def next_job_name(state: AttemptState) -> str:
    """Name of the Job with this *state*: the same, whoever computes it and how often."""
    suffix = f"-m{state.number}"
    if len(state.base) + len(suffix) > _NAME_LENGTH:  # what is cut off may be all that differs
        suffix = f"-{hashlib.sha256(state.base.encode()).hexdigest()[:8]}{suffix}"
    return f"{state.base[: _NAME_LENGTH - len(suffix)].rstrip('-.')}{suffix}"


def next_job(job: Mapping[str, Any], change: JobChange) -> Manifest:
    """The Job that succeeds *job*, ready to be created: the same but for what *change* says.

    *job* is as the API server has it: fields that nobody here knows are kept. The name follows
    from the state alone, so that two orchestrator pods, or one that died between creating it and
    saying so, can only ever create one.
    """
    spec = copy.deepcopy(dict(job["spec"]))
    meta = job["metadata"]
    spec.pop("selector", None)
    spec.pop("suspend", None)
    spec["backoffLimit"] = change.backoff_limit
    template = spec["template"]
    labels = template.setdefault("metadata", {}).get("labels") or {}
    template["metadata"]["labels"] = {
        key: value
        for key, value in labels.items()
        if key not in _JOB_KEYS and not key.startswith("batch.kubernetes.io/")
    }
    template["metadata"].pop("creationTimestamp", None)
    kept = ("labels", "annotations", "ownerReferences", "namespace")
    new_meta = {key: copy.deepcopy(meta[key]) for key in kept if meta.get(key)}
    new_meta["name"] = next_job_name(change.state)
    new_meta["annotations"] = {
        **(new_meta.get("annotations") or {}),
        STATE_ANNOTATION: change.state.dump(),
    }
    new: Manifest = {"apiVersion": "batch/v1", "kind": "Job", "metadata": new_meta, "spec": spec}
    container = main_container(new)
    set_memory(container, change.limit, change.request)
    _label(new, {ATTEMPT_LABEL: str(change.state.number)})
    _use_own_entrypoint(container, step_run_id=change.step_run_id)
    growth = _growth_of(change.state.plan, change.limit) if change.in_place else None
    _set_variables(
        container,
        {ATTEMPTS_VARIABLE: json.dumps(list(change.state.attempts)), IN_PLACE_VARIABLE: growth},
    )
    place(new, change.state, avoid_node=change.avoid_node, is_limited=change.limit is not None)
    return new


def superseding_patch(job: Mapping[str, Any]) -> Manifest:
    """The merge patch that takes *job* out of ZenML's look-ups by label."""
    labels = job["metadata"].get("labels") or {}
    changed: dict[str, str | None] = {}
    for old, new in SUPERSEDED_LABELS.items():
        if old in labels:
            changed |= {old: None, new: labels[old]}
    return {"metadata": {"labels": changed}}


def latest_jobs(jobs: Iterable[Manifest]) -> tuple[list[Manifest], list[Manifest]]:
    """The Jobs that count, and those that are superseded.

    Between the creation of a successor and the relabelling of what it supersedes both carry the
    run's label; so does everything after an orchestrator pod that died there.
    """
    states = [(job, state_of(job)) for job in jobs]
    newest: dict[str, int] = {}
    for _, state in states:
        if state:
            newest[state.base] = max(state.number, newest.get(state.base, 0))
    current = [job for job, state in states if not state or state.number == newest[state.base]]
    superseded = [job for job, state in states if state and state.number < newest[state.base]]
    return current, superseded


def _label(job: Manifest, labels: Mapping[str, str]) -> None:
    job["metadata"]["labels"] = {**(job["metadata"].get("labels") or {}), **labels}
    template = job["spec"]["template"].setdefault("metadata", {})
    template["labels"] = {**(template.get("labels") or {}), **labels}


def _use_own_entrypoint(container: Manifest, step_run_id: str | None) -> None:
    """Swap ZenML's step entrypoint for the one that resumes; leave a foreign one alone."""
    arguments: list[str] = list(container.get("args") or ())
    if _SOURCE_OPTION not in arguments:
        return
    at = arguments.index(_SOURCE_OPTION) + 1
    if arguments[at] not in {*KNOWN_ENTRYPOINTS, RESUMING_ENTRYPOINT}:
        return
    arguments[at] = RESUMING_ENTRYPOINT
    if step_run_id is not None:
        if _STEP_RUN_OPTION in arguments:
            arguments[arguments.index(_STEP_RUN_OPTION) + 1] = step_run_id
        else:
            arguments += [_STEP_RUN_OPTION, step_run_id]
    container["args"] = arguments


def _set_variables(container: Manifest, values: Mapping[str, str | None]) -> None:
    """Set, or with None remove, environment variables; and tell the pod where it is."""
    fields = {POD_VARIABLE: "metadata.name", NODE_VARIABLE: "spec.nodeName"}
    kept = [one for one in container.get("env") or () if one["name"] not in {*values, *fields}]
    new: list[Manifest] = [
        {"name": name, "value": value} for name, value in values.items() if value is not None
    ]
    own = [
        {"name": name, "valueFrom": {"fieldRef": {"fieldPath": path}}}
        for name, path in fields.items()
    ]
    container["env"] = [*kept, *new, *own]


def _growth_of(plan: MemoryPlan | None, limit: Quantity | None) -> str | None:
    """How the pod may grow, for the monitor in it; None where it has no limit to raise."""
    if limit is None:
        return None
    growth = (plan and plan.in_place) or InPlace(start=limit, threshold=0.85, growth=1.5)
    if growth.ceiling is None and plan and plan.cap:
        growth = replace(growth, ceiling=plan.cap.memory)
    return json.dumps(encode(growth))
