"""The manifests: valid by KServe's, Kubernetes' and Knative's own schemas, and true in each comment."""

import itertools
import json
import re
from pathlib import Path
from typing import get_args

import kserve
import kubernetes.client
import pytest
import yaml
from click.testing import CliRunner

from kserve_ext.cli import kserve as command
from kserve_ext.manifest import AGENT_QUIET_S, MODES, Extra, Kind, manifest
from kserve_ext.settings import KServeSettings

MASKS = json.loads(
    (Path(__file__).parents[2] / "data" / "knative" / "masks.json").read_text(encoding="utf-8")
)
KINDS = {
    "InferenceService": "V1beta1InferenceService",
    "ServingRuntime": "V1alpha1ServingRuntime",
    "Deployment": "V1Deployment",
    "Service": "V1Service",
}
PAIRS = [
    (kind, mode)
    for kind in get_args(Kind)
    for mode in ("standard", "serverless")
    if (kind, mode) != ("deployment", "serverless")
]


def validate(value, kind, path):
    """Raise where *value* is not of *kind*, a model of the kserve or the kubernetes package."""
    kind = re.sub(r"\bK8sIo\w*?(?=V\d)", "", kind)  # the wheel's long names of Kubernetes' own
    model = getattr(kserve, kind, None) or getattr(kubernetes.client, kind, None)
    if kind.lower().startswith("list["):
        assert isinstance(value, list), path
        for number, item in enumerate(value):
            validate(item, kind[5:-1], f"{path}[{number}]")
    elif model is not None and hasattr(model, "openapi_types"):
        names = {key: name for name, key in model.attribute_map.items()}
        assert set(value) <= set(names), f"{path}: {set(value) - set(names)}"
        for key, item in value.items():
            validate(item, model.openapi_types[names[key]], f"{path}.{key}")
        model(**{names[key]: item for key, item in value.items()})  # what is required is there
    elif kind in {"str", "int", "bool"}:
        assert type(value).__name__ == kind, f"{path}: {value!r} is no {kind}"
    else:
        assert kind == "object" or kind.lower().startswith("dict"), f"{path}: {kind}"


def documents(text):
    found = list(yaml.safe_load_all(text))
    for document in found:
        validate(document, KINDS[document["kind"]], document["kind"])
    return found


def parts(text):
    """The documents; the pod's spec; the container."""
    found = documents(text)
    by_kind = {each["kind"]: each for each in found}
    if "Deployment" in by_kind:
        pod = by_kind["Deployment"]["spec"]["template"]["spec"]
        return found, pod, pod["containers"][0]
    pod = by_kind["InferenceService"]["spec"]["predictor"]
    holder = by_kind["ServingRuntime"]["spec"] if "ServingRuntime" in by_kind else pod
    return found, pod, holder["containers"][0]


@pytest.mark.parametrize("name", ["iris", "yes", "1", "a: b # c", "'", '"', "$image", "${x}"])
@pytest.mark.parametrize(("kind", "mode"), PAIRS)
def test_it_is_valid_whatever_the_names(kind, mode, name):
    found, _, container = parts(
        manifest(KServeSettings(), name=name, image=name, kind=kind, mode=mode)
    )
    assert container["image"] == name
    assert found[-1]["metadata"]["name"] == name


@pytest.mark.parametrize("extras", [(), ("istio",), ("batcher", "logger"), get_args(Extra)])
@pytest.mark.parametrize("lame_duck_s", [0.0, 1.0, 4.0, 30.0])
@pytest.mark.parametrize(("kind", "mode"), PAIRS)
def test_its_numbers_and_comments_are_true(kind, mode, lame_duck_s, extras):
    if kind == "deployment" and {"batcher", "logger"} & set(extras):
        pytest.skip("KServe's agent is KServe's")
    given = KServeSettings(lame_duck_s=lame_duck_s)
    text = manifest(given, kind=kind, mode=mode, extras=extras)
    found, pod, container = parts(text)
    environment = {each["name"]: each["value"] for each in container["env"]}
    lame_duck = float(environment["MLOPS_EXT_KSERVE_LAME_DUCK_S"])
    batching_s = pod.get("batcher", {}).get("maxLatency", 0) / 1000
    assert lame_duck == (0.0 if mode == "serverless" else lame_duck_s + batching_s)
    total_s = KServeSettings(lame_duck_s=lame_duck).limits.total_s
    grace = pod["timeout" if mode == "serverless" else "terminationGracePeriodSeconds"]
    assert grace >= max(30, total_s)
    if {"batcher", "logger"} & set(extras):
        assert grace > lame_duck + AGENT_QUIET_S
    readiness = container["readinessProbe"]
    noticed_s = readiness["periodSeconds"] * readiness["failureThreshold"]
    assert readiness["failureThreshold"] <= 3
    assert ("balancers that only probe readiness" in text) == (noticed_s <= lame_duck)
    assert ("One failed probe takes" in text) == (readiness["failureThreshold"] == 1)
    assert ("No lame duck" in text) == (mode == "serverless")
    annotations = found[-1]["metadata"].get("annotations", {})
    if kind == "deployment":
        annotations = found[0]["spec"]["template"]["metadata"].get("annotations", {})
    if "istio" in extras:
        config = json.loads(annotations["proxy.istio.io/config"])
        assert float(config["terminationDrainDuration"].rstrip("s")) >= lame_duck + given.drain_s
        assert mode == "serverless" or float(config["terminationDrainDuration"][:-1]) <= grace
    for line in text.splitlines():
        assert "$" not in line or "$" in repr(given), line


