"""Patches: applied once, reverted exactly, never on top of what was not expected."""

import functools
import os
import sys
import threading
import types

import pytest
from tests.support.forks import held_by_another_thread, in_child

from mlops_ext.errors import PatchConflictError
from mlops_ext.extensions import finder
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
    """Make this test module importable by the name the patches use; wait for no import after."""
    monkeypatch.setattr(finder, "_before", {})
    monkeypatch.setattr(finder, "_after", {})
    for name in [name for name in sys.modules if name.startswith("fw_")]:
        monkeypatch.delitem(sys.modules, name)
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
    finder.on_import("fw_lazy", on_import.apply)
    assert [report.outcome for report in explicit.apply()] == [Outcome.ALREADY]
    assert sys.modules["fw_lazy"].run() == "patched original"
    assert [report.outcome for report in on_import.revert()] == [Outcome.KEPT]
    assert sys.modules["fw_lazy"].run() == "patched original"
    assert [report.outcome for report in explicit.revert()] == [Outcome.REVERTED]
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
    with pytest.raises(PatchConflictError, match="is not found"):
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
    with pytest.raises(PatchConflictError, match="is not a mapping"):
        patch_set(make("fw_sample:REGISTRY[shared]", "add_item", expects="nothing")).apply()


def test_an_owner_without_attributes_is_a_conflict(framework):
    framework.Server = 3
    with pytest.raises(PatchConflictError, match="is not found"):
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
    (report,) = patches.status()
    assert report.outcome is Outcome.CONFLICT
    assert "wrapped or replaced by tests.core.patching.test_patchset" in report.detail
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


def test_the_last_user_of_a_patch_reverts_it(framework):
    first, second = patch_set(make()), patch_set(make())
    first.apply()
    assert [r.outcome for r in second.apply()] == [Outcome.ALREADY]
    assert [r.outcome for r in second.apply()] == [Outcome.ALREADY], "one user, however often"
    assert [r.outcome for r in first.revert()] == [Outcome.KEPT]
    assert framework.Server().run() == "patched original"
    assert [r.outcome for r in second.revert()] == [Outcome.REVERTED]
    assert framework.Server().run() == "original"


def test_two_blocks_of_two_threads_that_overlap_are_both_patched(framework):
    inside, left = threading.Event(), threading.Event()
    seen = []

    def outlives():
        with patch_set(make()):
            inside.set()
            left.wait(10)
            seen.append(framework.Server().run())

    thread = threading.Thread(target=outlives)
    with patch_set(make()):
        thread.start()
        assert inside.wait(10)
    left.set()
    thread.join()
    assert seen == ["patched original"]
    assert framework.Server().run() == "original"


def test_a_call_that_fails_keeps_the_patches_of_other_users(framework):
    user = patch_set(make())
    user.apply()
    with pytest.raises(PatchConflictError):
        patch_set(make(), make("fw_sample:Server.gone", "replace_inherited")).apply()
    assert framework.Server().run() == "patched original"
    user.revert()
    assert framework.Server().run() == "original"


