"""Making the flavors known to the ZenML server that is active."""

from __future__ import annotations

import enum
import importlib
import importlib.util
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from zenml.client import Client

FLAVORS = (
    ("orchestrator", "local_oom", "zenml_ext.local.flavor.LocalOomFlavor"),
    ("orchestrator", "kubernetes_oom", "zenml_ext.kubernetes.flavor.KubernetesOomFlavor"),
    (
        "step_operator",
        "kubernetes_oom",
        "zenml_ext.kubernetes.flavor.KubernetesOomStepOperatorFlavor",
    ),
)


# What a stack for Kubernetes must have: kind, option, flavor.
_REMOTE = (
    ("artifact-store", "-a", "s3 --path=s3://BUCKET"),
    ("container-registry", "-c", "default --uri=REGISTRY"),
    ("image-builder", "-i", "local"),
)


class Known(enum.Enum):
    """What registering a flavor came to."""

    NEW = "registered"
    SAME = "already registered"
    UPDATED = "registered again: its settings have changed"
    MISSING = "not registered: it needs the package kubernetes (pip install kubernetes)"
    FOREIGN = "not registered: another flavor has this name"


@dataclass(frozen=True, slots=True, kw_only=True)
class Registered:
    """A flavor, and what registering it came to; *kind* as in ``step_operator``."""

    kind: str
    name: str
    outcome: Known
    detail: str = ""


def register(client: Client) -> Iterator[Registered]:
    """Register each flavor that can be used here; doing so again changes nothing."""
    from zenml.enums import StackComponentType
    from zenml.models import FlavorUpdate

    for kind, name, source in FLAVORS:
        what, detail = StackComponentType(kind), ""
        module, _, attribute = source.rpartition(".")
        if name == "kubernetes_oom" and importlib.util.find_spec("kubernetes") is None:
            yield Registered(kind=kind, name=name, outcome=Known.MISSING)
            continue
        page = client.list_flavors(name=name, type=what, hydrate=True)
        outcome = Known.NEW
        if page.total:
            found, ours = page[0], getattr(importlib.import_module(module), attribute)()
            outcome = Known.SAME if found.config_schema == ours.config_schema else Known.UPDATED
            if found.source != source:
                outcome, detail = Known.FOREIGN, found.source
            elif outcome is Known.UPDATED:  # in its place: one that a stack uses cannot be deleted
                new = FlavorUpdate(config_schema=ours.config_schema)
                client.zen_store.update_flavor(found.id, new)
        else:
            client.create_flavor(source=source, component_type=what)
        yield Registered(kind=kind, name=name, outcome=outcome, detail=detail)


def next_steps(client: Client, flavor: str) -> list[str]:
    """What to type to use *flavor*; empty where the active stack uses it."""
    from zenml.enums import StackComponentType as Kind

    active = client.active_stack_model.components.get(Kind.ORCHESTRATOR, ())
    if any(one.flavor_name == flavor for one in active):
        return []
    is_remote = flavor == "kubernetes_oom"
    context = " --kubernetes_context=CONTEXT" if is_remote else ""
    parts = (("orchestrator", "-o", f"{flavor}{context}"), *(_REMOTE if is_remote else ()))
    steps, options = [], [] if is_remote else ["-a default"]
    for kind, option, wanted in parts:
        known = [
            one.name
            for one in client.list_stack_components(type=Kind(kind.replace("-", "_")))
            if (one.flavor_name == flavor if kind == "orchestrator" else not _is_local(one))
        ]
        name = known[0] if known else f"{flavor}_{kind}"
        if not known:
            steps.append(f"zenml {kind} register {name} --flavor {wanted}")
        options.append(f"{option} {name}")
    return [*steps, f"zenml stack register {flavor}_stack {' '.join(options)} --set"]


def _is_local(component: Any) -> bool:
    """Whether pods cannot reach it: an artifact store on this machine."""
    return bool(component.type.value == "artifact_store" and component.flavor_name == "local")
