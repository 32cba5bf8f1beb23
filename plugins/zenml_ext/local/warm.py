"""Starts steps from a process that has imported ZenML once: an import of seconds becomes a fork.

Each step is still a process of its own, in its own session and under its own limit, killed whole.
It is forked before anything of a run, a store or the user's code is there. Linux only: elsewhere,
and for a step whose environment differs from the orchestrator's, steps start cold.
"""

from __future__ import annotations

import gc
import importlib
import json
import logging
import os
import select
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

from mlops_ext.extensions.discovery import extensions
from mlops_ext.processes.exits import exit_now
from zenml_ext.local.child import first_to_go

log = logging.getLogger(__name__)

_STATUS = struct.Struct("i")
_MODULES = (
    "zenml.entrypoints.entrypoint",
    "zenml.orchestrators.step_runner",
    "zenml.log_stores.artifact.artifact_log_store",
    "zenml_ext.local.entrypoint",
    "zenml_ext.patches",
)
# What the orchestrator has imported of these a step will need as well, such as its store.
_PACKAGES = frozenset({"zenml", "zenml_ext", "mlops_ext"})
# An import on a machine that is busy; a first step waits for it as it would for its own.
_READY_S = 300.0
# ZenML reads these when it makes its client, which is after the fork.
_READ_LATER = ("ZENML_STORE_", "ZENML_SECRETS_STORE_", "ZENML_ACTIVE_", "ZENML_USER_", "MLOPS_EXT_")
_TEMP = frozenset({"TMPDIR", "TEMP", "TMP"})


class WarmProcess:
    """A step's process that is another one's child; as much of `subprocess.Popen` as is needed."""

    def __init__(self, status: int) -> None:
        self._status = status
        self.returncode: int | None = None
        pid = self._read(_READY_S)
        if pid is None:
            raise ConnectionError("it ended before the step began")
        self.pid = pid

    def _read(self, timeout: float | None) -> int | None:
        """The next number; None if no writer is left."""
        if not select.select([self._status], [], [], timeout)[0]:
            raise subprocess.TimeoutExpired("step", timeout or 0)
        text = os.read(self._status, _STATUS.size)
        return int(_STATUS.unpack(text)[0]) if text else None

    def wait(self, timeout: float | None = None) -> int:
        """The exit code, negative for a signal."""
        if self.returncode is None:
            code = self._read(timeout)
            self.returncode = -signal.SIGKILL if code is None else code
            os.close(self._status)
        return self.returncode

    def poll(self) -> int | None:
        """The exit code, or None while it runs."""
        with suppress(subprocess.TimeoutExpired):
            self.wait(0)
        return self.returncode

    def send_signal(self, number: int) -> None:
        """Send a signal, if it still runs."""
        if self.poll() is None:
            with suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def terminate(self) -> None:
        """Send SIGTERM."""
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """Send SIGKILL."""
        self.send_signal(signal.SIGKILL)


