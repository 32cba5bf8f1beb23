"""A client of a ZenML server whose pipelines run on a real cluster.

The cluster, the server and the image are named by variables; where one is missing, the tests of
this folder are skipped:

* ``KUBECONFIG``: a cluster of Kubernetes 1.33 or later, context ``MLOPS_EXT_TEST_CONTEXT`` (default
  ``local``), in which the namespace ``zenml`` may be made and used;
* ``MLOPS_EXT_TEST_IMAGE``: an image with Python, ZenML, its Kubernetes integration and mlops-ext;
* ``ZENML_STORE_URL`` (and its credentials): a ZenML server that pods reach;
* ``MLOPS_EXT_TEST_STORE``: a folder that this machine and the nodes share by the same path.

``MLOPS_EXT_TEST_SOURCE``, if set, names another folder of the nodes, and after a colon the path by
which pods see it, in place of the image's copy: with an editable installation a changed tree then
needs no new image.
"""

import json
import os
import re
import secrets
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
from tests.doubles.kubernetes.pipelines import FOOTER, HEADER, SETUP, Outcome

NEEDED = ("KUBECONFIG", "MLOPS_EXT_TEST_IMAGE", "ZENML_STORE_URL", "MLOPS_EXT_TEST_STORE")
MISSING = [name for name in NEEDED if not os.environ.get(name)]
ON_A_CLUSTER = [
    pytest.mark.needs_cluster,
    pytest.mark.slow,
    pytest.mark.timeout(1200),
    pytest.mark.skipif(bool(MISSING), reason=f"not set: {', '.join(MISSING)}"),
]
"""The marks of every module here."""
STORE = os.environ.get("MLOPS_EXT_TEST_STORE", "")
CONTEXT = os.environ.get("MLOPS_EXT_TEST_CONTEXT", "local")
SHARED = [STORE, *filter(None, [os.environ.get("MLOPS_EXT_TEST_SOURCE")])]
COMMON = f"SHARED = {SHARED!r}  # as text: a dynamic pipeline is read again inside the cluster\n"
COMMON += """
MOUNT = {
    "volumes": [{"name": f"shared-{n}", "hostPath": {"path": p.split(":")[0]}}
                for n, p in enumerate(SHARED)],
    "volume_mounts": [{"name": f"shared-{n}", "mountPath": p.split(":")[-1]}
                      for n, p in enumerate(SHARED)],
    # an image has no compiled modules: without this each pod compiles ZenML for itself
    "env": [{"name": "PYTHONPYCACHEPREFIX", "value": f"{SHARED[0]}/compiled"}],
}
BARE = os.environ.get("TEST_STACK") == "bare"

def orchestrator(limit=None, pod={}, **more):
    if BARE:
        more = {}
    sizes = {"resources": {"limits": {"memory": limit}, "requests": {"memory": limit}}}
    pod = {**MOUNT, **pod, **(sizes if limit else {})}
    return {"orchestrator": {"orchestrator_pod_settings": MOUNT, "pod_settings": pod, **more}}
"""
ROLE = """
apiVersion: rbac.authorization.k8s.io/v1
kind: Role
metadata: {name: mlops-ext-resize, namespace: zenml}
rules: [{apiGroups: [""], resources: ["pods/resize"], verbs: ["patch"]}]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata: {name: mlops-ext-resize, namespace: zenml}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: Role, name: mlops-ext-resize}
subjects: [{kind: ServiceAccount, name: default, namespace: zenml}]
"""
GUARD = """
from zenml.client import Client
if not Client().list_stacks(name="ours").total:
"""


def kubectl(*arguments, text=None):
    command = ["kubectl", "--context", CONTEXT, "-n", "zenml", *arguments]
    return subprocess.run(command, input=text, capture_output=True, text=True, check=False)


def objects(kind, labels=""):
    return json.loads(kubectl("get", kind, "-l", labels, "-o", "json").stdout)["items"]


class Project:
    """A client of the ZenML server with the stacks ``bare`` and ``ours``."""

    def __init__(self, home):
        self.home = home
        self.salt = secrets.token_hex(3)  # in pipelines' names: no history but of this session
        (home / ".zen").mkdir()
        setup = SETUP.replace(
            '"kubernetes_context": "double"',
            f'"incluster": True, "kubernetes_context": "{CONTEXT}"',
        )
        setup = setup.replace('"local": True,', "").replace('"job_monitoring_interval": 1.0,', "")
        store = (
            'client.create_stack_component("shared", flavor="local",'
            f' component_type=Kind.ARTIFACT_STORE, configuration={{"path": {STORE!r}}})\n'
        )
        setup = setup.replace("for name, flavor", store + "for name, flavor")
        setup = setup.replace('Kind.ARTIFACT_STORE: "default"', 'Kind.ARTIFACT_STORE: "shared"')
        done = self._run("-c", f"{GUARD}{textwrap.indent(setup, '    ')}")
        assert done.returncode == 0, done.stdout + done.stderr

    def _environment(self, stack):
        return {
            **os.environ,
            "ZENML_CONFIG_PATH": str(self.home / "config"),
            "ZENML_ANALYTICS_OPT_IN": "false",
            "ZENML_ENABLE_RICH_TRACEBACK": "false",
            "TEST_STACK": stack,
        }

    def _run(self, *arguments):
        return self._call(sys.executable, *arguments)

    def command(self, *words):
        return self._call(str(Path(sys.executable).parent / words[0]), *words[1:])

    def _call(self, *command):
        return subprocess.run(
            command,
            env=self._environment("ours"),
            cwd=self.home,
            capture_output=True,
            text=True,
            check=False,
            timeout=200,
        )

    def start(self, code, stack="ours"):
        image = os.environ["MLOPS_EXT_TEST_IMAGE"]
        header = HEADER.replace("localhost/zenml:test", image) + COMMON
        for name in re.findall(r"^@pipeline.*?^def (\w+)\(", code, re.DOTALL | re.MULTILINE):
            code = re.sub(rf"\b{name}\b", f"{name}_{self.salt}", code)
        (self.home / "run_it.py").write_text(header + textwrap.dedent(code) + FOOTER)
        return subprocess.Popen(
            [sys.executable, "run_it.py"],
            env=self._environment(stack),
            cwd=self.home,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def finish(self, process):
        output, _ = process.communicate(timeout=2400)
        lines = [line for line in output.splitlines() if line.startswith("RESULT ")]
        assert lines, output
        found = json.loads(lines[-1].removeprefix("RESULT "))
        return Outcome(status=found["status"], error=found["error"], run=found, output=output)

    def run(self, code, stack="ours"):
        return self.finish(self.start(code, stack))


def orchestrator_log(found):
    """What the orchestrator's pods of a run have printed."""
    return kubectl("logs", "-l", f"run_id={found.run['id']},!step_name", "--tail=-1").stdout


def kills(found, step):
    return outcomes(found, step).count("killed for memory")


def outcomes(found, step):
    return [attempt["outcome"] for attempt in found.attempts(step)]


def until(found):
    """What *found* returns, once that is something."""
    deadline = time.monotonic() + 600
    while not (answer := found()):
        assert time.monotonic() < deadline
        time.sleep(0.5)
    return answer


def running(labels):
    """The one pod with these labels, once it runs."""

    def pods():
        return [pod for pod in objects("pods", labels) if pod["status"]["phase"] == "Running"]

    return until(pods)[0]
