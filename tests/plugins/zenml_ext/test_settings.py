"""The settings shared by both flavors: what is refused names field, value and what is allowed."""

import importlib.metadata
from pathlib import Path

import pytest
from pydantic import ValidationError

from zenml_ext.settings import OomSettings, TempDir


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"memory": "12 potatoes"}, r"memory[\s\S]*'12 potatoes'[\s\S]*1\.5Gi"),
        ({"max_memory": "400MB"}, r"max_memory[\s\S]*without the B"),
        ({"max_memory": "0"}, r"max_memory[\s\S]*more than 0"),
        ({"memory": "2Gi", "max_memory": "1Gi"}, "memory = 2Gi is more than max_memory = 1Gi"),
        ({"oom_retries": -1}, r"oom_retries[\s\S]*greater than or equal to 0"),
        ({"oom_retries": 99}, r"oom_retries[\s\S]*less than or equal to 20"),
        ({"oom_retrys": 2}, "oom_retrys is no setting; did you mean oom_retries"),
        ({"memory_policy": "doubel"}, "did you mean 'double'"),
        ({"when_no_memory": "guess"}, r"when_no_memory[\s\S]*'policy' or 'leave'"),
        ({"temp_dir": "scratch"}, r"temp_dir[\s\S]*absolute path"),
        ({"temp_dir": {"path": "/s", "volume": "claim"}}, "volume=claim needs claim_name"),
        ({"temp_dir": {"path": "/s", "volume": "hostPath"}}, "needs host_path"),
        ({"temp_dir": {"path": "/s", "volume": "ephemeral"}}, "needs size_limit"),
        ({"temp_dir": {"path": "/s", "size_limit": "1Gi"}}, "size_limit is for volume=emptyDir"),
        ({"temp_dir": {"path": "/s", "medum": "Memory"}}, "medum"),
    ],
)
def test_a_wrong_value_is_refused_with_what_is_allowed(values, expected):
    with pytest.raises(ValidationError, match=expected):
        OomSettings(**values)


def test_a_temporary_directory_is_a_path_or_a_path_with_a_volume():
    assert OomSettings(temp_dir="/scratch").temp_dir == TempDir(path="/scratch")
    assert TempDir.model_validate_json("/scratch") == TempDir(path="/scratch")
    assert TempDir.model_validate_json('"/scratch"') == TempDir(path="/scratch")
    document = '{"path": "/s", "volume": "emptyDir", "medium": "Memory", "size_limit": "1Gi"}'
    assert TempDir.model_validate_json(document).medium == "Memory"


def test_every_setting_has_a_description_for_the_dashboard():
    for model in (OomSettings, TempDir):
        for name, field in model.model_fields.items():
            assert field.description, f"{model.__name__}.{name}"
            assert field.description.endswith(".")


def test_settings_survive_their_way_through_the_server():
    settings = OomSettings(memory="600Mi", max_memory="1.5Gi", temp_dir="/scratch")
    assert OomSettings.model_validate_json(settings.model_dump_json()) == settings


def test_the_reference_names_every_setting():
    pytest.importorskip("zenml")
    from zenml_ext.local.flavor import LocalOomConfig

    page = (Path(__file__).parents[3] / "docs/reference/zenml-settings.md").read_text("utf-8")
    for model in (LocalOomConfig, TempDir):
        for name, field in model.model_fields.items():
            assert f"| `{name}` |" in page
            assert " ".join(str(field.description).split()) in page


def test_images_get_mlops_ext_from_where_the_settings_say():
    pytest.importorskip("kubernetes")
    pytest.importorskip("zenml")
    from zenml_ext.kubernetes.orchestrator import KubernetesOomOrchestrator
    from zenml_ext.kubernetes.settings import KubernetesOomConfig

    def wanted(**config):
        orchestrator = object.__new__(KubernetesOomOrchestrator)
        orchestrator._config = KubernetesOomConfig(**config)
        return {text for text in orchestrator.requirements if text.startswith("mlops-ext")}

    wheel = "mlops-ext[zenml] @ https://files.example.com/mlops_ext-0.1.0-py3-none-any.whl"
    assert wanted(mlops_ext_requirement=wheel) == {wheel}
    assert wanted() == {f"mlops-ext[zenml]=={importlib.metadata.version('mlops-ext')}"}