def test_many_threads_apply_and_revert_and_the_original_is_back(framework):
    original = vars(framework.Server)["run"]
    start = threading.Barrier(8)
    seen = []

    def use():
        start.wait()
        for _ in range(50):
            with patch_set(make(), make("fw_sample:Server.fixed", "replace_static")):
                seen.append((framework.Server().run(), framework.Server.fixed()))

    threads = [threading.Thread(target=use) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen == [("patched original", "patched original")] * 400
    assert vars(framework.Server)["run"] is original


def test_a_module_may_wait_for_a_thread_that_applies_while_it_is_imported(tmp_path, monkeypatch):
    """Nothing is imported while a lock is held: the thread below would wait for it forever."""
    (tmp_path / "fw_waits.py").write_text(
        "import threading\n"
        "thread = threading.Thread(target=__import__, args=('fw_waited_for',))\n"
        "thread.start()\n"
        "thread.join(20)\n"
        "finished = not thread.is_alive()\n"
        "def run(): return 'original'\n"
    )
    (tmp_path / "fw_waited_for.py").write_text("def run(): return 'original'\n")
    monkeypatch.syspath_prepend(tmp_path)
    inner = patch_set(make("fw_waited_for:run", "replace_function", id="sample.inner"))
    finder.on_import("fw_waited_for", inner.apply)
    with patch_set(make("fw_waits:run", "replace_function")):
        assert sys.modules["fw_waits"].finished
        assert sys.modules["fw_waits"].run() == "patched original"
    assert sys.modules["fw_waited_for"].run() == "patched original"
    inner.revert()


class Careful(type):
    """A metaclass whose classes wait, while they are changed, for a thread that patches too."""

    during = None

    def __setattr__(cls, name, value):
        if Careful.during is not None:
            call, Careful.during = Careful.during, None
            thread = threading.Thread(target=call)
            thread.start()
            thread.join(20)
            assert not thread.is_alive()
        super().__setattr__(name, value)


def test_code_of_a_class_that_runs_while_it_is_changed_may_wait_for_another_patch(
    framework, monkeypatch
):
    framework.Careful = Careful("Careful", (), {"run": framework.Server.run})
    other = patch_set(make("fw_sample:Server.fixed", "replace_static"))
    monkeypatch.setattr(Careful, "during", other.apply)
    with patch_set(make("fw_sample:Careful.run")):
        assert framework.Careful().run() == "patched original"
        assert framework.Server.fixed() == "patched original"
    other.revert()


def test_a_thread_waits_while_another_one_changes_the_same_place(framework, monkeypatch):
    """And then shares the patch: two that change it at once would each count on its own."""
    inside, waits = threading.Event(), threading.Event()

    class Told(threading.Event):
        def wait(self, timeout=None):
            waits.set()
            return super().wait(timeout)

    def hold():
        inside.set()
        assert waits.wait(60)

    framework.Careful = Careful("Careful", (), {"run": framework.Server.run})
    monkeypatch.setattr(patching, "threading", types.SimpleNamespace(Event=Told))
    first, second = (patch_set(make("fw_sample:Careful.run")) for _ in range(2))
    monkeypatch.setattr(Careful, "during", hold)
    thread = threading.Thread(target=first.apply)
    thread.start()
    assert inside.wait(60)
    found = [report.outcome for report in second.apply()]
    waits.set()
    thread.join()
    assert found == [Outcome.ALREADY]
    assert [r.outcome for r in first.revert()] == [Outcome.KEPT]
    assert framework.Careful().run() == "patched original"
    assert [r.outcome for r in second.revert()] == [Outcome.REVERTED]
    assert framework.Careful().run() == "original"


def test_leaving_a_block_reports_a_conflict_unless_an_error_is_on_its_way(framework, caplog):
    with pytest.raises(PatchConflictError, match="undo that first"), patch_set(make()):
        framework.Server.run = lambda _: "foreign"
    patches = patch_set(make("fw_sample:REGISTRY[shared]", "add_item", expects="nothing"))

    def fail():
        with patches:
            framework.REGISTRY["shared"] = "foreign"
            raise RuntimeError("of the block")

    with pytest.raises(RuntimeError, match="of the block"):
        fail()
    assert "patch left in place" in caplog.text


def replace_late(original):
    """A factory during which somebody else replaces the target."""
    sys.modules["fw_sample"].Server.run = lambda _: "theirs"
    return lambda _: "ours"


def test_what_was_replaced_while_the_factory_ran_is_not_overwritten(framework):
    with pytest.raises(PatchConflictError, match="undo that first"):
        patch_set(make(factory="replace_late")).apply()
    assert framework.Server().run() == "theirs"


def test_a_place_that_cannot_be_set_is_a_conflict():
    patch = make("collections:OrderedDict.get", "replace_run", expects="builtins")
    with pytest.raises(PatchConflictError, match="is read-only"):
        patch_set(patch).apply()


def test_the_status_names_a_conflict_before_anything_is_applied(framework):
    framework.Server.run = functools.partial(print)
    (report,) = patch_set(make()).status()
    assert report.outcome is Outcome.CONFLICT
    assert "functools" in report.detail


def test_the_status_tells_a_wrapper_from_a_replacement_and_from_a_revert(framework):
    patches = patch_set(make())
    patches.apply()
    ours = framework.Server.run

    @functools.wraps(ours)
    def foreign(self):
        return "foreign " + ours(self)

    framework.Server.run = foreign
    (report,) = patches.status()
    assert (report.outcome, "wrapped since by" in report.detail) == (Outcome.APPLIED, True)
    framework.Server.run = ours
    patches.revert()
    assert [r.outcome for r in patches.status()] == [Outcome.NOT_APPLIED]


def test_the_status_after_a_reload_is_that_of_the_new_class(framework):
    patches = patch_set(make())
    patches.apply()
    exec(FRAMEWORK, framework.__dict__)
    framework.Server.__module__ = "fw_sample"
    assert [r.outcome for r in patches.status()] == [Outcome.NOT_APPLIED]


def test_the_status_imports_and_runs_nothing(framework):
    module = types.ModuleType("fw_lazy_names")
    module.__getattr__ = lambda name: pytest.fail(f"{name} was looked up")
    sys.modules["fw_lazy_names"] = module
    try:
        patches = patch_set(
            make("fw_lazy_names:Server.run"), make("fw_not_there:run", id="sample.other")
        )
        assert [r.outcome for r in patches.status()] == [Outcome.NOT_APPLIED] * 2
    finally:
        del sys.modules["fw_lazy_names"]


def test_two_patches_with_one_id_are_refused():
    with pytest.raises(ValueError, match=r"sample\.replace_run"):
        patch_set(make(), make())


def test_the_status_says_who_wrapped_and_who_undid(framework):
    patches = patch_set(make())
    patches.apply()
    ours = framework.Server.run

    def foreign(self):
        return ours(self)

    between = functools.partial(ours)
    between.__wrapped__ = ours
    foreign.__wrapped__ = between  # two wrappers deep
    framework.Server.run = staticmethod(foreign)
    (report,) = patches.status()
    assert report.outcome is Outcome.APPLIED
    assert report.detail.startswith("applied, and wrapped since by tests.core.patching")
    foreign.__wrapped__ = foreign  # a circle leads nowhere
    (report,) = patches.status()
    assert report.outcome is Outcome.CONFLICT
    assert report.detail.startswith("applied, then wrapped or replaced by tests.core.patching")
    framework.Server.run = patches._mine[0].original
    (report,) = patches.status()
    assert (report.outcome, report.detail) == (Outcome.NOT_APPLIED, "undone by other code since")
