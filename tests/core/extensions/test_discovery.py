"""Discovery, doctor and activation, on extensions made in the test."""

import dataclasses
import importlib.metadata
import importlib.util
import logging
import subprocess
import sys
import types

import pytest

from mlops_ext import doctor, hookimpl
from mlops_ext.errors import UnknownNameError
from mlops_ext.extensions import activation, finder
from mlops_ext.extensions.discovery import load_extensions
from mlops_ext.extensions.entry_points import find_entry_points
from mlops_ext.hookspecs import DoctorCheck, Finding, Framework, Severity
from mlops_ext.patching import Outcome, Patch, PatchReport

PATCH = Patch(
    id="sample.patch",
    framework="sample",
    distribution="sample",
    versions=">=1",
    target="sample:run",
    replacement="sample_ext:make",
    reason="it hurts",
    verified_by="tests",
)


@pytest.fixture
def load(monkeypatch):
    """Load extensions given as name → hooks (name → function)."""

    def load(disabled=(), **extensions):
        points = []
        for name, hooks in extensions.items():
            module = types.ModuleType(f"sample_{name}")
            for hook, function in hooks.items():
                setattr(module, hook, hookimpl(function))
            monkeypatch.setitem(sys.modules, module.__name__, module)
            points.append(importlib.metadata.EntryPoint(name, module.__name__, "mlops_ext"))
        return load_extensions(points, disabled)

    return load


def framework(name, supported=">=1", distribution="pytest"):
    return Framework(
        name=name, distribution=distribution, supported=supported, extension="x", summary="x"
    )


def test_frameworks_come_by_name_with_their_installed_version(load):
    found = load(
        b={"mlops_ext_frameworks": lambda: [framework("zeta"), framework("alpha", "<1")]},
        a={"mlops_ext_frameworks": lambda: [framework("none", distribution="nobody-has-this")]},
    )
    supports = found.frameworks()
    assert [s.framework.name for s in supports] == ["alpha", "none", "zeta"]
    assert [s.supported for s in supports] == [False, False, True]
    assert [s.version for s in supports] == [pytest.__version__, None, pytest.__version__]
    with pytest.raises(UnknownNameError, match="did you mean 'alpha'"):
        found.framework("alpah")


def test_what_is_disabled_is_found_and_not_loaded(load):
    asked = []
    hooks = {"mlops_ext_patches": lambda: asked.append("asked") or [PATCH]}
    found = load(disabled=["off"], on=hooks, off=hooks)
    assert found.patches() == [PATCH]
    assert asked == ["asked"]
    assert [(f.name, f.disabled) for f in found.found] == [("on", False), ("off", True)]
    (note,) = doctor.diagnose(found).findings
    assert (note.check, note.severity) == ("extension.off", Severity.NOTE)


def test_an_extension_with_an_unknown_hook_gives_nothing_at_all(load):
    found = load(
        odd={"mlops_ext_patches": lambda: [PATCH], "mlops_ext_patchs": lambda: None},
        good={"mlops_ext_patches": lambda: [PATCH]},
    )
    assert found.patches() == [PATCH]
    assert set(found.problems) == {"odd"}


def test_one_bad_item_leaves_out_the_whole_answer_of_one_extension(load):
    found = load(
        odd={"mlops_ext_patches": lambda: [PATCH, "text"]},
        good={"mlops_ext_patches": lambda: [PATCH]},
        other={"mlops_ext_patches": lambda: 3},
    )
    assert found.patches() == [PATCH]
    assert "expected Patch" in str(found.problems["odd"])
    assert set(found.problems) == {"odd", "other"}


def test_the_first_problem_of_an_extension_is_kept(load):
    def fail(text):
        raise RuntimeError(text)

    found = load(
        odd={
            "mlops_ext_patches": lambda: fail("first"),
            "mlops_ext_frameworks": lambda: fail("second"),
        }
    )
    found.patches()
    found.frameworks()
    assert "first" in str(found.problems["odd"])


def test_patches_are_given_by_framework(load):
    found = load(one={"mlops_ext_patches": lambda: [PATCH]})
    assert found.patches("sample") == [PATCH]
    assert found.patches("other") == []


