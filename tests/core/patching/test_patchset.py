"""Patches: applied once, reverted exactly, never on top of what was not expected."""

import functools
import os
import sys
import types

import pytest
import wrapt
from tests.support.forks import held_by_another_thread, in_child

from mlops_ext.errors import PatchConflictError
from mlops_ext.patching import Outcome, Patch, PatchSet
from mlops_ext.patching import patchset as patching
from mlops_ext.patching.target import MISSING, Slot

FRAMEWORK = """
REGISTRY = {"local": 1}
def plain(x): return x
class Base:
    def inherited(self): return "base"
class Server(Base):
    @staticmethod
    def fixed(): return "original"
    @classmethod
    def made(cls): return "original"
    @property
    def state(self): return "original"
    def run(self): return "original"
"""


def replace_run(original):
    def run(self):
        return "patched " + original(self)

    return run


def replace_function(original):
    return lambda: "patched " + original()


def replace_static(original):
    return staticmethod(lambda: "patched " + original.__func__())


def replace_inherited(original):
    return lambda self: "patched " + original(self)


def add_item(original):
    assert original is MISSING
    return "ours"


def refuse(original):
    raise RuntimeError("the factory failed")


@pytest.fixture
def framework(monkeypatch):
    """A module that stands for a framework, fresh for each test."""
    module = types.ModuleType("fw_sample")
    exec(FRAMEWORK, module.__dict__)
    for value in list(vars(module).values()):
        if isinstance(value, type):
            value.__module__ = "fw_sample"
    monkeypatch.setitem(sys.modules, "fw_sample", module)
    return module


def make(target="fw_sample:Server.run", factory="replace_run", **changes):
    values = {
        "id": "sample." + factory,
        "framework": "sample",
        "distribution": "sample",
        "versions": ">=1,<3",
        "target": target,
        "replacement": f"{__name__}:{factory}",
        "reason": "it hurts",
        "verified_by": "this test",
    }
    return Patch(**{**values, **changes})


@pytest.fixture(autouse=True)
def importable(monkeypatch):
    """Make this test module importable by the name the patches use."""
    monkeypatch.setitem(sys.modules, __name__, sys.modules.get(__name__) or _this_module())


def _this_module():
    module = types.ModuleType(__name__)
    module.__dict__.update(globals())
    return module


def patch_set(*patches, version="2.0"):
    return PatchSet(patches, versions=lambda _: version)


def test_apply_twice_is_a_no_op_and_revert_restores_exactly(framework):
    original = vars(framework.Server)["run"]
    patches = patch_set(make())
    assert [r.outcome for r in patches.apply()] == [Outcome.APPLIED]
    first = vars(framework.Server)["run"]
    assert framework.Server().run() == "patched original"
    assert [r.outcome for r in patches.apply()] == [Outcome.ALREADY]
    assert vars(framework.Server)["run"] is first
    assert [r.outcome for r in patches.revert()] == [Outcome.REVERTED]
    assert vars(framework.Server)["run"] is original
    assert patches.revert() == []


def test_a_staticmethod_stays_a_raw_staticmethod(framework):
    original = vars(framework.Server)["fixed"]
    with patch_set(make("fw_sample:Server.fixed", "replace_static")):
        assert framework.Server.fixed() == "patched original"
        assert framework.Server().fixed() == "patched original"
    assert vars(framework.Server)["fixed"] is original


def test_an_inherited_method_is_inherited_again_after_revert(framework):
    with patch_set(make("fw_sample:Server.inherited", "replace_inherited")):
        assert framework.Server().inherited() == "patched base"
        assert framework.Base().inherited() == "base"
    assert "inherited" not in vars(framework.Server)
    assert framework.Server().inherited() == "base"


def test_an_item_of_a_registry_is_added_and_removed(framework):
    with patch_set(make("fw_sample:REGISTRY[shared]", "add_item", expects="nothing")):
        assert framework.REGISTRY == {"local": 1, "shared": "ours"}
    assert framework.REGISTRY == {"local": 1}