@pytest.mark.parametrize("kind", ["inferenceservice", "servingruntime"])
def test_knative_takes_what_is_printed_for_it(kind):
    found, pod, container = parts(
        manifest(KServeSettings(), kind=kind, mode="serverless", extras=get_args(Extra))
    )
    assert found[-1]["metadata"]["annotations"]["serving.kserve.io/deploymentMode"] == "Serverless"
    own = {
        "timeout",
        "batcher",
        "logger",
        "model",
    }  # KServe's: it makes timeoutSeconds of the first
    assert set(pod) - own <= set(MASKS["PodSpec"])
    assert set(container) <= set(MASKS["Container"])
    assert set(container["readinessProbe"]) <= set(MASKS["Probe"])
    assert set(container["readinessProbe"]["httpGet"]) <= set(MASKS["HTTPGet"])


@pytest.mark.parametrize("kind", get_args(Kind))
def test_a_rollout_never_has_fewer_pods_than_it_should(kind):
    text = manifest(KServeSettings(), kind=kind)
    found, pod, _ = parts(text)
    spec = found[0]["spec"]["strategy"] if kind == "deployment" else pod["deploymentStrategy"]
    assert spec["rollingUpdate"] == {"maxUnavailable": 0, "maxSurge": 1}


def test_what_is_not_at_its_default_goes_into_the_environment():
    settings = KServeSettings(drain_s=60.0, second_signal="ignore", quiet_s=1.5)
    _, pod, container = parts(manifest(settings))
    assert {each["name"]: each["value"] for each in container["env"]} == {
        "MLOPS_EXT_KSERVE_LAME_DUCK_S": "5", "MLOPS_EXT_KSERVE_DRAIN_S": "60",
        "MLOPS_EXT_KSERVE_STOP_S": "8", "MLOPS_EXT_KSERVE_SECOND_SIGNAL": "ignore",
        "MLOPS_EXT_KSERVE_QUIET_S": "1.5",
    }  # fmt: skip
    assert pod["terminationGracePeriodSeconds"] > 60 + 5 + 8


@pytest.mark.parametrize("mode", [*MODES, "Standard", "RawDeployment", "Serverless", "Knative"])
def test_the_command_takes_the_modes_by_all_their_names(mode):
    done = CliRunner().invoke(command, ["manifest", "--mode", mode, "--drain-s", "20"])
    assert done.exit_code == 0, done.output
    _, pod, _ = parts(done.stdout)
    assert ("timeout" in pod) == (MODES[mode.lower()] == "serverless")


@pytest.mark.parametrize("given", [("--mode", "serverless"), ("--with", "batcher")])
def test_what_cannot_be_is_refused(given):
    done = CliRunner().invoke(command, ["manifest", "--kind", "deployment", *given])
    assert done.exit_code == 2
    assert "a Deployment is not serverless" in done.output


def test_every_fact_that_a_file_names_is_one():
    """A misspelt word after ``#:`` would drop its lines in silence."""
    facts = {
        "standard",
        "serverless",
        "noticed",
        "unnoticed",
        "agent",
        *get_args(Extra),
        *get_args(Kind),
    }
    folder = Path(__import__("kserve_ext").__file__).with_name("manifests")
    lines = itertools.chain(*(file.read_text().splitlines() for file in folder.glob("*.yaml")))
    words = [set(line.split()[1:]) for line in lines if line.startswith("#:")]
    assert words
    assert set().union(*words) <= facts
