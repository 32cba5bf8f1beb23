"""Documents out of YAML and JSON files: what a hostile or a mistyped one does is one clear error.

YAML is read by libyaml where there is one, after a look at its events: libyaml's own composer ends
the process on deep nesting. A key that is given twice is an error in both formats, because
all but the last would be lost without a word.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from mlops_ext.errors import MissingExtraError, TopologyError
from mlops_ext.processes.collector import without_collector

# About 12,000 workers, and a second to read.
MAX_YAML_BYTES = 2**20

# 10,000 workers that listen to 1,000 queues each still fit.
MAX_JSON_BYTES = 64 * 2**20

# Values, aliases followed: twice those of 10,000 workers that share an alias of 1,000 queues.
_MAX_VALUES = 20_000_000
# Levels of a YAML file: four for each sub-pipeline, twice as many as there may be.
_MAX_LEVELS = 400
# Letters of a name or a number: of 1:1:1:… YAML makes a number for hours.
_MAX_LETTERS = 1000
_SHORTER = f"at most {_MAX_LETTERS:,}"
_WRITABLE = "a document that can be written out"


def read_document(path: Path) -> object:
    """Read the file *path* as mappings, lists, texts and numbers.

    Raises:
        TopologyError: it cannot be read, is too large, or is not valid YAML or JSON.
        MissingExtraError: it is YAML, and there is nothing to read that with.
    """
    text = _text(path)
    if path.suffix == ".json" or text.lstrip().startswith("{"):
        try:
            return json.loads(text, object_pairs_hook=_once)
        except _HostileError as error:
            raise TopologyError(str(path), str(error), error.expected) from error
        except (ValueError, RecursionError) as error:
            if path.suffix == ".json":
                raise TopologyError(str(path), _line(error), "valid JSON") from error
    if len(text) > MAX_YAML_BYTES:
        raise _too_large(path, len(text), MAX_YAML_BYTES, "JSON, which may be larger, or ")
    return _yaml(path, text)


def _text(path: Path) -> str:
    try:
        with path.open("rb") as file:
            raw, size = file.read(MAX_JSON_BYTES + 1), path.stat().st_size
        text = raw[:MAX_JSON_BYTES].decode("utf-8-sig")
    except (OSError, ValueError) as error:
        found = error if isinstance(error, OSError) else str(error)
        raise TopologyError(str(path), found, "a YAML or JSON file") from error
    if len(raw) > MAX_JSON_BYTES:
        raise _too_large(path, size, MAX_JSON_BYTES)
    return text


def _too_large(path: Path, size: int, most: int, other: str = "") -> TopologyError:
    found = f"{size / 2**20:.0f} MiB large"
    return TopologyError(str(path), found, f"{other}at most {most // 2**20} MiB")


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())


class _HostileError(ValueError):
    """A document with a duplicate key, or with aliases that expand to too many values.

    Args:
        found: what is wrong with it.
        expected: what it should be.
    """

    def __init__(self, found: str, expected: str) -> None:
        super().__init__(found)
        self.expected = expected


def _once(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        raise _repeated(next(key for key in keys if keys.count(key) > 1))
    return found


def _repeated(key: object) -> _HostileError:
    return _HostileError(f"a mapping with two keys {key!r}", "each key once")


def _yaml(path: Path, text: str) -> object:
    try:
        import yaml
    except ImportError as error:
        raise MissingExtraError("yaml", "clearml") from error
    loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    try:
        with without_collector():
            _refuse_hostile(yaml.parse(text, loader), yaml)
            return yaml.load(text, loader)  # noqa: S506  # a safe loader
    except _HostileError as error:
        raise TopologyError(str(path), str(error), error.expected) from error
    except (yaml.YAMLError, ValueError, OverflowError, RecursionError) as error:
        raise TopologyError(str(path), _line(error), "valid YAML") from error


def _refuse_hostile(events: Iterable[Any], yaml: Any) -> None:
    """Refuse repeated keys, deep nesting, and aliases that never end or grow beyond all bounds.

    Raises:
        _HostileError: the document has one of these; a merged key may be given again.
    """
    sizes: dict[str, int] = {}  # how many values each anchor stands for
    levels = [_Level()]
    for event in events:
        if isinstance(event, yaml.CollectionStartEvent):
            levels.append(_Level(event.anchor, mapping=isinstance(event, yaml.MappingStartEvent)))
            if len(levels) > _MAX_LEVELS:
                raise _HostileError("nested too deep", "valid YAML")
        elif isinstance(event, (yaml.NodeEvent, yaml.CollectionEndEvent)):
            if isinstance(event, yaml.ScalarEvent) and len(event.value) > _MAX_LETTERS:
                raise _HostileError(f"a text of {len(event.value):,} letters", _SHORTER)
            ended = isinstance(event, yaml.CollectionEndEvent)
            node = levels.pop() if ended else _Level(event.anchor)
            if not isinstance(event, yaml.AliasEvent):
                sizes[node.anchor or ""] = node.size
            elif any(level.anchor == node.anchor for level in levels):
                raise _HostileError("an alias within what it stands for", _WRITABLE)
            else:
                node.size = sizes.get(node.anchor or "", 1)
            levels[-1].add(node, event.value if isinstance(event, yaml.ScalarEvent) else None)
            if levels[-1].size > _MAX_VALUES:
                text = f"aliases that stand for more than {_MAX_VALUES:,} values"
                raise _HostileError(text, _WRITABLE)


class _Level:
    """A mapping or a list that is being read."""

    def __init__(self, anchor: str | None = None, *, mapping: bool = False) -> None:
        self.anchor, self.mapping, self.size, self.count = anchor, mapping, 1, 0
        self.keys: set[str] = set()

    def add(self, node: _Level, text: str | None) -> None:
        """Count *node*, the next within this one; *text* is what a scalar says."""
        if self.mapping and self.count % 2 == 0 and text not in {None, "<<"}:
            if text in self.keys:
                raise _repeated(text)
            self.keys.add(str(text))
        self.count += 1
        self.size += node.size
