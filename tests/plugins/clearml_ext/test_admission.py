"""Launches that wait for their turn: in the order of coming, past whom they do not concern."""

import itertools
import threading

from hypothesis import given
from hypothesis import strategies as st
from tests.doubles.clearml.arrange import client_of

from clearml_ext.admission import Admission, Ticket, is_first, tickets_of

BOUND_S = 60.0


def on_a_desk(double, name):
    fields = {"name": name, "type": "controller", "system_tags": ["development"]}
    number = double.store.tasks_create({**fields, "tags": ["mine"]})["id"]
    double.store.tasks[number]["status"] = "in_progress"
    return number


def admission(double, name, *queues):
    return Admission(client_of(double), on_a_desk(double, name), queues or ("default",), BOUND_S)


def test_the_first_that_comes_goes_first(double):
    first, second = admission(double, "first"), admission(double, "second")
    first.enter()
    second.enter()
    assert first.is_my_turn()
    assert not second.is_my_turn()
    double.store.tasks_stopped({"task": first.ticket.task})  # as the SDK does before it enqueues
    assert not second.is_my_turn()
    double.store.tasks_enqueue({"task": first.ticket.task, "queue_name": "services"})
    assert second.is_my_turn()


def test_a_launch_that_uses_other_queues_does_not_wait(double):
    first, second = admission(double, "first", "gpu"), admission(double, "second", "default")
    first.enter()
    second.enter()
    assert second.is_my_turn()


def test_a_launch_that_still_chooses_is_waited_for(double):
    first, second = admission(double, "first"), admission(double, "second")
    second.enter()
    first._write(0, second.ticket.asked)
    assert not second.is_my_turn()


def test_a_ticket_keeps_the_other_tags_and_one_that_is_lost_does_not_count(double):
    first, second = admission(double, "first"), admission(double, "second")
    first.enter()
    second.enter()
    tags = double.store.tasks[first.ticket.task]["tags"]
    assert tags == ["mine", first.ticket.tag()]
    found = tickets_of(double.store.tasks[first.ticket.task], first.ticket.asked)
    assert found == [first.ticket]
    later_ms = first.ticket.asked + int(BOUND_S * 1000)
    assert is_first(second.ticket, [first.ticket], later_ms, BOUND_S)
    double.store.tasks[first.ticket.task]["status"] = "failed"
    assert second.is_my_turn()


@given(st.lists(st.tuples(st.integers(1, 3), st.sampled_from("abcdef")), unique=True, max_size=6))
def test_of_launches_that_meet_exactly_one_is_first(drawn):
    tickets = [
        Ticket(number=number, task=task, asked=0, queues=frozenset({"q"}))
        for number, task in {task: (number, task) for number, task in drawn}.values()
    ]
    first = [each for each in tickets if is_first(each, tickets, 0, BOUND_S)]
    assert len(first) == bool(tickets)


def test_two_launches_never_pass_each_other_however_their_requests_interleave(double):
    """Orders of the two launches' requests, one request at a time."""
    whole = list(itertools.combinations(range(14), 7))
    for first in whole[:: len(whole) // 40]:
        run_in_order(double, [0 if at in first else 1 for at in range(14)])


def run_in_order(double, order):
    launches = [admission(double, name) for name in ("one", "two")]
    turns = [threading.Semaphore(0), threading.Semaphore(0)]
    done, went = threading.Semaphore(0), []

    def run(at):
        launch = launches[at]
        call = launch.client.call

        def in_turn(endpoint, request=None):
            turns[at].acquire()
            try:
                return call(endpoint, request)
            finally:
                done.release()

        launch.client.call = in_turn
        launch.enter()
        if launch.is_my_turn():
            went.append(at)

    threads = [threading.Thread(target=run, args=(at,)) for at in (0, 1)]
    for thread in threads:
        thread.start()
    for at in order:
        turns[at].release()
        done.acquire()
    for thread in threads:
        thread.join()
    assert len(went) <= 1
    for launch in launches:
        double.store.tasks[launch.ticket.task]["status"] = "completed"
