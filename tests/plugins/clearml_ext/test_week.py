"""A week of a workspace that others use without the guard: what is theirs is never touched.

Users come and go hour by hour, some leave runs that never end; agents take tasks, finish them and
die. Beside them the guard's own launches are checked, watched and cascaded. Only what it writes
goes through the server's interface, so the double's record of requests is the whole of it.
"""

import datetime as dt
import random

import pytest

pytest.importorskip("clearml")

from tests.doubles.clearml.arrange import add_controller, add_worker, client_of, put_step
from tests.doubles.clearml.documents import now
from tests.doubles.clearml.server import ApiDouble

from clearml_ext.check.dry_run import is_read
from clearml_ext.check.plans import Node, Plan
from clearml_ext.check.preflight import check_live
from clearml_ext.check.results import Answer
from clearml_ext.check.status import workspace_status
from clearml_ext.settings import ClearmlSettings
from clearml_ext.watchdog.watchdog import PipelineMonitor

HOURS = 7 * 24
SETTINGS = ClearmlSettings(timeout_s=120, fresh_s=3600, pending_s=3600, fix=True)
AGENTS = {"d1": "default", "d2": "default", "g1": "gpu", "both": "services", "m1": "mine"}
OVER = ("completed", "failed", "stopped")


class Week:
    def __init__(self, double, seed):
        self.double, self.store, self.rng = double, double.store, random.Random(seed)
        self.hour, self.mine, self.theirs, self.monitors = 0, set(), set(), []
        self.launches = self.stuck = 0
        add_worker(double, "s", "services", tags=["services-mode"])
        for name, queue in AGENTS.items():
            add_worker(double, name, queue, *(["default"] if name == "both" else []))

    def report(self):
        """All agents report, but for one that died at noon of the third day."""
        for name, worker in self.store.workers.items():
            alive = name != "d2" or self.hour < 60
            worker["last_activity_time"] = now() if alive else now() - dt.timedelta(days=1)

    def others_come(self):
        rng, store = self.rng, self.store
        kind = rng.choice(["experiment", "pipeline", "stuck", "deadlock", "desk", "clone", "abort"])
        queue = rng.choice(["default", "gpu"])
        if kind == "experiment":
            number = store.tasks_create({"name": "experiment", "type": "training"})["id"]
            store.tasks_enqueue({"task": number, "queue_name": queue})
        elif kind in ("pipeline", "stuck", "deadlock"):
            steps = {"pipeline": queue, "stuck": "idle", "deadlock": "default"}[kind]
            where = rng.choice(["services", "default"])
            number = add_controller(self.double, f"their {kind}", {"x": steps}, queue=where)
        elif kind == "desk":
            fields = {"name": "notebook", "type": "training", "system_tags": ["development"]}
            number = store.tasks_create(fields)["id"]
            store.tasks[number]["status"] = "in_progress"
        elif kind == "clone" and self.theirs:
            number = store.tasks_clone({"task": rng.choice(sorted(self.theirs))})["id"]
        else:
            running = [n for n in self.theirs if store.tasks[n]["status"] == "in_progress"]
            for number in running[:1]:
                store.tasks_stopped({"task": number, "status_message": "by its owner"})
            return
        self.theirs.add(number)

    def agents_work(self):
        for name, worker in list(self.store.workers.items()):
            number = worker.get("task_id")
            task = self.store.tasks.get(number)
            if task is not None and self.is_over(task):
                worker["task_id"] = None
            if worker["task_id"] is None and (name != "d2" or self.hour < 60):
                self.take(name, worker)

    def is_over(self, task):
        """Whether *task* ends: a plain one after a while, a controller with its last step."""
        if task["status"] in OVER:
            return True
        children = [t for t in self.store.tasks.values() if t.get("parent") == task["id"]]
        waits = task["type"] == "controller" and not all(t["status"] in OVER for t in children)
        if waits or self.rng.random() < 0.3:
            return False
        self.store.tasks_completed({"task": task["id"], "force": True})
        return True

    def take(self, name, worker):
        for queue in worker["queue_ids"]:
            entries = self.store.queues[queue]["entries"]
            if not entries:
                continue
            number = entries[0]["task"]
            self.store.take_out(number)
            self.store.tasks_started({"task": number, "force": True})
            if name == "s":  # in services mode: a child of its own for each task
                add_worker(self.double, f"s:service:{number}", task=number)
            else:
                worker["task_id"] = number
            self.start_steps(number)
            return

    def start_steps(self, number):
        task = self.store.tasks[number]
        if task["type"] != "controller":
            return
        task["runtime"] = {"_pipeline_hash": "0:1.0"}
        queue = {"their stuck": "idle", "their deadlock": "default", "mine": "mine"}.get(
            task["name"], "gpu"
        )
        step = put_step(self.double, number, queue)
        (self.mine if number in self.mine else self.theirs).add(step)

    def i_launch(self):
        plan = Plan(name="mine", nodes=(Node(name="x", queue="mine"),))
        result = check_live(plan, "services", SETTINGS, client=client_of(self.double))
        assert result.answer is Answer.SAFE, (self.hour, result.reasons, result.notes)
        own = add_controller(self.double, "mine", {"x": "mine"}, queue="services")
        self.mine.add(own)
        self.launches += 1
        monitor = PipelineMonitor(
            client_of(self.double),
            own,
            SETTINGS,
            acts=True,
            notify=lambda _: None,
            clock=lambda: 3600.0 * self.hour,
        )
        self.monitors.append(monitor)

    def i_watch(self):
        self.monitors = [each for each in self.monitors if each.poll()]
        live = [m for m in self.monitors if any(c["status"] not in OVER for c in m.children)]
        if live and self.hour % 10 == 0:
            reason = {"status_reason": "task was stopped by tasks.stop", "status_message": ""}
            self.store.tasks_stopped({"task": live[0].controller, "force": True, **reason})
        if self.hour % 4:
            return
        status = workspace_status(client_of(self.double), SETTINGS)
        self.stuck = max(self.stuck, len(status.stuck))
        for number in sorted(self.theirs)[:3]:
            watcher = PipelineMonitor(
                client_of(self.double), number, SETTINGS, acts=False, notify=lambda _: None
            )
            watcher.poll()

    def run(self):
        for self.hour in range(HOURS):
            self.report()
            for _ in range(self.rng.randint(0, 2)):
                self.others_come()
            if self.hour % 5 == 0:
                self.i_launch()
            self.agents_work()
            self.i_watch()


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("seed", [1, 2])
def test_nothing_of_others_is_touched_and_nothing_of_mine_is_refused_for_them(seed):
    with ApiDouble(["default", "services", "gpu", "idle", "mine"]) as double:
        week = Week(double, seed)
        week.run()
        assert week.launches == HOURS // 5 + 1
        assert week.stuck > 0
        written = [
            (endpoint, request) for endpoint, request in double.calls if not is_read(endpoint)
        ]
        touched = {request.get("task") for _, request in written}
        assert touched <= week.mine, written
        assert touched, "an abort of mine takes its step along"
        assert week.mine | week.theirs == set(double.store.tasks)  # nobody's task is lost
