"""The process of the orchestrator's pod for static pipelines: ZenML's own, with a supervisor.

Run as ``python -m zenml_ext.kubernetes.supervisor.entrypoint`` with ZenML's own arguments,
``--snapshot_id`` and ``--run_id``.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable
from typing import Any, cast

from zenml.client import Client
from zenml.integrations.kubernetes.orchestrators import kubernetes_orchestrator_entrypoint

from zenml_ext.kubernetes.client import KubeApi
from zenml_ext.kubernetes.objects.job import STEP_NAME_ANNOTATION
from zenml_ext.kubernetes.objects.state import STATE_ANNOTATION
from zenml_ext.kubernetes.settings import KubernetesOomSettings
from zenml_ext.kubernetes.supervisor.own_memory import OrchestratorMemory
from zenml_ext.kubernetes.supervisor.supervisor import Supervisor
from zenml_ext.memory.policy import StepFacts
from zenml_ext.processes import ORCHESTRATOR_POD, patch_own_process

_FAILURES = frozenset({"Failed", "FailureTarget"})

_active: SupervisedRun | None = None


def main() -> None:
    """Run the pipeline, as ZenML's entrypoint does."""
    arguments = kubernetes_orchestrator_entrypoint.parse_args()
    with OrchestratorMemory() as own:
        run = SupervisedRun(arguments.snapshot_id, own)
        supervise(run)
        try:
            kubernetes_orchestrator_entrypoint.main()
        finally:
            run.supervisor.close()


def supervise(run: SupervisedRun) -> None:
    """Put *run* behind the functions that ZenML's entrypoint calls, in this process."""
    global _active
    _active = run
    patch_own_process(ORCHESTRATOR_POD)


def active_run() -> SupervisedRun:
    """The run that this process orchestrates."""
    if _active is None:
        raise RuntimeError("No run is supervised in this process.")
    return _active


class SupervisedRun:
    """What takes the place of ZenML's functions on Jobs, for one run of a static pipeline.

    Args:
        snapshot_id: the snapshot whose steps are run.
        own: this process's memory; gets the run's id, and is asked about earlier kills.
    """

    def __init__(self, snapshot_id: str, own: OrchestratorMemory | None = None) -> None:
        self._snapshot_id, self._own = snapshot_id, own
        self._known: dict[str, StepFacts] = {}
        self.supervisor = Supervisor(self._facts)

    def check_job_status(self, _: Callable[..., Any], **options: Any) -> Any:
        """ZenML's ``kube_utils.check_job_status``, of a step's Job and what superseded it."""
        return self.supervisor.check(**options)

    def create_job(
        self,
        _: Callable[..., Any],
        batch_api: Any,
        namespace: str,
        job_manifest: Any,
        **options: Any,
    ) -> Any:
        """ZenML's ``kube_utils.create_job``; a step's Job gets a plan for its memory."""
        api = KubeApi(batch_api, None, namespace, options.get("api_request_timeout"))
        manifest = api.plain(job_manifest)
        step_name = (manifest["metadata"].get("annotations") or {}).get(STEP_NAME_ANNOTATION)
        if step_name is None:
            return batch_api.create_namespaced_job(namespace=namespace, body=manifest)
        run_id = manifest["metadata"]["labels"].get("run_id")
        if self._own is not None:
            self._own.run_id = run_id
        facts = self._facts(step_name)
        return self.supervisor.create(api, self.supervisor.prepare(manifest, facts, run_id))

    def list_jobs(
        self, upstream: Callable[..., Any], batch_api: Any, namespace: str, **options: Any
    ) -> Any:
        """What ZenML's ``kube_utils.list_jobs``, *upstream*, finds; superseded Jobs left out.

        ZenML asks when this process goes on with a run that another one had begun.
        """
        found: Any = upstream(batch_api=batch_api, namespace=namespace, **options)
        api = KubeApi(batch_api, None, namespace, options.get("api_request_timeout"))
        if self._own is not None:
            run_id = str(options.get("label_selector") or "").rpartition("run_id=")[2]
            self._own.report_earlier_kills(api, run_id.partition(",")[0])
        current = self.supervisor.take_over(api, api.plain(found)["items"])
        names = {job["metadata"]["name"] for job in current}
        found.items = [job for job in found.items if job.metadata.name in names]
        for job in found.items:
            if STATE_ANNOTATION in (job.metadata.annotations or {}):
                # Whether it has failed for good is decided by `check`, asked about what runs.
                kept = [one for one in job.status.conditions or () if one.type not in _FAILURES]
                job.status.conditions = kept or None
        return found

    def _facts(self, step_name: str) -> StepFacts:
        if step_name not in self._known:
            snapshot = _snapshot(self._snapshot_id)
            step = snapshot.step_configurations[step_name]
            orchestrator: Any = Client().active_stack.orchestrator
            self._known[step_name] = StepFacts(
                name=step_name,
                pipeline=snapshot.pipeline_configuration.name,
                step=step,
                settings=cast("KubernetesOomSettings", orchestrator.get_settings(step)),
                is_elsewhere=bool(step.config.step_operator),
            )
        return self._known[step_name]


@functools.cache
def _snapshot(snapshot_id: str) -> Any:
    return Client().get_snapshot(snapshot_id)


if __name__ == "__main__":  # patches find the active run in the module of this name
    importlib.import_module("zenml_ext.kubernetes.supervisor.entrypoint").main()
