"""Talking to an object store: what each answer means, and nothing that can be raised into a call.

Repeating is obstore's work: 429, 5xx and broken connections are tried again with growing pauses,
conditional writes only where that is safe. What comes back here is final, or has lasted for
``retry_s``; the store is then left alone for a minute, so that not every call waits anew.
"""

from __future__ import annotations

import datetime as dt
import enum
import os
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from joblib_ext.settings import SharedOptions
from joblib_ext.stores.objects.location import hide, open_obstore
from mlops_ext.errors import MlopsExtError
from mlops_ext.redaction import redacted

# A transfer may take long, but not stand still for longer than a stalled server is waited for.
_IDLE_BODY = "20s"
# obstore's own bound, 30 s, would end the transfer of a large result.
_TOTAL = "1h"
# A renewal that takes longer than the shortest usual lease has failed.
_QUICK_S = 5.0
# So long a store that did not answer is left alone: calls compute, and need not wait to.
_REST_S = 60.0
_FORKED = (
    "this process was forked by one that had used the object store, which the store's client"
    " cannot stand; start workers by spawn, forkserver or joblib's loky"
)
# Servers answer with whole documents; what is wrong stands at the beginning.
_LONGEST = 600
# The tag of no object.
NO_TAG = {"e_tag": '"0123456789abcdef"', "version": "1"}
# Keys of one bulk delete: the most that S3 takes.
_BULK = 1000


class Answer(enum.Enum):
    """Why a request brought nothing."""

    MISSING = "there is no such object"
    TAKEN = "the object is there already, or has changed"
    FAILED = "the store refused, or did not answer"


class StoreError(MlopsExtError, OSError):
    """The object store refused a write, or did not answer."""


class Client:
    """The requests that one location needs, which is a URL without a slash at its end."""

    def __init__(self, location: str, options: SharedOptions) -> None:
        self._error: BaseException | None = None
        self._secret: Mapping[str, Any] = options.storage_options or {}
        self._retry_s = options.retry_s
        self._silent_until = 0.0
        self._pid: int | None = None
        whole = {"timeout": _TOTAL, "read_timeout": _IDLE_BODY}
        quick = {"timeout": f"{min(_QUICK_S, options.lease_s):.2f}s"}
        self._store, self._quick = (
            open_obstore(
                location, self._secret, client_options=bounds, retry_config=_retries(for_s)
            )
            for bounds, for_s in ((whole, self._retry_s), (quick, options.lease_s / 2))
        )

    @property
    def trouble(self) -> str:
        """The last failure, for people; without what is secret."""
        if self._error is None:
            return _FORKED
        text = redacted(self._error).partition(" Debug source")[0]
        return hide(text, self._secret)[:_LONGEST]

    def get(self, key: str, **options: Any) -> Any:
        """Obstore's result of a GET, or an `Answer`; the body is not read yet."""
        return self.run(lambda obstore: obstore.get(self._store, key, options=options or None))

    def put(self, key: str, data: Any, mode: Any = "overwrite", *, quick: bool = False) -> Any:
        """The new tag of the object, or an `Answer`. One atomic write, whatever *mode* says.

        A tag is obstore's pair of e_tag and version, of which each cloud compares its own; as
        *mode*, it is the one that the object must have.
        """
        store = self._quick if quick else self._store
        parts = {} if mode == "overwrite" else {"use_multipart": False}  # a condition: one piece
        return self.run(lambda obstore: tag_of(obstore.put(store, key, data, mode=mode, **parts)))

    def delete(self, keys: Sequence[str]) -> object:
        """None if the objects are gone, whether they were there or not."""
        for start in range(0, len(keys), _BULK):
            part = list(keys[start : start + _BULK])
            failed = self.run(lambda obstore: obstore.delete(self._store, part))  # noqa: B023  # at once
            if failed is not None:
                return failed
        return None

    def objects(self, prefix: str) -> list[Any]:
        """All objects below *prefix*: dictionaries with path, size, e_tag and last_modified.

        Raises:
            StoreError: the store did not answer.
        """
        found = self.run(lambda obstore: obstore.list(self._store, prefix).collect())
        return list(self.must(found))

    def names(self, prefix: str) -> list[str]:
        """Names of what stands directly below *prefix*.

        Raises:
            StoreError: the store did not answer.
        """
        found = self.run(lambda obstore: obstore.list_with_delimiter(self._store, prefix))
        paths = [*self.must(found)["common_prefixes"], *(row["path"] for row in found["objects"])]
        return [str(path).rstrip("/").rpartition("/")[2] for path in paths]

    def must(self, answer: Any) -> Any:
        """What a request brought.

        Raises:
            StoreError: nothing.
        """
        if isinstance(answer, Answer):
            raise StoreError(self.trouble)
        return answer

    def run(self, request: Callable[[Any], Any]) -> Any:
        """What *request* brings, which is given obstore, or an `Answer`.

        Nothing is asked for a while after a failure, nor in a child forked after a request:
        obstore's threads do not follow a fork, and the child would wait forever.
        """
        import obstore
        from obstore import exceptions

        is_forked = self._pid not in (None, os.getpid())
        if is_forked or time.monotonic() < self._silent_until:
            self._error = None if is_forked else self._error
            return Answer.FAILED
        self._pid = os.getpid()
        begun = time.monotonic()
        try:
            return request(obstore)
        except (exceptions.AlreadyExistsError, exceptions.PreconditionError):
            return Answer.TAKEN
        except Exception as error:  # noqa: BLE001  # a client of many clouds raises what it likes
            self._error = error.with_traceback(None)  # its frames keep calls
            if isinstance(error, FileNotFoundError):  # obstore's NotFoundError is one
                return Answer.MISSING
            lasted_s = time.monotonic() - begun
            if lasted_s > self._retry_s / 2:
                self._silent_until = begun + lasted_s + _REST_S
            return Answer.FAILED


def tag_of(found: Mapping[str, Any]) -> dict[str, Any]:
    """The tag in what obstore says of an object."""
    return {name: found[name] for name in NO_TAG if found.get(name) is not None}


def _retries(total_s: float) -> dict[str, Any]:
    """Obstore's way of trying again: as often as fits, 0.1 s apart at first, 3 s at most."""
    return {
        "max_retries": 20,
        "retry_timeout": dt.timedelta(seconds=total_s),
        "backoff": {
            "init_backoff": dt.timedelta(seconds=0.1),
            "max_backoff": dt.timedelta(seconds=3),
            "base": 2,
        },
    }
