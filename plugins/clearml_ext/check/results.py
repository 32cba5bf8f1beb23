"""What `check` found out about one target, ready to be shown or written as JSON."""

from __future__ import annotations

import dataclasses
import enum
import json
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from clearml_ext.check.fixes import Fix, propose
from clearml_ext.topology.file import parse_topology, topology_document
from clearml_ext.topology.labels import pipeline_of, take_slots
from mlops_ext.errors import MlopsExtError
from mlops_ext.queues.check import Chain, Topology, Verdict, check


class Answer(enum.Enum):
    """What is known of a target."""

    SAFE = "safe"
    UNSAFE = "unsafe"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What was found out about one target.

    Attributes:
        target: the file, script or task, as the user named it.
        answer: what is known.
        reasons: why it is refused or not known, in words.
        fixes: changes that make it safe, the gentlest first.
        advice: fixes that were found in another process, in words.
        topology: what was checked, or None where it could not be read.
        verdict: what the checker said, or None likewise.
        notes: what is worth knowing beside that, and refuses nothing.
    """

    target: str
    answer: Answer
    reasons: tuple[str, ...] = ()
    fixes: tuple[Fix, ...] = ()
    advice: tuple[str, ...] = ()
    topology: Topology | None = None
    verdict: Verdict | None = None
    notes: tuple[str, ...] = ()

    @property
    def remedies(self) -> tuple[str, ...]:
        """The fixes in words."""
        return (*(fix.text for fix in self.fixes), *self.advice)

    def to_json(self) -> str:
        """The result as one line of JSON."""
        return json.dumps(self.document(), ensure_ascii=False)

    def document(self) -> dict[str, Any]:
        """The result as `to_json` writes it."""
        return {
            "file": self.target,
            "verdict": self.answer.value,
            "reasons": list(self.reasons),
            "fixes": list(self.remedies),
            **({"notes": list(self.notes)} if self.notes else {}),
        }


class UnsafePipelineError(MlopsExtError):
    """A pipeline was not launched, because it could hang forever.

    Attributes:
        result: the reasons and the fixes.
    """

    def __init__(self, result: Result) -> None:
        self.result = result
        why = "it can wait forever"
        if result.answer is Answer.UNKNOWN:
            why = "whether it can wait forever is not known"
        lines = [f"{result.target} was not launched: {why}"]
        lines += [f"  {reason}" for reason in result.reasons]
        lines += [f"  fix: {text}" for text in result.remedies]
        super().__init__("\n".join(lines))


def examine(
    target: str,
    topology: Topology,
    notes: Iterable[str] = (),
    services: str = "services",
    *,
    mine: str | None = None,
) -> Result:
    """Check *topology* and look for fixes.

    Args:
        target: what the user named.
        topology: what runs, and where.
        notes: told beside the reasons of a refusal.
        services: the queue that controllers may be sent to.
        mine: name of the pipeline to launch; a deadlock of other pipelines alone is a note.
    """
    looks = [(topology, check(topology))] if mine is None else list(looks_at(topology, mine))
    *before, (topology, verdict) = looks
    said = (*notes, *(f"beside it: {text}" for _, other in before for text in other.reasons))
    return Result(
        target=target,
        answer=Answer.SAFE if verdict.safe else Answer.UNSAFE,
        reasons=() if verdict.safe else (*verdict.reasons, *said),
        fixes=tuple(propose(topology, verdict, services)),
        topology=topology,
        verdict=verdict,
        notes=said if verdict.safe else (),
    )


def looks_at(topology: Topology, mine: str = "") -> Iterator[tuple[Topology, Verdict]]:
    """Check *topology* again and again without the runs found stuck, until *mine* is stuck or none.

    A stuck run that has started keeps its slot; one that has not started is left out.
    """
    while True:
        verdict = check(topology)
        yield topology, verdict
        stuck = {pipeline_of(chain.waiting) for chain in verdict.chains}
        if not stuck or any(_concerns(chain, mine) for chain in verdict.chains):
            return
        left = without_stuck(topology, stuck)
        if left == topology:
            return
        topology = left


def _concerns(chain: Chain, name: str) -> bool:
    paths = (chain.waiting, *(hold.task for hold in (*chain.holds, *chain.blockers)))
    return any(pipeline_of(path) == name for path in paths)


def without_stuck(topology: Topology, stuck: Collection[str]) -> Topology:
    """*topology* without the pipelines *stuck*, whose slots stay taken where they run."""
    taken = [each.worker for each in topology.pipelines if each.name in stuck and each.worker]
    workers = take_slots(topology.workers, taken)
    pipelines = tuple(each for each in topology.pipelines if each.name not in stuck)
    return dataclasses.replace(topology, workers=workers, pipelines=pipelines)


def merge(target: str, results: Sequence[Result]) -> Result:
    """Merge the results of one script's pipelines: the worst answer, and all reasons."""
    if len(results) == 1:
        return dataclasses.replace(results[0], target=target)
    order = (Answer.UNSAFE, Answer.UNKNOWN, Answer.SAFE)
    worst = min(results, key=lambda result: order.index(result.answer))
    return dataclasses.replace(
        worst,
        target=target,
        reasons=_all(result.reasons for result in results),
        advice=_all(result.advice for result in results),
        notes=_all(result.notes for result in results),
    )


def _all(parts: Iterable[tuple[str, ...]]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(text for part in parts for text in part))


def dump_result(result: Result) -> str:
    """*result* as one line for another process, with the topology that was checked."""
    topology = None if result.topology is None else topology_document(result.topology)
    return json.dumps({**result.document(), "topology": topology})


def load_result(line: str) -> Result:
    """The result that `dump_result` wrote; its fixes come as advice, in words.

    Raises:
        ValueError, KeyError: it is none.
    """
    found = json.loads(line)
    topology = found["topology"] and parse_topology(found["topology"])
    return Result(
        target=found["file"],
        answer=Answer(found["verdict"]),
        reasons=tuple(found["reasons"]),
        advice=tuple(found["fixes"]),
        notes=tuple(found.get("notes", ())),
        topology=topology or None,
        verdict=check(topology) if topology else None,
    )


def exit_code(results: Iterable[Result]) -> int:
    """Exit status: 0 if all are safe, 1 if one is unsafe, else 2."""
    answers = {result.answer for result in results}
    if Answer.UNSAFE in answers:
        return 1
    return 2 if Answer.UNKNOWN in answers else 0
