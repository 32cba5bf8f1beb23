"""Policy, growth in place and the right to resize, all against each other, on a real cluster.

One pipeline has a step for each case in each combination, so that eight combinations take no
longer than one; a second run of it starts from what the first one has told.
"""

import itertools

import pytest
from tests.cluster.project import ON_A_CLUSTER, kills, kubectl

pytestmark = [pytest.mark.timeout(3600), *ON_A_CLUSTER]  # the first mark counts
ACCOUNTS = """
apiVersion: v1
kind: ServiceAccount
metadata: {name: may-resize, namespace: zenml}
---
apiVersion: v1
kind: ServiceAccount
metadata: {name: may-not-resize, namespace: zenml}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: Role
metadata: {name: matrix-resize, namespace: zenml}
rules: [{apiGroups: [""], resources: ["pods/resize"], verbs: ["patch"]}]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata: {name: matrix-resize, namespace: zenml}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: Role, name: matrix-resize}
subjects: [{kind: ServiceAccount, name: may-resize, namespace: zenml}]
"""
CASES = {"spikes": 1, "grows": 1, "fits": 0}
"""The cases, and the kills that each may take. What one invocation of a function has told counts
for the next one, in the same run too: the policy that learns may start lower, at the price of one
kill."""
COMBINATIONS = list(
    itertools.product(["history", "double"], ["growth", "none"], ["may-resize", "may-not-resize"])
)
MATRIX = (
    f"""
COMBINATIONS = {COMBINATIONS!r}
"""
    """
@step(enable_cache=False)
def spikes() -> int:
    return eat(600)

@step(enable_cache=False)
def grows() -> int:
    return eat(600, 25)

@step(enable_cache=False)
def fits() -> int:
    return eat(100)

FIRST = {spikes: "600Mi", grows: "450Mi", fits: "600Mi"}

@pipeline(enable_cache=False, settings={"docker": docker, "orchestrator": {
    **orchestrator()["orchestrator"], "max_parallelism": 6}})
def matrix():
    for function, limit in FIRST.items():
        for policy, growth, rights in COMBINATIONS:
            options = orchestrator(
                limit, memory_policy=policy, in_place=growth == "growth",
                step_pod_service_account_name=rights)
            name = f"{function.name}-{policy}-{growth}-{rights}".replace("-", "_")
            function.with_options(settings=options)(id=name)

the_pipeline = matrix
"""
)


@pytest.fixture(scope="module")
def runs(project):
    """The pipeline, run twice; the second time with a history."""
    done = kubectl("apply", "-f", "-", text=ACCOUNTS)
    assert done.returncode == 0, done.stderr
    return [project.run(MATRIX) for _ in range(2)]


def step_of(case, combination):
    return "-".join((case, *combination)).replace("-", "_")


@pytest.mark.parametrize("combination", COMBINATIONS, ids="-".join)
@pytest.mark.parametrize("case", CASES)
def test_every_case_completes_in_every_combination(runs, case, combination):
    policy, growth, rights = combination
    grows = (growth, rights) == ("growth", "may-resize")
    step = step_of(case, combination)
    for found in runs:
        assert found.statuses()[step] == "completed", found.output
        assert kills(found, step) <= (1 if policy == "history" else CASES[case])
        assert case == "fits" or policy == "history" or kills(found, step) or grows
        if policy == "double" and case == "grows":
            grown = "grown in place" in found.attempts(step)[-1].get("reason", "")
            assert (grown, kills(found, step)) == ((True, 0) if grows else (False, 1))
