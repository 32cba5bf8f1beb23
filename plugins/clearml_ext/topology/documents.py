"""Documents out of YAML and JSON files: what a hostile or a mistyped one does is one clear error.

YAML is read by libyaml's parser where there is one, but put together in Python: libyaml's own
composer ends the process on deep nesting. A key that is given twice is an error in both formats,
since all but the last would be lost without a word.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from mlops_ext.errors import MissingExtraError, TopologyError

MAX_YAML_BYTES = 2**20
"""About 12,000 workers, and four seconds to read."""

MAX_JSON_BYTES = 64 * 2**20
"""10,000 workers that listen to 1,000 queues each still fit."""

_MAX_VALUES = 20_000_000
"""Values, aliases followed: twice those of 10,000 workers that share an alias of 1,000 queues."""


def read_document(path: Path) -> object:
    """What the file *path* says, as mappings, lists, texts and numbers.

    Raises:
        TopologyError: it cannot be read, is too large, or is not valid YAML or JSON.
        MissingExtraError: it is YAML, and there is nothing to read that with.
    """
    text = _text(path)
    if path.suffix == ".json" or text.lstrip().startswith("{"):
        try:
            return json.loads(text, object_pairs_hook=_once)
        except _RepeatedKeyError as error:
            raise TopologyError(str(path), str(error), "each key once") from error
        except (ValueError, RecursionError) as error:
            if path.suffix == ".json":
                raise TopologyError(str(path), _line(error), "valid JSON") from error
    if len(text) > MAX_YAML_BYTES:
        raise _too_large(path, len(text), MAX_YAML_BYTES, "JSON, which may be larger, or ")
    return _yaml(path, text)


def _text(path: Path) -> str:
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_JSON_BYTES + 1)
            if len(raw) > MAX_JSON_BYTES:
                raise _too_large(path, path.stat().st_size, MAX_JSON_BYTES)
        return raw.decode("utf-8-sig")
    except (OSError, ValueError) as error:
        if isinstance(error, TopologyError):
            raise
        found = error if isinstance(error, OSError) else str(error)
        raise TopologyError(str(path), found, "a YAML or JSON file") from error


def _too_large(path: Path, size: int, most: int, other: str = "") -> TopologyError:
    found = f"{size / 2**20:.0f} MiB large"
    return TopologyError(str(path), found, f"{other}at most {most // 2**20} MiB")


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())


class _RepeatedKeyError(ValueError):
    """A key that is given twice in one mapping."""


def _once(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise _repeated(key for key, _ in pairs)
    return found


def _repeated(keys: Iterable[object]) -> _RepeatedKeyError:
    seen: set[object] = set()
    twice = next(key for key in keys if key in seen or seen.add(key))  # type: ignore[func-returns-value]  # add gives None
    return _RepeatedKeyError(f"a mapping with two keys {twice!r}")


def _yaml(path: Path, text: str) -> object:
    try:
        import yaml
        from yaml.composer import Composer
    except ImportError as error:
        raise MissingExtraError("yaml", "clearml") from error
    base: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

    class Loader(Composer, base):  # type: ignore[misc]  # whichever there is
        """The safe loader, with the composer that can be interrupted."""

        def __init__(self, stream: str) -> None:
            base.__init__(self, stream)
            Composer.__init__(self)

    loader = Loader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        _refuse_hostile(node, yaml)
        loaded: object = loader.construct_document(node)
    except _RepeatedKeyError as error:
        raise TopologyError(str(path), str(error), "each key once") from error
    except _AliasError as error:
        raise TopologyError(str(path), str(error), "a document that can be written out") from error
    except RecursionError as error:
        raise TopologyError(str(path), "nested too deep", "valid YAML") from error
    except (yaml.YAMLError, ValueError, OverflowError) as error:
        raise TopologyError(str(path), _line(error), "valid YAML") from error
    finally:
        loader.dispose()
    return loaded


class _AliasError(ValueError):
    """Aliases that repeat themselves forever, or too often."""


def _refuse_hostile(top: Any, yaml: Any) -> None:
    """Refuse keys that are given twice, and aliases that never end or grow beyond all bounds.

    Raises:
        _RepeatedKeyError: a mapping has a key twice; a merged key does not count.
        _AliasError: an alias stands in what it names, or all together are too many values.
    """
    sizes: dict[int, int | None] = {}
    pending = [top]
    while pending:
        node = pending[-1]
        inner = _inner(node)
        if id(node) not in sizes:
            sizes[id(node)] = None  # under way
            if isinstance(node, yaml.MappingNode):
                _refuse_repeated_keys(node, yaml)
            pending += inner
            continue
        pending.pop()
        if sizes[id(node)] is not None:
            continue
        if any(sizes[id(each)] is None for each in inner):
            raise _AliasError("an alias within what it stands for")
        sizes[id(node)] = size = 1 + sum(sizes[id(each)] or 0 for each in inner)
        if size > _MAX_VALUES:
            raise _AliasError(f"aliases that stand for more than {_MAX_VALUES:,} values")


def _inner(node: Any) -> list[Any]:
    """The nodes within *node*."""
    if isinstance(node.value, str):
        return []
    return [each for item in node.value for each in (item if isinstance(item, tuple) else (item,))]


def _refuse_repeated_keys(node: Any, yaml: Any) -> None:
    keys = [
        key.value
        for key, _ in node.value
        if isinstance(key, yaml.ScalarNode) and key.tag != "tag:yaml.org,2002:merge"
    ]
    if len(set(keys)) < len(keys):
        raise _repeated(keys)
