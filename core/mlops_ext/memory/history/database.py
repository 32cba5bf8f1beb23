"""Observations in one SQLite file that many processes use at once."""

from __future__ import annotations

import contextlib
import json
import logging
import math
import secrets
import sqlite3
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from mlops_ext.errors import HistoryError
from mlops_ext.memory.history.allocations import Outcome
from mlops_ext.memory.history.observations import BEGUN_ANEW, Observation, compress_curve
from mlops_ext.memory.model import TaskKey
from mlops_ext.memory.policies import KILL_PRICES
from mlops_ext.settings import environment

log = logging.getLogger(__name__)

_SCHEMA = """
CREATE TABLE IF NOT EXISTS run (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    pipeline TEXT NOT NULL, step TEXT NOT NULL, version TEXT NOT NULL,
    peak INTEGER NOT NULL, runtime_s REAL NOT NULL, input_bytes REAL,
    censored INTEGER NOT NULL, curve TEXT NOT NULL, costs TEXT NOT NULL,
    first INTEGER, ratio REAL, resizes TEXT NOT NULL DEFAULT '[]'
);
CREATE INDEX IF NOT EXISTS run_of_step ON run (pipeline, step, id);
"""
_VERSION = 1
# Appends between two prunings: they scan the step's rows.
_PRUNE_EVERY = 64
# Rows that one pruning removes: for the 50 ms or so nobody else can write.
_MAX_PRUNED = 2000
# Names under which a file that is no database can only be a damaged one.
_SUFFIXES = {".sqlite", ".sqlite3", ".db"}


