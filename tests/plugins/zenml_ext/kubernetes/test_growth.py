"""Growth in place: when it is asked for, by how much, and what each answer leads to."""

import itertools
import json
import random

import pytest

from mlops_ext.memory import InPlace, Quantity
from zenml_ext.kubernetes.growth import MOST, NEVER_S, Growth, Refusal, ResizeAnswer
from zenml_ext.kubernetes.resize import PodResizer, _pending, _refused
from zenml_ext.memory.cgroup import MemoryReading

MIB = 1 << 20
RULE = InPlace(start=Quantity(0), threshold=0.85, growth=1.5, ceiling=Quantity(1000 * MIB))
AGREED = ResizeAnswer(refusal=None)


class Resizer:
    """Answers as told; then agrees, and the wish stays pending for *pending*."""

    def __init__(self, *answers, pending=""):
        self.answers, self.asked, self.withdrawn, self.pending = list(answers), [], [], pending

    def resize(self, limit):
        self.asked.append(limit // MIB)
        return self.answers.pop(0) if self.answers else AGREED

    def look(self):
        return ResizeAnswer(refusal=None, pending=self.pending)

    def withdraw(self, limit):
        self.withdrawn.append(limit // MIB)
        return AGREED


def reading(used, limit=400):
    size = round(used * MIB)
    return MemoryReading(limit=limit * MIB, used=size, oom_kills=0)


def test_a_slow_step_is_left_alone_until_it_comes_near_its_limit():
    resizer = Resizer()
    growth = Growth(rule=RULE, resizer=resizer)
    for second in range(0, 340, 10):
        growth.on_reading(reading(second), float(second))
    assert resizer.asked == []
    growth.on_reading(reading(345), 345.0)
    assert resizer.asked == [518]


def test_a_fast_step_is_asked_for_before_it_comes_near():
    resizer = Resizer()
    growth = Growth(rule=RULE, resizer=resizer)
    growth.on_reading(reading(150), 0.0)
    growth.on_reading(reading(300), 1.0)
    assert resizer.asked == [450]


def test_a_burst_far_below_the_limit_asks_for_nothing():
    resizer = Resizer()
    growth = Growth(rule=RULE, resizer=resizer)
    for tenth, used in enumerate((10, 80, 150, 220, 230, 230, 230)):
        growth.on_reading(reading(used), tenth / 5)
    assert resizer.asked == []


def test_nothing_more_is_asked_while_a_resize_is_on_its_way_and_it_is_noted_when_done():
    resizer = Resizer()
    growth = Growth(rule=RULE, resizer=resizer)
    growth.on_reading(reading(390), 0.0)
    growth.on_reading(reading(392), 0.2)
    assert resizer.asked == [585]
    growth.on_reading(reading(392, limit=585), 1.0)
    assert growth.resizes_s == [1.0]


def test_a_limit_that_the_kernel_rounds_down_to_a_page_has_come_true():
    resizer = Resizer()
    rule = InPlace(start=Quantity(0), threshold=0.85, growth=1.5, ceiling=Quantity(500 * MIB + 123))
    growth = Growth(rule=rule, resizer=resizer)
    growth.on_reading(reading(390), 0.0)
    growth.on_reading(reading(392, limit=500), 1.0)
    assert growth.resizes_s == [1.0]


def test_it_never_asks_beyond_the_ceiling():
    resizer = Resizer()
    growth = Growth(rule=RULE, resizer=resizer)
    growth.on_reading(reading(890, limit=900), 0.0)
    assert resizer.asked == [1000]
    growth.on_reading(reading(990, limit=1000), 1.0)
    assert resizer.asked == [1000]


@pytest.mark.parametrize(("pending", "bound_s"), [("Infeasible", 4), ("Deferred", 13), ("", 64)])
def test_a_wish_that_does_not_come_true_is_withdrawn_within_its_time(pending, bound_s):
    resizer = Resizer(pending=pending)
    growth = Growth(rule=RULE, resizer=resizer)
    for fifth in range(5 * bound_s):
        growth.on_reading(reading(390), fifth / 5)
    assert resizer.asked == [585]
    assert resizer.withdrawn == [400]
    assert growth.resizes_s == [NEVER_S]


def test_where_a_wish_was_withdrawn_the_next_one_waits_longer_each_time():
    resizer = Resizer(pending="Infeasible")
    growth = Growth(rule=RULE, resizer=resizer)
    wishes = []
    for fifth in range(5 * 100):
        growth.on_reading(reading(390), fifth / 5)
        wishes += [fifth / 5] * (len(resizer.asked) - len(wishes))
    pauses = [later - earlier for earlier, later in itertools.pairwise(wishes)]
    assert pauses == sorted(pauses)
    assert pauses[-1] > 2 * pauses[0]


@pytest.mark.parametrize(
    ("code", "message", "refusal"),
    [
        (403, 'User "x" cannot patch resource "pods/resize" in API group ""', Refusal.FOR_GOOD),
        (403, "node didn't have enough allocatable resources", Refusal.TOO_MUCH),
        (403, "exceeded quota: team", Refusal.TOO_MUCH),
        (404, "the server could not find the requested resource", Refusal.FOR_GOOD),
        (422, "Pod QoS is immutable", Refusal.FOR_GOOD),
        (401, "Unauthorized", Refusal.FOR_NOW),
        (409, "the object has been modified", Refusal.FOR_NOW),
        (429, "too many requests", Refusal.FOR_NOW),
        (500, "etcd", Refusal.FOR_NOW),
    ],
)
def test_refusals_are_told_apart(code, message, refusal):
    assert _refused(code, json.dumps({"message": message})).refusal is refusal


def test_what_has_become_of_a_wish_stands_in_the_pods_conditions():
    condition = {"type": "PodResizePending", "status": "True", "reason": "Deferred"}
    assert _pending({"status": {"conditions": [condition]}}) == "Deferred"
    assert _pending({"status": {"conditions": [{**condition, "type": "Ready"}]}}) == ""


def test_where_a_limit_may_not_sink_the_request_alone_is_withdrawn(monkeypatch):
    sent, refused = [], ResizeAnswer(refusal=Refusal.FOR_GOOD, message="422")

    def patch(_self, resources):
        sent.append(resources)
        return refused if "limits" in resources else AGREED

    monkeypatch.setattr(PodResizer, "_patch", patch)
    answer = PodResizer(url="", container="main").withdraw(Quantity(400 * MIB))
    assert answer is AGREED
    assert sent[-1] == {"requests": {"memory": "400Mi"}}


def test_after_a_refusal_for_good_nothing_more_is_asked():
    resizer = Resizer(ResizeAnswer(refusal=Refusal.FOR_GOOD, message="403"))
    growth = Growth(rule=RULE, resizer=resizer)
    for second in range(5):
        growth.on_reading(reading(390), float(second))
    assert len(resizer.asked) == 1


def test_where_there_is_less_less_is_asked_for():
    resizer = Resizer(ResizeAnswer(refusal=Refusal.TOO_MUCH, message="full"), AGREED)
    growth = Growth(rule=RULE, resizer=resizer)
    growth.on_reading(reading(390), 0.0)
    assert resizer.asked == [585, 492]


def test_a_busy_server_is_asked_again_a_second_later():
    resizer = Resizer(ResizeAnswer(refusal=Refusal.FOR_NOW, message="429"))
    growth = Growth(rule=RULE, resizer=resizer)
    growth.on_reading(reading(390), 0.0)
    growth.on_reading(reading(390), 0.2)
    growth.on_reading(reading(390), 1.2)
    assert resizer.asked == [585, 585]


class Node(Resizer):
    """Gives what it agreed to after a while, or refuses, defers, forgets."""

    def __init__(self, chance):
        super().__init__()
        self.chance, self.limit, self.wish, self.due = chance, 400, None, 0.0
        self.now = 0.0

    def resize(self, limit):
        self.asked.append(limit // MIB)
        kind = self.chance.choice(["refuse", "busy", "defer", "slow", "slow", "slow"])
        if kind in {"refuse", "busy"}:
            refusal = Refusal.TOO_MUCH if kind == "refuse" else Refusal.FOR_NOW
            return ResizeAnswer(refusal=refusal, message=kind)
        self.pending = "Deferred" if kind == "defer" else ""
        self.wish, self.due = limit // MIB, self.now + self.chance.uniform(0, 60)
        return AGREED

    def withdraw(self, limit):
        self.wish, self.pending = None, ""
        return super().withdraw(limit)

    def tick(self, now):
        self.now = now
        if self.wish and now >= self.due and not self.pending:
            self.limit, self.wish = max(self.limit, self.wish), None


@pytest.mark.parametrize("seed", range(40))
def test_growth_never_lowers_a_limit_asks_far_above_the_use_or_keeps_a_wish_that_stands(seed):
    chance = random.Random(seed)
    node = Node(chance)
    rule = InPlace(
        start=Quantity(0), threshold=chance.uniform(0.5, 0.95), growth=chance.uniform(1.1, 3)
    )
    growth = Growth(rule=rule, resizer=node)
    used, peak, wished_at = 100.0, 100.0, 0.0
    for fifth in range(5 * 600):
        now, before, asked = fifth / 5, node.limit, len(node.asked)
        node.tick(now)
        assert node.limit >= before
        used = min(max(50.0, used + chance.uniform(-8, 10)), 0.99 * node.limit)
        peak = max(peak, used)
        growth.on_reading(reading(used, limit=node.limit), now)
        assert all(one <= MOST * used + 1 for one in node.asked[asked:])
        wished_at = now if len(node.asked) > asked else wished_at
        assert not node.wish or now - wished_at < 66
    assert node.limit <= max(400, MOST * peak + 1)
