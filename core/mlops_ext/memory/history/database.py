"""Observations in one SQLite file that many processes use at once."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import secrets
import sqlite3
from collections.abc import Iterator, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from mlops_ext.errors import HistoryError
from mlops_ext.memory.history.observations import BEGUN_ANEW, Observation
from mlops_ext.memory.model import TaskKey
from mlops_ext.retry import doubling, retry
from mlops_ext.settings import environment

log = logging.getLogger(__name__)

_SCHEMA = (
    """
CREATE TABLE IF NOT EXISTS run (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    pipeline TEXT NOT NULL, step TEXT NOT NULL, version TEXT NOT NULL,
    peak INTEGER NOT NULL, runtime_s REAL NOT NULL, input_bytes REAL,
    censored INTEGER NOT NULL, curve TEXT NOT NULL, costs TEXT NOT NULL,
    first INTEGER, ratio REAL, resizes TEXT NOT NULL DEFAULT '[]'
)
""",
    "CREATE INDEX IF NOT EXISTS run_of_step ON run (pipeline, step, id)",
)
_VERSION = 1
# In the order of Observation's attributes.
_COLUMNS = "peak, runtime_s, version, input_bytes, censored, curve, costs, first, ratio, resizes"
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
        row = [*_named(key), *(_kept(getattr(observation, f.name)) for f in fields(Observation))]
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            try:
                self._insert(key, row)
            except _DamagedError:
                with _alone_in(self.path.parent, self.busy_s):
                    self._insert_anew(key, row)
        except OSError as error:
            raise HistoryError(self.path, str(error)) from error

    def _insert_anew(self, key: TaskKey, row: Sequence[Any]) -> None:
        """Insert *row*, into a new file unless another process has begun one by now.

        The damaged file is renamed, after its journal, which must not be applied to a new one.
        """
        try:
            self._insert(key, row)
        except _DamagedError as error:
            aside = self.path.with_name(f"{self.path.name}.damaged-{secrets.token_hex(8)}")
            for suffix in ("-journal", ""):
                with contextlib.suppress(FileNotFoundError):
                    Path(f"{self.path}{suffix}").rename(f"{aside}{suffix}")
            log.warning("memory history was damaged (%s): moved to %s", error.__cause__, aside)
            self._insert(key, row)

    def _insert(self, key: TaskKey, row: Sequence[Any]) -> None:
        with self._connect(create=True) as database:
            if database is None:
                raise HistoryError(self.path, "it could not be laid out")
            database.execute("BEGIN IMMEDIATE")
            cursor = database.execute(
                f"INSERT INTO run (pipeline, step, {_COLUMNS})"
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

    def read(
        self, key: TaskKey, *, after: int = 0, limit: int = 400
    ) -> Sequence[tuple[int, Observation]]:
        """The newest *limit* observations of *key*'s step, oldest first, with their numbers.

        Raises:
            HistoryError: the file cannot be read.
        """
        with self._connect(create=False) as database:
            if database is None:
                return []
            base = BEGUN_ANEW * _number(database, "PRAGMA application_id")
            rows = database.execute(
                f"SELECT id, {_COLUMNS} FROM run"
                " WHERE pipeline = ? AND step = ? AND id > ? ORDER BY id DESC LIMIT ?",
                (*_named(key), after - base if 0 <= after - base < BEGUN_ANEW else 0, limit),
            ).fetchall()
        found = []
        for row in reversed(rows):
            try:
                found.append((base + row[0], _observation(row[1:])))
            except (ValueError, TypeError) as error:
                log.debug("row %s of %s is damaged and left out: %s", row[0], self.path, error)
        return found

    def steps(self) -> Sequence[tuple[str, str, int]]:
        """Every (pipeline, step, number of observations) in the file, sorted.

        Raises:
            HistoryError: the file cannot be read.
        """
        with self._connect(create=False) as database:
            if database is None:
                return []
            return database.execute(
                "SELECT pipeline, step, COUNT(*) FROM run GROUP BY pipeline, step"
                " ORDER BY pipeline, step"
            ).fetchall()

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
        """A connection in autocommit mode, closed at the end; None: there is nothing yet."""
        try:
            if not create and not self.path.exists():
                yield None
                return
            with contextlib.closing(
                sqlite3.connect(self.path, timeout=self.busy_s, isolation_level=None)
            ) as database:
                yield database if self._is_ready(database, create=create) else None
        except (sqlite3.Error, OSError) as error:
            text = str(error)
            is_ours = self.path.suffix in _SUFFIXES
            if "malformed" in text or ("not a database" in text and is_ours):
                raise _DamagedError(self.path, text) from error
            raise HistoryError(self.path, text) from error

    def _is_ready(self, database: sqlite3.Connection, *, create: bool) -> bool:
        """Whether the tables are there, after laying them out if *create* asks for that."""
        if create and not _number(database, "PRAGMA user_version"):
            database.execute("PRAGMA auto_vacuum = INCREMENTAL")  # before the first table
            database.execute("PRAGMA journal_mode = DELETE")
            database.execute("BEGIN IMMEDIATE")
        found = _number(database, "PRAGMA user_version")  # another process may have been here
        if found > _VERSION:
            raise HistoryError(
                self.path, f"a newer mlops-ext wrote it ({found})", "update this one"
            )
        if found == 0 and _number(database, "SELECT COUNT(*) FROM sqlite_master"):
            raise HistoryError(
                self.path, "it is another program's", "set memory.history to another"
            )
        if found == 0 and create:
            for statement in _SCHEMA:
                database.execute(statement)
            # Tells this file from one that was here before.
            database.execute(f"PRAGMA application_id = {secrets.randbelow(2**31 - 1) + 1}")
            database.execute(f"PRAGMA user_version = {_VERSION}")
        if database.in_transaction:
            database.execute("COMMIT")
        return create or found > 0


class _DamagedError(HistoryError):
    """The file is damaged: not a complete database."""

    def __init__(self, path: Path, detail: str) -> None:
        super().__init__(path, detail, "it is moved aside when the next run is added to it")


@contextlib.contextmanager
def _alone_in(folder: Path, busy_s: float) -> Iterator[None]:
    """One process of this host at a time, if *folder* can be locked within *busy_s*.

    Every user who may read the folder can hold its lock forever: nobody waits longer than that.
    """
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(ImportError, OSError):
            import fcntl

            descriptor = os.open(folder, os.O_RDONLY)
            stack.callback(os.close, descriptor)
            retry(
                lambda: fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB),
                pauses=doubling(0.01, 0.5),
                is_transient=lambda error: isinstance(error, BlockingIOError),
                total_s=busy_s,
            )
        yield


def _number(database: sqlite3.Connection, query: str) -> int:
    return int(database.execute(query).fetchone()[0])


def _named(key: TaskKey) -> tuple[str, str]:
    return _text(key.pipeline), _text(key.step)


def _text(name: str) -> str:
    """*name* as SQLite can keep it: a name that came from bytes may hold lone surrogates."""
    return name.encode("utf-8", "backslashreplace").decode("utf-8")


def _kept(value: Any) -> Any:
    """*value* as a column keeps it."""
    if isinstance(value, str):
        return _text(value)
    return json.dumps(value) if isinstance(value, tuple | list | dict) else value


def _observation(row: Sequence[Any]) -> Observation:
    """The observation in *row*, without its number.

    Raises:
        ValueError, TypeError: it is damaged.
    """
    names = [field.name for field in fields(Observation)]
    found = dict(zip(names, row, strict=True))
    for name in ("curve", "outcomes", "resizes_s"):
        found[name] = json.loads(found[name])
    return Observation(**found)


def default_path() -> Path:
    """``mlops-ext/history.sqlite`` in the user's data directory (``XDG_DATA_HOME``).

    Raises:
        RuntimeError: there is no home directory.
    """
    data = Path(environment().get("XDG_DATA_HOME", ""))
    # A relative one is to be ignored: specifications.freedesktop.org/basedir-spec.
    root = data if data.is_absolute() else Path.home() / ".local" / "share"
    return root / "mlops-ext" / "history.sqlite"
