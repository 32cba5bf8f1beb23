"""Observations in one SQLite file that many processes use at once."""

from __future__ import annotations

import contextlib
import json
import math
import sqlite3
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from mlops_ext.errors import HistoryError
from mlops_ext.memory.history.observations import Observation, compress_curve
from mlops_ext.memory.model import TaskKey
from mlops_ext.settings import environment

_SCHEMA = """
CREATE TABLE IF NOT EXISTS run (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    pipeline TEXT NOT NULL, step TEXT NOT NULL, version TEXT NOT NULL,
    peak INTEGER NOT NULL, runtime_s REAL NOT NULL, input_bytes REAL,
    censored INTEGER NOT NULL, curve TEXT NOT NULL, costs TEXT NOT NULL,
    first INTEGER, ratio REAL
);
CREATE INDEX IF NOT EXISTS run_of_step ON run (pipeline, step, id);
"""
_VERSION = 1
_PRUNE_EVERY = 64
"""Appends between two prunings: they scan the step's rows."""


class History:
    """Observations in a SQLite file.

    Guarantees: an append is on disk when it returns, or raises; a reader sees whole
    observations only; any number of threads and processes may append and read. The file holds
    at most about *keep* observations a step and *total* in all, the oldest go first.

    The journal is SQLite's rollback journal, not WAL: WAL keeps its index in shared memory and
    is wrong on network file systems (https://sqlite.org/wal.html), where shared histories
    live; an append of one row a run needs no concurrency beyond a lock. What it leans on is
    POSIX advisory locks (or LockFileEx), which NFS 4 and SMB provide. Each call opens and closes
    the file, so nothing is carried over a fork.
    """

    def __init__(
        self, path: Path, *, keep: int = 1000, total: int = 200_000, busy_s: float = 30.0
    ) -> None:
        """A history in *path*, which is created when first written.

        Args:
            path: the SQLite file.
            keep: observations kept a step; the policy looks at the newest 400.
            total: observations kept in all, about 100 MB.
            busy_s: how long an append waits for other processes.
        """
        if keep < 1 or total < keep:
            raise ValueError(f"keep = {keep!r}, total = {total!r}: expected 1 <= keep <= total")
        self.path, self.keep, self.total, self.busy_s = Path(path), keep, total, busy_s

    def append(self, key: TaskKey, observation: Observation) -> None:
        """Add *observation* to the history of *key*.

        Raises:
            HistoryError: it could not be written.
        """
        row = (
            key.pipeline,
            key.step,
            observation.version,
            int(observation.peak),
            observation.runtime_s,
            observation.input_bytes,
            int(observation.censored),
            json.dumps(compress_curve(observation.curve)),
            json.dumps(dict(observation.costs)),
            observation.first_limit,
            observation.ratio,
        )
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise HistoryError(self.path, str(error)) from error
        with self._connect(create=True) as database:
            if database is None:
                raise HistoryError(self.path, "it could not be laid out")
            database.execute("BEGIN IMMEDIATE")
            cursor = database.execute(
                "INSERT INTO run (pipeline, step, version, peak, runtime_s, input_bytes, censored,"
                " curve, costs, first, ratio) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                row,
            )
            number = cursor.lastrowid or 0
            if number % _PRUNE_EVERY == 0:
                self._prune(database, key)
            database.execute("COMMIT")

    def read(
        self, key: TaskKey, *, after: int = 0, limit: int = 400
    ) -> Sequence[tuple[int, Observation]]:
        """The newest *limit* observations of *key*'s step, oldest first, with their numbers.

        Raises:
            HistoryError: the file cannot be read.
        """
        if not self._is_there():
            return []
        with self._connect(create=False) as database:
            if database is None:
                return []
            rows = database.execute(
                "SELECT id, version, peak, runtime_s, input_bytes, censored, curve, costs,"
                " first, ratio FROM run"
                " WHERE pipeline = ? AND step = ? AND id > ? ORDER BY id DESC LIMIT ?",
                (key.pipeline, key.step, after, limit),
            ).fetchall()
        try:
            return [(row[0], _observation(row)) for row in reversed(rows)]
        except (ValueError, TypeError, AttributeError) as error:
            raise HistoryError(self.path, f"a row is damaged ({error})") from error

    def steps(self) -> Sequence[tuple[str, str, int]]:
        """Every (pipeline, step, number of observations) in the file, sorted.

        Raises:
            HistoryError: the file cannot be read.
        """
        if not self._is_there():
            return []
        with self._connect(create=False) as database:
            if database is None:
                return []
            return database.execute(
                "SELECT pipeline, step, COUNT(*) FROM run GROUP BY pipeline, step"
                " ORDER BY pipeline, step"
            ).fetchall()

    def _is_there(self) -> bool:
        try:
            return self.path.exists()
        except OSError as error:
            raise HistoryError(self.path, str(error)) from error

    def _prune(self, database: sqlite3.Connection, key: TaskKey) -> None:
        database.execute(
            "DELETE FROM run WHERE pipeline = ? AND step = ? AND id <= (SELECT id FROM run"
            " WHERE pipeline = ? AND step = ? ORDER BY id DESC LIMIT 1 OFFSET ?)",
            (key.pipeline, key.step, key.pipeline, key.step, self.keep),
        )
        database.execute(
            "DELETE FROM run WHERE id <= (SELECT id FROM run ORDER BY id DESC LIMIT 1 OFFSET ?)",
            (self.total,),
        )

    @contextlib.contextmanager
    def _connect(self, *, create: bool) -> Iterator[sqlite3.Connection | None]:
        """A connection in autocommit mode, closed at the end; None: the file is still empty."""
        try:
            with contextlib.closing(
                sqlite3.connect(self.path, timeout=self.busy_s, isolation_level=None)
            ) as database:
                yield database if self._is_ready(database, create=create) else None
        except sqlite3.Error as error:
            raise HistoryError(self.path, str(error)) from error

    def _is_ready(self, database: sqlite3.Connection, *, create: bool) -> bool:
        """Whether the tables are there, after laying them out where *create* asks for that."""
        found = _number(database, "PRAGMA user_version")
        if found > _VERSION:
            raise HistoryError(self.path, f"a newer mlops-ext wrote it (format {found})")
        if found == _VERSION:
            return True
        if create:
            database.execute("PRAGMA journal_mode = DELETE")
            database.execute("BEGIN IMMEDIATE")
            # Another process may have been here since the version was read.
            found = _number(database, "PRAGMA user_version")
        if found == 0 and _number(database, "SELECT COUNT(*) FROM sqlite_master"):
            raise HistoryError(self.path, "it is another program's database")
        if not create:
            return False
        if found == 0:
            for statement in filter(None, map(str.strip, _SCHEMA.split(";"))):
                database.execute(statement)
            database.execute(f"PRAGMA user_version = {_VERSION}")
        database.execute("COMMIT")
        return True


def _number(database: sqlite3.Connection, query: str) -> int:
    return int(database.execute(query).fetchone()[0])


def _observation(row: Sequence[Any]) -> Observation:
    _, version, peak, runtime_s, input_bytes, censored, curve, costs, first, ratio = row
    return Observation(
        peak=int(peak),
        runtime_s=float(runtime_s),
        version=str(version),
        input_bytes=None if input_bytes is None else float(input_bytes),
        censored=bool(censored),
        curve=tuple((float(when), int(size)) for when, size in json.loads(curve)),
        costs={
            str(name): float(cost)
            for name, cost in json.loads(costs).items()
            if math.isfinite(cost)
        },
        first_limit=None if first is None else int(first),
        ratio=None if ratio is None else float(ratio),
    )


def default_path() -> Path:
    """``mlops-ext/history.sqlite`` in the user's data directory (``XDG_DATA_HOME``).

    Raises:
        RuntimeError: there is no home directory.
    """
    data = Path(environment().get("XDG_DATA_HOME", ""))
    # A relative one is to be ignored: specifications.freedesktop.org/basedir-spec.
    root = data if data.is_absolute() else Path.home() / ".local" / "share"
    return root / "mlops-ext" / "history.sqlite"
