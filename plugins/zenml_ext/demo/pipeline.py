"""A user's pipeline, for the demo: copied into an empty folder and run from there."""

import json
import sys
from pathlib import Path

from zenml import pipeline, step
from zenml.client import Client
from zenml.enums import ArtifactType, StackComponentType
from zenml.materializers.base_materializer import BaseMaterializer

NEEDED_MIB = 550


class Packed(list[int]):
    """A value that is stored by way of a temporary directory."""


class PackedMaterializer(BaseMaterializer):
    """Stores it, and writes down where the temporary directory was."""

    ASSOCIATED_TYPES = (Packed,)
    ASSOCIATED_ARTIFACT_TYPE = ArtifactType.DATA

    def save(self, data: Packed) -> None:
        """Write to a temporary directory, then to the store, while a file is held open."""
        with self.get_temporary_directory(delete_at_exit=True) as directory:
            held = Path(directory, "packed.json").open("w+")  # noqa: SIM115  # held on purpose
            json.dump(data, held)
            held.flush()
            Path("temp_dir_used").write_text(directory)
            with self.artifact_store.open(f"{self.uri}/packed.json", "w") as target:
                target.write(json.dumps(data))
        PackedMaterializer.held = held  # type: ignore[attr-defined]

    def load(self, data_type: type[Packed]) -> Packed:
        """Read it back."""
        with self.artifact_store.open(f"{self.uri}/packed.json", "r") as source:
            return data_type(json.load(source))


@step(
    settings={"orchestrator": {"memory": "500Mi", "stop_grace_s": 1}},
    output_materializers=PackedMaterializer,
)
def hungry() -> Packed:
    """Need more than the limit."""
    block = bytearray(NEEDED_MIB * 1024**2)
    block[::4096] = b"x" * len(block[::4096])
    return Packed([len(block)])


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