def test_memory_policies_that_are_no_mapping_are_a_problem_and_names_are_found(load):
    found = load(
        odd={"mlops_ext_memory_policies": lambda: ["x"]},
        good={"mlops_ext_memory_policies": lambda: {"mine": "policy"}},
    )
    assert found.memory_policy("mine") == "policy"
    assert set(found.problems) == {"odd"}
    with pytest.raises(UnknownNameError, match="did you mean 'mine'"):
        found.memory_policy("mien")


def test_listeners_hear_of_a_patch_and_one_that_raises_stops_no_other(load):
    heard = []

    def fail(report):
        raise RuntimeError(report.patch.id)

    found = load(
        odd={"mlops_ext_patch_applied": fail},
        good={"mlops_ext_patch_applied": lambda report: heard.append(report.outcome)},
    )
    found.notify_patch(PatchReport(patch=PATCH, outcome=Outcome.APPLIED, version="1"))
    assert heard == [Outcome.APPLIED]
    assert set(found.problems) == {"odd"}


@pytest.mark.parametrize(
    ("outcome", "needed", "active", "why"),
    [
        (Outcome.APPLIED, True, True, "applied in this process"),
        (Outcome.NOT_APPLIED, True, False, "mlops-ext run --patch sample -- CMD"),
        (Outcome.NOT_NEEDED, False, False, "not needed by this version"),
        (Outcome.OUT_OF_RANGE, None, False, "version out of range"),
        (Outcome.NOT_INSTALLED, None, False, "sample is not installed"),
    ],
)
def test_doctor_says_whether_a_fix_is_needed_and_active_and_why(outcome, needed, active, why):
    fix = doctor._fix(PatchReport(patch=PATCH, outcome=outcome, version="1"))
    assert (fix.needed, fix.active) == (needed, active)
    assert why in fix.why
    detailed = PatchReport(patch=PATCH, outcome=outcome, version="1", detail="because")
    assert doctor._fix(detailed).why == "because"


def test_checks_run_only_where_their_framework_is_installed(load):
    ran = []

    def check(name, framework):
        finding = Finding(check=name, severity=Severity.OK, message="fine")
        return DoctorCheck(
            name=name, framework=framework, run=lambda: ran.append(name) or [finding]
        )

    found = load(
        one={
            "mlops_ext_frameworks": lambda: [
                framework("here"), framework("away", distribution="nobody-has-this")
            ],
            "mlops_ext_doctor_checks": lambda: [check("a", "here"), check("b", "away"), check("c", "unknown")],
        }
    )  # fmt: skip
    assert [f.check for f in doctor.diagnose(found).findings] == ["a"]
    assert ran == ["a"]


@pytest.fixture
def applied(monkeypatch):
    """The frameworks whose patches were asked for."""
    names = []
    monkeypatch.setattr(activation, "apply", names.append)
    unarmed(monkeypatch)
    return names


def unarmed(monkeypatch):
    """Let no framework be armed, and no module be waited for, during a test."""
    for name in ("armed", "_before", "_after"):
        monkeypatch.setattr(finder, name, {})


def test_a_framework_is_patched_once_when_it_is_imported(applied, tmp_path, monkeypatch):
    (tmp_path / "late_framework.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    for _ in range(2):
        activation.autopatch(["sample=late_framework"])
    assert applied == []
    importlib.import_module("late_framework")
    activation.autopatch(["sample=late_framework"])
    assert applied == ["sample"]


def test_a_framework_that_is_imported_already_is_patched_at_once(applied):
    activation.apply_on_import("sample", "pytest")
    assert applied == ["sample"]


def test_settings_that_cannot_be_read_activate_nothing_and_are_told(
    applied, tmp_path, monkeypatch, caplog
):
    (tmp_path / "pyproject.toml").write_text("[tool.mlops-ext]\nautopatch = 3\n")
    monkeypatch.chdir(tmp_path)
    with caplog.at_level(logging.WARNING):
        activation.autopatch()
    assert applied == []
    assert "no patch was activated" in caplog.text


@pytest.mark.parametrize("error", [RuntimeError("odd"), UnknownNameError("framework", "x", [])])
def test_a_failure_never_comes_out_of_an_import(monkeypatch, caplog, error):
    def fail(_name):
        raise error

    unarmed(monkeypatch)
    monkeypatch.setattr(activation, "apply", fail)
    activation.apply_on_import("sample", "pytest")
    assert "sample is used without its patches" in caplog.text


def test_the_first_of_two_extensions_of_one_name_is_taken(monkeypatch):
    points = [importlib.metadata.EntryPoint("twice", f"sample_{n}", "mlops_ext") for n in (1, 2)]
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda group: points)
    assert find_entry_points("mlops_ext") == {"twice": points[0]}


