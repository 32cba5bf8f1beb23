"""Agents to start, as files: with them a plan is safe, and the checker itself has said so."""

from __future__ import annotations

import dataclasses
import re
from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any

from clearml_ext.check.fixes import agent_command, services_command
from clearml_ext.topology.file import dump_yaml
from clearml_ext.topology.labels import ACCELERATOR, all_steps, labels_of
from mlops_ext.errors import TopologyError
from mlops_ext.queues.check import Topology, Worker, check

_UNIT = """[Unit]
Description=ClearML agent for the queue {queue}
Wants=network-online.target
After=network-online.target

[Service]
EnvironmentFile=/etc/clearml/agent.env
{environment}
ExecStart=/usr/bin/env {command}
Restart=always
RestartSec=10

[Install]
WantedBy=multi-user.target
"""
# Agents for one queue; a plan that needs more should give its sub-pipelines a queue.
_MOST = 50
_ALL_GPUS = {"driver": "nvidia", "count": "all", "capabilities": ["gpu"]}


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """Agents that make a plan safe.

    Attributes:
        topology: the plan with them; the checker calls it safe.
        agents: those to start; each serves one queue.
        changes: what has to be changed in the pipelines themselves, in words.
    """

    topology: Topology
    agents: tuple[Worker, ...]
    changes: tuple[str, ...] = ()

    def compose(self) -> dict[str, str]:
        """A file for docker compose, by its name; ``clearml.env`` has the credentials."""
        services = {name: self._service(name, each) for name, each in self._named().items()}
        return {"docker-compose.yaml": dump_yaml({"services": services})}

    def systemd(self) -> dict[str, str]:
        """A unit for each agent, by file name; ``/etc/clearml/agent.env`` has the credentials."""
        return {
            f"{name}.service": _UNIT.format(
                queue=_percent(agent.queues[0]),
                environment="\n".join(
                    f"Environment={key}={value}"
                    for key, value in _environment(f"%H:{name}", agent).items()
                ),
                command=_percent(_command(agent)),
            )
            for name, agent in self._named().items()
        }

    def helm(self) -> dict[str, str]:
        """Values of the chart ``clearml-agent`` for each agent; its secret has the credentials."""
        return {
            f"values-{name}.yaml": dump_yaml(
                {
                    "clearml": {"existingAgentk8sglueSecret": "clearml-agent"},
                    "agentk8sglue": {
                        "queue": agent.queues[0],
                        "createQueueIfNotExists": True,
                        "extraEnvs": [{"name": "CLEARML_WORKER_TAGS", "value": "k8s-glue"}],
                    },
                }
            )
            for name, agent in self._named().items()
        }

    def _named(self) -> dict[str, Worker]:
        """The agents by names that are fit for files and services."""
        found: dict[str, Worker] = {}
        for agent in self.agents:
            slug = re.sub(r"[^a-z0-9]+", "-", agent.queues[0].casefold()).strip("-")
            name = f"clearml-agent-{slug}"
            while name in found:
                name += "-other"
            found[name] = agent
        return found

    def _service(self, name: str, agent: Worker) -> dict[str, Any]:
        install = "python3 -m pip install -q clearml-agent"
        service: dict[str, Any] = {
            "image": "allegroai/clearml-agent-services:latest",
            "entrypoint": ["sh", "-c", f"{install} && exec {_command(agent)}"],
            "env_file": "clearml.env",
            "environment": _environment(f"compose:{name}", agent),
            "volumes": ["/var/run/docker.sock:/var/run/docker.sock"],
            "restart": "unless-stopped",
        }
        if ACCELERATOR in labels_of(agent.queues[0], self.topology.labels):
            service["deploy"] = {"resources": {"reservations": {"devices": [_ALL_GPUS]}}}
        return service


def manifest(topology: Topology, services: str = "services", *, anew: bool = False) -> Manifest:
    """Find the agents that *topology* lacks to be safe, as few as will do.

    Args:
        topology: what runs, and the agents that there are.
        services: the queue that controllers are sent to, if they have to leave theirs.
        anew: name all agents that are needed, as if there were none.

    Raises:
        TopologyError: no agents make it safe: steps wait for each other.
    """
    steps = [step for each in topology.pipelines for step in all_steps(each.steps)]
    working = {step.queue for step in steps if not step.steps}
    target = next(name for name in (services, "controllers", "pipelines") if name not in working)
    leaving = [each for each in topology.pipelines if each.queue in working and not each.worker]
    plan = dataclasses.replace(
        topology,
        workers=() if anew else topology.workers,
        pipelines=tuple(
            dataclasses.replace(each, queue=target) if each in leaving else each
            for each in topology.pipelines
        ),
    )
    agents = list(_agents(plan, working))
    verdict = check(_with(plan, agents))
    if not verdict.safe:
        raise TopologyError("the plan", verdict.reasons[0], "a plan that agents can make safe")
    for agent in tuple(agents):  # as few as will do
        rest = [each for each in agents if each is not agent]
        if check(_with(plan, rest)).safe:
            agents = rest
    return Manifest(
        topology=_with(plan, agents),
        agents=tuple(agents),
        changes=tuple(f"put the controller of {each.name} in queue {target}" for each in leaving),
    )


def _with(topology: Topology, agents: list[Worker]) -> Topology:
    return dataclasses.replace(topology, workers=(*topology.workers, *agents))


def _agents(topology: Topology, working: Collection[str]) -> Iterator[Worker]:
    """Name enough agents for each queue: for controllers any number of slots, for steps one.

    Where sub-pipelines share a queue with steps (*working*), one more for each that may wait there.
    """
    name = "new agent"
    while any(worker.name.startswith(name) for worker in topology.workers):
        name = f"another {name}"
    holding = Counter(dict.fromkeys(working, 0))
    for pipeline in topology.pipelines:
        if pipeline.queue is not None and pipeline.worker is None:
            holding[pipeline.queue] += pipeline.instances
        for step in all_steps(pipeline.steps):
            holding[step.queue] += pipeline.instances if step.steps else 0
    for queue, count in sorted(holding.items()):
        mixed = queue in working
        for at in range(1, 2 + min(count, _MOST) if mixed else 2):
            slots = 1 if mixed else None
            yield Worker(name=f"{name} {at} on {queue}", queues=(queue,), slots=slots)


def _command(agent: Worker) -> str:
    make = services_command if agent.slots is None else agent_command
    return make(agent.queues[0]).replace("--detached", "--foreground")


def _environment(name: str, agent: Worker) -> dict[str, str]:
    tags = {"CLEARML_WORKER_TAGS": "services-mode"} if agent.slots is None else {}
    return {"CLEARML_WORKER_ID": name, **tags}


def _percent(text: str) -> str:
    """*text* as systemd takes it literally."""
    return text.replace("%", "%%")