class History:
    """Observations in a SQLite file.

    Guarantees: an append is on disk when it returns, or raises; a reader sees whole
    observations only; any number of threads and processes may append and read. The file holds
    at most about *keep* observations a step and *total* in all, the oldest go first.

    The journal is SQLite's rollback journal, not WAL: WAL keeps its index in shared memory and
    is wrong on network file systems (https://sqlite.org/wal.html), where shared histories
    live; an append of one row a run needs no concurrency beyond a lock. What it leans on is
    POSIX advisory locks (or LockFileEx), which NFS 4 and SMB provide. Each call opens and closes
    the file, so nothing is carried over a fork. A damaged row is left out; a file that is damaged
    as a whole is moved aside, beside itself, when the next run is added.
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
            *_named(key),
            _text(observation.version),
            int(observation.peak),
            observation.runtime_s,
            observation.input_bytes,
            int(observation.censored),
            json.dumps(compress_curve(observation.curve)),
            json.dumps(observation.outcomes),
            observation.first_limit,
            observation.ratio,
            json.dumps([each if math.isfinite(each) else None for each in observation.resizes_s]),
        )
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            try:
                self._insert(key, row)
            except _DamagedError as error:
                aside = self._move_aside()
                log.warning("memory history was damaged (%s): moved to %s", error, aside)
                self._insert(key, row)
        except OSError as error:
            raise HistoryError(self.path, str(error)) from error

    def _insert(self, key: TaskKey, row: Sequence[Any]) -> None:
        with self._connect(create=True) as database:
            if database is None:
                raise HistoryError(self.path, "it could not be laid out")
            database.execute("BEGIN IMMEDIATE")
            cursor = database.execute(
                "INSERT INTO run (pipeline, step, version, peak, runtime_s, input_bytes, censored,"
                " curve, costs, first, ratio, resizes)"
                " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                row,
            )
            prunes = (cursor.lastrowid or 0) % _PRUNE_EVERY == 0
            if prunes:
                self._prune(database, key)
            database.execute("COMMIT")
            if prunes:
                # A script, since execute() would stop after the first page.
                database.executescript(f"PRAGMA incremental_vacuum({_MAX_PRUNED})")

    def _move_aside(self) -> Path:
        """Rename the damaged file, and its journal, which must not be applied to a new one."""
        aside = self.path.with_name(f"{self.path.name}.damaged-{secrets.token_hex(8)}")
        for suffix in ("-journal", ""):
            with contextlib.suppress(FileNotFoundError):
                Path(f"{self.path}{suffix}").rename(f"{aside}{suffix}")
        return aside

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
            base = BEGUN_ANEW * _number(database, "PRAGMA application_id")
            rows = database.execute(
                "SELECT id, version, peak, runtime_s, input_bytes, censored, curve, costs,"
                " first, ratio, resizes FROM run"
                " WHERE pipeline = ? AND step = ? AND id > ? ORDER BY id DESC LIMIT ?",
                (*_named(key), after - base if 0 <= after - base < BEGUN_ANEW else 0, limit),
            ).fetchall()
        found = []
        for row in reversed(rows):
            try:
                found.append((base + row[0], _observation(row)))
            except (ValueError, TypeError, AttributeError) as error:
                log.debug("row %s of %s is damaged and left out: %s", row[0], self.path, error)
        return found

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
        """Remove the oldest rows beyond what is kept; many are removed a part at a time."""
        database.execute(
            "DELETE FROM run WHERE id IN (SELECT id FROM run WHERE pipeline = ? AND step = ?"
            " AND id <= (SELECT id FROM run WHERE pipeline = ? AND step = ?"
            " ORDER BY id DESC LIMIT 1 OFFSET ?) ORDER BY id LIMIT ?)",
            (*_named(key), *_named(key), self.keep, _MAX_PRUNED),
        )
        too_many = _number(database, "SELECT COUNT(*) FROM run") - self.total
        if too_many > 0:
            database.execute(
                "DELETE FROM run WHERE id IN (SELECT id FROM run ORDER BY id LIMIT ?)",
                (min(too_many, _MAX_PRUNED),),
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
            text = str(error)
            is_ours = self.path.suffix in _SUFFIXES
            if "malformed" in text or ("not a database" in text and is_ours):
                raise _DamagedError(self.path, text) from error
            raise HistoryError(self.path, text) from error

    def _is_ready(self, database: sqlite3.Connection, *, create: bool) -> bool:
        """Whether the tables are there, after laying them out where *create* asks for that."""
        found = _number(database, "PRAGMA user_version")
        if found > _VERSION:
            raise HistoryError(self.path, f"a newer mlops-ext wrote it (format {found})")
        if found == _VERSION:
            return True
        if create:
            database.execute("PRAGMA auto_vacuum = INCREMENTAL")  # before the first table
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
            # Tells this file from one that was here before.
            database.execute(f"PRAGMA application_id = {secrets.randbelow(2**31 - 1) + 1}")
            database.execute(f"PRAGMA user_version = {_VERSION}")
        database.execute("COMMIT")
        return True


class _DamagedError(HistoryError):
    """The file is no whole database any more."""

    def __init__(self, path: Path, detail: str) -> None:
        super().__init__(path, detail, "it is moved aside when the next run is added to it")


def _number(database: sqlite3.Connection, query: str) -> int:
    return int(database.execute(query).fetchone()[0])


def _named(key: TaskKey) -> tuple[str, str]:
    return _text(key.pipeline), _text(key.step)


def _text(name: str) -> str:
    """*name* as SQLite can keep it: a name that came from bytes may hold lone surrogates."""
    return name.encode("utf-8", "backslashreplace").decode("utf-8")


def _observation(row: Sequence[Any]) -> Observation:
    """The observation in *row*.

    Raises:
        ValueError, TypeError, AttributeError: it is damaged.
    """
    _, version, peak, runtime_s, input_bytes, censored, curve, costs, first, ratio, resizes = row
    if not 0 < peak < 2**63:
        raise ValueError(f"peak = {peak!r}")
    runtime_s = float(runtime_s)
    return Observation(
        peak=int(peak),
        runtime_s=runtime_s if math.isfinite(runtime_s) and runtime_s > 0 else 0.0,
        version=str(version),
        input_bytes=None if input_bytes is None else float(input_bytes),
        censored=bool(censored),
        curve=tuple((float(when), int(size)) for when, size in json.loads(curve)),
        outcomes=_outcomes(json.loads(costs)),
        first_limit=int(first) if first and first > 0 else None,
        ratio=float(ratio) if ratio and 0 < ratio < math.inf else None,
        resizes_s=tuple(math.inf if each is None else float(each) for each in json.loads(resizes)),
    )


def _outcomes(costs: dict[str, Any]) -> dict[str, Sequence[Outcome]]:
    """The outcomes in *costs*; what is none, or was written for other prices, is left out."""
    found: dict[str, Sequence[Outcome]] = {}
    for name, ladders in costs.items():
        with contextlib.suppress(TypeError, ValueError):
            outcomes = [Outcome(*map(float, ladder)) for ladder in ladders]
            if len(outcomes) == len(KILL_PRICES) and all(map(math.isfinite, sum(outcomes, ()))):
                found[str(name)] = outcomes
    return found


def default_path() -> Path:
    """``mlops-ext/history.sqlite`` in the user's data directory (``XDG_DATA_HOME``).

    Raises:
        RuntimeError: there is no home directory.
    """
    data = Path(environment().get("XDG_DATA_HOME", ""))
    # A relative one is to be ignored: specifications.freedesktop.org/basedir-spec.
    root = data if data.is_absolute() else Path.home() / ".local" / "share"
    return root / "mlops-ext" / "history.sqlite"