def test_a_hook_on_the_import_that_applying_causes_is_no_conflict(tmp_path, monkeypatch):
    (tmp_path / "fw_lazy.py").write_text("def run(): return 'original'\n")
    monkeypatch.syspath_prepend(tmp_path)
    patch = make("fw_lazy:run", "replace_function")
    on_import, explicit = patch_set(patch), patch_set(patch)
    wrapt.register_post_import_hook(lambda _: on_import.apply(), "fw_lazy")
    assert [report.outcome for report in explicit.apply()] == [Outcome.ALREADY]
    assert sys.modules["fw_lazy"].run() == "patched original"
    on_import.revert()
    assert sys.modules.pop("fw_lazy").run() == "original"


def test_an_occupied_item_is_a_conflict(framework):
    framework.REGISTRY["shared"] = "someone else's"
    with pytest.raises(PatchConflictError, match="nothing was changed"):
        patch_set(make("fw_sample:REGISTRY[shared]", "add_item", expects="nothing")).apply()
    assert framework.REGISTRY["shared"] == "someone else's"


def test_a_foreign_wrapper_below_us_is_a_conflict(framework):
    original = framework.Server.run

    @functools.wraps(original)
    def foreign(self):
        return "foreign " + original(self)

    framework.Server.run = foreign
    with pytest.raises(PatchConflictError) as caught:
        patch_set(make()).apply()
    assert caught.value.target == "fw_sample:Server.run"
    assert framework.Server().run() == "foreign original"


def test_revert_keeps_a_foreign_wrapper(framework):
    patches = patch_set(make(), make("fw_sample:Server.fixed", "replace_static"))
    patches.apply()
    ours = framework.Server.run

    def foreign(self):
        return "foreign " + ours(self)

    framework.Server.run = foreign
    with pytest.raises(PatchConflictError, match="undo that first"):
        patches.revert()
    assert framework.Server().run() == "foreign patched original"
    assert framework.Server.fixed() == "original", "the other patch is reverted all the same"
    framework.Server.run = ours
    assert [r.outcome for r in patches.revert()] == [Outcome.REVERTED]
    assert framework.Server().run() == "original"


def test_one_conflict_leaves_none_applied(framework):
    patches = patch_set(make(), make("fw_sample:Server.gone", "replace_inherited"))
    with pytest.raises(PatchConflictError, match="missing"):
        patches.apply()
    assert framework.Server().run() == "original"


def test_a_missing_module_is_a_conflict_not_an_import_error(framework):
    with pytest.raises(PatchConflictError, match="out of reach"):
        patch_set(make("fw_sample.sub:run")).apply()


def test_a_factory_that_raises_leaves_none_applied(framework):
    patches = patch_set(make(), make("fw_sample:Server.fixed", "refuse"))
    with pytest.raises(RuntimeError, match="the factory failed"):
        patches.apply()
    assert framework.Server().run() == "original"


@pytest.mark.parametrize(
    ("version", "changes", "outcome"),
    [
        (None, {}, Outcome.NOT_INSTALLED),
        ("3.1", {}, Outcome.OUT_OF_RANGE),
        ("2.5", {"needed": "<2.5"}, Outcome.NOT_NEEDED),
        ("2.4", {"needed": "<2.5"}, Outcome.APPLIED),
        ("2.0rc1", {}, Outcome.APPLIED),
    ],
)
def test_the_installed_version_decides(framework, version, changes, outcome):
    patches = patch_set(make(**changes), version=version)
    assert [r.outcome for r in patches.apply()] == [outcome]
    changed = framework.Server().run() != "original"
    assert changed == (outcome is Outcome.APPLIED)
    patches.revert()


def test_a_listener_that_raises_undoes_nothing(framework):
    def listener(report):
        raise ValueError(report.patch.id)

    patches = PatchSet([make()], notify=listener, versions=lambda _: "2.0")
    patches.apply()
    assert framework.Server().run() == "patched original"
    patches.revert()


