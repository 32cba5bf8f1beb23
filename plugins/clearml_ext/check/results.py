"""What `check` found out about one target, ready to be shown or written as JSON."""

from __future__ import annotations

import enum
import json
from collections.abc import Iterable
from dataclasses import dataclass

from clearml_ext.check.fixes import Fix, propose
from mlops_ext.errors import MlopsExtError
from mlops_ext.queues.check import Topology, Verdict, check


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
    """

    target: str
    answer: Answer
    reasons: tuple[str, ...] = ()
    fixes: tuple[Fix, ...] = ()
    advice: tuple[str, ...] = ()
    topology: Topology | None = None
    verdict: Verdict | None = None

    @property
    def remedies(self) -> tuple[str, ...]:
        """The fixes in words."""
        return (*(fix.text for fix in self.fixes), *self.advice)

    def to_json(self) -> str:
        """The result as one line of JSON."""
        return json.dumps(
            {
                "file": self.target,
                "verdict": self.answer.value,
                "reasons": list(self.reasons),
                "fixes": list(self.remedies),
            },
            ensure_ascii=False,
        )


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
        lines += [f"  mend it: {text}" for text in result.remedies]
        super().__init__("\n".join(lines))


def examine(target: str, topology: Topology, notes: Iterable[str] = ()) -> Result:
    """Check *topology* and look for fixes; *notes* are told beside the reasons of a refusal."""
    verdict = check(topology)
    if verdict.safe:
        return Result(target=target, answer=Answer.SAFE, topology=topology, verdict=verdict)
    return Result(
        target=target,
        answer=Answer.UNSAFE,
        reasons=(*verdict.reasons, *notes),
        fixes=tuple(propose(topology, verdict)),
        topology=topology,
        verdict=verdict,
    )


def exit_code(results: Iterable[Result]) -> int:
    """0 where all are safe, 1 where one is unsafe, else 2."""
    answers = {result.answer for result in results}
    if Answer.UNSAFE in answers:
        return 1
    return 2 if Answer.UNKNOWN in answers else 0
