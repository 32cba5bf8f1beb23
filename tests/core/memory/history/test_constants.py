"""Every number in the code that was chosen stands in the one table of them."""

import ast
from pathlib import Path

ROOT = Path(__file__).parents[4]
PAGE = (ROOT / "docs/explanation/memory_policy.md").read_text(encoding="utf-8")


def chosen(source):
    """Names of the module's constants that hold numbers."""
    for node in ast.parse(source).body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            name, numbers = node.targets[0].id, (int, float)
            constants = [n.value for n in ast.walk(node.value) if isinstance(n, ast.Constant)]
            if name.isupper() and any(type(value) in numbers for value in constants):
                yield name


def test_every_tuned_constant_is_in_the_table():
    modules = sorted((ROOT / "core/mlops_ext/memory/history").glob("*.py"))
    names = {name for module in modules for name in chosen(module.read_text(encoding="utf-8"))}
    facts = {"_MIB", "_VERSION", "_NOTHING"}
    assert {"_ETA", "_SPREAD", "_REACH"} <= names
    assert sorted(name for name in names - facts if f"`{name}`" not in PAGE) == []


def test_the_table_names_no_constant_that_is_gone():
    table = PAGE.partition("## Tuned numbers")[2].partition("**How they")[0]
    cells = [line.split("|")[1] for line in table.splitlines() if line.startswith("| `")]
    named = {part.strip(" `") for cell in cells for part in cell.split(",")}
    sources = "".join(p.read_text("utf-8") for p in (ROOT / "core/mlops_ext/memory").rglob("*.py"))
    assert sorted(name for name in named if f"\n{name} = " not in sources) == []
