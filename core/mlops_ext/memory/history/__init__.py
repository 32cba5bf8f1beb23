"""Peaks of earlier runs, and the policy that learns from them.

The first run of every task costs most, so the history has to outlast a run and be shared by all
of them: `History` keeps it in one SQLite file that many processes may use at once::

    policy = HistoryPolicy(records=History(path))
    plan = policy.decide(key, Features(input_bytes=n), request, caps)
    policy.observe(key, Features(input_bytes=n), peak, runtime_s)

`HistoryPolicy` takes any `Records`, so that a framework's own metadata store can stand in.
"""

from mlops_ext.memory.history.database import History, default_path
from mlops_ext.memory.history.observations import InMemoryHistory, Observation, Records
from mlops_ext.memory.history.policy import HistoryPolicy

__all__ = ["History", "HistoryPolicy", "InMemoryHistory", "Observation", "Records", "default_path"]
