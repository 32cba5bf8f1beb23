"""The examples of reasons on the page about the policy are what it says."""

import random
from pathlib import Path

import pytest

from mlops_ext.memory import Caps, Features, Quantity, TaskKey
from mlops_ext.memory.history import History, HistoryPolicy, InMemoryHistory

PAGE = Path(__file__).parents[4] / "docs/explanation/memory_policy.md"
GI = 2**30
KEY = TaskKey(pipeline="p", step="s", version="1")
OTHER = TaskKey(pipeline="p", step="s", version="2")


def policy_of(peaks=(), sizes=None, curves=None, runtime_s=900.0):
    policy = HistoryPolicy(records=InMemoryHistory())
    for at, peak in enumerate(peaks):
        features = Features(input_bytes=sizes[at] if sizes else None)
        curve = curves[at] if curves else ()
        policy.observe(KEY, features, Quantity(int(peak)), runtime_s, curve=curve)
    return policy


def leaked():
    policy = policy_of()
    for gib in (16, 32, 64):
        policy.observe(KEY, Features(), Quantity(gib * GI), 900.0, censored=True)
    return policy


def repaired():
    policy = leaked()
    for _ in range(2):
        policy.observe(OTHER, Features(), Quantity(GI), 900.0)
    return policy


def reason(policy, size=None, request=16 * GI, caps=None, key=KEY):
    asked = Quantity(request) if request else None
    return policy.decide(key, Features(input_bytes=size), asked, caps or Caps()).reason


def examples(folder):
    rng = random.Random(0)
    alike = policy_of([GI * rng.uniform(1, 1.3) for _ in range(40)])
    two_kinds = [GI * (8 if rng.random() < 0.1 else 1) * rng.uniform(0.95, 1) for _ in range(60)]
    sizes = [rng.uniform(1, 10) * 1e9 for _ in range(60)]
    follows = policy_of([2 * size * rng.uniform(0.98, 1.02) for size in sizes], sizes)
    late = [8 * GI + k * 2**20 for k in range(12)]
    curves = [
        [(3600 * k / 90, int(peak * (k / 90) ** 3) + 2**20) for k in range(91)] for peak in late
    ]
    folder.joinpath("no-database.txt").write_text("text" * 1000)
    unusable = HistoryPolicy(records=History(folder / "no-database.txt"))
    return {
        "the first run": reason(policy_of()),
        "the first run, no request set": reason(policy_of(), request=None),
        "one smoke run at 300Mi": reason(policy_of([300 * 2**20])),
        "ten smoke runs at 300Mi": reason(policy_of([300 * 2**20] * 10)),
        "forty runs that are much alike": reason(alike),
        "the same, and `max_memory` is 1Gi": reason(alike, caps=Caps(max_memory=Quantity(GI))),
        "one run in ten needs eight times as much": reason(policy_of(two_kinds)),
        "the peak follows the input, which is 3 GB now": reason(follows, size=3e9),
        "killed at 16, 32 and 64Gi, the same code": reason(leaked()),
        "the same, but other code now": reason(leaked(), key=OTHER),
        "that other code then needed 1Gi, twice": reason(repaired(), key=OTHER),
        "an hour long, memory grows late, pods can be resized": reason(
            policy_of(late, curves=curves, runtime_s=3600.0)
        ),
        "the history's file cannot be read": reason(unusable),
    }


def test_the_examples_on_the_page_are_what_the_policy_says(tmp_path):
    pytest.importorskip("numpy")
    page = PAGE.read_text(encoding="utf-8")
    table = page.partition("## What a plan says")[2].partition("##")[0]
    rows = [line for line in table.splitlines() if line.startswith("| ")][2:]
    assert rows == [f"| {when} | {why} |" for when, why in examples(tmp_path).items()]
