"""Documents as the double keeps them: plain dicts, and how requests pick among them."""

from __future__ import annotations

import copy
import datetime as dt
import re
import uuid

COMPANY, USER = "d1bd92a3b039400cbafc60a7a5b1e52b", "__tests__"
MAX_PAGE = 500


class ApiError(Exception):
    def __init__(self, code, subcode, text):
        super().__init__(text)
        self.code, self.subcode, self.text = code, subcode, text


def now():
    return dt.datetime.now(dt.timezone.utc)


def stamp(moment=None):
    return (moment or now()).isoformat()


def new_id():
    return uuid.uuid4().hex


def get_dotted(document, path):
    for part in path.split("."):
        if not isinstance(document, dict) or part not in document:
            return None
        document = document[part]
    return document


def set_dotted(document, path, value):
    *parents, last = path.split(".")
    for part in parents:
        document = document.setdefault(part, {})
    document[last] = value


def project_fields(document, only_fields):
    if not only_fields:
        return copy.deepcopy(document)
    picked = {}
    for field in only_fields:
        value = get_dotted(document, field)
        if value is not None:
            set_dotted(picked, field, copy.deepcopy(value))
    return picked


def window(found, request):
    """The rows of *found* that a ``get_all`` request gets, and what is said beside them.

    At most 500, a page of them, unless it scrolls.
    """
    if "scroll_id" in request:
        return found[: request["size"]], {"scroll_id": new_id()}
    size = min(request.get("page_size") or MAX_PAGE, MAX_PAGE)
    begin = (request.get("page") or 0) * size
    return found[begin : begin + size], {}


def matches(document, request):
    """Whether *document* is what a ``get_all`` request asks for, in the filters the SDK uses."""
    for key in ("name", "basename"):
        if request.get(key) and not re.search(request[key], document.get(key, "")):
            return False
    for key in ("id", "project", "status", "type", "parent"):
        wanted = request.get(key)
        if wanted and document.get(key) not in (wanted if isinstance(wanted, list) else [wanted]):
            return False
    for key in ("system_tags", "tags"):
        if not _has_tags(document.get(key, []), request.get(key) or []):
            return False
    pattern = request.get("_any_") or {}
    fields, text = pattern.get("fields") or [], pattern.get("pattern")
    return not text or any(re.search(text, str(get_dotted(document, f) or "")) for f in fields)


def _has_tags(tags, wanted):
    """Whether *tags* are as *wanted*: with each of them, without those that follow a minus."""
    wanted = [tag for tag in wanted if not tag.startswith("__$")]
    return all(tag[1:] not in tags if tag.startswith("-") else tag in tags for tag in wanted)
