"""Selectors of labels and of fields, as the API server reads them."""

from __future__ import annotations

import functools
import re

Term = tuple[str, str, frozenset[str]]  # label, operator, values


@functools.lru_cache(maxsize=4096)
def _terms(selector: str) -> tuple[Term, ...]:
    """The terms of a label selector: equality-based and set-based ones."""
    parts = (part.strip() for part in re.split(r",(?![^(]*\))", selector))
    return tuple(_term(part) for part in parts if part)


def _term(text: str) -> Term:
    if found := re.fullmatch(r"(\S+)\s+(in|notin)\s+\(([^)]*)\)", text):
        return found[1], found[2], frozenset(value.strip() for value in found[3].split(","))
    if found := re.fullmatch(r"(.*?)(!=|==?)(.*)", text):
        operator = "notin" if found[2] == "!=" else "in"
        return found[1].strip(), operator, frozenset({found[3].strip()})
    return (text[1:], "absent", frozenset()) if text[0] == "!" else (text, "exists", frozenset())


def matches_labels(selector: str, labels: dict[str, str]) -> bool:
    for key, operator, values in _terms(selector):
        if operator in {"in", "notin"}:
            holds = (labels.get(key) in values) == (operator == "in")
        else:
            holds = (key in labels) == (operator == "exists")
        if not holds:
            return False
    return True


def matches_fields(selector: str, obj: dict) -> bool:
    for term in filter(None, selector.split(",")):
        negated = "!=" in term
        path, value = re.split("!=|==?", term, maxsplit=1)
        found: object = obj
        for part in path.split("."):
            found = found.get(part, "") if isinstance(found, dict) else ""
        if (str(found) == value) == negated:
            return False
    return True


def matches_selector(selector: dict, labels: dict[str, str]) -> bool:
    """A LabelSelector object, as affinity terms hold it."""
    for key, value in (selector.get("matchLabels") or {}).items():
        if labels.get(key) != value:
            return False
    for rule in selector.get("matchExpressions") or []:
        key, operator, values = rule["key"], rule["operator"], rule.get("values") or []
        holds = {
            "In": labels.get(key) in values,
            "NotIn": labels.get(key) not in values,
            "Exists": key in labels,
            "DoesNotExist": key not in labels,
        }[operator]
        if not holds:
            return False
    return True