def test_doctor_calls_armed_only_what_an_import_will_apply(monkeypatch):
    monkeypatch.setattr(finder, "armed", {"sample": "sample_not_imported"})
    armed = {
        outcome: doctor._fix(PatchReport(patch=PATCH, outcome=outcome, version="1")).armed
        for outcome in Outcome
    }
    assert [outcome for outcome, is_armed in armed.items() if is_armed] == [Outcome.NOT_APPLIED]


def test_a_patch_for_one_kind_of_process_is_applied_there_alone(monkeypatch, load):
    sample, replaced = types.ModuleType("sample_target"), types.ModuleType("sample_makes")
    exec("def anywhere(): ...\ndef here(): ...", vars(sample))  # functions of its own
    replaced.make = lambda original: lambda: original
    for module in (sample, replaced):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    anywhere, here = sample.anywhere, sample.here
    common = {"distribution": "pytest", "replacement": "sample_makes:make"}
    patches = [
        dataclasses.replace(PATCH, id="sample.any", target="sample_target:anywhere", **common),
        dataclasses.replace(
            PATCH, id="sample.here", target="sample_target:here", process="a worker", **common
        ),
    ]
    hooks = {
        "mlops_ext_frameworks": lambda: [framework("sample")],
        "mlops_ext_patches": lambda: patches,
    }
    found = load(one=hooks)
    monkeypatch.setattr("mlops_ext.extensions.discovery.extensions", lambda: found)
    with activation.apply("sample"):
        assert (sample.anywhere is anywhere, sample.here is here) == (False, True)
    with activation.apply("sample", process="a worker"):
        assert (sample.anywhere is anywhere, sample.here is here) == (True, False)
    shown = doctor.diagnose(found).fixes
    assert [fix.why for fix in shown if fix.process] == ["applied in a worker"]