@pytest.mark.parametrize(
    "changes",
    [{"target": "no colon"}, {"replacement": "x"}, {"versions": "newest"}, {"needed": "!"}],
)
def test_a_patch_that_cannot_be_read_is_refused(changes):
    with pytest.raises(ValueError, match="|".join(changes)):
        make(**changes)


@pytest.mark.parametrize("value", [("a", "tuple"), None, [1]])
def test_a_registry_that_became_something_else_is_a_conflict(framework, value):
    framework.REGISTRY = value
    with pytest.raises(PatchConflictError, match="is no mapping"):
        patch_set(make("fw_sample:REGISTRY[shared]", "add_item", expects="nothing")).apply()


def test_an_owner_without_attributes_is_a_conflict(framework):
    framework.Server = 3
    with pytest.raises(PatchConflictError, match="out of reach"):
        patch_set(make()).apply()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_fork_while_another_thread_applies_leaves_the_child_able_to(framework):
    def patched():
        patch_set(make()).apply()
        return framework.Server().run() == "patched original"

    with held_by_another_thread(patching._lock):
        assert in_child(patched)


def test_a_patch_that_somebody_replaced_is_no_longer_active(framework):
    patches = patch_set(make())
    patches.apply()
    assert [r.outcome for r in patches.status()] == [Outcome.APPLIED]
    ours, framework.Server.run = framework.Server.run, lambda self: "theirs"
    assert [r.outcome for r in patches.status()] == [Outcome.NOT_APPLIED]
    framework.Server.run = ours
    patches.revert()
    assert [r.outcome for r in patches.status()] == [Outcome.NOT_APPLIED]


def test_patches_on_top_of_each_other_are_reverted_last_first(framework):
    original = vars(framework.Server)["run"]
    on_top = make(id="sample.top", expects=__name__.partition(".")[0])
    patches = patch_set(make(), on_top)
    patches.apply()
    assert framework.Server().run() == "patched patched original"
    assert [r.patch.id for r in patches.revert()] == ["sample.top", "sample.replace_run"]
    assert vars(framework.Server)["run"] is original


def test_a_conflict_undoes_what_stands_on_top_of_each_other_too(framework):
    on_top = make(id="sample.top", expects=__name__.partition(".")[0])
    with pytest.raises(PatchConflictError, match="missing"):
        patch_set(make(), on_top, make("fw_sample:Server.gone", "replace_inherited")).apply()
    assert framework.Server().run() == "original"


def test_a_module_that_ran_again_is_patched_again(framework):
    """As after importlib.reload: the class is another one, and the old one is still patched."""
    patches = patch_set(make())
    patches.apply()
    exec(FRAMEWORK, framework.__dict__)
    assert framework.Server().run() == "original"
    assert [r.outcome for r in patches.apply()] == [Outcome.APPLIED]
    assert framework.Server().run() == "patched original"
    patches.revert()
    assert framework.Server().run() == "original"


def test_what_a_conflict_left_is_reverted_last_first_when_it_is_gone(framework):
    original = vars(framework.Server)["run"]
    on_top = make(id="sample.top", expects=__name__.partition(".")[0])
    patches = patch_set(make(), on_top)
    patches.apply()
    ours = framework.Server.run
    framework.Server.run = lambda _: "foreign"
    with pytest.raises(PatchConflictError):
        patches.revert()
    framework.Server.run = ours
    assert [r.patch.id for r in patches.revert()] == ["sample.top", "sample.replace_run"]
    assert vars(framework.Server)["run"] is original


def test_places_are_the_same_where_their_owner_is_not_where_it_is_equal():
    owner = {}
    assert Slot(owner, "a", is_item=True) == Slot(owner, "a", is_item=True)
    assert Slot(owner, "a", is_item=True) != Slot({}, "a", is_item=True)
