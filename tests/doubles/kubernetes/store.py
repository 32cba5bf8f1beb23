"""Objects, their versions, watches, selectors and patches: the part etcd and the API machinery play."""

from __future__ import annotations

import bisect
import marshal
import threading
import uuid
from collections import defaultdict
from collections.abc import Callable
from datetime import datetime, timezone

from tests.doubles.kubernetes import clock
from tests.doubles.kubernetes.selectors import matches_fields, matches_labels

Object = dict
Key = tuple[str, str]  # namespace, name


def clone(value: Object) -> Object:
    """A copy of JSON data, all the way down; twenty times as fast as `copy.deepcopy`.

    Format 2 writes what occurs twice in *value* twice: no two parts of the copy are one object.
    """
    return marshal.loads(marshal.dumps(value, 2))


class ApiError(Exception):
    """What the server answers with a Status object."""

    def __init__(self, code: int, reason: str, message: str) -> None:
        super().__init__(message)
        self.code, self.reason, self.message = code, reason, message

    def status(self) -> Object:
        return {
            "kind": "Status",
            "apiVersion": "v1",
            "metadata": {},
            "status": "Failure",
            "message": self.message,
            "reason": self.reason,
            "code": self.code,
        }


def now() -> str:
    at = datetime.fromtimestamp(clock.wall(), timezone.utc)
    return at.strftime("%Y-%m-%dT%H:%M:%SZ")


class Store:
    """Every object, behind one lock; each change gets the next resource version.

    No object in it is ever edited: a change puts an edited copy in the place of the old one. So
    readers need no copy of their own, and must not edit what they get.
    """

    def __init__(self) -> None:
        self.lock = threading.Condition(threading.RLock())
        self.objects: dict[str, dict[Key, Object]] = defaultdict(dict)  # by plural
        self.log: list[tuple[int, str, str, Object]] = []  # version, type, plural, object
        self.version = 100

    def _record(self, kind: str, plural: str, obj: Object) -> None:
        self.version += 1
        obj["metadata"]["resourceVersion"] = str(self.version)
        self.log.append((self.version, kind, plural, obj))
        self.lock.notify_all()

    def create(self, plural: str, namespace: str, obj: Object) -> Object:
        """Take *obj* in, which is the store's from now on."""
        with self.lock:
            meta = obj.setdefault("metadata", {})
            if "name" not in meta:
                meta["name"] = meta["generateName"] + uuid.uuid4().hex[:5]
            key = (namespace, meta["name"])
            if key in self.objects[plural]:
                raise ApiError(409, "AlreadyExists", f'{plural} "{meta["name"]}" already exists')
            if namespace:
                meta["namespace"] = namespace
            meta.setdefault("uid", str(uuid.uuid4()))
            meta.setdefault("creationTimestamp", now())
            meta.setdefault("generation", 1)
            self.objects[plural][key] = obj
            self._record("ADDED", plural, obj)
            return obj

    def get(self, plural: str, namespace: str, name: str) -> Object:
        found = self.find(plural, namespace, name)
        if found is None:
            raise ApiError(404, "NotFound", f'{plural} "{name}" not found')
        return found

    def find(self, plural: str, namespace: str, name: str) -> Object | None:
        with self.lock:
            return self.objects[plural].get((namespace, name))

    def change(
        self, plural: str, namespace: str, name: str, edit: Callable[[Object], object]
    ) -> Object | None:
        """Edit a copy of an object and put it in its place, atomically; None when it is gone."""
        with self.lock:
            old = self.find(plural, namespace, name)
            if old is None:
                return None
            new = clone(old)
            edit(new)
            if new == old:
                return old
            self.objects[plural][namespace, name] = new
            self._record("MODIFIED", plural, new)
            return new

    def remove(self, plural: str, namespace: str, name: str) -> Object | None:
        with self.lock:
            obj = self.objects[plural].pop((namespace, name), None)
            if obj is not None:
                self._record("DELETED", plural, clone(obj))
            return obj

    def select(
        self, plural: str, namespace: str = "", labels: str = "", fields: str = ""
    ) -> list[Object]:
        with self.lock:
            return [
                obj
                for (place, _), obj in self.objects[plural].items()
                if (not namespace or place == namespace)
                and matches_labels(labels, obj["metadata"].get("labels") or {})
                and matches_fields(fields, obj)
            ]

    def events_since(
        self, version: int, wait_s: float, plural: str
    ) -> tuple[int, list[tuple[str, Object]]]:
        """Type and object of each change after *version*, and the version it has come to."""
        with self.lock:
            if self.version <= version:
                self.lock.wait(wait_s)
            begin = bisect.bisect_right(self.log, version, key=lambda entry: entry[0])
            found = [(kind, obj) for _, kind, about, obj in self.log[begin:] if about == plural]
            return self.version, found


MERGE_KEYS = {"containers": "name", "initContainers": "name", "env": "name", "volumes": "name"}


def merge(target: object, patch: object, *, strategic: bool, field: str = "") -> object:
    """A JSON merge patch (RFC 7386); with *strategic*, lists with a merge key merge by it."""
    if isinstance(patch, dict):
        result = dict(target) if isinstance(target, dict) else {}
        for key, value in patch.items():
            if value is None:
                result.pop(key, None)
            else:
                result[key] = merge(result.get(key), value, strategic=strategic, field=key)
        return result
    if strategic and isinstance(patch, list) and field in MERGE_KEYS and isinstance(target, list):
        key, result_list = MERGE_KEYS[field], clone(target)
        for item in patch:
            for index, old in enumerate(result_list):
                if old.get(key) == item.get(key):
                    result_list[index] = merge(old, item, strategic=True)
                    break
            else:
                result_list.append(item)
        return result_list
    return clone(patch)
