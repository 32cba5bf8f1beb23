"""Workers, pipelines and steps put into the double without a process behind them."""

from __future__ import annotations

import datetime as dt
import json

from tests.doubles.clearml.server import ACCESS_KEY, SECRET_KEY

from clearml_ext.server.client import Client


def client_of(double, secret=SECRET_KEY):
    return Client(double.url, key=ACCESS_KEY, secret=secret, timeout_s=120)


def add_worker(double, name, *queues, age_s=0, task=None, **more):
    numbers = [n for q in queues for n, row in double.store.queues.items() if row["name"] == q]
    double.store.workers_register({"worker": name, "queues": numbers, **more})
    worker = double.store.workers[name]
    worker["last_activity_time"] -= dt.timedelta(seconds=age_s)
    worker["task_id"] = task


def add_controller(double, name, steps, *, queue=None, status="created", worker=None, **more):
    """A controller's task as the SDK leaves it: steps are name → queue or (queue, base task)."""
    dag = {}
    for step, where in steps.items():
        step_queue, base = where if isinstance(where, tuple) else (where, None)
        dag[step] = {"queue": step_queue, "parents": [], "base_task_id": base, "executed": None}
    number = double.store.tasks_create(
        {
            "name": name,
            "type": "controller",
            "system_tags": ["pipeline"],
            "configuration": {"Pipeline": {"name": "Pipeline", "value": json.dumps(dag)}},
            **more,
        }
    )["id"]
    if queue is not None:
        double.store.tasks_enqueue({"task": number, "queue_name": queue})
    if worker is not None:
        double.store.take_out(number)
        double.store.tasks[number]["status"] = "in_progress"
        double.store.tasks[number]["runtime"] = {"_pipeline_hash": "0:1.0"}
        double.store.workers[worker]["task_id"] = number
    else:
        double.store.tasks[number]["status"] = "queued" if queue else status
    note_launch(double, more.get("parent"), number)
    return number


def note_launch(double, parent, number):
    """Have the controller's task say that it launched the task *number*."""
    if parent is None:
        return
    state = double.store.tasks[parent]["configuration"]["Pipeline"]
    name = double.store.tasks[number]["name"]
    fields = {"queue": None, "parents": [], "base_task_id": None, "job_id": number}
    state["value"] = json.dumps({**json.loads(state["value"]), f"{name} {number}": fields})


def put_step(double, parent, queue, name="train"):
    number = double.store.tasks_create({"name": name, "type": "training", "parent": parent})["id"]
    if queue:
        double.store.tasks_enqueue({"task": number, "queue_name": queue})
    note_launch(double, parent, number)
    return number
