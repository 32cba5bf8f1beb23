"""Topology files: what runs where, written down, so that a plan can be checked with no server.

The schema is in ``docs/reference/clearml.md``. YAML and JSON hold the same document.
"""

from __future__ import annotations

import itertools
import json
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from clearml_ext.topology.documents import read_document
from mlops_ext.errors import MissingExtraError, MlopsExtError, TopologyError, nearest
from mlops_ext.files import publish
from mlops_ext.queues.check import Pipeline, Step, Topology, Worker

# The word for any number of slots.
UNBOUNDED = "unbounded"

# Sub-pipelines within each other; nobody nests a tenth of that.
_MAX_DEPTH = 100

# Five times the largest number that is known.
_MAX_WORKERS = 50_000

# Runs of one pipeline at the same time; each is counted by itself.
_MAX_INSTANCES = 10_000

# Categories of characters that steer a terminal, end a line, or are half of one.
_CONTROL = frozenset({"Cc", "Cs", "Zl", "Zp"})

# Characters that turn the text around them, so that a name is read as another.
_BIDI = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")

# Steps of all pipelines, a hundred times a large plan; aliases make millions out of a few.
_MAX_STEPS = 100_000


def read_topology(path: Path, *, whole: bool = True) -> Topology:
    """Read the topology file *path*; if it need not be *whole*, pipelines may be missing.

    Raises:
        TopologyError: it cannot be read, is not YAML or JSON, or does not keep to the schema.
        UnknownNameError: it names a step or a worker that it does not describe.
    """
    document = read_document(path)
    if document is None:
        raise TopologyError(str(path), "empty", "workers and pipelines")
    if not whole and isinstance(document, dict):
        document = {"pipelines": [], **document}
    return parse_topology(document)


def parse_topology(document: object) -> Topology:
    """Parse *document*, made of mappings, lists, texts and numbers.

    Raises:
        TopologyError: it does not keep to the schema; the message names the place.
        UnknownNameError: it names a step or a worker that it does not describe.
    """
    top = _mapping(document, "the topology", ("pipelines",), ("workers", "queues"))
    counted = itertools.count(1)
    rows = _list(top.get("workers") or [], "workers")
    if len(rows) > _MAX_WORKERS:
        raise TopologyError("the number of workers", len(rows), f"at most {_MAX_WORKERS:,}")
    labels: dict[str, frozenset[str]] = {}
    workers = [_worker(each, f"workers[{at}]", labels) for at, each in enumerate(rows)]
    queues = [
        _queue(each, f"queues[{at}]", workers, labels)
        for at, each in enumerate(_list(top.get("queues") or [], "queues"))
    ]
    pipelines = _list(top["pipelines"], "pipelines")
    return Topology(
        workers=tuple(workers),
        pipelines=tuple(
            _pipeline(each, f"pipelines[{at}]", counted) for at, each in enumerate(pipelines)
        ),
        queues=tuple(dict.fromkeys(queues)),
        labels=labels,
    )


def _worker(item: object, where: str, labels: dict[str, frozenset[str]]) -> Worker:
    entry = _mapping(item, where, ("name", "queues"), ("slots", "labels"))
    worker = Worker(
        name=_name(entry["name"], f"{where}.name"),
        queues=_names(entry["queues"], f"{where}.queues"),
        slots=_slots(entry.get("slots", 1), f"{where}.slots"),
    )
    if "labels" in entry:  # a queue offers what all of its workers have
        mine = frozenset(_names(entry["labels"], f"{where}.labels"))
        labels.update({queue: mine & labels.get(queue, mine) for queue in worker.queues})
    return worker


def _queue(
    item: object, where: str, workers: list[Worker], labels: dict[str, frozenset[str]]
) -> str:
    """The name of a queue; adds the machines of one that is autoscaled to *workers*."""
    if not isinstance(item, dict):
        return _name(item, where)
    entry = _mapping(item, where, ("name",), ("labels", "autoscaled", "min", "max"))
    name = _name(entry["name"], f"{where}.name")
    if "labels" in entry:
        labels[name] = frozenset(_names(entry["labels"], f"{where}.labels"))
    scaled = entry.get("autoscaled", "max" in entry)
    most = entry.get("max", UNBOUNDED) if scaled is True else scaled
    least = _slots(entry.get("min", 0), f"{where}.min")
    if scaled is not False:
        scaler = autoscaler(name, _slots(most, f"{where}.max"), workers)
        if least is None or (scaler.slots is not None and least > scaler.slots):
            raise TopologyError(f"{where}.min", entry["min"], "no more than max")
        workers.append(scaler)
    return name


def autoscaler(queue: str, most: int | None, workers: Sequence[Worker]) -> Worker:
    """The machines that may yet be started for *queue*, of *most* at the same time.

    They come when tasks wait, so they count while there are none; *workers* that serve this queue
    alone are some of them.
    """
    there = sum(each.slots or 0 for each in workers if each.queues == (queue,))
    slots = None if most is None else max(0, most - there)
    return Worker(name=f"autoscaler of {queue}", queues=(queue,), slots=slots)


def _slots(value: object, where: str) -> int | None:
    if value == UNBOUNDED:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise TopologyError(where, _short(value), f'a whole number from 0 or "{UNBOUNDED}"')
    return value