@pytest.mark.parametrize(("supported", "expected"), [(">=1", ["prepared"]), ("<1", [])])
def test_an_extension_prepares_for_the_import_of_a_version_it_knows(
    applied, tmp_path, monkeypatch, load, supported, expected
):
    """And the module is then as if nothing had waited for it."""
    prepared = []
    sample = types.ModuleType("sample_prepares")
    sample.prepare = lambda: prepared.append("prepared")
    monkeypatch.setitem(sys.modules, "sample_prepares", sample)
    known = dataclasses.replace(
        framework("sample", supported), before_import="sample_prepares:prepare"
    )
    found = load(one={"mlops_ext_frameworks": lambda: [known]})
    monkeypatch.setattr("mlops_ext.extensions.discovery.extensions", lambda: found)
    module = f"early_framework_{len(expected)}"
    (tmp_path / f"{module}.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    activation.apply_on_import("sample", module)
    imported = importlib.import_module(module)
    assert prepared == expected
    assert applied == ["sample"]
    assert type(imported.__loader__) is importlib.machinery.SourceFileLoader
    assert imported.__spec__.loader is imported.__loader__
    importlib.reload(imported)
    assert prepared == expected, "a reload needs no preparation"
    assert applied == ["sample", "sample"], "but it made what the patches had changed anew"
    assert sum(one is finder._finder for one in sys.meta_path) == 1


def test_doctor_tells_of_memory_policies_that_cannot_be_had(load):
    def broken():
        raise RuntimeError("no policies today")

    found = load(one={"mlops_ext_memory_policies": broken})
    assert any("no policies today" in f.message for f in doctor.diagnose(found).findings)


def test_a_hook_that_fails_with_nowhere_to_say_it_lets_the_import_go_on(
    applied, tmp_path, monkeypatch
):
    """A windowed process, and one whose standard error was closed, has none."""
    (tmp_path / "imported_silently.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    called = []

    def fail():
        called.append(True)
        raise RuntimeError("told to nobody")

    finder.on_import("imported_silently", fail)
    with monkeypatch.context() as silent:
        silent.setattr(sys, "stderr", None)
        importlib.import_module("imported_silently")
    assert called == [True]


def test_to_ask_for_a_module_is_not_to_import_it(applied, tmp_path, monkeypatch):
    (tmp_path / "asked_for.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    activation.apply_on_import("sample", "asked_for")
    spec = importlib.util.find_spec("asked_for")
    assert isinstance(spec.loader, importlib.machinery.SourceFileLoader)
    assert spec.loader.get_source("asked_for") == ""
    assert applied == []
    importlib.import_module("asked_for")
    assert applied == ["sample"]


def test_a_module_that_fails_is_waited_for_again(applied, tmp_path, monkeypatch):
    (tmp_path / "fails_once.py").write_text("raise RuntimeError\n")
    monkeypatch.syspath_prepend(tmp_path)
    activation.apply_on_import("sample", "fails_once")
    with pytest.raises(RuntimeError):
        importlib.import_module("fails_once")
    assert applied == []
    (tmp_path / "fails_once.py").write_text("# it runs now, as the length tells\n")
    importlib.invalidate_caches()
    importlib.import_module("fails_once")
    assert applied == ["sample"]


def test_another_package_s_hooks_on_the_same_import_run_too(applied, tmp_path, monkeypatch):
    """As those of tracing agents, set before and after ours."""
    wrapt = pytest.importorskip("wrapt")
    for number, order in enumerate(("theirs first", "ours first")):
        module = f"hooked_{number}"
        (tmp_path / f"{module}.py").touch()
        monkeypatch.syspath_prepend(tmp_path)
        seen = []
        if order == "theirs first":
            wrapt.register_post_import_hook(lambda _, seen=seen: seen.append("theirs"), module)
            activation.apply_on_import(f"sample{number}", module)
        else:
            activation.apply_on_import(f"sample{number}", module)
            wrapt.register_post_import_hook(lambda _, seen=seen: seen.append("theirs"), module)
        importlib.import_module(module)
        assert seen == ["theirs"]
    assert applied == ["sample0", "sample1"]


def test_two_threads_import_two_armed_frameworks_that_need_each_other(tmp_path):
    """In a process of its own, as it once hung there forever."""
    (tmp_path / "fw_one").mkdir()
    (tmp_path / "fw_one" / "__init__.py").touch()
    (tmp_path / "fw_one" / "server.py").write_text(
        "import time; time.sleep(0.2)\nimport fw_two\ndef start(): return 'original'\n"
    )
    (tmp_path / "fw_two.py").write_text(
        "import time; time.sleep(0.5)\ndef go(): return 'original'\n"
    )
    code = """
import sys, threading
from mlops_ext.extensions import activation, finder
from mlops_ext.patching import Patch, PatchSet

def patch(name, target):
    return Patch(id=name, framework=name, distribution="pytest", versions="", target=target,
                 replacement="__main__:make", reason="r", verified_by="v")

def make(original):
    return lambda: "patched"

SETS = {"one": PatchSet([patch("one", "fw_one.server:start")]), "two": PatchSet([patch("two", "fw_two:go")])}
activation.apply = lambda name: SETS[name].apply()
activation.autopatch(["one=fw_one", "two=fw_two"])
threads = [threading.Thread(target=__import__, args=(name,), daemon=True) for name in ("fw_two", "fw_one")]
for thread in threads: thread.start()
for thread in threads: thread.join(20)
print(*(thread.is_alive() for thread in threads))
import fw_one.server, fw_two
print(fw_one.server.start(), fw_two.go(), flush=True)
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.stdout.split() == ["False", "False", "patched", "patched"], done.stderr
