"""Other packages' modules, classes and objects are changed in ``patches.py`` alone."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
OURS = {"mlops_ext", "zenml_ext", "clearml_ext", "kserve_ext", "joblib_ext"}
SOURCES = sorted([*ROOT.glob("core/**/*.py"), *ROOT.glob("plugins/**/*.py")])
MUTATES = (".update", ".pop", ".setdefault", ".clear", ".__setitem__")
OWN = "an object that this module made"
DATA = "a field of one object that its framework has its users set"
ALLOWED = {
    "core/mlops_ext/patching/target.py": "the one place that puts a Patch into a module or class",
    "core/mlops_ext/lazy.py": "a package of ours gets the names that it offers",
    "core/mlops_ext/extensions/finder.py": "import specs, in which a finder names its loader",
    "core/mlops_ext/processes/identity.py": "the types of a C function, as ctypes has them set",
    "plugins/joblib_ext/stores/files/statx.py": "the types of a C function, as ctypes has them set",
    "plugins/clearml_ext/guard.py": "the interpreter's hook for a script's last error, and that error",
    "plugins/clearml_ext/watchdog/watchdog.py: node.timeout": DATA,
    "plugins/joblib_ext/arguments.py: pickler.fast": OWN,
    "plugins/joblib_ext/cli.py": OWN,
    "plugins/joblib_ext/entries/payload.py: pickler.dispatch_table": OWN,
    "plugins/joblib_ext/entries/large_entry.py": "the array that an entry's map becomes: " + OWN,
    "plugins/kserve_ext/endpoints/rest.py": DATA,
    "plugins/kserve_ext/releases.py": DATA,
    "plugins/zenml_ext/kubernetes/client.py: call.__name__": OWN,
    "plugins/zenml_ext/kubernetes/step/entrypoint.py: tempfile.tempdir": "the standard library's own"
    " setting of a process for its temporary directory",
    "plugins/zenml_ext/local/warm.py": "a step's own, in the process that becomes it",
    "plugins/zenml_ext/temp_dir.py": "the same, where a user asks for it by set_temp_dir",
    "plugins/zenml_ext/kubernetes/supervisor/entrypoint.py: job.status.conditions": "a copy of what"
    " Kubernetes answered, as ZenML is to see it",
}
"""Files, or ``file: statement``, that may; each with the reason."""


def own_fields():
    """Every attribute that a class of ours declares or sets on itself."""
    names = set()
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.ClassDef):
                continue
            for part in node.body:
                if isinstance(part, ast.AnnAssign) and isinstance(part.target, ast.Name):
                    names.add(part.target.id)
                elif isinstance(part, ast.FunctionDef):
                    names.add(part.name)  # a property
                elif isinstance(part, ast.Assign) and ast.unparse(part.targets[0]) == "__slots__":
                    names |= set(ast.literal_eval(part.value))
            names |= {
                part.attr
                for part in ast.walk(node)
                if isinstance(part, ast.Attribute)
                and isinstance(part.ctx, ast.Store)
                and ast.unparse(part.value) in {"self", "cls"}
            }
    return names


def foreign_names(tree):
    """Names that imports bind to another package's module, class or function."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {(a.asname or a.name).partition(".")[0] for a in node.names}
        elif isinstance(node, ast.ImportFrom) and str(node.module).partition(".")[0] not in OURS:
            names |= {a.asname or a.name for a in node.names}
    return names - OURS


def changes(text, fields):
    """Line and source of every statement in *text* that changes an object of another package."""
    tree = ast.parse(text)
    foreign = foreign_names(tree)
    bases = {  # an instance of a class that extends another package's is ours: it may set its own
        id(node)
        for owner in ast.walk(tree)
        if isinstance(owner, ast.ClassDef)
        for node in ast.walk(owner)
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) in {"self", "cls"}
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and not isinstance(node.ctx, ast.Load):
            root = ast.unparse(node.value)
            first = root.partition(".")[0].partition("[")[0].partition("(")[0]
            special = node.attr in {"__class__", "__dict__", "__bases__", "__code__"}
            if id(node) in bases and not special:
                continue
            if special or first in foreign or node.attr not in fields:
                yield node.lineno, ast.unparse(node)
        elif isinstance(node, ast.Subscript) and not isinstance(node.ctx, ast.Load):
            holder = ast.unparse(node.value)
            if holder.endswith(".__dict__") or holder.startswith(("vars(", "globals(")):
                yield node.lineno, ast.unparse(node)
        elif isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            target = ast.unparse(node.args[0]) if node.args else ""
            sets = called.endswith(("setattr", "delattr", "__setattr__", "__delattr__"))
            updates = called.startswith("vars(") or "__dict__." in called
            updates = updates and not called.startswith(("vars(self).", "self.__dict__."))
            if (sets and target not in {"self", "cls"}) or (updates and called.endswith(MUTATES)):
                yield node.lineno, ast.unparse(node)


@pytest.mark.parametrize(
    "code",
    [
        "import kserve\nkserve.ModelServer.serve = None",
        "from kserve import ModelServer\ndel ModelServer.serve",
        "def hook(server):\n    server.serve = None",
        "def hook(server):\n    vars(server)['serve'] = None",
        "def hook(server):\n    server.__dict__['serve'] = None",
        "def hook(server):\n    server.__dict__.update(serve=None)",
        "def hook(server):\n    server.__class__ = object",
        "import kserve\nsetattr(kserve, 'serve', None)",
        "def hook(server):\n    object.__setattr__(server, 'serve', None)",
    ],
)
def test_every_way_to_change_a_foreign_object_is_seen(code):
    assert list(changes(code, fields={"path"}))


@pytest.mark.parametrize(
    "code",
    [
        "class Mine:\n    def __init__(self):\n        self.serve = 1",
        "def f(entry):\n    entry.path = 1",
        "import kserve\nprint(kserve.serve)",
        "def f(self):\n    object.__setattr__(self, 'serve', 1)",
        "def f(self, state):\n    self.__dict__.update(state)",
    ],
)
def test_what_is_ours_may_be_set(code):
    assert not list(changes(code, fields={"path"}))


def test_nothing_outside_patches_changes_an_upstream_object():
    fields = own_fields()
    found = [
        f"{path.relative_to(ROOT)}:{line}: {text}"
        for path in SOURCES
        if path.name != "patches.py" and str(path.relative_to(ROOT)) not in ALLOWED
        for line, text in changes(path.read_text(encoding="utf-8"), fields)
        if f"{path.relative_to(ROOT)}: {text}" not in ALLOWED
    ]
    assert found == []


def test_every_exception_is_still_needed():
    fields = own_fields()
    seen = set()
    for path in SOURCES:
        name = str(path.relative_to(ROOT))
        texts = [text for _, text in changes(path.read_text(encoding="utf-8"), fields)]
        seen |= {name} if texts else set()
        seen |= {f"{name}: {text}" for text in texts}
    assert set(ALLOWED) <= seen
