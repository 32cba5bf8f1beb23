"""Agents to start, as files: with them a plan is safe, and the checker itself has said so."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from clearml_ext.check.fixes import agent_command, all_steps, services_command
from clearml_ext.topology.file import dump_yaml
from clearml_ext.topology.labels import ACCELERATOR, labels_of
from mlops_ext.errors import TopologyError
from mlops_ext.queues.check import Pipeline, Step, Topology, Worker, check

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
    """The agents that *topology* lacks to be safe, as few as will do.

    Args:
        topology: what runs, and the agents that there are.
        services: the queue that controllers are sent to, if they have to leave theirs.
        anew: name all agents that are needed, as if there were none.

    Raises:
        TopologyError: no agents make it safe: steps wait for each other.
    """
    bare = dataclasses.replace(topology, workers=()) if anew else topology
    for plan, changes in ((bare, ()), _separated(bare, services)):
        agents = list(_agents(plan))
        verdict = check(_with(plan, agents))
        if not verdict.safe:
            continue
        for agent in tuple(agents):  # as few as will do
            rest = [each for each in agents if each is not agent]
            if check(_with(plan, rest)).safe:
                agents = rest
        return Manifest(topology=_with(plan, agents), agents=tuple(agents), changes=tuple(changes))
    raise TopologyError("the plan", verdict.reasons[0], "a plan that agents can make safe")


def _with(topology: Topology, agents: list[Worker]) -> Topology:
    return dataclasses.replace(topology, workers=(*topology.workers, *agents))


def _agents(topology: Topology) -> Iterator[Worker]:
    """An agent for each queue: any number of slots for controllers, one for steps."""
    names = {worker.name for worker in topology.workers}
    steps = [step for each in topology.pipelines for step in all_steps(each.steps)]
    working = {step.queue for step in steps if not step.steps}
    waiting = {each.queue for each in topology.pipelines if each.queue and not each.worker}
    waiting |= {step.queue for step in steps if step.steps}
    for queue in sorted(working | waiting):
        name = next(n for n in (queue, f"{queue}-manifest", f"{queue}-new") if n not in names)
        yield Worker(name=name, queues=(queue,), slots=1 if queue in working else None)


def _separated(topology: Topology, services: str) -> tuple[Topology, list[str]]:
    """*topology* with all controllers in queues that no plain step uses, and what was changed."""
    steps = [step for each in topology.pipelines for step in all_steps(each.steps)]
    working = {step.queue for step in steps if not step.steps}
    target = next(name for name in (services, "controllers", "pipelines") if name not in working)
    changes: list[str] = []

    def moved(path: str, steps: tuple[Step, ...]) -> tuple[Step, ...]:
        found = []
        for step in steps:
            inner = f"{path}/{step.name}"
            queue = step.queue
            if step.steps and queue in working:
                changes.append(f"put the sub-pipeline {inner} in queue {target}")
                queue = target
            found.append(dataclasses.replace(step, queue=queue, steps=moved(inner, step.steps)))
        return tuple(found)

    def change(each: Pipeline) -> Pipeline:
        queue = each.queue
        if queue in working and each.worker is None:
            changes.append(f"put the controller of {each.name} in queue {target}")
            queue = target
        return dataclasses.replace(each, queue=queue, steps=moved(each.name, each.steps))

    pipelines = tuple(change(each) for each in topology.pipelines)
    return dataclasses.replace(topology, pipelines=pipelines), changes


def _command(agent: Worker) -> str:
    make = services_command if agent.slots is None else agent_command
    return make(agent.queues[0]).replace("--detached", "--foreground")


def _environment(name: str, agent: Worker) -> dict[str, str]:
    tags = {"CLEARML_WORKER_TAGS": "services-mode"} if agent.slots is None else {}
    return {"CLEARML_WORKER_ID": name, **tags}


def _percent(text: str) -> str:
    """*text* as systemd takes it literally."""
    return text.replace("%", "%%")
