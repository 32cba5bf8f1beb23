"""The settings of this extension: ``[tool.mlops-ext.clearml]``, ``MLOPS_EXT_CLEARML_<FIELD>``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from mlops_ext import settings

SECTION = "clearml"


@dataclass(frozen=True, slots=True, kw_only=True)
class ClearmlSettings:
    """How pipelines are checked and watched.

    Attributes:
        services_queue: where controllers go: the name that ClearML itself uses.
        fix: whether a refused pipeline is rerouted. No: where tasks run is the user's decision.
        fresh_s: age of a worker's last report above which it counts as dead. Agents report
            every 30 s; two reports may get lost. The server itself lists a killed agent for 600
            s.
        timeout_s: for each request to the server. A healthy one answers within a second.
        pending_s: how long a step may wait in a queue before it is explained. An agent asks for
            work every few seconds, so two minutes mean that none is free.
        interval_s: between two polls of the watchdog. Shorter than the 5 s in which an agent
            notices an abort, so that children of an aborted controller are stopped before its
            agent is free again.
        move: whether a step that waits too long is moved to a queue with a free agent. No: it
            could land on a machine without what it needs.
        wait_s: how long a launch that others' runs make unsafe waits for its turn, first come
            first served. Not at all: a script that waits looks like one that hangs.
        capacity: a topology file whose ``workers`` say how many slots the live ones of the same
            name have.
        agents: a topology file to check against, instead of the server's queues and workers.
        check_timeout_s: how long ``check SCRIPT`` lets the script run before it reaches its
            pipelines. Scripts import frameworks and read their data first, which takes minutes
            where both are on a share.
        check_server: if set, pipelines are only checked, and the script asks this server, whatever
            server it names; its process ends where a pipeline would run in it. How ``check
            script.py`` works.
        report: file to add results of checks and refusals to, for the command line that waits
            for them.
    """

    services_queue: str = "services"
    fix: bool = False
    fresh_s: float = 75.0
    timeout_s: float = 10.0
    pending_s: float = 120.0
    interval_s: float = 2.0
    move: bool = False
    wait_s: float = 0.0
    capacity: Path | None = None
    agents: Path | None = None
    check_timeout_s: float = 300.0
    check_server: str = ""
    report: Path | None = None

    def __post_init__(self) -> None:
        """Refuse durations that are not positive."""
        for name in ("fresh_s", "timeout_s", "pending_s", "interval_s", "check_timeout_s"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} = {getattr(self, name)}: expected more than 0")


def load_settings(**arguments: object) -> ClearmlSettings:
    """The settings; *arguments* that are not None win over file and environment."""
    return settings.load(ClearmlSettings, SECTION, arguments=arguments)
