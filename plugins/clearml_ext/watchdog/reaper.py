"""The process that outlives a controller, as the controller sees it."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import threading

from clearml_ext.server.client import Client

__all__ = ["Undertaker"]


class Undertaker:
    """The process that stops a controller's steps after an agent has killed the controller.

    An agent answers an abort with SIGKILL to the whole tree of processes; this one is out of the
    tree. It learns of the end of this process by the end of a pipe, and through the same pipe of
    the tasks that were launched: what is on the server by then lags behind.
    """

    def __init__(self, client: Client, controller: str) -> None:
        self._pipe = -1
        if os.name != "posix":
            return
        reader, self._pipe = os.pipe()
        # A reader that does not come must not stop the controller.
        os.set_blocking(self._pipe, False)
        self._write(json.dumps(client.hand_over(controller)))
        with contextlib.suppress(OSError):
            # It leaves our tree once it has started, and this child of ours ends.
            process = subprocess.Popen(
                [sys.executable, "-m", "clearml_ext.watchdog.reaper_process"],
                stdin=reader,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )
            threading.Thread(target=process.wait, daemon=True).start()
        os.close(reader)

    def tell(self, task: str) -> None:
        """Say that the controller launched *task*."""
        self._write(task)

    def _write(self, line: str) -> None:
        if self._pipe >= 0:
            # As little as this is written whole, whatever thread comes in between.
            with contextlib.suppress(OSError):
                os.write(self._pipe, f"{line}\n".encode())