class WarmServer:
    """The process that has imported ZenML, and ends with this one."""

    _lock = threading.Lock()
    _current: WarmServer | None = None

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._seen, self._owner = _seen_by_imports(environment), os.getpid()
        self._socket, theirs = socket.socketpair()
        modules = [name for name in sys.modules if name.partition(".")[0] in _PACKAGES]
        self._process = subprocess.Popen(
            [sys.executable, "-m", __name__, str(theirs.fileno()), *modules],
            env=dict(environment),
            stdin=subprocess.DEVNULL,
            pass_fds=(theirs.fileno(),),
            start_new_session=True,
        )
        theirs.close()

    @classmethod
    def get(cls, environment: Mapping[str, str]) -> WarmServer | None:
        """The server for steps with *environment*, started if need be; None: not on this system."""
        if sys.platform != "linux":
            return None
        with cls._lock:
            found = cls._current
            if found is None or not found._serves(environment):  # noqa: SLF001 - our own
                if found is not None:
                    found.close()
                cls._current = found = cls(environment)
            return found

    def _serves(self, environment: Mapping[str, str]) -> bool:
        """Whether it runs, is this process's own, and has imported all with this *environment*."""
        is_ours = self._owner == os.getpid() and self._process.poll() is None
        return is_ours and self._seen == _seen_by_imports(environment)

    def close(self) -> None:
        """Start nothing more; what runs goes on."""
        self._socket.close()
        if self._owner == os.getpid():
            self._process.wait()

    def start(
        self,
        command: Sequence[str],
        environment: Mapping[str, str],
        output: IO[bytes] | None,
        parent_pipe: int,
        procs_file: str,
    ) -> WarmProcess | None:
        """Start the step that *command* would start, in the cgroup of *procs_file*; None: gone."""
        ours, theirs = os.pipe()
        task = os.memfd_create("mlops-ext-task")
        values = {
            "arguments": command[command.index(_MODULES[0]) + 1 :],
            "environment": dict(environment),
            "directory": os.getcwd(),  # noqa: PTH109 - a text for JSON
            "procs_file": procs_file,
        }
        os.write(task, json.dumps(values).encode())
        streams = [output.fileno()] * 2 if output else [1, 2]
        try:
            try:
                socket.send_fds(self._socket, [b"!"], [task, theirs, parent_pipe, *streams])
            finally:
                os.close(task)
                os.close(theirs)
            return WarmProcess(ours)
        except (OSError, subprocess.TimeoutExpired) as error:
            os.close(ours)
            log.warning("The process that starts steps is gone (%s); this one starts cold.", error)
            return None


def _seen_by_imports(environment: Mapping[str, str]) -> dict[str, str]:
    """The part of *environment* that modules may look at while they are imported."""
    return {
        name: value
        for name, value in environment.items()
        if not name.startswith(_READ_LATER) and name not in _TEMP
    }


def serve(channel: socket.socket, modules: Iterable[str]) -> None:
    """Fork a step for each request, until the orchestrator is gone."""
    for module in (*_MODULES, *modules):
        with suppress(ImportError):
            importlib.import_module(module)
    from zenml.integrations.registry import integration_registry

    integration_registry.activate_integrations()
    if orm := sys.modules.get("sqlalchemy.orm"):
        orm.configure_mappers()
    extensions()
    gc.collect()
    gc.freeze()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the keepers below
    while True:
        word, fds, _, _ = socket.recv_fds(channel, 1, 5)
        if not word:
            return
        if os.fork() == 0:
            channel.close()
            _keep(fds)
        for fd in fds:
            os.close(fd)


def _keep(fds: Sequence[int]) -> None:
    """Fork the step, and report its process id and how it ended."""
    task, status, *others = fds
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    pid = os.fork()
    if pid == 0:
        text = os.pread(task, os.fstat(task).st_size, 0)
        os.close(status)
        os.close(task)
        _become(json.loads(text), others)
    for fd in others:
        os.close(fd)
    os.write(status, _STATUS.pack(pid))
    _, code = os.waitpid(pid, 0)
    os.write(status, _STATUS.pack(os.waitstatus_to_exitcode(code)))
    exit_now(0)


def _become(task: Mapping[str, Any], fds: Sequence[int]) -> None:
    """Be the step that *task* describes; it ends as this process would, by what is raised."""
    from zenml.entrypoints import entrypoint

    parent_pipe, out, err = fds
    os.setsid()
    if task["procs_file"]:
        Path(task["procs_file"]).write_text("0")
    first_to_go()
    os.dup2(out, 1)
    os.dup2(err, 2)
    os.chdir(task["directory"])
    if not getattr(sys.flags, "safe_path", False):
        sys.path[0] = task["directory"]  # as ``python -m`` does; the server may stand elsewhere
    os.environ.clear()
    os.environ.update(task["environment"], MLOPS_EXT_PARENT_PIPE=str(parent_pipe))
    tempfile.tempdir = None
    sys.argv = ["zenml", *task["arguments"]]
    entrypoint.main()
    sys.exit(0)  # as any process ends: threads are waited for, atexit is honoured


if __name__ == "__main__":
    serve(socket.socket(fileno=int(sys.argv[1])), sys.argv[2:])
