"""From a ZenML step to core's memory policy: its key, its features, its request, its plan."""

from __future__ import annotations

import importlib.util
import logging
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any
from uuid import UUID

from mlops_ext.extensions.discovery import extensions
from mlops_ext.memory import Caps, Features, MemoryPlan, MemoryPolicy, Quantity, TaskKey
from mlops_ext.redaction import redacted

if TYPE_CHECKING:
    from zenml.config.step_configurations import Step

    from zenml_ext.settings import OomSettings

log = logging.getLogger(__name__)

# Caching parameter in which ZenML keeps the hash of a step's source.
_CODE_HASH = "code_hash"
# Metadata in which ZenML keeps an artifact's size in bytes.
_STORAGE_SIZE = "storage_size"


@dataclass(frozen=True, slots=True, kw_only=True)
class StepFacts:
    """What is configured for a step.

    Attributes:
        name: its name in the pipeline.
        pipeline: name of the pipeline.
        step: ZenML's configuration of it.
        settings: its settings, as its orchestrator or step operator has them.
        is_elsewhere: it only waits here for a step operator, which runs it.
    """

    name: str
    pipeline: str
    step: Step
    settings: OomSettings
    is_elsewhere: bool = False

    @property
    def key(self) -> TaskKey:
        """What counts as the same step: pipeline, function, and its source code.

        Invocations of one function (``train``, ``train_2``, ``map:train:0``) share one history.
        """
        version = str(self.step.config.caching_parameters.get(_CODE_HASH, ""))
        return TaskKey(pipeline=self.pipeline, step=function_of(self.step), version=version)

    @property
    def policy(self) -> MemoryPolicy:
        """The memory policy that its settings name."""
        return policy_for(self.settings)

    @property
    def max_memory(self) -> Quantity | None:
        """The user's cap."""
        text = self.settings.max_memory
        return Quantity.parse(text) if text else None

    def plan(self, policy: MemoryPolicy, features: Features, caps: Caps) -> MemoryPlan:
        """What *policy* gives it; no limit if the user wants it left alone."""
        if self.is_elsewhere:
            return MemoryPlan(ladder=(), reason="It waits for its step operator, which has a plan.")
        request = request_of(self.settings, self.step)
        if self.settings.when_no_memory == "leave" and request is None:
            return MemoryPlan(ladder=(), reason="No memory is set, and when_no_memory is leave.")
        plan = policy.decide(self.key, features, request, caps)
        return plan if plan.request else replace(plan, request=request)  # what was asked for stays


def policy_for(settings: OomSettings) -> MemoryPolicy:
    """The policy that *settings* name, with their number of retries.

    Raises:
        UnknownNameError: no policy has that name.
    """
    known = extensions()
    name = settings.memory_policy
    if name is None:
        learns = importlib.util.find_spec("numpy") and "history" in known.memory_policies()
        name = "history" if learns else "double"
    return known.memory_policy(name).with_budget(
        oom_retries=settings.oom_retries, retry_memory_error=settings.retry_memory_error
    )


def function_of(step: Any, default: str = "") -> str:
    """Name of the function behind a step or a step run; its invocation's if it has none."""
    name = getattr(step.config, "name", "") if getattr(step, "config", None) else ""
    return str(name or default or step.spec.invocation_id)


def request_of(settings: OomSettings, step: Step) -> Quantity | None:
    """What the user asked for: the setting, ``ResourceSettings(memory=…)``, the pod's; or None."""
    pod = getattr(settings, "pod_settings", None)
    resources = (pod.resources if pod else None) or {}
    sizes = ((resources.get(section) or {}).get("memory") for section in ("limits", "requests"))
    text = step.config.resource_settings.memory
    if settings.memory or not text:
        given = settings.memory or next(filter(None, sizes), None)
        return Quantity.parse(given) if given else None
    # ZenML writes 500MB, 1GiB; Kubernetes the same without the B, and a small k for kilo.
    text = text.removesuffix("B")
    return Quantity.parse(text[:-1] + "k" if text.endswith("K") else text)


def features_of(run_id: UUID | None, step: Step) -> Features:
    """What is known before the start: the bytes of the step's inputs, where ZenML knows them.

    Inputs of other steps must exist already. Costs one call of the API for each upstream step;
    an answer that cannot be had is no error.
    """
    if run_id is None or not step.spec.inputs:
        return Features()
    try:
        return Features(input_bytes=_input_bytes(run_id, step))
    except Exception as error:  # noqa: BLE001 - a hint: the server's hiccup must not fail a step
        name = step.spec.invocation_id
        log.debug("sizes of the inputs of %s are not known: %s", name, redacted(error))
        return Features()


def _input_bytes(run_id: UUID, step: Step) -> float | None:
    from zenml.client import Client

    total = 0.0
    by_step: dict[str, Any] = {}
    for sources in step.spec.inputs.values():
        for source in sources if isinstance(sources, list) else [sources]:
            if source.step_name not in by_step:
                page = Client().list_run_steps(
                    name=source.step_name,
                    pipeline_run_id=run_id,
                    sort_by="desc:created",
                    size=1,
                    hydrate=True,
                )
                by_step[source.step_name] = page[0].outputs if page.total else {}
            for artifact in by_step[source.step_name].get(source.output_name, ()):
                size = artifact.run_metadata.get(_STORAGE_SIZE)
                if size is None:
                    return None
                total += float(str(size))
    return total or None
