"""The process that outlives a controller, as the controller sees it."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

from clearml_ext.sdk import job_id_of
from clearml_ext.server.client import Client


class Reaper:
    """The process that stops a controller's steps after an agent has killed the controller.

    An agent answers an abort with SIGKILL to the whole tree of processes; this one is out of the
    tree. It learns of the end of this process by the end of a pipe, and through the same pipe of
    the tasks that were launched: what is on the server by then lags behind.
    """

    def __init__(self) -> None:
        self._pipe = -1

    def start(self, client: Client, controller: str) -> None:
        """Start the process, for the pipeline whose controller's task is *controller*."""
        if os.name != "posix":
            return
        reader, self._pipe = os.pipe()
        # A reader that does not come must not stop the controller.
        os.set_blocking(self._pipe, False)
        self.notify(json.dumps(client.hand_over(controller)))
        with contextlib.suppress(OSError, subprocess.TimeoutExpired):
            # It leaves our tree once it has started, and this child of ours ends.
            process = subprocess.Popen(
                [sys.executable, "-m", "clearml_ext.watchdog.reaper_process"],
                stdin=reader,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )
            # Before it has left our tree, an abort would kill it together with us.
            process.wait(timeout=30)
        os.close(reader)

    def notify(self, task: str) -> None:
        """Tell the process that the controller launched *task*; does nothing before `start`."""
        if self._pipe >= 0:
            # As little as this is written whole, whatever thread comes in between.
            with contextlib.suppress(OSError):
                os.write(self._pipe, f"{task}\n".encode())

    def reporting(self, given: Callable[..., Any] | None) -> Callable[..., Any]:
        """Wrap the callback *given* for a created step: this process is notified first."""

        def created(pipeline: Any, node: Any, parameters: Any) -> Any:
            self.notify(str(job_id_of(node)))
            return given(pipeline, node, parameters) if given else None

        return created
