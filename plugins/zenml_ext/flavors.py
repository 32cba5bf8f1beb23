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


_REMOTE = (
    ("artifact-store", "-a", "s3 --path=s3://BUCKET"),
    ("container-registry", "-c", "default --uri=REGISTRY"),
    ("image-builder", "-i", "local"),
)
"""What a stack for Kubernetes must have: kind, option, flavor."""


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
    context = " --kubernetes_context=CONTEXT" if is_remote else ""
    parts = (("orchestrator", "-o", f"{flavor}{context}"), *(_REMOTE if is_remote else ()))
    steps, options = [], [] if is_remote else ["-a default"]
    for kind, option, wanted in parts:
        known = [
            one.name
            for one in client.list_stack_components(type=Kind(kind.replace("-", "_")))
            if (_flavor_name(one) == flavor if kind == "orchestrator" else not _is_local(one))
        ]
        name = known[0] if known else f"{flavor}_{kind}"
        if not known:
            steps.append(f"zenml {kind} register {name} --flavor {wanted}")
        options.append(f"{option} {name}")
    return [*steps, f"zenml stack register {flavor}_stack {' '.join(options)} --set"]


def _is_local(component: object) -> bool:
    """Whether pods cannot reach it: an artifact store on this machine."""
    kind = getattr(getattr(component, "type", None), "value", "")
    return str(kind) == "artifact_store" and _flavor_name(component) == "local"


def _flavor_name(component: object) -> str:
    name = getattr(component, "flavor_name", None)
    return str(name) if name is not None else str(getattr(component, "flavor", ""))
