"""A real API server accepts the kustomize base; accounts may do what they need; agents run.

Only ``KUBECONFIG`` is needed, and for the agents ``MLOPS_EXT_TEST_AGENT_IMAGE``, an image as the
kit's page describes it, and ``MLOPS_EXT_TEST_HOST``, the address by which pods reach this machine.
The namespace and all names are this test's own.
"""

import json
import os
import secrets
import subprocess
import time
from pathlib import Path

import pytest
from tests.doubles.clearml.server import ACCESS_KEY, SECRET_KEY, ApiDouble
from tests.support.gates import Gate

KIT = Path(__file__).resolve().parents[2] / "examples" / "kubernetes"
CONTEXT = os.environ.get("MLOPS_EXT_TEST_CONTEXT", "local")

pytestmark = [
    pytest.mark.needs_cluster,
    pytest.mark.slow,
    pytest.mark.skipif(not os.environ.get("KUBECONFIG"), reason="not set: KUBECONFIG"),
]


def kubectl(*arguments, text=None):
    command = ["kubectl", "--context", CONTEXT, *arguments]
    return subprocess.run(command, input=text, capture_output=True, text=True, check=False)


def done(*arguments, text=None):
    result = kubectl(*arguments, text=text)
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.fixture
def kit(tmp_path):
    """The name of a fresh namespace, and the folder of an overlay that puts the kit into it."""
    name = f"kit-{secrets.token_hex(4)}"
    overlay = {
        "namespace": name,
        "namePrefix": f"{name}-",
        "resources": [os.path.relpath(KIT, tmp_path.resolve())],
    }
    (tmp_path / "kustomization.yaml").write_text(json.dumps(overlay), encoding="utf-8")
    done("create", "namespace", name)
    yield name, tmp_path
    kubectl("delete", "-k", str(tmp_path), "--ignore-not-found", "--wait=false")
    kubectl("delete", "namespace", name, "--wait=false")


def may(account, namespace, verb, resource, *more):
    user = f"--as=system:serviceaccount:{namespace}:{namespace}-{account}"
    return kubectl("auth", "can-i", verb, resource, user, *more).stdout.strip() == "yes"


def test_the_api_server_accepts_the_kit_and_grants_what_the_pages_say(kit):
    namespace, folder = kit
    accepted = done("apply", "-k", str(folder), "--dry-run=server", "-o", "name").split()
    assert len(accepted) == 11
    assert kubectl("get", "role", "-n", namespace, "-o", "name").stdout == ""

    # restricted is the strictest of Kubernetes' Pod Security Standards
    done("label", "namespace", namespace, "pod-security.kubernetes.io/warn=restricted")
    assert "would violate" not in kubectl("apply", "-k", str(folder), "--dry-run=server").stderr
    loose = kubectl("create", "deployment", "x", "--image=x", "-n", namespace, "--dry-run=server")
    assert "would violate" in loose.stderr  # which shows that the warning works

    done("apply", "-k", str(folder), "-l", "app notin (clearml-agent,clearml-services-agent)")

    here = ("-n", namespace)
    steps, orchestrator = "zenml-steps", "zenml-orchestrator"
    assert may(steps, namespace, "patch", "pods", "--subresource=resize", *here)
    assert not may(steps, namespace, "get", "pods", *here)
    assert not may(steps, namespace, "patch", "pods", *here)
    for verb, resource in [
        ("create", "jobs.batch"),
        ("delete", "jobs.batch"),
        ("list", "pods"),
        ("create", "events"),
        ("list", "resourcequotas"),
    ]:
        assert may(orchestrator, namespace, verb, resource, *here)
    assert may(orchestrator, namespace, "list", "nodes")
    assert not may(orchestrator, namespace, "get", "secrets", *here)
    assert not may(orchestrator, namespace, "create", "jobs.batch", "-n", "default")


AGENT_IMAGE, HOST = (
    os.environ.get(f"MLOPS_EXT_TEST_{name}", "") for name in ("AGENT_IMAGE", "HOST")
)


@pytest.mark.skipif(
    not (AGENT_IMAGE and HOST), reason="not set: MLOPS_EXT_TEST_AGENT_IMAGE, MLOPS_EXT_TEST_HOST"
)
@pytest.mark.timeout(1200)
def test_the_kits_agents_run_in_their_pods_each_at_its_own_queue(kit):
    namespace, folder = kit
    name, _, tag = AGENT_IMAGE.rpartition(":")
    with ApiDouble(["default", "services"]) as server:
        url = Gate(HOST, server.http.server_address).url
        overlay = json.loads((folder / "kustomization.yaml").read_text())
        image = {"name": "registry.example.com/clearml-agent", "newName": name, "newTag": tag}
        hosts = [f"CLEARML_{kind}_HOST={url}" for kind in ("API", "WEB", "FILES")]
        generator = {"name": "clearml-server", "behavior": "merge", "literals": hosts}
        # a prefix is given to what a Deployment refers to, but not to a Secret of the user's
        overlay |= {"namePrefix": "", "images": [image], "configMapGenerator": [generator]}
        overlay["resources"] = [f"{one}/clearml" for one in overlay["resources"]]
        (folder / "kustomization.yaml").write_text(json.dumps(overlay), encoding="utf-8")
        keys = {"ACCESS": ACCESS_KEY, "SECRET": SECRET_KEY}
        literals = [f"--from-literal=CLEARML_API_{k}_KEY={v}" for k, v in keys.items()]
        done("-n", namespace, "create", "secret", "generic", "clearml-credentials", *literals)
        done("apply", "-k", str(folder))
        listens = {}
        end = time.monotonic() + 900
        while set(listens) != {"clearml-agent", "clearml-services-agent"}:
            pods = done("get", "pods", "-n", namespace, "-o", "wide")
            assert time.monotonic() < end, (pods, logs(namespace), listens)
            time.sleep(2)
            with server.store.lock:
                listens = queues_by_agent(server)
        assert listens == {"clearml-agent": {"default"}, "clearml-services-agent": {"services"}}
        ready = json.loads(done("get", "pods", "-n", namespace, "-o", "json"))["items"]
        assert {pod["status"]["phase"] for pod in ready} == {"Running"}
        assert "--patch" in done(
            "get", "deployment/clearml-services-agent", "-n", namespace, "-o", "yaml"
        )


def logs(namespace):
    agents = ("deployment/clearml-agent", "deployment/clearml-services-agent")
    return [kubectl("logs", "-n", namespace, one, "--tail=20").stdout for one in agents]


def queues_by_agent(server):
    """The queues that each Deployment's agent says it listens to; a worker is named by its pod."""
    found = {}
    for row in server.store.workers_get_all({})["workers"]:
        pod = row["id"].partition(":")[0]
        found[pod.rsplit("-", 2)[0]] = {one["name"] for one in row.get("queues") or ()}
    return found
