"""The kustomize base in examples/kubernetes is what the pages show, and its agents cannot deadlock."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from tests.docs.test_configuration import documents as shown_documents

from mlops_ext.queues.check import Pipeline, Step, Topology, Worker, check

ROOT = Path(__file__).resolve().parents[2]
KIT = ROOT / "examples" / "kubernetes"
FOLDERS = ["", "zenml", "clearml"]


def read(folder):
    """The objects that a kustomization's resources hold, in its namespace; nothing else is applied."""
    kustomization = yaml.safe_load((folder / "kustomization.yaml").read_text(encoding="utf-8"))
    found = []
    for name in kustomization["resources"]:
        path = folder / name
        objects = read(path) if path.is_dir() else list(yaml.safe_load_all(path.read_text()))
        found += objects
    for each in found:
        if "namespace" in kustomization and not each["kind"].startswith("Cluster"):
            each["metadata"].setdefault("namespace", kustomization["namespace"])
    return found


def by_name(objects):
    found = {(each["kind"], each["metadata"]["name"]): each for each in objects}
    assert len(found) == len(objects)
    return found


@pytest.fixture(scope="module")
def kubectl():
    command = shutil.which("kubectl")
    if not command:
        pytest.skip("no kubectl on PATH")
    return command


def built(kubectl, folder):
    done = subprocess.run(
        [kubectl, "kustomize", str(folder)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return list(yaml.safe_load_all(done.stdout))


def test_the_rights_in_the_kit_are_those_of_the_pages():
    shown = by_name([d for _, d in shown_documents() if "Role" in d.get("kind", "")])
    kit = by_name(read(KIT / "zenml"))
    accounts = {name for kind, name in kit if kind == "ServiceAccount"}
    assert {key: value for key, value in kit.items() if key[0] != "ServiceAccount"} == shown
    bound = {s["name"] for each in shown.values() for s in each.get("subjects", [])}
    assert accounts == bound


def test_no_folder_of_the_kit_holds_a_namespace_which_delete_would_take_along():
    assert all(each["kind"] != "Namespace" for each in read(KIT))


def agents():
    return [each for each in read(KIT / "clearml") if each["kind"] == "Deployment"]


def command_of(agent):
    return agent["spec"]["template"]["spec"]["containers"][0]["command"]


def test_the_kits_agents_cannot_deadlock():
    workers = tuple(
        Worker(
            name=agent["metadata"]["name"],
            queues=(command_of(agent)[command_of(agent).index("--queue") + 1],),
            slots=agent["spec"]["replicas"],
        )
        for agent in agents()
    )
    steps = (Step(name="prepare", queue="default"), Step(name="train", queue="default"))
    pipeline = Pipeline(name="nightly", queue="services", instances=50, steps=steps)
    assert check(Topology(workers=workers, pipelines=(pipeline,))).safe
    together = Worker(name="one", queues=("services", "default"))
    assert not check(Topology(workers=(together,), pipelines=(pipeline,))).safe


@pytest.mark.parametrize("agent", agents(), ids=lambda each: each["metadata"]["name"])
def test_clearml_agent_reads_the_kits_command_lines(agent):
    get_parser = pytest.importorskip("clearml_agent.interface").get_parser
    words = command_of(agent)
    read_words = get_parser().parse_args(words[words.index("clearml-agent") + 1 :])
    assert read_words.command == "daemon"
    assert read_words.foreground
    assert not read_words.docker


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("agent", agents(), ids=lambda each: each["metadata"]["name"])
def test_a_real_agent_starts_by_the_kits_command_and_serves_its_queue_only(agent, tmp_path):
    """With what a pod has: an empty home, no clearml.conf, addresses and keys in the environment."""
    pytest.importorskip("clearml_agent")
    from tests.doubles.clearml.lab import Lab

    words = command_of(agent)
    queue = words[words.index("--queue") + 1]
    programs = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    with Lab(tmp_path, ["other"]) as lab:
        environment = lab.environment | {"PATH": programs, "CLEARML_WORKER_ID": "pod:0"}
        del environment["CLEARML_CONFIG_FILE"]
        log = (tmp_path / "agent.log").open("w")
        process = subprocess.Popen(
            [shutil.which(words[0], path=programs), *words[1:]],
            env=environment,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            cwd=tmp_path,
        )
        lab.processes.append(process)
        assert lab.wait(lambda store: "pod:0" in store.workers), Path(log.name).read_text()
        served = lab.store.workers["pod:0"]["queue_ids"]
        assert [lab.store.queues[each]["name"] for each in served] == [queue]


@pytest.mark.parametrize("folder", FOLDERS)
def test_kustomize_builds_each_folder_into_the_objects_that_were_read(kubectl, folder):
    objects = built(kubectl, KIT / folder)
    generated = [each for each in objects if each["kind"] == "ConfigMap"]
    rest = by_name([each for each in objects if each["kind"] != "ConfigMap"])
    assert len(generated) == (folder != "zenml")
    expected = by_name(read(KIT / folder))
    assert set(rest) == set(expected)
    for key, value in rest.items():
        if key[0] != "Deployment":  # there names of the image and of the ConfigMap are filled in
            assert value == expected[key]
        else:
            container = value["spec"]["template"]["spec"]["containers"][0]
            assert container["image"] == "registry.example.com/clearml-agent:1"
            (config,) = generated
            assert container["envFrom"][0]["configMapRef"]["name"] == config["metadata"]["name"]


def test_an_overlay_moves_accounts_and_bindings_to_its_namespace(kubectl, tmp_path):
    shutil.copytree(KIT, tmp_path / "examples" / "kubernetes")
    page = (ROOT / "docs/how-to/kubernetes-kit.md").read_text(encoding="utf-8")
    overlays = [part.partition("```")[0] for part in page.split("```yaml\n")[1:]]
    assert len(overlays) == 2
    kinds = set()
    for number, overlay in enumerate(overlays):
        folder = tmp_path / str(number)
        folder.mkdir()
        (folder / "kustomization.yaml").write_text(overlay, encoding="utf-8")
        for each in built(kubectl, folder):
            kinds.add(each["kind"])
            assert each["metadata"].get("namespace", "team-a") == "team-a"
            assert all(s["namespace"] == "team-a" for s in each.get("subjects", []))
            if each["metadata"]["name"] == "clearml-agent":
                assert each["spec"]["replicas"] == 4
                container = each["spec"]["template"]["spec"]["containers"][0]
                assert container["image"] == "registry.team-a.example/agent:7"
            if each["kind"] == "ConfigMap":
                assert each["data"]["CLEARML_API_HOST"] == "https://api.clearml.team-a.example"
    assert {"ClusterRoleBinding", "RoleBinding", "ServiceAccount", "Deployment"} <= kinds
