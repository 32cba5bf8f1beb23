"""The pods that the orchestrator makes of its settings."""

import pytest

pytest.importorskip("kubernetes")

from zenml.integrations.kubernetes.pod_settings import KubernetesPodSettings

from zenml_ext.kubernetes.orchestrator import protected
from zenml_ext.kubernetes.settings import KubernetesOomSettings
from zenml_ext.kubernetes.steps import step_pod


def orchestrator(*, is_dynamic=False, resources=None, **settings):
    pod = KubernetesPodSettings(resources=resources) if resources else None
    chosen = KubernetesOomSettings(orchestrator_pod_settings=pod, **settings)
    return protected(chosen, is_dynamic=is_dynamic).resources


def test_the_orchestrators_memory_request_equals_its_limit():
    resources = orchestrator()
    assert resources["requests"] == {"memory": "600Mi"}
    assert resources["limits"] == {"memory": "600Mi"}


def test_a_pod_in_which_inline_steps_run_has_no_limit_but_the_users():
    free = orchestrator(is_dynamic=True)
    assert free["requests"]["memory"] == "600Mi"
    assert "limits" not in free
    named = orchestrator(is_dynamic=True, orchestrator_memory="2Gi")
    assert named["requests"]["memory"] == named["limits"]["memory"] == "2Gi"
    own = orchestrator(is_dynamic=True, resources={"requests": {"memory": "3Gi"}})
    assert own["requests"]["memory"] == "3Gi"
    assert "limits" not in own


def test_what_the_user_gave_the_orchestrator_is_kept():
    given = {"limits": {"memory": "1Gi", "cpu": "2"}, "requests": {"nvidia.com/gpu": "1"}}
    resources = orchestrator(resources=given)
    assert resources["limits"] == {"memory": "1Gi", "cpu": "2"}
    assert resources["requests"] == {"memory": "1Gi", "nvidia.com/gpu": "1"}


def test_a_steps_shared_memory_is_mounted_once_and_beside_its_temporary_directory():
    settings = KubernetesOomSettings(shm_size="2Gi", temp_dir={"path": "/s", "volume": "emptyDir"})
    once = step_pod(settings)
    twice = step_pod(settings.model_copy(update={"pod_settings": once}))
    assert twice.volumes == once.volumes
    assert [mount["mountPath"] for mount in once.volume_mounts] == ["/s", "/dev/shm"]
    assert once.volumes[1]["emptyDir"] == {"medium": "Memory", "sizeLimit": "2Gi"}
    assert [one["name"] for one in once.env] == ["TMPDIR", "MLOPS_EXT_TEMP_DIR"]
    assert step_pod(KubernetesOomSettings()).volumes == []


@pytest.mark.parametrize("name", ["shm_size", "orchestrator_memory"])
def test_a_size_that_is_none_is_refused_with_its_name(name):
    with pytest.raises(ValueError, match=name):
        KubernetesOomSettings(**{name: "much"})
