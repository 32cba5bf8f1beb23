"""A real API server accepts the kustomize base, and its accounts may do what they need and no more.

Only ``KUBECONFIG`` is needed. The namespace and all names are this test's own.
"""

import json
import os
import secrets
import subprocess
from pathlib import Path

import pytest

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
