"""Making the flavors known to the ZenML server that is active."""

from __future__ import annotations

import enum
import importlib
import importlib.util
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from zenml.client import Client

FLAVORS = {
    "local_oom": "zenml_ext.local.flavor.LocalOomFlavor",
    "kubernetes_oom": "zenml_ext.kubernetes.flavor.KubernetesOomFlavor",
}


_SHORT = {
    "orchestrator": "orchestrator",
    "artifact_store": "store",
    "container_registry": "registry",
    "image_builder": "builder",
}
_USUAL = {"artifact_store": "s3", "container_registry": "default", "image_builder": "local"}
_UNFIT = {"artifact_store": "local"}
"""A store on this machine is out of the pods' reach."""


class Known(enum.Enum):
    """What registering a flavor came to."""

    NEW = "registered"
    SAME = "already registered"
    UPDATED = "registered again: its settings have changed"
    MISSING = "not registered: it needs the package kubernetes (pip install kubernetes)"
    FOREIGN = "not registered: another flavor has this name"


@dataclass(frozen=True, slots=True, kw_only=True)
class Registered:
    """A flavor, and what registering it came to."""

    name: str
    outcome: Known
    detail: str = ""


def register(client: Client) -> Iterator[Registered]:
    """Register each flavor that can be used here; doing so again changes nothing."""
    from zenml.enums import StackComponentType

    kind = StackComponentType.ORCHESTRATOR
    for name, source in FLAVORS.items():
        if importlib.util.find_spec(source.rpartition(".")[0]) is None:
            continue
        if name == "kubernetes_oom" and importlib.util.find_spec("kubernetes") is None:
            yield Registered(name=name, outcome=Known.MISSING)
            continue
        page = client.list_flavors(name=name, type=kind, hydrate=True)
        if not page.total:
            client.create_flavor(source=source, component_type=kind)
            yield Registered(name=name, outcome=Known.NEW)
            continue
        found = page[0]
        module, _, attribute = source.rpartition(".")
        ours = getattr(importlib.import_module(module), attribute)()
        if found.source != source:
            yield Registered(name=name, outcome=Known.FOREIGN, detail=found.source)
        elif found.config_schema == ours.config_schema:
            yield Registered(name=name, outcome=Known.SAME)
        else:
            client.delete_flavor(str(found.id))
            client.create_flavor(source=source, component_type=kind)
            yield Registered(name=name, outcome=Known.UPDATED)


def next_steps(client: Client, flavor: str) -> list[str]:
    """What to type to use *flavor*; empty where the active stack uses it."""
    from zenml.enums import StackComponentType as Kind

    active = client.active_stack_model.components.get(Kind.ORCHESTRATOR, ())
    if any(_flavor_name(one) == flavor for one in active):
        return []
    is_remote = flavor == "kubernetes_oom"
    needed = [(Kind.ORCHESTRATOR, "-o", "--kubernetes_context=CONTEXT" if is_remote else "")]
    if is_remote:  # ZenML refuses a stack for Kubernetes without these
        needed += [
            (Kind.ARTIFACT_STORE, "-a", "--path=s3://BUCKET"),
            (Kind.CONTAINER_REGISTRY, "-c", "--uri=REGISTRY"),
            (Kind.IMAGE_BUILDER, "-i", ""),
        ]
    steps, parts = [], [] if is_remote else ["-a default"]
    for kind, option, more in needed:
        known = [
            one
            for one in client.list_stack_components(type=kind)
            if (_flavor_name(one) == flavor)
            or (kind is not Kind.ORCHESTRATOR and _flavor_name(one) != _UNFIT.get(kind.value))
        ]
        name = known[0].name if known else f"{flavor}_{_SHORT[kind.value]}"
        if not known:
            wanted = flavor if kind is Kind.ORCHESTRATOR else _USUAL[kind.value]
            command = f"zenml {kind.value.replace('_', '-')} register {name} --flavor {wanted}"
            steps.append(f"{command} {more}".rstrip())
        parts.append(f"{option} {name}")
    steps.append(f"zenml stack register {flavor}_stack {' '.join(parts)} --set")
    return steps


def _flavor_name(component: object) -> str:
    name = getattr(component, "flavor_name", None)
    return str(name) if name is not None else str(getattr(component, "flavor", ""))
