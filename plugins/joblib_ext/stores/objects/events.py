"""Rare events of a store, kept in one object a process."""

from __future__ import annotations

import json
import os

from joblib_ext.stores.events import Events
from joblib_ext.stores.objects.client import Client
from mlops_ext.processes.identity import own_host

# Subjects kept a process: an object is written whole each time.
_MOST = 1000


class ObjectEvents(Events):
    """Notes events of this process in an object of its own; never raises."""

    def __init__(self, client: Client, folder: str) -> None:
        super().__init__(folder)
        self._client, self._keys = client, folder
        self._name = ""
        self._lines: list[str] = []

    def after_fork(self) -> None:
        """In a child: the object is the parent's."""
        super().after_fork()
        self._name, self._lines = "", []

    def note(self, kind: str, subject: str) -> None:
        """Count an event of *kind* about *subject*; it is kept where the store can be written."""
        with self._lock:
            self.counts[kind] += 1
            if len(self._lines) >= _MOST:
                return
            if not self._name:
                self._name = f"{own_host()}-{os.getpid()}-{os.urandom(4).hex()}.jsonl"
            self._lines.append(json.dumps({"kind": kind, "subject": subject}) + "\n")
            data = "".join(self._lines).encode()
            self._client.put(f"{self._keys}/{self._name}", data, quick=True)
