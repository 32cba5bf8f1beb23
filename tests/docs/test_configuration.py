"""Manifests, tables of settings and variables that pages show are right."""

import dataclasses
import importlib
import re
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from tests.docs.test_reference import SETTINGS
from tests.support.settings import load

from kserve_ext.manifest import manifest
from kserve_ext.settings import KServeSettings
from mlops_ext import settings

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted([ROOT / "README.md", ROOT / "CHANGELOG.md", *(ROOT / "docs").rglob("*.md")])
SECTIONS = {"": "cli.md", "memory": "memory_policy.md"} | {
    name: f"{name}.md" for name in ("clearml", "kserve", "joblib")
}
KINDS = {
    "Role": "rbac.authorization.k8s.io/v1",
    "RoleBinding": "rbac.authorization.k8s.io/v1",
    "ClusterRole": "rbac.authorization.k8s.io/v1",
    "ClusterRoleBinding": "rbac.authorization.k8s.io/v1",
    "InferenceService": "serving.kserve.io/v1beta1",
}


def blocks(page, kind):
    text = page.read_text(encoding="utf-8")
    return re.findall(rf"^```{kind}[^\n]*\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def fields(section):
    """The names of the settings in *section*."""
    module, _, name = SETTINGS[SECTIONS[section]].partition(":")
    return {f.name for f in dataclasses.fields(getattr(importlib.import_module(module), name))}


def documents():
    """Every YAML document of every page, with its page."""
    for page in PAGES:
        for block in blocks(page, "yaml"):
            for document in yaml.safe_load_all(block):
                yield page.relative_to(ROOT), document


def test_yaml_can_be_read_and_manifests_name_their_kind():
    kinds = []
    for page, document in documents():
        assert isinstance(document, dict), page
        if "kind" in document:
            kinds.append(document["kind"])
            assert document["apiVersion"] == KINDS[document["kind"]], page
            assert document["metadata"]["name"], page
    assert set(kinds) == set(KINDS)


def test_roles_that_are_bound_are_shown_and_the_other_way_round():
    shown = [document for _, document in documents() if "kind" in document]
    roles = {(d["kind"], d["metadata"]["name"]) for d in shown if d["kind"].endswith("Role")}
    bound = {(d["roleRef"]["kind"], d["roleRef"]["name"]) for d in shown if "roleRef" in d}
    assert roles == bound


def granted(role):
    """The (verb, resource) pairs of the role of that name."""
    (found,) = [d for _, d in documents() if d.get("kind") == "Role" and _name(d) == role]
    return {(v, r) for rule in found["rules"] for r in rule["resources"] for v in rule["verbs"]}


def _name(document):
    return document["metadata"]["name"]


class Recording:
    """An API client that answers with nothing, and keeps the verb and the place of each call."""

    def __init__(self):
        self.made = set()

    def call_api(self, path, method, *_, **__):
        *_, kind = [part for part in path.split("/") if part != "x"]
        reads = "get" if path.endswith("/x") else "list"
        verb = {"POST": "create", "PATCH": "patch", "DELETE": "delete"}.get(method, reads)
        self.made.add((verb, kind if "/namespaces/" in path else f"every {kind}"))
        return SimpleNamespace(data='{"items": []}')


def test_the_orchestrators_role_allows_the_calls_we_make():
    module = pytest.importorskip("zenml_ext.kubernetes.client")
    client = Recording()
    api = module.KubeApi(SimpleNamespace(api_client=client), None, "place")
    job = {"metadata": {"name": "x"}}
    for call, arguments in {
        "job": ["x"],
        "jobs": ["a=b"],
        "pod": ["x"],
        "pods_of": ["x"],
        "pods_of_step": ["r", "s"],
        "create_job": [job],
        "patch_job": ["x", {}],
        "delete_job": ["x"],
        "events_of": ["x"],
        "create_event": [job, "reason", "message"],
    }.items():
        getattr(api, call)(*arguments)
    for kind in ("nodes", "pods", "limitranges", "resourcequotas"):
        api.fetch(kind)
    made = {(verb, kind) for verb, kind in client.made if not kind.startswith("every")}
    assert made == granted("zenml-orchestrator")
    cluster = [d for _, d in documents() if d.get("kind") == "ClusterRole"]
    everywhere = {kind.removeprefix("every ") for _, kind in client.made - made}
    assert {r for rule in cluster[0]["rules"] for r in rule["resources"]} == everywhere


def test_a_step_needs_no_more_than_the_right_to_resize():
    assert granted("mlops-ext-resize") == {("patch", "pods/resize")}


def test_the_manifest_for_kserve_is_what_the_command_prints():
    page = ROOT / "docs/reference/kserve.md"
    assert manifest(KServeSettings()) in blocks(page, "yaml")


def test_toml_tables_hold_settings_that_exist():
    count = 0
    for page in PAGES:
        for block in blocks(page, "toml"):
            table = tomllib.loads(block)["tool"]["mlops-ext"]
            own = {name.replace("-", "_") for name in table if not isinstance(table[name], dict)}
            assert own <= fields(""), page
            for section, values in table.items():
                if isinstance(values, dict):
                    assert set(values) <= fields(section), page
            count += 1
    assert count


def test_the_way_without_make_does_what_make_does():
    """A new environment's pip is older than the option that reads the development tools."""
    (block,) = (text for text in blocks(ROOT / "README.md", "sh") if "-m venv" in text)
    upgrade, install, _, test = block.splitlines()[1:]
    setup = (ROOT / ".ci" / "setup").read_text(encoding="utf-8")
    (needed,) = re.findall(r"pip>=([\d.]+)", setup)
    assert "--upgrade pip" in upgrade
    assert upgrade.endswith(f"--group needs {needed}")
    assert install.partition("install ")[2] in setup
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for name, value in reversed(re.findall(r"^(\w+) := (.*)$", makefile, re.MULTILINE)):
        makefile = makefile.replace(f"$({name})", value)
    assert f"\t{test}\n" in makefile


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_variables_that_are_named_exist(page):
    known = {
        "_".join(filter(None, ["MLOPS_EXT", section, name])).upper()
        for section in SECTIONS
        for name in fields(section)
    }
    assert "MLOPS_EXT_TEMP_DIR" in known
    named = re.findall(
        r"(?<!_)MLOPS_EXT_[A-Z][A-Z_]*[A-Z](?![A-Z_<])", page.read_text(encoding="utf-8")
    )
    assert set(named) - known == set()


def test_links_of_the_readme_lead_somewhere():
    """mkdocs checks those of the other pages."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    links = [t for t in re.findall(r"\]\(([^)\s]+)\)", text) if "://" not in t]
    assert links
    for path, _, anchor in (link.partition("#") for link in links):
        page = ROOT / (path or "README.md")
        assert page.exists(), path
        assert not anchor or anchor in anchors(page), f"{path}#{anchor}"


def anchors(page):
    """The anchors of a page's headings, as GitHub and mkdocs make them."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", text.lower()).strip().replace(" ", "-") for text in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_links_to_other_sites_are_safe_and_whole(page):
    links = re.findall(r"\]\((\w+:[^)]*)\)", page.read_text(encoding="utf-8"))
    assert [link for link in links if not re.fullmatch(r"https://[\w.-]+\.\w+/\S*", link)] == []


def test_settings_of_core_are_read_as_the_page_says(tmp_path):
    (tmp_path / "pyproject.toml").write_text("[tool.mlops-ext]\ntemp-dir = '/a'\n")
    folder = tmp_path / "below"
    folder.mkdir()
    environ = {"MLOPS_EXT_DISABLE": "a,b"}
    core = load(settings.CoreSettings, environ=environ, directory=folder)
    assert (str(core.temp_dir), core.disable) == ("/a", ("a", "b"))
    environ = {"MLOPS_EXT_TEMP_DIR": "/b"}
    core = load(settings.CoreSettings, environ=environ, directory=folder)
    assert str(core.temp_dir) == "/b"
