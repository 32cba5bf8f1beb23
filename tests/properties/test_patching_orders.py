"""Every order of apply, revert, foreign wrap and foreign unwrap, as a state machine."""

import sys
import types

from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from mlops_ext.errors import PatchConflictError
from mlops_ext.patching import Patch, PatchSet

MODULE = "fw_orders"
OURS = "fw_orders_patches"


def _wrapped(label):
    def factory(original):
        def run(x):
            return [label, *original(x)]

        return run

    return factory


def _fresh_modules():
    module = types.ModuleType(MODULE)
    exec("def one(x): return ['one']\ndef two(x): return ['two']", module.__dict__)
    patches = types.ModuleType(OURS)
    patches.one, patches.two = _wrapped("p1"), _wrapped("p2")
    sys.modules[MODULE], sys.modules[OURS] = module, patches
    return module


def _patch(name):
    return Patch(
        id=f"orders.{name}",
        framework="orders",
        distribution="orders",
        versions="",
        target=f"{MODULE}:{name}",
        replacement=f"{OURS}:{name}",
        reason="-",
        verified_by="-",
    )


class Orders(RuleBasedStateMachine):
    """The model: a stack of wrappers over each function, ours at most once, at the bottom."""

    def __init__(self):
        super().__init__()
        self.module = _fresh_modules()
        self.originals = {n: getattr(self.module, n) for n in ("one", "two")}
        self.patches = PatchSet([_patch("one"), _patch("two")], versions=lambda _: "1.0")
        self.labels = {"one": [], "two": []}
        self.below_foreign = {"one": [], "two": []}

    def teardown(self):
        for name, original in self.originals.items():
            setattr(self.module, name, original)
        self.patches.revert()
        sys.modules.pop(MODULE, None)
        sys.modules.pop(OURS, None)

    @rule()
    def apply(self):
        blocked = [n for n in self.labels if self.labels[n] and self.labels[n] != ["p"]]
        try:
            self.patches.apply()
        except PatchConflictError:
            assert blocked, "a conflict needs a foreign wrapper"
        else:
            assert not blocked
            self.labels = {"one": ["p"], "two": ["p"]}

    @rule()
    def revert(self):
        foreign_on_ours = [n for n in self.labels if "p" in self.labels[n][1:]]
        try:
            self.patches.revert()
        except PatchConflictError:
            assert foreign_on_ours
        else:
            assert not foreign_on_ours
        for name, labels in self.labels.items():
            if labels == ["p"]:
                self.labels[name] = []

    @rule()
    def wrap_one_foreign(self):
        inner = self.module.one
        self.below_foreign["one"].append(inner)
        self.module.one = lambda x: ["f", *inner(x)]
        self.labels["one"].insert(0, "f")

    @precondition(lambda self: self.labels["one"][:1] == ["f"])
    @rule()
    def unwrap_one_foreign(self):
        self.module.one = self.below_foreign["one"].pop()
        self.labels["one"].pop(0)

    @invariant()
    def calls_go_through_exactly_the_expected_wrappers(self):
        for name, mark in (("one", "p1"), ("two", "p2")):
            expected = [mark if label == "p" else label for label in self.labels[name]]
            assert getattr(self.module, name)(0) == [*expected, name]


Orders.TestCase.settings = settings(max_examples=200, stateful_step_count=20, deadline=None)
TestOrders = Orders.TestCase
