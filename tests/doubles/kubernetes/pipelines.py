"""ZenML beside the double: a home of its own, stacks, and pipelines run by a client process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.doubles.kubernetes.cluster import Cluster

SETUP = """
from zenml.client import Client
from zenml.enums import StackComponentType as Kind

client = Client()
client.create_flavor("zenml_ext.kubernetes.flavor.KubernetesOomFlavor", Kind.ORCHESTRATOR)
client.create_stack_component(
    "registry", flavor="default", component_type=Kind.CONTAINER_REGISTRY,
    configuration={"uri": "localhost"},
)
client.create_stack_component(
    "builder", flavor="local", component_type=Kind.IMAGE_BUILDER, configuration={})
for name, flavor in (("bare", "kubernetes"), ("ours", "kubernetes_oom")):
    client.create_stack_component(
        name, flavor=flavor, component_type=Kind.ORCHESTRATOR,
        configuration={
            "kubernetes_context": "double", "kubernetes_namespace": "zenml", "local": True,
            "skip_local_validations": True, "job_monitoring_interval": 1.0,
        },
    )
    client.create_stack(name, components={
        Kind.ORCHESTRATOR: name, Kind.ARTIFACT_STORE: "default",
        Kind.CONTAINER_REGISTRY: "registry", Kind.IMAGE_BUILDER: "builder",
    })
"""

HEADER = """
import gc, json, os, sys, time
from zenml import pipeline, step
from zenml.client import Client
from zenml.config import DockerSettings, ResourceSettings, StepRetryConfig

docker = DockerSettings(parent_image="localhost/zenml:test", skip_build=True)

def memory(limit=None, request=None, **more):
    resources = {}
    if limit: resources["limits"] = {"memory": limit}
    if request or limit: resources["requests"] = {"memory": request or limit}
    return {"orchestrator": {"pod_settings": {"resources": resources}, **more}}

def eat(mib, seconds=0.0):
    blocks = []
    for _ in range(mib // 10):
        blocks.append(bytearray(10 << 20))
        blocks[-1][::4096] = b"x" * len(blocks[-1][::4096])
        time.sleep(seconds * 10 / mib)
    return len(blocks)
"""

FOOTER = """
if __name__ == "__main__":
    Client().activate_stack(os.environ["TEST_STACK"])
    error, mine = "", None
    try:
        mine = the_pipeline()
    except BaseException as caught:
        error = repr(caught)
    latest = Client().list_pipeline_runs(sort_by="desc:created", size=1)[0]
    run = Client().get_pipeline_run(mine.id if mine else latest.id)
    steps = Client().list_run_steps(
        pipeline_run_id=run.id, sort_by="asc:created", size=200, hydrate=True)
    print("RESULT " + json.dumps({
        "status": run.status.value, "error": error, "id": str(run.id),
        "metadata": {k: v for k, v in run.run_metadata.items()},
        "steps": [
            {"name": s.name, "version": s.version, "status": s.status.value,
             "metadata": {k: v for k, v in s.run_metadata.items()}}
            for s in steps],
    }, default=str))
"""


@dataclass(kw_only=True)
class Outcome:
    """A pipeline run, as its client saw it."""

    status: str
    error: str
    run: dict[str, Any]
    output: str

    def statuses(self) -> dict[str, str]:
        return {step["name"]: step["status"] for step in self.run["steps"]}

    def attempts(self, step: str) -> list[dict[str, Any]]:
        rows = [step_run for step_run in self.run["steps"] if step_run["name"] == step]
        return rows[-1]["metadata"].get("memory_attempts", []) if rows else []


class Zenml:
    """A ZenML home with an embedded store, and stacks ``bare`` and ``ours`` for the double."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.project = home / "project"
        self.project.mkdir(parents=True)
        (self.project / ".zen").mkdir()
        self._python(SETUP)

    def environment(self, **more: str) -> dict[str, str]:
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("ZENML_", "MLOPS_EXT_"))}
        return {
            **kept,
            "ZENML_CONFIG_PATH": str(self.home / "config"),
            "ZENML_LOCAL_STORES_PATH": str(self.home / "config" / "local_stores"),
            "MLOPS_EXT_MEMORY_HISTORY": str(self.home / "history.sqlite"),
            "ZENML_ANALYTICS_OPT_IN": "false",
            "ZENML_LOGGING_VERBOSITY": "INFO",
            "ZENML_ENABLE_RICH_TRACEBACK": "false",
            "AUTO_OPEN_DASHBOARD": "false",
            "ZENML_DISABLE_CLIENT_SERVER_MISMATCH_WARNING": "true",
            **more,
        }

    def _python(self, code: str) -> None:
        done = subprocess.run(
            [sys.executable, "-c", code],
            env=self.environment(),
            cwd=self.project,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr

    def start(self, cluster: Cluster, code: str, stack: str) -> subprocess.Popen[str]:
        """A client process that runs the pipeline ``the_pipeline`` of *code*."""
        path = self.project / "run_it.py"
        path.write_text(HEADER + textwrap.dedent(code) + FOOTER)
        return subprocess.Popen(
            [sys.executable, path.name],
            env=self.environment(KUBECONFIG=str(cluster.kubeconfig()), TEST_STACK=stack),
            cwd=self.project,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def result(self, process: subprocess.Popen[str], timeout_s: float = 240) -> Outcome:
        output, _ = process.communicate(timeout=timeout_s)
        lines = [line for line in output.splitlines() if line.startswith("RESULT ")]
        assert lines, output
        found = json.loads(lines[-1].removeprefix("RESULT "))
        return Outcome(status=found["status"], error=found["error"], run=found, output=output)

    def run(
        self, cluster: Cluster, code: str, stack: str = "ours", timeout_s: float = 240
    ) -> Outcome:
        return self.result(self.start(cluster, code, stack), timeout_s)
