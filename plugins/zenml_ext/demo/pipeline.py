"""A user's pipeline, for the demo: copied into an empty folder and run from there."""

import json
import sys

from zenml import pipeline, step
from zenml.client import Client
from zenml.enums import StackComponentType

NEEDED_MIB = 550


@step(settings={"orchestrator": {"memory": "500Mi", "stop_grace_s": 1}})
def hungry() -> int:
    """Need more than the limit."""
    block = bytearray(NEEDED_MIB * 1024**2)
    block[::4096] = b"x" * len(block[::4096])
    return len(block)


@pipeline(enable_cache=False)
def oom_demo() -> None:
    """One step is enough."""
    hungry()


def set_up() -> None:
    """What a user types once: register the flavor, an orchestrator, a stack."""
    from zenml_ext import flavors as _flavors

    client = Client()
    list(_flavors.register(client))
    kind = StackComponentType.ORCHESTRATOR
    client.create_stack_component(
        "local_oom", flavor="local_oom", component_type=kind, configuration={}
    )
    client.create_stack("oom", {kind: "local_oom", StackComponentType.ARTIFACT_STORE: "default"})


def report() -> None:
    """Print the last run as a line of JSON."""
    client = Client()
    run = client.list_pipeline_runs(sort_by="desc:created", size=1, hydrate=True)[0]
    rows = client.list_run_steps(pipeline_run_id=run.id, size=10, hydrate=True)
    document = {
        "status": run.status.value,
        "attempts": [json.loads(json.dumps(dict(r.run_metadata))) for r in rows],
    }
    sys.stdout.write(f"\nREPORT {json.dumps(document)}\n")


if __name__ == "__main__":
    for action in sys.argv[1:]:
        if action == "set_up":
            set_up()
        elif action == "report":
            report()
        else:
            Client().activate_stack(action)
            oom_demo()
