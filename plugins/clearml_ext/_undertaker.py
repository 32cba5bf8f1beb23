"""The process that stops a controller's steps when the controller is gone.

It reads one line of JSON from its standard input, leaves the tree of processes it was started
in, and waits for the end of that input, which is the end of the controller's process.
"""

from __future__ import annotations

import json
import os
import sys
import time

from clearml_ext._api import Client
from clearml_ext.explain import stop_children
from mlops_ext.errors import MlopsExtError

__all__ = ["main"]

_TRIES = 5
_PAUSE_S = 1.0


def main() -> None:
    """Wait for the end of the standard input, then stop what the controller left behind."""
    line = sys.stdin.readline()
    if not line or os.fork() > 0:
        os._exit(0)
    given = json.loads(line)
    # Imported, connected and ready before it is needed: the agent is free again in seconds.
    client = Client(
        given["host"], token=lambda: str(given["token"]), timeout_s=10, verify=given["verify"]
    )
    while sys.stdin.readline():
        pass
    for _ in range(_TRIES):
        try:
            stop_children(client, given["controller"])
        except MlopsExtError:
            time.sleep(_PAUSE_S)
        else:
            return


if __name__ == "__main__":
    main()
