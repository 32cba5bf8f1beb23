"""What is added to a pod, or refuses it, when it is created: limit ranges and quotas."""

from __future__ import annotations

from tests.doubles.kubernetes.defaults import quantity
from tests.doubles.kubernetes.sizes import total
from tests.doubles.kubernetes.store import ApiError, Object, Store


def admit_pod(store: Store, namespace: str, pod: Object) -> None:
    apply_limit_ranges(store, namespace, pod)
    check_quotas(store, namespace, pod)


def apply_limit_ranges(store: Store, namespace: str, pod: Object) -> None:
    for limit_range in store.select("limitranges", namespace):
        for item in limit_range["spec"]["limits"]:
            _apply_limit_range(item, pod, pod["metadata"]["name"])


def check_quotas(store: Store, namespace: str, pod: Object) -> None:
    """Refuse a pod, new or resized, that its namespace's quotas have no room for."""
    name, uid = pod["metadata"]["name"], pod["metadata"].get("uid")
    for quota in store.select("resourcequotas", namespace):
        for key, hard in quota["spec"]["hard"].items():
            kind, _, resource = key.rpartition(".")
            if resource != "memory":
                continue
            section = "limits" if kind == "limits" else "requests"
            asked = total(pod, section)
            if not asked:
                raise ApiError(
                    403,
                    "Forbidden",
                    f'pods "{name}" is forbidden: failed quota: {quota["metadata"]["name"]}: must'
                    f" specify {key} for: {pod['spec']['containers'][0]['name']}",
                )
            used = sum(
                total(other, section, given=True)
                for other in store.select("pods", namespace)
                if other["status"]["phase"] in {"Pending", "Running"}
                and other["metadata"]["uid"] != uid
            )
            if used + asked > quantity(hard):
                raise ApiError(
                    403,
                    "Forbidden",
                    f'pods "{name}" is forbidden: exceeded quota: {quota["metadata"]["name"]},'
                    f" requested: {key}={_short(asked)}, used: {key}={_short(used)},"
                    f" limited: {key}={hard}",
                )


def _apply_limit_range(item: Object, pod: Object, name: str) -> None:
    for container in pod["spec"]["containers"]:
        resources = container["resources"]
        for section, key in (("limits", "default"), ("requests", "defaultRequest")):
            for resource, value in (item.get(key) or {}).items():
                resources.setdefault(section, {}).setdefault(resource, value)
        most = (item.get("max") or {}).get("memory")
        limit = (resources.get("limits") or {}).get("memory")
        if most and limit and quantity(limit) > quantity(most):
            raise ApiError(
                403,
                "Forbidden",
                f'pods "{name}" is forbidden: maximum memory usage per Container is {most},'
                f" but limit is {limit}",
            )


def _short(size: float) -> str:
    mib = size / (1 << 20)
    return f"{mib:.0f}Mi" if mib == int(mib) else str(int(size))
