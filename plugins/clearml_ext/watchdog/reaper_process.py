"""The process that stops a controller's steps when the controller is gone.

It reads one line of JSON from its standard input, leaves the tree of processes it was started
in, and reads ids of tasks that the controller launched until that input ends, which is the end of
the controller's process.
"""

from __future__ import annotations

import json
import os
import sys
import time

from clearml_ext.server.client import Client
from clearml_ext.server.tasks import (
    Launched,
    is_aborted,
    launched_by_task,
    pipeline_tasks,
    stop_children,
)
from mlops_ext.errors import MlopsExtError

_TRIES = 5
_PAUSE_S = 1.0
# Polls in a row without a step to stop, after which there are none.
_ENOUGH = 2


def main() -> None:
    """Wait for the end of the standard input, then stop what the controller left behind."""
    line = sys.stdin.readline()
    if not line or os.fork() > 0:
        return
    given = json.loads(line)
    # Imported, connected and ready before it is needed: the agent is free again in seconds.
    client = Client(
        given["host"], token=lambda: str(given["token"]), timeout_s=10, verify=given["verify"]
    )
    launched = {line.strip() for line in sys.stdin}
    _stop_all(client, given["controller"], launched)


def _stop_all(client: Client, controller: str, launched: set[str]) -> None:
    """Stop the steps of a controller that was aborted, until there are none.

    An agent may have taken one before it could be stopped. A controller that died of something
    else leaves its steps running.
    """
    found_none = 0
    for _ in range(_TRIES):
        try:
            own, _children = pipeline_tasks(client, controller)
            if own and is_aborted(own):
                known = launched_by_task(own)
                both = Launched(ids=known.ids | launched, names=known.names)
                found_none = 0 if stop_children(client, controller, both) else found_none + 1
        except MlopsExtError:
            found_none = 0
        if found_none == _ENOUGH:
            return
        time.sleep(_PAUSE_S)


if __name__ == "__main__":
    main()
