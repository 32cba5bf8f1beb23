"""What the double keeps: plain dicts, one lock. An endpoint is a method ``service_action``."""

from __future__ import annotations

import threading

from tests.doubles.clearml.projects import Projects
from tests.doubles.clearml.queues import Queues
from tests.doubles.clearml.task_states import TaskStates
from tests.doubles.clearml.tasks import Tasks
from tests.doubles.clearml.workers import Workers


class Store(Projects, Queues, Workers, Tasks, TaskStates):
    """Tasks, queues, workers and projects of one server with one company and one user."""

    def __init__(self, queues=("default",)):
        self.lock = threading.RLock()
        self.changed = threading.Condition(self.lock)
        self.tasks, self.queues, self.workers, self.projects = {}, {}, {}, {}
        self.log_lines = []
        self.seen = {}  # id of a task → when it was last heard of
        for name in queues:
            self.queues_create({"name": name})

    def notify(self):
        with self.changed:
            self.changed.notify_all()