def _pipeline(item: object, where: str, counted: Iterator[int]) -> Pipeline:
    entry = _mapping(item, where, ("name", "queue"), ("instances", "steps", "worker"))
    queue, worker = entry["queue"], entry.get("worker")
    instances: Any = entry.get("instances", 1)
    whole = isinstance(instances, int) and not isinstance(instances, bool)
    if not (whole and 1 <= instances <= _MAX_INSTANCES):
        raise TopologyError(
            f"{where}.instances", _short(instances), f"a whole number from 1 to {_MAX_INSTANCES:,}"
        )
    return Pipeline(
        name=_name(entry["name"], f"{where}.name"),
        queue=None if queue is None else _name(queue, f"{where}.queue"),
        instances=instances,
        worker=None if worker is None else _name(worker, f"{where}.worker"),
        steps=_steps(entry.get("steps"), f"{where}.steps", counted, 0),
    )


def _steps(value: object, where: str, counted: Iterator[int], depth: int) -> tuple[Step, ...]:
    if depth > _MAX_DEPTH:
        raise TopologyError(f"{where[:40]}…", "a sub-pipeline", f"at most {_MAX_DEPTH} in a row")
    steps = _list([] if value is None else value, where)
    return tuple(_step(each, f"{where}[{at}]", counted, depth) for at, each in enumerate(steps))


def _step(item: object, where: str, counted: Iterator[int], depth: int) -> Step:
    if next(counted) > _MAX_STEPS:
        raise TopologyError("the number of steps", f"over {_MAX_STEPS:,}", "fewer")
    entry = _mapping(item, where, ("name", "queue"), ("after", "needs", "pipeline"))
    nested: object = None
    if entry.get("pipeline") is not None:
        inner = _mapping(entry["pipeline"], f"{where}.pipeline", (), ("name", "steps"))
        nested = inner.get("steps")
    return Step(
        name=_name(entry["name"], f"{where}.name"),
        queue=_name(entry["queue"], f"{where}.queue"),
        after=_names(entry.get("after"), f"{where}.after"),
        needs=_names(entry.get("needs"), f"{where}.needs"),
        steps=_steps(nested, f"{where}.pipeline.steps", counted, depth + 1),
    )


def _mapping(
    value: object, where: str, required: tuple[str, ...], optional: tuple[str, ...]
) -> Mapping[str, object]:
    if not isinstance(value, dict):
        raise TopologyError(where, _short(value), "a mapping")
    keys = (*required, *optional)
    for key in value:
        if key not in keys:
            near = nearest(str(key), keys)
            hint = f"{near!r}" if near else f"one of {', '.join(keys)}"
            raise TopologyError(f"a key of {where}", _short(key), hint)
    for key in required:
        if key not in value:
            raise TopologyError(where, _short(value), f"to have a {key}")
    return value


def _list(value: object, where: str) -> list[object]:
    if not isinstance(value, list):
        raise TopologyError(where, _short(value), "a list")
    return value


def _names(value: object, where: str) -> tuple[str, ...]:
    if value is None:
        return ()
    items = _list(value, where) if not isinstance(value, str) else [value]
    named = (_name(each, f"{where}[{at}]") for at, each in enumerate(items))
    return tuple(dict.fromkeys(named))


def _name(value: object, where: str) -> str:
    """A name; YAML reads a bare ``1`` as a number, which is meant as a name here."""
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, str) or not value.strip():
        raise TopologyError(where, _short(value), "a name")
    if any(unicodedata.category(each) in _CONTROL or each in _BIDI for each in value):
        raise TopologyError(where, _short(value), "a name without control characters")
    return value


def _short(value: object) -> object:
    text = repr(value)
    return value if len(text) <= 80 else f"{text[:77]}..."  # noqa: PLR2004  # a line's length


def topology_document(topology: Topology) -> dict[str, Any]:
    """*topology* as the document that `parse_topology` reads."""
    queues: list[Any] = [queue for queue in topology.queues if queue not in topology.labels]
    queues += [{"name": name, "labels": sorted(each)} for name, each in topology.labels.items()]
    workers = [
        {
            "name": each.name,
            "queues": list(each.queues),
            "slots": UNBOUNDED if each.slots is None else each.slots,
        }
        for each in topology.workers
    ]
    pipelines = [
        {"name": each.name, "queue": each.queue, "instances": each.instances}
        | ({"worker": each.worker} if each.worker else {})
        | {"steps": list(map(_step_document, each.steps))}
        for each in topology.pipelines
    ]
    return {"workers": workers, **({"queues": queues} if queues else {}), "pipelines": pipelines}


def _step_document(step: Step) -> dict[str, Any]:
    nested = {"steps": list(map(_step_document, step.steps))} if step.steps else None
    more = {"after": list(step.after), "needs": list(step.needs), "pipeline": nested}
    said = {key: value for key, value in more.items() if value}
    return {"name": step.name, "queue": step.queue, **said}


def write_topology(topology: Topology, path: Path) -> None:
    """Write *topology* to *path*, as JSON if the name ends in .json, else as YAML."""
    document, as_json = topology_document(topology), path.suffix == ".json"
    write(path, json.dumps(document, indent=2) + "\n" if as_json else dump_yaml(document))


def dump_yaml(document: object) -> str:
    """*document* as YAML."""
    try:
        import yaml
    except ImportError as error:
        raise MissingExtraError("yaml", "clearml") from error
    return str(yaml.safe_dump(document, sort_keys=False))


def write(path: Path, text: str) -> None:
    """Write *text* to the file *path*: all of it, or nothing.

    Raises:
        TopologyError: it cannot be written.
    """
    try:
        publish(path, [text.encode()])
    except (OSError, MlopsExtError) as error:
        found = error if isinstance(error, OSError) else str(error)
        raise TopologyError(str(path), found, "a place that can be written to") from error
