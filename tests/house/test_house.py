"""What holds for the whole tree: sizes, ranges in one place, tests that patches name."""

import ast
import graphlib
import re
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from mlops_ext.extensions.discovery import extensions

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[2]
SOURCES = sorted([*ROOT.glob("core/**/*.py"), *ROOT.glob("plugins/**/*.py")])
LONGEST_MODULE = 400
MODULES_A_FOLDER = 13
PACKAGES = ("mlops_ext", "zenml_ext", "clearml_ext", "kserve_ext", "joblib_ext")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_a_module_is_short_documented_and_says_what_it_exports(path):
    text = path.read_text(encoding="utf-8")
    assert text.count("\n") <= LONGEST_MODULE
    tree = ast.parse(text)
    assert ast.get_docstring(tree), "a module starts with what its reader gets"


@pytest.mark.parametrize(
    "folder", sorted({path.parent for path in SOURCES}), ids=lambda p: str(p.relative_to(ROOT))
)
def test_a_folder_can_be_taken_in_at_a_glance(folder):
    modules = [path.name for path in folder.glob("*.py") if path.name != "__init__.py"]
    assert len(modules) <= MODULES_A_FOLDER
    assert [name for name in modules if name.startswith("_") and name != "__main__.py"] == []


def test_no_modules_import_each_other_in_a_circle():
    grimp = pytest.importorskip("grimp")  # comes with import-linter
    graph = grimp.build_graph(*PACKAGES)
    order = {name: graph.find_modules_directly_imported_by(name) for name in graph.modules}
    graphlib.TopologicalSorter(order).prepare()  # raises CycleError, which names the circle


def test_the_environment_is_read_in_one_place():
    """But for what each interpreter below ``run`` executes, and what sets a process's own."""
    own = {
        "core/mlops_ext/settings.py",
        "core/mlops_ext/extensions/handover.py",
        "core/mlops_ext/extensions/bootstrap/sitecustomize.py",
        "plugins/zenml_ext/temp_dir.py",
        "plugins/zenml_ext/local/warm.py",
    }
    reads = re.compile(r"\bos\.(environ|getenv)\b|from os import .*\b(environ|getenv)\b")
    found = {str(path.relative_to(ROOT)) for path in SOURCES if reads.search(path.read_text())}
    assert found <= own


def test_every_patch_names_a_test_that_exists():
    patches = extensions().patches()
    assert patches, "the extensions have patches"
    for patch in patches:
        path, _, name = patch.verified_by.partition("::")
        file = ROOT / path
        assert file.is_file(), f"{patch.id}: {patch.verified_by}"
        assert name, f"{patch.id} names a file of tests, not a test"
        assert re.search(rf"def {re.escape(name.partition('[')[0])}\b", file.read_text()), patch.id


def test_an_extra_allows_what_its_extension_supports():
    extras = PROJECT["optional-dependencies"]
    for support in extensions().frameworks():
        framework = support.framework
        requirements = [Requirement(text) for text in extras[framework.name]]
        (mine,) = [r for r in requirements if r.name == framework.distribution]
        assert mine.specifier == SpecifierSet(framework.supported)


def test_no_installed_extension_is_broken():
    assert extensions().problems == {}


def test_the_table_of_versions_in_the_readme_is_made_from_the_data():
    from tests.support import tables

    assert tables.in_readme(tables.README.read_text(encoding="utf-8")) == tables.versions_table()
