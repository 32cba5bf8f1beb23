"""The process of the orchestrator's pod for static pipelines: ZenML's own, with a supervisor.

Run as ``python -m zenml_ext.kubernetes.supervisor.entrypoint`` with ZenML's own arguments,
``--snapshot_id`` and ``--run_id``.
"""

from __future__ import annotations

import functools
import logging
from typing import Any, cast

from kubernetes import client as k8s
from zenml.client import Client
from zenml.integrations.kubernetes import kube_utils
from zenml.integrations.kubernetes.orchestrators import kubernetes_orchestrator_entrypoint

from zenml_ext.kubernetes.client import KubeApi
from zenml_ext.kubernetes.flavor import KubernetesOomSettings
from zenml_ext.kubernetes.objects.job import STEP_NAME_ANNOTATION
from zenml_ext.kubernetes.supervisor.own_memory import OwnMemory
from zenml_ext.kubernetes.supervisor.step_runs import StepFacts
from zenml_ext.kubernetes.supervisor.supervisor import Supervisor

__all__ = ["install", "main"]

log = logging.getLogger(__name__)


def main() -> None:
    """Run the pipeline, as ZenML's entrypoint does."""
    arguments = kubernetes_orchestrator_entrypoint.parse_args()
    with OwnMemory() as own:
        install(arguments.snapshot_id, own)
        kubernetes_orchestrator_entrypoint.main()


def install(snapshot_id: str, own: OwnMemory | None = None) -> Supervisor:
    """Put a supervisor behind the functions that ZenML's entrypoint calls, in this process.

    Args:
        snapshot_id: the snapshot whose steps are run.
        own: watches this process's memory; it is told the run, and when the run had begun before.
    """

    @functools.cache
    def facts(step_name: str) -> StepFacts:
        snapshot = _snapshot(snapshot_id)
        step = snapshot.step_configurations[step_name]
        orchestrator: Any = Client().active_stack.orchestrator
        return StepFacts(
            name=step_name,
            pipeline=snapshot.pipeline_configuration.name,
            step=step,
            settings=cast("KubernetesOomSettings", orchestrator.get_settings(step)),
        )

    supervisor = Supervisor(facts)
    list_jobs = kube_utils.list_jobs

    def create_supervised(batch_api: Any, namespace: str, job_manifest: Any, **options: Any) -> Any:
        api = KubeApi(batch_api, None, namespace, options.get("api_request_timeout"))
        manifest = api.plain(job_manifest)
        step_name = (manifest["metadata"].get("annotations") or {}).get(STEP_NAME_ANNOTATION)
        if step_name is None:
            return batch_api.create_namespaced_job(namespace=namespace, body=manifest)
        run_id = manifest["metadata"]["labels"].get("run_id")
        if own is not None:
            own.run_id = run_id
        return supervisor.create(api, supervisor.prepare(manifest, facts(step_name), run_id))

    def list_supervised(batch_api: Any, namespace: str, **options: Any) -> Any:
        found: Any = list_jobs(batch_api=batch_api, namespace=namespace, **options)
        api = KubeApi(batch_api, None, namespace, options.get("api_request_timeout"))
        if own is not None:
            core = k8s.CoreV1Api(batch_api.api_client)
            run_id = str(options.get("label_selector") or "").rpartition("run_id=")[2]
            own.look_back(KubeApi(batch_api, core, namespace), run_id.partition(",")[0])
        counted = supervisor.take_over(api, api.plain(found)["items"])
        shown = {
            job["metadata"]["name"]: {one["type"] for one in job["status"].get("conditions") or ()}
            for job in counted
        }
        found.items = [job for job in found.items if job.metadata.name in shown]
        for job in found.items:
            types = shown[job.metadata.name]
            kept = [one for one in job.status.conditions or () if one.type in types]
            job.status.conditions = kept or None
        return found

    seams: Any = kube_utils
    seams.create_job = create_supervised
    seams.list_jobs = list_supervised
    seams.check_job_status = supervisor.check
    return supervisor


@functools.cache
def _snapshot(snapshot_id: str) -> Any:
    return Client().get_snapshot(snapshot_id)


if __name__ == "__main__":
    main()
