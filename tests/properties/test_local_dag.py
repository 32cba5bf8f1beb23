"""The order of steps on `local_oom`: every run ends, and nothing runs before what it needs."""

import threading

from hypothesis import given
from hypothesis import strategies as st

from zenml_ext.local.budget import MemoryBudget
from zenml_ext.local.dag import CONTINUE_ON_FAILURE, FAIL_FAST, Dag, State

MODES = [FAIL_FAST, "stop_on_failure", CONTINUE_ON_FAILURE]


@st.composite
def dags(draw):
    count = draw(st.integers(1, 8))
    names = [f"s{i}" for i in range(count)]
    upstream = {
        name: frozenset(draw(st.sets(st.sampled_from(names[:i]))) if i else set())
        for i, name in enumerate(names)
    }
    return Dag(upstream=upstream, mode=draw(st.sampled_from(MODES)))


ENDS = st.sampled_from([State.COMPLETED, State.FAILED, State.STOPPED])


@given(dags(), st.data())
def test_every_run_ends_and_respects_the_order(dag, data):
    while not dag.done:
        ready = dag.ready()
        for name in ready:
            assert all(dag.states[needed] is State.COMPLETED for needed in dag.upstream[name])
            dag.start(name)
        running = dag.named(State.RUNNING)
        assert running
        dag.finish(data.draw(st.sampled_from(running)), data.draw(ENDS))
    assert not dag.named(State.WAITING)
    for name, state in dag.states.items():
        if state is State.COMPLETED:
            assert all(dag.states[n] is State.COMPLETED for n in dag.upstream[name])


@given(dags(), st.data())
def test_a_failure_spares_independent_steps_only_where_the_mode_says_so(dag, data):
    first = dag.ready()[0]
    dag.start(first)
    before = set(dag.named(State.WAITING))
    dag.finish(first, State.FAILED)
    skipped = set(dag.named(State.SKIPPED))
    if dag.mode != CONTINUE_ON_FAILURE:
        assert skipped == before
        return
    below = {first}
    for name in dag.upstream:
        if dag.upstream[name] & below:
            below.add(name)
    assert skipped == below - {first}


def test_a_budget_is_never_exceeded_but_by_one_alone():
    budget = MemoryBudget(100)
    stopping = threading.Event()
    guard, held, seen = threading.Lock(), [], []

    def work(size):
        with budget.share(size, stopping):
            with guard:
                held.append(size)
                seen.append(list(held))
            with guard:
                held.remove(size)

    sizes = (60, 50, 150, 40, 90, 10, 0)
    threads = [threading.Thread(target=work, args=(size,)) for size in sizes]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(seen) == len(sizes)
    assert all(sum(sizes) <= 100 or [s for s in sizes if s] == [150] for sizes in seen)


def test_who_waits_for_memory_gives_up_when_the_run_ends():
    budget = MemoryBudget(100)
    stopping = threading.Event()
    with budget.share(100, stopping):
        waiter = threading.Thread(target=lambda: budget.share(50, stopping).__enter__())
        waiter.start()
        stopping.set()
        waiter.join()
